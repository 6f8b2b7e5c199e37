//! Which tables a model needs and which channel uses which.

use std::collections::BTreeMap;

use cacheg_core::{BindCx, CLASSES, Error, Kind, Part, Plane, Result, Segment};

use super::settings::Scope;

/// One symbol plane of one part of one plane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Slot {
    /// Index of the part.
    pub(crate) part: usize,
    /// Index of the symbol plane.
    pub(crate) symbol_plane: usize,
    /// Columns.
    pub(crate) cols: usize,
    /// Number of symbols, 2 to 256.
    pub(crate) alphabet: usize,
    /// The group whose tables its channels use.
    pub(crate) group: usize,
    /// Number of its first channel, counted over all slots.
    pub(crate) first_channel: usize,
}

/// Tables with one alphabet that a set of channels shares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Group {
    /// Number of symbols.
    pub(crate) alphabet: usize,
    /// Tables, unless classes decide. With contexts each is several; see `each`.
    pub(crate) tables: usize,
    /// How many tables each of them is.
    pub(crate) each: usize,
    /// Symbols are symmetric around a middle, and behind them there is an escape.
    pub(crate) symmetric: bool,
}

/// Tables of a channel that has contexts: one for the first symbol of a run, one for each context.
pub(crate) const CONTEXT_TABLES: usize = 4;

/// Alphabets above this have no contexts.
pub(crate) const MAX_CONTEXT_ALPHABET: usize = 32;

/// Slots and groups of a model under one scope.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    pub(crate) scope: Scope,
    /// Small alphabets have contexts.
    pub(crate) contexts: bool,
    /// By plane, part and symbol plane.
    pub(crate) slots: Vec<Slot>,
    /// In the order of their first slot.
    pub(crate) groups: Vec<Group>,
    /// Columns of all slots together.
    pub(crate) channels: usize,
    /// The quantizer's class of each channel; scope `scale` only.
    pub(crate) scales: Vec<u8>,
    /// By grade what is added to the classes of its symbols; one 0 if nothing is graded.
    pub(crate) grades: Vec<i8>,
    /// For each plane the first slot of each part, and the end.
    starts: Vec<Vec<usize>>,
}

impl Layout {
    /// Lays out the tables of a model.
    ///
    /// # Errors
    /// If an alphabet is not 2 to 256 symbols, or parts and planes do not match.
    pub(crate) fn new(cx: &BindCx<'_>, scope: Scope, contexts: bool) -> Result<Self> {
        if cx.parts.len() != cx.planes.len() {
            return Err(Error::data("a coder must be bound after the quantizer"));
        }
        let mut layout = Self {
            scope,
            contexts,
            slots: Vec::new(),
            groups: Vec::new(),
            channels: 0,
            scales: Vec::new(),
            grades: vec![0],
            starts: Vec::new(),
        };
        let mut known = BTreeMap::new();
        for (plane, parts) in cx.planes.iter().zip(cx.parts) {
            let mut starts = vec![layout.slots.len()];
            for (index, part) in parts.iter().enumerate() {
                if scope == Scope::Scale {
                    check_classes(part)?;
                }
                // All parts of a pipeline have the same, or none.
                if !part.grades.is_empty() {
                    layout.grades.clone_from(&part.grades);
                }
                for (symbol_plane, alphabet) in part.alphabets.iter().enumerate() {
                    let symmetric = alphabet.escape && alphabet.size % 2 == 0;
                    let alphabet = usize::from(alphabet.size);
                    if !(2..=256).contains(&alphabet) {
                        return Err(Error::data(format!("an alphabet of {alphabet} symbols")));
                    }
                    let number = layout.slots.len();
                    let key = match scope {
                        Scope::One => (Some(plane.kind), None, index, symbol_plane, alphabet),
                        Scope::Class => (None, None, index, symbol_plane, alphabet),
                        Scope::Scale => (Some(like(plane.kind)), None, index, symbol_plane, alphabet),
                        Scope::Layer | Scope::Channel => (None, Some(number), 0, 0, 0),
                    };
                    let tables = match scope {
                        Scope::Channel => part.cols,
                        Scope::Scale => CLASSES,
                        Scope::One | Scope::Layer | Scope::Class => 1,
                    };
                    let group = *known.entry(key).or_insert_with(|| {
                        let context = contexts && alphabet <= MAX_CONTEXT_ALPHABET;
                        let each = if context { CONTEXT_TABLES } else { 1 };
                        layout.groups.push(Group { alphabet, tables, each, symmetric });
                        layout.groups.len() - 1
                    });
                    let (cols, first_channel) = (part.cols, layout.channels);
                    layout.slots.push(Slot {
                        part: index,
                        symbol_plane,
                        cols,
                        alphabet,
                        group,
                        first_channel,
                    });
                    if scope == Scope::Scale {
                        layout.scales.extend_from_slice(&part.classes);
                    }
                    layout.channels = first_channel
                        .checked_add(cols)
                        .filter(|channels| u32::try_from(*channels).is_ok())
                        .ok_or_else(|| Error::limit("too many channels"))?;
                }
                starts.push(layout.slots.len());
            }
            layout.starts.push(starts);
        }
        Ok(layout)
    }

