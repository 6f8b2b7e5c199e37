//! Classes of channels with similar distributions: Lloyd's algorithm under the Kullback-Leibler divergence.
//!
//! Each channel goes to the class whose table codes its histogram in the fewest bits, then each table becomes
//! the sum of its channels' histograms. Only the encoder does this; what readers see are integers.

use super::counts::Counts;

const ROUNDS: usize = 6;
/// Channels that the rounds look at; all are assigned at the end.
const SAMPLE: usize = 3072;
/// Added to every count of a class, so that no symbol is impossible.
const SMOOTHING: f32 = 0.25;

/// Channels by class.
#[derive(Debug)]
pub(crate) struct Clusters {
    /// The class of each member.
    pub(crate) class_of: Vec<u8>,
    /// The summed histogram of each class, 1 to 256 of them.
    pub(crate) sums: Vec<Vec<u64>>,
}

/// Sorts `members`, which are rows of `counts`, into at most `classes` (1 to 256) classes. A row has several
/// histograms of `alphabet` symbols.
pub(crate) fn cluster(
    counts: &Counts,
    members: &[usize],
    (alphabet, histograms): (usize, usize),
    classes: usize,
) -> Clusters {
    let seen: Vec<usize> = (0..members.len()).filter(|m| !counts.row(members[*m]).1.is_empty()).collect();
    let mut class_of = vec![0u8; members.len()];
    if seen.len() <= classes {
        for (class, member) in seen.iter().enumerate() {
            class_of[*member] = class as u8;
        }
    } else {
        let step = seen.len().div_ceil(SAMPLE);
        let sample: Vec<usize> = seen.iter().step_by(step).copied().collect();
        let mut codes = Codes::new(alphabet, histograms, classes);
        initial(counts, members, &sample, alphabet, classes, &mut class_of);
        for _ in 0..ROUNDS {
            codes.fit(counts, sample.iter().map(|m| (members[*m], class_of[*m])));
            for member in &sample {
                class_of[*member] = codes.nearest(counts.row(members[*member]));
            }
        }
        codes.fit(counts, sample.iter().map(|m| (members[*m], class_of[*m])));
        for member in &seen {
            class_of[*member] = codes.nearest(counts.row(members[*member]));
        }
    }
    sums(counts, members, alphabet * histograms, class_of)
}

/// Leaves out classes without members and adds up the others.
fn sums(counts: &Counts, members: &[usize], entries: usize, mut class_of: Vec<u8>) -> Clusters {
    let mut used = [false; 256];
    for class in &class_of {
        used[usize::from(*class)] = true;
    }
    let mut rank = [0u8; 256];
    let mut sums = Vec::new();
    for (class, _) in used.iter().enumerate().filter(|(_, used)| **used) {
        rank[class] = sums.len() as u8;
        sums.push(vec![0u64; entries]);
    }
    for (class, row) in class_of.iter_mut().zip(members) {
        *class = rank[usize::from(*class)];
        counts.add_to(*row, &mut sums[usize::from(*class)]);
    }
    if sums.is_empty() {
        sums.push(vec![0; entries]);
    }
    Clusters { class_of, sums }
}

/// First classes: blocks of similar mean, within each of similar spread, by the first histogram of each row.
fn initial(
    counts: &Counts,
    members: &[usize],
    sample: &[usize],
    alphabet: usize,
    classes: usize,
    class_of: &mut [u8],
) {
    let mut features: Vec<(f32, f32, usize)> = sample
        .iter()
        .map(|member| {
            let (first, row) = counts.row(members[*member]);
            let (mut n, mut mean, mut square) = (0.0, 0.0, 0.0);
            for (symbol, count) in row.iter().enumerate().take(alphabet.saturating_sub(first)) {
                let (symbol, count) = ((first + symbol) as f64, f64::from(*count));
                n += count;
                mean += count * symbol;
                square += count * symbol * symbol;
            }
            mean /= n;
            (mean as f32, (square / n - mean * mean) as f32, *member)
        })
        .collect();
    features.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.2.cmp(&b.2)));
    let blocks = classes.isqrt();
    for block in 0..blocks {
        let part = |i: usize, of: usize, len: usize| i * len / of;
        let range = part(block, blocks, features.len())..part(block + 1, blocks, features.len());
        let (low, high) = (part(block, blocks, classes), part(block + 1, blocks, classes));
        let block = &mut features[range];
        block.sort_by(|a, b| a.1.total_cmp(&b.1).then(a.2.cmp(&b.2)));
        let len = block.len();
        for (i, (_, _, member)) in block.iter().enumerate() {
            class_of[*member] = (low + part(i, len, high - low)) as u8;
        }
    }
}

/// Code lengths of every symbol in every class.
struct Codes {
    classes: usize,
    /// Symbols of each histogram.
    alphabet: usize,
    /// `[symbol][class]`, bits, negative.
    logs: Vec<f32>,
    sums: Vec<f32>,
    costs: Vec<f32>,
}

impl Codes {
    fn new(alphabet: usize, histograms: usize, classes: usize) -> Self {
        let sums = vec![0.0; alphabet * histograms * classes];
        Self { classes, alphabet, logs: sums.clone(), sums, costs: vec![0.0; classes] }
    }

    /// Makes tables from `(row, class)` pairs. A class without members codes everything badly.
    fn fit(&mut self, counts: &Counts, members: impl Iterator<Item = (usize, u8)>) {
        self.sums.fill(0.0);
        for (row, class) in members {
            let (first, row) = counts.row(row);
            for (symbol, count) in row.iter().enumerate() {
                self.sums[(first + symbol) * self.classes + usize::from(class)] += *count as f32;
            }
        }
        let histogram = self.alphabet * self.classes;
        for (logs, sums) in self.logs.chunks_exact_mut(histogram).zip(self.sums.chunks_exact(histogram)) {
            self.costs.fill(0.0);
            for row in sums.chunks_exact(self.classes) {
                for (total, count) in self.costs.iter_mut().zip(row) {
                    *total += count + SMOOTHING;
                }
            }
            for (logs, row) in logs.chunks_exact_mut(self.classes).zip(sums.chunks_exact(self.classes)) {
                for ((log, count), total) in logs.iter_mut().zip(row).zip(&self.costs) {
                    *log = ((count + SMOOTHING) / total).log2();
                }
            }
        }
    }

    /// The class that codes a histogram in the fewest bits.
    fn nearest(&mut self, (first, row): (usize, &[u32])) -> u8 {
        self.costs.fill(0.0);
        for (logs, count) in self.logs.chunks_exact(self.classes).skip(first).zip(row) {
            if *count > 0 {
                let count = *count as f32;
                for (cost, log) in self.costs.iter_mut().zip(logs) {
                    *cost += count * log;
                }
            }
        }
        let mut best = 0;
        for (class, cost) in self.costs.iter().enumerate() {
            if *cost > self.costs[best] {
                best = class;
            }
        }
        // At most 256 classes.
        best as u8
    }
}
