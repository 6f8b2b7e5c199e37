// `identity`, and `sinks`, whose exact tokens are not coded.

fn $value(p: Place) -> f32 {
    return $inner(p);
}