    /// Which of a group's classes some channel has; scope `scale` only.
    pub(crate) fn scales_of(&self, group: usize) -> [bool; CLASSES] {
        let mut used = [false; CLASSES];
        for slot in self.slots.iter().filter(|slot| slot.group == group) {
            for class in &self.scales[slot.first_channel..slot.first_channel + slot.cols] {
                used[usize::from(*class)] = true;
            }
        }
        used
    }

    /// The class of a channel in rows of a grade; scope `scale` only.
    pub(crate) fn scale(&self, channel: usize, grade: usize) -> usize {
        let shift = isize::from(self.grades.get(grade).copied().unwrap_or(0));
        usize::from(self.scales[channel]).saturating_add_signed(shift).min(CLASSES - 1)
    }

    /// Where a segment's columns begin among the channels, all of the first grade, then all of the next.
    ///
    /// # Errors
    /// If the model has no such segment.
    pub(crate) fn first_column(&self, segment: &Segment) -> Result<usize> {
        let slot = self.slot(segment)?;
        if usize::from(segment.grade) >= self.grades.len() {
            return Err(Error::data("a grade that the coder was not bound to"));
        }
        Ok(usize::from(segment.grade) * self.channels + slot.first_channel + segment.first_col)
    }

    /// Whether the channels of a slot have contexts.
    pub(crate) fn has_contexts(&self, slot: &Slot) -> bool {
        self.contexts && slot.alphabet <= MAX_CONTEXT_ALPHABET
    }

    /// Channels that have contexts.
    pub(crate) fn context_channels(&self) -> usize {
        self.slots.iter().filter(|slot| self.has_contexts(slot)).map(|slot| slot.cols).sum()
    }

    /// The slots of a plane.
    pub(crate) fn plane_slots(&self, plane: &Plane) -> &[Slot] {
        self.starts
            .get(plane.index)
            .and_then(|starts| self.slots.get(*starts.first()?..*starts.last()?))
            .unwrap_or_default()
    }

    /// The slots of all planes, in their order.
    pub(crate) fn planes(&self) -> impl Iterator<Item = &[Slot]> {
        self.starts.iter().map(|starts| match (starts.first(), starts.last()) {
            (Some(first), Some(end)) => &self.slots[*first..*end],
            _ => &[],
        })
    }

    /// The slot of a segment.
    ///
    /// # Errors
    /// If there is none of that place and size.
    pub(crate) fn slot(&self, segment: &Segment) -> Result<&Slot> {
        let slot = self.starts.get(segment.plane).and_then(|starts| {
            let first = *starts.get(segment.part)?;
            let end = *starts.get(segment.part.checked_add(1)?)?;
            self.slots.get(first..end)?.get(segment.symbol_plane)
        });
        let fits = |slot: &&Slot| {
            let end = segment.first_col.checked_add(segment.cols);
            end.is_some_and(|end| end <= slot.cols) && slot.alphabet == usize::from(segment.alphabet.size)
        };
        slot.filter(fits).ok_or_else(|| Error::data("a segment that the coder was not bound to"))
    }
}

/// Kinds of planes that share tables by scale: keys are one, values and latents another.
fn like(kind: Kind) -> Kind {
    match kind {
        Kind::Key => Kind::Key,
        Kind::Value | Kind::Latent => Kind::Value,
    }
}

/// Refuses parts without classes.
fn check_classes(part: &Part) -> Result<()> {
    if part.classes.is_empty() && part.cols > 0 {
        let why = "`tables=scale` needs a quantizer that tells classes, such as `steps`";
        return Err(Error::setting(why));
    }
    let legal = part.classes.iter().all(|class| usize::from(*class) < CLASSES);
    if legal && part.classes.len() == part.cols {
        Ok(())
    } else {
        Err(Error::data("classes of another part"))
    }
}
