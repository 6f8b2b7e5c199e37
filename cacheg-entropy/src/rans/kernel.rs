//! What the WGSL twin reads.

use cacheg_core::{CoderKernel, Error, Kernel, KernelRun, KernelStream, Result, Segment};

use super::BoundRans;
use super::stream::{HEADER, LANES, short};
use crate::segments;

/// Loop iterations of a column beside its steps: tables, and its own.
const COLUMN_COST: usize = 6;

/// Marks limits that are there.
const CONTEXTS: u32 = 1 << 16;

pub(super) fn kernel(coder: &BoundRans) -> CoderKernel {
    let channels = coder.index.len();
    let mut data = vec![1 + 2 * channels as u32];
    data.extend(coder.index.iter().flat_map(|table| [*table, 0]));
    for slot in coder.layout.slots.iter().filter(|slot| coder.layout.has_contexts(slot)) {
        for channel in slot.first_channel..slot.first_channel + slot.cols {
            let [a, b] = coder.limits[channel].map(u32::from);
            for all in (0..channels).step_by(coder.layout.channels) {
                data[2 + 2 * (all + channel)] = CONTEXTS | a | b << 8;
            }
        }
    }
    let both = |low: u16, high: u16| u32::from(low) | u32::from(high) << 16;
    for table in &coder.decode {
        for bucket in 0..LANES {
            data.extend([
                both(table.packed[bucket], table.delta[bucket]),
                both(table.freq[bucket], table.alias_freq[bucket]),
                u32::from(table.base[bucket]) | u32::from(table.bits[bucket]) << 8,
            ]);
        }
    }
    // Memory of a workgroup is scarce: only contexts need tables there.
    let contexts = data[2..].iter().take(2 * channels).step_by(2).any(|limits| *limits != 0);
    let tables = if contexts { "128u" } else { "1u" };
    let source = include_str!("decode.wgsl").replace("$TABLES", tables);
    // One word for each lane, and the words that are used up.
    CoderKernel::new(Kernel::new(source, data), LANES as u32, LANES as u32 + 1).with_columns()
}

pub(super) fn stream(coder: &BoundRans, segments: &[Segment], bytes: &[u8]) -> Result<KernelStream> {
    let symbols = segments::count(segments)?;
    let (mut places, mut units, mut steps) = (Vec::with_capacity(segments.len()), 0, 0);
    for segment in segments {
        let first = coder.layout.first_column(segment)?;
        let own = segment.rows.div_ceil(LANES);
        steps = steps.max(own);
        units += segment.cols;
        places.push([(segment.cols * own.div_ceil(4) * LANES) as u32, first as u32]);
    }
    if symbols == 0 {
        if !bytes.is_empty() {
            return Err(Error::corrupt("a stream without symbols must be empty"));
        }
        return Ok(KernelStream::new(places, Vec::new()));
    }
    if bytes.len() < HEADER || !bytes.len().is_multiple_of(2) {
        return Err(short());
    }
    let bytes = 0..u32::try_from(bytes.len()).map_err(|_| Error::limit("a stream of more than 4 GiB"))?;
    let cost = (steps + COLUMN_COST) as u32;
    let run = KernelRun::new(bytes, 0..segments.len() as u32, 0, units as u32, cost);
    Ok(KernelStream::new(places, vec![run]))
}
