// `steps`: twin of steps/columns.rs.
//
// Data: the reach; for each plane and each of its four possible parts where its columns begin; of each column and each of its
// $GRADES grades two words: a 256th of the step, and what is taken off |q| = 0, 1, 2, 3 and more, a byte each.

// Of each part.
var<private> $begins: array<u32, 4>;

fn $enter(plane: u32) {
    for (var part = 0u; part < 4u; part++) {
        $begins[part] = $data(1u + 4u * plane + part);
    }
}

fn $value(p: Place) -> f32 {
    let at = $begins[p.part] + 2u * ($GRADES * p.col + grade(p));
    let reach = $data(0u);
    let found = symbol(p, 0u);
    if found == 2u * reach + 1u {
        return escape(p);
    }
    let q = i32(found) - i32(reach);
    let size = u32(abs(q));
    let less = ($data(at + 1u) >> (8u * min(size, 3u))) & 255u;
    let magnitude = i32(256u * size - less);
    return f32(select(magnitude, -magnitude, q < 0)) * bitcast<f32>($data(at));
}
