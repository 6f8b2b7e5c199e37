// `raw`: symbols of fixed width are read where they are. The own word of a segment is where it begins in the stream.

fn $symbol(segment: u32, row: u32, col: u32) -> u32 {
    let size = segment_alphabet(segment);
    let width = 32u - countLeadingZeros(size - 1u);
    let bit = (row * segment_cols(segment) + col) * width;
    let address = tile_stream(segment_tile(segment)) + segment_own(segment) + (bit >> 3u);
    // Of the last symbols the second byte may be beyond the payload; then none of its bits are wanted.
    let both = payload_byte(address) | (payload_byte(address + 1u) << 8u);
    let found = (both >> (bit & 7u)) & ((1u << width) - 1u);
    if found >= size {
        fault(segment_tile(segment), FAULT_ALPHABET);
    }
    return found;
}
