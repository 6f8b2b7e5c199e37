// `rans`: 32 lanes share a stream. Twin of scalar.rs; see rans.rs for the format.
//
// Data: where the tables begin; then two words for each channel: number of its (first) table, and the limits of its contexts
// with bit 16 set, or 0; then the tables: 32 times three words. These are threshold, 2048 times alias and 65,536 times delta;
// the frequencies of bucket and alias; first symbol, and 256 times log2 of the number of symbols. A threshold of 0 stands for a
// bucket that is whole, and its own alias.
//
// Scratch of a segment: column after column, four steps of a lane to a word, lanes side by side.

// The first two words of the entries of a column's tables where lanes use different ones.
var<workgroup> $tables: array<vec2<u32>, $TABLES>;
// Columns that wait to be handed over together, like scratch.
var<workgroup> $stash: array<u32, STASH_WORDS>;
// Of the payload: the next word, in units of two bytes.
var<private> $next: u32;
// The lanes below this one.
var<private> $below: u32;

// A lane's state behind the symbol it is in, which the second number is.
fn $advance(x: u32, bucket: u32, entry: vec2<u32>) -> vec2<u32> {
    let r = x & 2047u;
    let own = r < (entry.x & 2047u);
    let coded = select(extractBits(entry.x, 11u, 5u), bucket, own);
    let frequency = extractBits(entry.y, select(16u, 0u, own), 16u);
    let offset = select((r + (entry.x >> 16u)) & 0xffffu, r, own);
    return vec2<u32>(frequency * (x >> 16u) + offset, coded);
}

// Who has an empty state takes the next word, in the order of the lanes. What is beyond the stream is noticed at its end.
fn $refill(x: u32, lane: u32, empty: bool) -> u32 {
    let votes = ballot(lane, empty);
    let at = $next + countOneBits(votes & $below);
    $next += countOneBits(votes);
    let word = extractBits(payload[at >> 1u], (at & 1u) << 4u, 16u);
    return select(x, (x << 16u) | word, empty);
}

// One symbol of each lane, from the table that they share.
fn $step(x: u32, lane: u32) -> vec2<u32> {
    let bucket = extractBits(x, 11u, 5u);
    let found = $advance(x, bucket, vec2<u32>(given_x(bucket), given_y(bucket)));
    return vec2<u32>($refill(found.x, lane, found.x < 65536u), found.y);
}

// The low bits of a symbol whose bucket is decoded.
fn $low(x: u32, coded: u32) -> vec2<u32> {
    let split = given_z(coded);
    let keep = 16u - (split >> 8u);
    let found = ((split & 0xffu) + ((x & 0xffffu) >> keep)) & 0xffu;
    return vec2<u32>(((x >> 16u) << keep) | (x & ((1u << keep) - 1u)), found);
}

// Where four symbols go: to scratch, to the columns that wait; and their places there.
struct $Places {
    kept: bool,
    waiting: bool,
    scratch: u32,
    stash: u32,
}

fn $put(segment: u32, to: $Places, quad: u32, packed: u32) {
    if to.kept {
        scratch_set(segment, to.scratch + quad, packed);
    }
    if to.waiting {
        $stash[to.stash + quad] = packed;
    }
}

