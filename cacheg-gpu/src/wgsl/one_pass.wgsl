// Elements are made as soon as their symbols are decoded, by the lane that has decoded them. The program has before this
// `STASH_WORDS`, and `TOGETHER`: elements of a word.

// Of the segment that is being decoded.
var<private> now_segment: u32;
var<private> now_part: u32;
var<private> now_complete: bool;
var<private> now_kept: bool;
// Of the columns that are handed over.
var<private> now_col: u32;
var<private> now_head: u32;
var<private> now_symbols: vec4<u32>;

fn emit_from(segment: u32) {
    let flags = segment_flags(segment);
    now_segment = segment;
    enter_piece(segment_piece(segment));
    now_part = flags & 15u;
    now_complete = (flags & SEGMENT_COMPLETE) != 0u;
    now_kept = (flags & SEGMENT_KEPT) != 0u;
    now_col = 0u;
    now_head = 0u;
}

fn kept(segment: u32) -> bool {
    return now_kept;
}

fn columns_together(segment: u32) -> u32 {
    return select(0u, TOGETHER, now_complete);
}

fn emit(segment: u32, row: u32, col: u32, symbols: vec4<u32>) {
    if col != now_col {
        now_col = col;
        now_head = quotient(col, piece.dim);
    }
    now_symbols = symbols;
    let whole = pipeline_row(now_part, row);
    var packed = 0u;
    for (var i = 0u; i < TOGETHER; i++) {
        packed |= pipeline_element(piece_place(whole, col + i), piece_dtype()) << (32u / TOGETHER * i);
    }
    output[output_word(now_head, whole, col - now_head * piece.dim, TOGETHER)] = packed;
}

fn symbol(p: Place, symbol_plane: u32) -> u32 {
    let segment = segment_of(p) + symbol_plane;
    if segment == now_segment {
        return now_symbols[p.col - now_col];
    }
    return coder_symbol(segment, p.row, p.col);
}

fn escape_found(segment: u32, p: Place, index: u32) {
    if p.part == now_part {
        scratch[window.marks + index] = 1u;
    }
}

fn escape_has_symbol(segment: u32, place: u32, index: u32) -> bool {
    return scratch[window.marks + index] == 1u;
}
