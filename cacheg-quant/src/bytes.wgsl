// `bytes`: data has, for each plane, the bytes of an element and the element type.

fn $element(p: Place) -> u32 {
    var bits = 0u;
    for (var byte = 0u; byte < $data(2u * p.plane); byte++) {
        bits |= symbol(p, byte) << (8u * byte);
    }
    return bits;
}

fn $value(p: Place) -> f32 {
    return widen($data(2u * p.plane + 1u), $element(p));
}
