// Into zeros: a word may have elements of several invocations.
fn put_element(head: u32, row: u32, channel: u32, dtype: u32, bits: u32) {
    let size = size_of(dtype);
    let each = 4u / size;
    let index = output_word(head, row, channel, 1u) - piece.output;
    atomicOr(&output[piece.output + index / each], bits << (8u * size * (index % each)));
}
