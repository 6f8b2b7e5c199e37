// The passes of a program; the texts of its stages stand between this and the prelude.

fn symbol(p: Place, symbol_plane: u32) -> u32 {
    let segment = segment_of(p) + symbol_plane;
    return coder_symbol(segment, p.row, p.col);
}

// All else: each invocation makes one word of the output. A workgroup works on one plane of one tile: what it needs to know
// of them is the same for all invocations. Rows are whole words.
@compute @workgroup_size(64)
fn reconstruct(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let number = window.plane_offset + group.z;
    let plane = number / window.blocks;
    let block = number - plane * window.blocks;
    if plane >= window.plane_count {
        return;
    }
    let record = window.outputs + OUTPUT_WORDS * plane;
    let heads = table[record + 1u];
    let dim = table[record + 2u];
    let dtype = table[record + 3u];
    let size = size_of(dtype);
    let each = 4u / size;
    let first = block * window.tile_rows;
    let rows = min(window.tile_rows, window.rows - first);
    let word = (group.y * PER_ROW + group.x) * 64u + lane;
    if word * each >= heads * rows * dim {
        return;
    }
    let channel = word * each % dim;
    let rest = word * each / dim;
    let head = rest / rows;
    let row = rest - head * rows;
    let tile = plane / window.tile_planes * window.blocks + block;
    let at = table[window.tiles + TILE_WORDS * tile + 3u] + PLANE_WORDS * (plane % window.tile_planes);
    var packed = 0u;
    for (var i = 0u; i < each; i++) {
        let col = head * dim + channel + i;
        let p = Place(window.first_plane + plane, 0u, row, col, tile, window.planes + at);
        packed |= pipeline_element(p, dtype) << (8u * size * i);
    }
    let there = window.row_offset + first + row;
    let to = select(head * window.capacity + there, there * heads + head, window.order == 1u) * dim + channel;
    output[table[record] + to / each] = packed;
}

// The same where rows are no whole words, so that a word may belong to two tiles.
@compute @workgroup_size(64)
fn reconstruct_any(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let plane = window.plane_offset + group.z;
    if plane >= window.plane_count {
        return;
    }
    let record = window.outputs + OUTPUT_WORDS * plane;
    let word = (group.y * PER_ROW + group.x) * 64u + lane;
    let dim = table[record + 2u];
    let dtype = table[record + 3u];
    let size = size_of(dtype);
    let each = 4u / size;
    let count = table[record + 1u] * window.rows * dim;
    if word * each >= count {
        return;
    }
    var packed = 0u;
    for (var i = 0u; i < each; i++) {
        let e = word * each + i;
        if e < count {
            let rest = e / dim;
            packed |= element(plane, dtype, rest % window.rows, rest / window.rows * dim + e % dim) << (8u * size * i);
        }
    }
    output[table[record] + word] = packed;
}

const OUTPUT_WORDS: u32 = 4u;

// Of a plane of the window.
fn element(plane: u32, dtype: u32, row: u32, col: u32) -> u32 {
    let number = window.first_row + row;
    let block = number / window.tile_rows;
    let group = plane / window.tile_planes;
    let tile = group * window.blocks + block - window.first_block;
    let at = table[window.tiles + TILE_WORDS * tile + 3u] + PLANE_WORDS * (plane % window.tile_planes);
    let p = Place(window.first_plane + plane, 0u, number - block * window.tile_rows, col, tile, window.planes + at);
    return pipeline_element(p, dtype);
}

// First segments of the parts.
const PLANE_WORDS: u32 = 4u;

// Whether every escaped value has its symbol.
@compute @workgroup_size(64)
fn check_escapes(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let index = (group.y * PER_ROW + group.x) * 64u + lane;
    if index >= window.escape_count {
        return;
    }
    let record = window.escapes + ESCAPE_WORDS * index;
    let segment = table[record + 2u];
    let cols = segment_cols(segment);
    let place = table[record + 3u];
    if coder_symbol(segment, place / cols, place % cols) + 1u != segment_alphabet(segment) {
        fault(segment_tile(segment), FAULT_VALUE);
    }
}
