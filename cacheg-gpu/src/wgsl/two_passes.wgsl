// Symbols go through `scratch`: one pass decodes them, the next makes elements.

const STASH_WORDS: u32 = 1u;

fn kept(segment: u32) -> bool {
    return true;
}

fn columns_together(segment: u32) -> u32 {
    return 0u;
}

fn emit_from(segment: u32) {}

fn emit(segment: u32, row: u32, col: u32, symbols: vec4<u32>) {}

fn symbol(p: Place, symbol_plane: u32) -> u32 {
    let at = coded(p);
    return coder_symbol(at.segment + symbol_plane, at.row, at.col);
}

fn escape_found(segment: u32, p: Place, index: u32) {}

fn escape_has_symbol(segment: u32, place: u32, index: u32) -> bool {
    let row = quotient(place, segment_cols(segment));
    return coder_symbol(segment, row, place - row * segment_cols(segment)) + 1u == segment_alphabet(segment);
}
