// `mean`: data has, for each plane, where its means begin, and then the means.

fn $value(p: Place) -> f32 {
    return $inner(p) + bitcast<f32>($data($data(p.plane) + p.col));
}
