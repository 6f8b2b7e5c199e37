// `mean`: data has, for each plane, where its means begin, and then the means.

var<private> $means: u32;

fn $enter(plane: u32) {
    $means = $data(plane);
}

fn $value(p: Place) -> f32 {
    return $inner(p) + bitcast<f32>($data($means + p.col));
}
