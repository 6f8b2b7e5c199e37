// `raw`: symbols of fixed width are read where they are. The own word of a segment is where it begins in the stream.

fn $symbol(segment: u32, row: u32, col: u32) -> u32 {
    let size = segment_alphabet(segment);
    let width = 32u - countLeadingZeros(size - 1u);
    let bit = (row * segment_cols(segment) + col) * width;
    // Of the last symbols the second byte may be beyond the stream; then none of its bits are wanted.
    let both = payload_u16(segment_stream(segment) + segment_own(segment) + (bit >> 3u));
    let found = extractBits(both, bit & 7u, width);
    if found >= size {
        fault(segment_tile(segment), FAULT_ALPHABET);
    }
    return found;
}
