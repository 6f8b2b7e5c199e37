// `range`: one invocation for each run. Twin of run.rs and of constriction's decoder: 64-bit states, 16-bit words.
//
// Data: where the distributions begin; whether runs are columns; then where each channel's distribution begins among them;
// then their entries, of which the last stands for 65,536. The own word of a run is 0 for a whole tile, row after row of all segments, or 1 and the column of its
// only segment. Scratch: four symbols to a word, in the order of the run; columns begin at new words.
// State: lower end, range and point, low half first; bytes read; column.

fn $less(a: vec2<u32>, b: vec2<u32>) -> bool {
    return a.y < b.y || (a.y == b.y && a.x < b.x);
}

fn $add(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> {
    let low = a.x + b.x;
    return vec2<u32>(low, a.y + b.y + select(0u, 1u, low < a.x));
}

fn $sub(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> {
    return vec2<u32>(a.x - b.x, a.y - b.y - select(0u, 1u, a.x < b.x));
}

// Of a number below 2^48 by one of at most 16 bits.
fn $times(a: vec2<u32>, by: u32) -> vec2<u32> {
    let low = (a.x & 0xffffu) * by;
    let middle = (a.x >> 16u) * by;
    let sum = low + (middle << 16u);
    return vec2<u32>(sum, a.y * by + (middle >> 16u) + select(0u, 1u, sum < low));
}

fn $shifted(a: vec2<u32>) -> vec2<u32> {
    return vec2<u32>(a.x << 16u, (a.y << 16u) | (a.x >> 16u));
}

fn $byte(run: Run, index: u32) -> u32 {
    if index >= run.bytes {
        return 0u;
    }
    return payload_byte(run.begin + index);
}

// The number in the last interval with the most trailing zero bytes, and how many bytes precede them.
fn $ends(run: Run, lower: vec2<u32>, range: vec2<u32>, point: vec2<u32>, read: u32) -> bool {
    for (var bytes = 0u; bytes < 8u; bytes++) {
        var ones = vec2<u32>(0xffffffffu, 0xffffffffu);
        if bytes >= 4u {
            ones = vec2<u32>(ones.x >> (8u * (bytes - 4u)), 0u);
        } else if bytes > 0u {
            ones.y = ones.y >> (8u * bytes);
        }
        let least = $add(lower, ones) & ~ones;
        if $less($sub(least, lower), range) {
            return all(point == least) && read - 8u + bytes == run.bytes;
        }
    }
    return all(point == lower) && read == run.bytes;
}

fn $decode(run: Run, lane: u32) {
    var lower = vec2<u32>(0u, 0u);
    var range = vec2<u32>(0xffffffffu, 0xffffffffu);
    var point = vec2<u32>(0u, 0u);
    var read = 0u;
    if run.first == 0u {
        point.y = ($byte(run, 0u) << 24u) | ($byte(run, 1u) << 16u) | ($byte(run, 2u) << 8u) | $byte(run, 3u);
        point.x = ($byte(run, 4u) << 24u) | ($byte(run, 5u) << 16u) | ($byte(run, 6u) << 8u) | $byte(run, 7u);
        read = 8u;
    } else {
        lower = vec2<u32>(state(run, 0u), state(run, 1u));
        range = vec2<u32>(state(run, 2u), state(run, 3u));
        point = vec2<u32>(state(run, 4u), state(run, 5u));
        read = state(run, 6u);
    }
    let by_column = run.own > 0u;
    // Where the next symbol is: in its segment, and of the segment.
    var segment = run.segment;
    var local = run.first;
    if !by_column {
        for (var i = 1u; i < run.segments; i++) {
            let symbols = segment_rows(segment) * segment_cols(segment);
            if local < symbols {
                break;
            }
            local -= symbols;
            segment++;
        }
    }
    var symbols = segment_rows(segment) * segment_cols(segment);
    var base = 0u;
    var col = local % segment_cols(segment);
    if by_column {
        col = run.own - 1u;
        symbols = segment_rows(segment);
        base = col * ((symbols + 3u) / 4u);
    }
    var packed = 0u;
    if (local & 3u) != 0u {
        packed = scratch_get(segment, base + local / 4u);
    }
    for (var unit = run.first; unit < run.end; unit++) {
        while !by_column && local >= symbols && segment + 1u < run.segment + run.segments {
            segment++;
            local = 0u;
            col = 0u;
            symbols = segment_rows(segment) * segment_cols(segment);
        }
        let cdf = $data(0u) + $data(2u + segment_own(segment) + col);
        let scale = vec2<u32>((range.x >> 16u) | (range.y << 16u), range.y >> 16u);
        let inside = $sub(point, lower);
        if !$less(inside, $shifted(scale)) {
            fault(run.tile, FAULT_END);
        }
        let size = segment_alphabet(segment);
        var found = 0u;
        for (var step = 128u; step > 0u; step = step >> 1u) {
            let candidate = found + step;
            if candidate < size && !$less(inside, $times(scale, $data(cdf + min(candidate, size)))) {
                found = candidate;
            }
        }
        let left = $data(cdf + found);
        lower = $add(lower, $times(scale, left));
        range = $times(scale, ($data(cdf + found + 1u) - left) & 0xffffu);
        if range.y < 0x10000u {
            lower = $shifted(lower);
            range = $shifted(range);
            point = $shifted(point);
            point.x |= ($byte(run, read) << 8u) | $byte(run, read + 1u);
            read += 2u;
        }
        packed |= found << (8u * (local & 3u));
        local++;
        if (local & 3u) == 0u || local == symbols || unit + 1u == run.end {
            scratch_set(segment, base + (local - 1u) / 4u, packed);
            packed = select(packed, 0u, (local & 3u) == 0u || local == symbols);
        }
        if !by_column {
            col = select(col + 1u, 0u, col + 1u == segment_cols(segment));
        }
    }
    if run.end < run.units {
        set_state(run, 0u, lower.x);
        set_state(run, 1u, lower.y);
        set_state(run, 2u, range.x);
        set_state(run, 3u, range.y);
        set_state(run, 4u, point.x);
        set_state(run, 5u, point.y);
        set_state(run, 6u, read);
    } else if !$ends(run, lower, range, point, read) {
        fault(run.tile, FAULT_END);
    }
}

fn $symbol(segment: u32, row: u32, col: u32) -> u32 {
    var index = row * segment_cols(segment) + col;
    if $data(1u) != 0u {
        index = col * 4u * ((segment_rows(segment) + 3u) / 4u) + row;
    }
    return (scratch_get(segment, index / 4u) >> (8u * (index & 3u))) & 0xffu;
}
