//! How far results may be from the CPU's: not at all, but for what `unrope` has turned.

use cacheg_core::{KvCache, Pairing, Plan, Plane};

/// Errors of the channels of pairs that RoPE turns, in units of 2⁻²⁴ of the pair's norm, behind a rounding to another
/// neighbour among elements.
pub(crate) const BOUND: f64 = 8.0;

/// The worst error; infinite if something differs that must not.
pub(crate) fn worst(plan: &Plan, cpu: &KvCache, gpu: &KvCache) -> f64 {
    let turned = plan.specs().iter().any(|stage| stage.name == "unrope");
    let worst = plan.planes().iter().map(|plane| {
        let [a, b] = [cpu, gpu].map(|cache| cache.plane_bytes(plane.index));
        if a == b {
            0.0
        } else if turned && plane.rope.is_some() {
            worst_of_plane(plane, a, b)
        } else {
            f64::INFINITY
        }
    });
    worst.fold(0.0, f64::max)
}

fn worst_of_plane(plane: &Plane, cpu: &[u8], gpu: &[u8]) -> f64 {
    let (dtype, dim) = (plane.shape.dtype, plane.shape.head_dim as usize);
    let rope = plane.rope.unwrap();
    let (start, half) = (rope.start as usize, rope.dims as usize / 2);
    let mut worst = 0f64;
    for (cpu_bytes, gpu_bytes) in cpu.chunks(dim * dtype.size()).zip(gpu.chunks(dim * dtype.size())) {
        let [cpu, gpu] = [cpu_bytes, gpu_bytes].map(|bytes| {
            let mut values = vec![0f32; dim];
            dtype.widen(bytes, &mut values);
            values
        });
        let mut allowed = vec![false; dim];
        for pair in 0..half {
            let pair = match rope.pairing {
                Pairing::Half => [start + pair, start + pair + half],
                Pairing::Interleaved => [start + 2 * pair, start + 2 * pair + 1],
            };
            let norm = f64::from(cpu[pair[0]]).hypot(f64::from(cpu[pair[1]]));
            for channel in pair {
                allowed[channel] = true;
                // Elements that round: the error is what is beyond one step of the element type.
                let larger = cpu[channel].abs().max(gpu[channel].abs());
                let step = if dtype.size() == 4 { 0.0 } else { step_at(plane, larger) };
                let error = (f64::from(cpu[channel]) - f64::from(gpu[channel])).abs() - step;
                worst = worst.max(if error > 0.0 { error / norm * 16_777_216.0 } else { 0.0 });
            }
        }
        let same = |channel: usize| cpu[channel].to_bits() == gpu[channel].to_bits();
        if (0..dim).any(|channel| !allowed[channel] && !same(channel)) {
            return f64::INFINITY;
        }
    }
    worst
}

/// The distance of neighbouring elements at a value.
fn step_at(plane: &Plane, value: f32) -> f64 {
    let dtype = plane.shape.dtype;
    let mut element = [0; 4];
    let element = &mut element[..dtype.size()];
    dtype.narrow(&[value], element);
    let mut bits = element.to_vec();
    // A magnitude's neighbour towards 0, or of 0 the smallest: little-endian, without a carry worth mentioning.
    let number = bits.iter().rev().fold(0u32, |number, byte| number << 8 | u32::from(*byte));
    let other = if number == 0 { 1 } else { number - 1 };
    bits.copy_from_slice(&other.to_le_bytes()[..dtype.size()]);
    let mut values = [0f32; 2];
    dtype.widen(element, &mut values[..1]);
    dtype.widen(&bits, &mut values[1..]);
    f64::from((values[0] - values[1]).abs())
}