fn $column(run: Run, segment: u32, col: u32, lane: u32, start: u32) -> u32 {
    let rows = segment_rows(segment);
    let whole = rows / 32u;
    let more = rows % 32u;
    let steps = whole + select(0u, 1u, more > 0u);
    let quads = (steps + 3u) / 4u;
    let alphabet = segment_alphabet(segment);
    let channel = 1u + 2u * (segment_own(segment) + col);
    let limits = $data(channel + 1u);
    let together = columns_together(segment);
    let to = $Places(
        kept(segment), together > 0u, 32u * quads * col + lane, 32u * quads * (col % max(together, 1u)) + lane,
    );
    var x = start;
    var step = 0u;
    // 32 for every four steps.
    var quad = 0u;
    if limits != 0u {
        let number = $data(channel);
        for (var t = 0u; t < 4u; t++) {
            let at = $data(0u) + 96u * (number + t) + 3u * lane;
            $tables[min(32u * t + lane, $TABLES - 1u)] = vec2<u32>($data(at), $data(at + 1u));
        }
        workgroupBarrier();
        var table = 0u;
        var packed = 0u;
        for (; step < steps; step++) {
            let busy = lane < select(more, 32u, step < whole);
            let bucket = extractBits(x, 11u, 5u);
            let found = $advance(x, bucket, $tables[min(table + bucket, $TABLES - 1u)]);
            x = select(x, found.x, busy);
            x = $refill(x, lane, busy && x < 65536u);
            table = 32u + select(0u, 32u, found.y >= (limits & 0xffu))
                + select(0u, 32u, found.y >= ((limits >> 8u) & 0xffu));
            packed |= found.y << (8u * (step & 3u));
            if (step & 3u) == 3u || step + 1u == steps {
                $put(segment, to, quad, packed);
                quad += 32u;
                packed = 0u;
            }
        }
        return x;
    }
    if alphabet <= 32u {
        // Steps of all lanes, four at a time: nearly all of the work.
        for (; step < (whole & ~3u); step += 4u) {
            let a = $step(x, lane);
            let b = $step(a.x, lane);
            let c = $step(b.x, lane);
            let d = $step(c.x, lane);
            x = d.x;
            $put(segment, to, quad, a.y | (b.y << 8u) | (c.y << 16u) | (d.y << 24u));
            quad += 32u;
        }
    }
    var packed = 0u;
    for (; step < steps; step++) {
        let busy = lane < select(more, 32u, step < whole);
        let bucket = extractBits(x, 11u, 5u);
        var found = $advance(x, bucket, vec2<u32>(given_x(bucket), given_y(bucket)));
        x = select(x, found.x, busy);
        x = $refill(x, lane, busy && x < 65536u);
        if alphabet > 32u {
            found = $low(x, found.y);
            x = select(x, found.x, busy);
            x = $refill(x, lane, busy && x < 65536u);
            if busy && found.y >= alphabet {
                fault(run.tile, FAULT_ALPHABET);
            }
        }
        packed |= found.y << (8u * (step & 3u));
        if (step & 3u) == 3u || step + 1u == steps {
            $put(segment, to, quad, packed);
            quad += 32u;
            packed = 0u;
        }
    }
    return x;
}

// Hands over the columns up to `col`: each lane its own rows, which it has put there itself.
fn $hand_over(segment: u32, col: u32, lane: u32) {
    let together = columns_together(segment);
    if together == 0u || (col + 1u) % together != 0u {
        return;
    }
    let rows = segment_rows(segment);
    let whole = rows / 32u;
    let more = rows % 32u;
    let steps = whole + select(0u, 1u, lane < more);
    let quads = (whole + select(0u, 1u, more > 0u) + 3u) / 4u;
    let first = lane * whole + min(lane, more);
    for (var quad = 0u; 4u * quad < steps; quad++) {
        var packed = vec4<u32>();
        for (var i = 0u; i < together; i++) {
            packed[i] = $stash[(i * quads + quad) * 32u + lane];
        }
        let end = min(steps - 4u * quad, 4u);
        for (var step = 0u; step < end; step++) {
            let symbols = (packed >> vec4<u32>(8u * step)) & vec4<u32>(0xffu);
            emit(segment, first + 4u * quad + step, col + 1u - together, symbols);
        }
    }
}

fn $decode(run: Run, lane: u32) {
    let start = run.begin / 2u + 64u;
    $below = (1u << lane) - 1u;
    var x: u32;
    var table = 0xffffffffu;
    if run.first == 0u {
        x = payload[run.begin / 4u + lane];
        $next = start;
        if x < 65536u {
            fault(run.tile, FAULT_END);
        }
    } else {
        x = state(run, lane);
        $next = state(run, 32u);
    }
    var first = 0u;
    for (var s = run.segment; s < run.segment + run.segments; s++) {
        let next = first + segment_cols(s);
        if run.first < next && run.end > first {
            // Other lanes' symbols of the segments before may be asked for.
            storageBarrier();
            emit_from(s);
            for (var unit = max(run.first, first); unit < min(run.end, next); unit++) {
                let number = $data(1u + 2u * (segment_own(s) + unit - first));
                if number != table {
                    let at = $data(0u) + 96u * number + 3u * lane;
                    give(lane, vec3<u32>($data(at), $data(at + 1u), $data(at + 2u)));
                    table = number;
                }
                x = $column(run, s, unit - first, lane, x);
                $hand_over(s, unit - first, lane);
                // Lanes have gone their own ways there, and must be together again to vote; and done with the tables.
                workgroupBarrier();
            }
        }
        first = next;
    }
    if run.end < run.units {
        set_state(run, lane, x);
        if lane == 0u {
            set_state(run, 32u, $next);
        }
    } else if x != 65536u || 2u * ($next - start) + 128u != run.bytes {
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
    let late = row >= longer;
    let each = select(whole + 1u, max(whole, 1u), late);
    let within = select(row, row - longer, late);
    let turn = quotient(within, each);
    let lane = turn + select(0u, more, late);
    let step = within - turn * each;
    let word = scratch_get(segment, (col * quads + step / 4u) * 32u + lane);
    return (word >> (8u * (step & 3u))) & 0xffu;
}
