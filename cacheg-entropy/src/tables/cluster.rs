//! Classes of channels with similar distributions: Lloyd's algorithm under the Kullback-Leibler divergence.
//!
//! Each channel goes to the class whose table codes its histogram in the fewest bits, then each table becomes
//! the sum of its channels' histograms. Only the encoder does this; what readers see are integers.

use super::contexts::{Bands, CHOICE, Choice};
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
    /// With contexts: the bands of each member where they begin.
    pub(crate) choices: Vec<Choice>,
    /// The summed histogram of each class, 1 to 256 of them; with contexts as [`Bands::fold`] makes them.
    pub(crate) sums: Vec<Vec<u64>>,
}

/// Sorts `members`, which are rows of `counts`, into at most `classes` (1 to 256) classes. With contexts, each
/// row chooses where they begin too.
pub(crate) fn cluster(counts: &Counts, members: &[usize], bands: Bands, classes: usize) -> Clusters {
    let seen: Vec<usize> = (0..members.len()).filter(|m| !counts.row(members[*m]).1.is_empty()).collect();
    let mut found = Found { class_of: vec![0; members.len()], choices: vec![CHOICE; members.len()] };
    if seen.len() <= classes && !bands.contexts {
        for (class, member) in seen.iter().enumerate() {
            found.class_of[*member] = class as u8;
        }
    } else if !seen.is_empty() {
        let step = seen.len().div_ceil(SAMPLE);
        let sample: Vec<usize> = seen.iter().step_by(step).copied().collect();
        let mut codes = Codes::new(bands, classes);
        initial(counts, members, &sample, bands.alphabet, classes, &mut found.class_of);
        // Contexts fit better with another look at all.
        let all = [&seen].into_iter().cycle().take(1 + usize::from(bands.contexts));
        let mut known = &sample;
        for chosen in std::iter::repeat_n(&sample, ROUNDS).chain(all) {
            codes.fit(counts, known.iter().map(|m| (members[*m], found.class_of[*m], found.choices[*m])));
            for member in chosen {
                let nearest = codes.nearest(counts.row(members[*member]));
                (found.class_of[*member], found.choices[*member]) = nearest;
            }
            known = chosen;
        }
    }
    found.sums(counts, members, bands)
}

/// What was found of each member.
struct Found {
    class_of: Vec<u8>,
    choices: Vec<Choice>,
}

impl Found {
    /// Leaves out classes without members and adds up the others.
    fn sums(mut self, counts: &Counts, members: &[usize], bands: Bands) -> Clusters {
        let mut used = [false; 256];
        for class in &self.class_of {
            used[usize::from(*class)] = true;
        }
        let mut rank = [0u8; 256];
        let mut sums = Vec::new();
        for (class, _) in used.iter().enumerate().filter(|(_, used)| **used) {
            rank[class] = sums.len() as u8;
            sums.push(vec![0u64; bands.folded()]);
        }
        for ((class, choice), row) in self.class_of.iter_mut().zip(&self.choices).zip(members) {
            *class = rank[usize::from(*class)];
            bands.fold(counts.row(*row), *choice, &mut sums[usize::from(*class)]);
        }
        if sums.is_empty() {
            sums.push(vec![0; bands.folded()]);
        }
        Clusters { class_of: self.class_of, choices: self.choices, sums }
    }
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
    bands: Bands,
    classes: usize,
    /// `[context][symbol][class]`, bits, negative.
    logs: Vec<f32>,
    sums: Vec<f32>,
    /// `[context][class]`
    costs: Vec<f32>,
    best: Vec<Best>,
}

/// The best way to code the bands so far in one class.
#[derive(Debug, Clone, Copy)]
struct Best {
    /// Of the second context's begin: the gain over the first.
    second: f32,
    second_at: u8,
    /// Of both: the gain over all being the third.
    both: f32,
    choice: Choice,
}

impl Codes {
    fn new(bands: Bands, classes: usize) -> Self {
        let sums = vec![0.0; bands.contexts() * bands.alphabet * classes];
        let none = Best { second: f32::MIN, second_at: 0, both: f32::MIN, choice: CHOICE };
        let costs = vec![0.0; bands.contexts() * classes];
        Self { bands, classes, logs: sums.clone(), sums, costs, best: vec![none; classes] }
    }

    /// Makes tables from rows, their classes and choices. A class without members codes everything badly.
    fn fit(&mut self, counts: &Counts, members: impl Iterator<Item = (usize, u8, Choice)>) {
        self.sums.fill(0.0);
        for (row, class, choice) in members {
            let row = counts.row(row);
            self.bands.each(row, |band, first, counts| {
                let context = self.bands.context(band, choice);
                let sums = &mut self.sums[(context * self.bands.alphabet + first) * self.classes..];
                for (sums, count) in sums.chunks_exact_mut(self.classes).zip(counts) {
                    sums[usize::from(class)] += *count as f32;
                }
            });
        }
        let histogram = self.bands.alphabet * self.classes;
        let totals = &mut self.costs[..self.classes];
        for (logs, sums) in self.logs.chunks_exact_mut(histogram).zip(self.sums.chunks_exact(histogram)) {
            totals.fill(0.0);
            for row in sums.chunks_exact(self.classes) {
                for (total, count) in totals.iter_mut().zip(row) {
                    *total += count + SMOOTHING;
                }
            }
            for (logs, row) in logs.chunks_exact_mut(self.classes).zip(sums.chunks_exact(self.classes)) {
                for ((log, count), total) in logs.iter_mut().zip(row).zip(&*totals) {
                    *log = ((count + SMOOTHING) / total).log2();
                }
            }
        }
    }

    /// The class, and the choice of contexts, that code a row in the fewest bits.
    fn nearest(&mut self, row: (usize, &[u32])) -> (u8, Choice) {
        self.costs.fill(0.0);
        self.best.fill(Best { second: f32::MIN, second_at: 0, both: f32::MIN, choice: CHOICE });
        let (histogram, classes) = (self.bands.alphabet * self.classes, self.classes);
        let contexts = self.bands.contexts;
        self.bands.each(row, |band, first, counts| {
            if contexts {
                begin_band(band, &self.costs, &mut self.best);
            }
            for (logs, costs) in self.logs.chunks_exact(histogram).zip(self.costs.chunks_exact_mut(classes)) {
                for (logs, count) in logs.chunks_exact(classes).skip(first).zip(counts) {
                    if *count > 0 {
                        let count = *count as f32;
                        for (cost, log) in costs.iter_mut().zip(logs) {
                            *cost += count * log;
                        }
                    }
                }
            }
        });
        let last = &mut self.costs[classes * (self.bands.contexts() - 1)..];
        if contexts {
            for (cost, best) in last.iter_mut().zip(&self.best) {
                *cost += best.both;
            }
        }
        let mut best = 0;
        for (class, cost) in last.iter().enumerate() {
            if *cost > last[best] {
                best = class;
            }
        }
        // At most 256 classes.
        (best as u8, self.best[best].choice)
    }
}

/// Lets contexts begin at this band, if that is better than earlier. `costs` are those of the bands before it
/// in each of the three.
fn begin_band(band: usize, costs: &[f32], best: &mut [Best]) {
    let (first, rest) = costs.split_at(best.len());
    let (second, third) = rest.split_at(best.len());
    for (((best, first), second), third) in best.iter_mut().zip(first).zip(second).zip(third) {
        if first - second > best.second {
            (best.second, best.second_at) = (first - second, band as u8);
        }
        let both = best.second + second - third;
        if both > best.both {
            (best.both, best.choice) = (both, [best.second_at, band as u8]);
        }
    }
}
