// `bytes`: data has, for each plane, the bytes of an element and the element type.

var<private> $bytes: u32;
var<private> $dtype: u32;

fn $enter(plane: u32) {
    $bytes = $data(2u * plane);
    $dtype = $data(2u * plane + 1u);
}

fn $element(p: Place) -> u32 {
    var bits = 0u;
    for (var byte = 0u; byte < $bytes; byte++) {
        bits |= symbol(p, byte) << (8u * byte);
    }
    return bits;
}

fn $value(p: Place) -> f32 {
    return widen($dtype, $element(p));
}
