//! Memory that invocations share, and who has touched it.

use super::counts::BindingCounts;

/// Several invocations.
const MANY: u16 = u16::MAX;

/// Who touched a word last. Workgroups are numbered from 1, over all dispatches.
#[derive(Debug, Clone, Copy, Default)]
struct Touched {
    write_group: u32,
    write_epoch: u32,
    read_group: u32,
    read_epoch: u32,
    write_lane: u16,
    read_lane: u16,
    /// Whether it was read by several workgroups of the dispatch of `read_group`.
    read_by_groups: bool,
    atomic: Option<Kind>,
    atomic_epoch: u32,
    atomic_lane: u16,
}

/// How an atomic access depends on others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Load,
    Store,
    /// Its result is not used, so that the order does not matter.
    Update,
    /// Its result is used.
    Fetch,
}

/// Who touches.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Who {
    /// The number of the first workgroup of the dispatch.
    pub(crate) first: u32,
    pub(crate) group: u32,
    /// Counts barriers.
    pub(crate) epoch: u32,
    pub(crate) lane: u16,
}

/// Words that are shared by a workgroup or a dispatch.
#[derive(Debug, Clone, Default)]
pub(crate) struct Words {
    pub(crate) words: Vec<u32>,
    touched: Vec<Touched>,
    pub(crate) counts: BindingCounts,
    pub(crate) races: u64,
    pub(crate) unordered: u64,
    pub(crate) out_of_bounds: u64,
}

impl Words {
    pub(crate) fn new(words: Vec<u32>) -> Self {
        let touched = vec![Touched::default(); words.len()];
        Self { words, touched, ..Self::default() }
    }

    pub(crate) fn clear(&mut self, len: usize) {
        self.words.clear();
        self.words.resize(len, 0);
        self.touched.resize(len, Touched::default());
    }

    /// A word; zero outside.
    pub(crate) fn read(&mut self, at: u32, who: Who) -> u32 {
        let Some((word, touched)) = self.words.get(at as usize).zip(self.touched.get_mut(at as usize)) else {
            self.out_of_bounds += 1;
            return 0;
        };
        if touched.write_group == who.group {
            self.races += u64::from(touched.write_epoch == who.epoch && touched.write_lane != who.lane);
        } else {
            self.races += u64::from(touched.write_group >= who.first);
        }
        if touched.read_group < who.first {
            self.counts.distinct_read += 4;
            touched.read_by_groups = false;
        } else {
            touched.read_by_groups |= touched.read_group != who.group;
        }
        let again = touched.read_group == who.group && touched.read_epoch == who.epoch;
        touched.read_lane = if again && touched.read_lane != who.lane { MANY } else { who.lane };
        touched.read_group = who.group;
        touched.read_epoch = who.epoch;
        *word
    }

    /// Nothing outside.
    pub(crate) fn write(&mut self, at: u32, value: u32, who: Who) {
        let Some((word, touched)) = self.words.get_mut(at as usize).zip(self.touched.get_mut(at as usize))
        else {
            self.out_of_bounds += 1;
            return;
        };
        let race = |group: u32, epoch: u32, lane: u16| {
            if group == who.group { epoch == who.epoch && lane != who.lane } else { group >= who.first }
        };
        let written = race(touched.write_group, touched.write_epoch, touched.write_lane);
        let read = race(touched.read_group, touched.read_epoch, touched.read_lane)
            || (touched.read_by_groups && touched.read_group >= who.first);
        self.races += u64::from(written || read);
        if touched.write_group < who.first {
            self.counts.distinct_written += 4;
        }
        touched.write_group = who.group;
        touched.write_epoch = who.epoch;
        touched.write_lane = who.lane;
        *word = value;
    }

    /// Atomic accesses of a word race with no others of its: a word's type says that it is accessed by atomics alone.
    pub(crate) fn atomic(
        &mut self,
        at: u32,
        kind: Kind,
        who: Who,
        value: impl FnOnce(u32) -> Option<u32>,
    ) -> u32 {
        let Some((word, touched)) = self.words.get_mut(at as usize).zip(self.touched.get_mut(at as usize))
        else {
            self.out_of_bounds += 1;
            return 0;
        };
        if let Some(before) = touched.atomic
            && (touched.atomic_epoch, touched.write_group.max(touched.read_group)) == (who.epoch, who.group)
            && touched.atomic_lane != who.lane
            && (before != kind || matches!(kind, Kind::Store | Kind::Fetch))
        {
            self.unordered += 1;
        }
        (touched.atomic, touched.atomic_epoch, touched.atomic_lane) = (Some(kind), who.epoch, who.lane);
        let old = *word;
        if kind != Kind::Store {
            self.counts.loads += 1;
            self.counts.bytes_loaded += 4;
            self.counts.distinct_read += if touched.read_group < who.first { 4 } else { 0 };
            touched.read_group = who.group;
        }
        if kind != Kind::Load {
            self.counts.stores += 1;
            self.counts.bytes_stored += 4;
            self.counts.distinct_written += if touched.write_group < who.first { 4 } else { 0 };
            touched.write_group = who.group;
        }
        if let Some(new) = value(old) {
            *word = new;
        }
        old
    }
}
