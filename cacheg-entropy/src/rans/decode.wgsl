// `rans`: 32 lanes share a stream. Twin of scalar.rs; see rans.rs for the format.
//
// Data: where the tables begin; then two words for each channel: number of its (first) table, and the limits of its contexts
// with bit 16 set, or 0; then the tables, 32 times four words. Scratch of a segment: column after column, four steps of a
// lane to a word, lanes side by side.

// Tables of the column that is being decoded: for each bucket threshold and alias, the frequencies of both, delta and first
// symbol, log2 of the number of symbols.
var<workgroup> $tables: array<vec4<u32>, 128>;
// Words of the stream that are used up.
var<private> $used: u32;

fn $refill(run: Run, x: u32, lane: u32, busy: bool) -> u32 {
    let empty = busy && x < 65536u;
    let votes = ballot(lane, empty);
    let word = $used + countOneBits(votes & ((1u << lane) - 1u));
    $used += countOneBits(votes);
    if !empty {
        return x;
    }
    if 2u * word + 130u > run.bytes {
        fault(run.tile, FAULT_SHORT);
        return x << 16u;
    }
    return (x << 16u) | payload_u16(run.begin + 128u + 2u * word);
}

fn $column(run: Run, segment: u32, col: u32, lane: u32, start: u32) -> u32 {
    let rows = segment_rows(segment);
    let whole = rows / 32u;
    let more = rows % 32u;
    let steps = whole + select(0u, 1u, more > 0u);
    let quads = (steps + 3u) / 4u;
    let alphabet = segment_alphabet(segment);
    let channel = 1u + 2u * (segment_own(segment) + col);
    let number = $data(channel);
    let limits = $data(channel + 1u);
    let contexts = limits != 0u;
    workgroupBarrier();
    for (var t = 0u; t < select(1u, 4u, contexts); t++) {
        let at = $data(0u) + 128u * (number + t) + 4u * lane;
        $tables[32u * t + lane] = vec4<u32>($data(at), $data(at + 1u), $data(at + 2u), $data(at + 3u));
    }
    workgroupBarrier();
    var x = start;
    var table = 0u;
    var packed = 0u;
    for (var step = 0u; step < steps; step++) {
        let busy = lane < select(more, 32u, step < whole);
        let bucket = (x >> 11u) & 31u;
        let r = x & 2047u;
        let entry = $tables[table + bucket];
        let own = r < (entry.x & 0xffffu);
        let coded = select((entry.x >> 16u) & 31u, bucket, own);
        let frequency = select(entry.y >> 16u, entry.y & 0xffffu, own);
        let offset = select((r + entry.z) & 0xffffu, r, own);
        x = $refill(run, select(x, frequency * (x >> 16u) + offset, busy), lane, busy);
        var found = coded;
        if alphabet > 32u {
            let split = $tables[coded];
            let keep = 16u - split.w;
            found = ((split.z >> 16u) + ((x & 0xffffu) >> keep)) & 0xffu;
            let rest = ((x >> 16u) << keep) | (x & ((1u << keep) - 1u));
            x = $refill(run, select(x, rest, busy), lane, busy);
            if busy && found >= alphabet {
                fault(run.tile, FAULT_ALPHABET);
            }
        }
        if contexts {
            table = 32u + select(0u, 32u, found >= (limits & 0xffu))
                + select(0u, 32u, found >= ((limits >> 8u) & 0xffu));
        }
        packed |= found << (8u * (step & 3u));
        if (step & 3u) == 3u || step + 1u == steps {
            scratch_set(segment, (col * quads + step / 4u) * 32u + lane, packed);
            packed = 0u;
        }
    }
    return x;
}

fn $decode(run: Run, lane: u32) {
    var x: u32;
    if run.first == 0u {
        x = payload[run.begin / 4u + lane];
        $used = 0u;
        if x < 65536u {
            fault(run.tile, FAULT_END);
        }
    } else {
        x = state(run, lane);
        $used = state(run, 32u);
    }
    var first = 0u;
    for (var s = run.segment; s < run.segment + run.segments; s++) {
        let next = first + segment_cols(s);
        for (var unit = max(run.first, first); unit < min(run.end, next); unit++) {
            x = $column(run, s, unit - first, lane, x);
        }
        first = next;
    }
    if run.end < run.units {
        set_state(run, lane, x);
        if lane == 0u {
            set_state(run, 32u, $used);
        }
    } else if x != 65536u || 2u * $used + 128u != run.bytes {
        fault(run.tile, FAULT_END);
    }
}

fn $symbol(segment: u32, row: u32, col: u32) -> u32 {
    let rows = segment_rows(segment);
    let whole = rows / 32u;
    let more = rows % 32u;
    let quads = (whole + select(0u, 1u, more > 0u) + 3u) / 4u;
    // The first lanes have one row more.
    let longer = more * (whole + 1u);
    var lane = row / (whole + 1u);
    var step = row % (whole + 1u);
    if row >= longer {
        lane = more + (row - longer) / max(whole, 1u);
        step = (row - longer) % max(whole, 1u);
    }
    let word = scratch_get(segment, (col * quads + step / 4u) * 32u + lane);
    return (word >> (8u * (step & 3u))) & 0xffu;
}
