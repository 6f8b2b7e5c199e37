//! A program that uses the codecs of this crate by their names alone.
//!
//! `cargo run --example app`

// Without this line the linker would drop the crate, and the registry would not know its codecs.
use acme_codec as _;

use cacheg_core::{
    Alphabet, BindCx, Build, Dtype, Error, Geometry, LayerGroup, Part, Registry, Result, Role, Segment,
    Shape, Source, TileCx, spec,
};
use ndarray::Array2;

fn main() -> Result<()> {
    let registry = Registry::default().with_linked()?;
    for plugin in registry.iter() {
        println!("{plugin}: {}", plugin.summary);
    }
    let stages = spec::parse("acme.pair | acme.gamma(k=1)")?;
    let (Build::Transform(transform), Build::Coder(coder)) =
        (registry.get(&stages[0].name)?.build, registry.get(&stages[1].name)?.build)
    else {
        return Err(Error::setting("a transform and a coder are wanted"));
    };
    let (transform, coder) = (transform(&stages[0].config)?, coder(&stages[1].config)?);

    // One layer that has keys only: 16 tokens of 2 heads × 4 channels.
    let key = Some(Shape { heads: 2, head_dim: 4, dtype: Dtype::F16 });
    let layer = LayerGroup { repeat: 1, key, value: None, latent: None, rope: None };
    let planes = Geometry::new([layer])?.planes();
    let (rows, cols) = (16, planes[0].channels());
    let x = Array2::from_shape_fn((rows, cols), |(token, channel)| (token as f32) - 0.5 * (channel as f32));

    // Values to parts; this transform makes one of each plane.
    let bound = transform.bind(&BindCx::new(&planes, &[], None, Source::Profile))?;
    let tile = TileCx::new(&planes[0], 0, rows, 0);
    let mut part = Array2::zeros((rows, cols));
    bound.forward(&tile, 0, x.view(), &[], part.view_mut())?;

    // A quantizer would be between the two; steps of 1/4 are exact for these values.
    let alphabet = Alphabet { size: 256, escape: false };
    let symbols: Vec<u8> = part.iter().map(|x| (4.0 * x).round() as i32 as u8 ^ 0x80).collect();

    let mut spec = Part::new(Role::Whole, cols);
    spec.alphabets.push(alphabet);
    let bound_coder = coder.bind(&BindCx::new(&planes, &[vec![spec]], None, Source::Profile))?;
    let segments = [Segment::new(0, 0, 0, rows, cols, alphabet)];
    let (mut scratch, mut bytes) = (bound_coder.scratch(), vec![0; bound_coder.max_len(&segments)]);
    let len = bound_coder.encode(&segments, &symbols, &mut bytes, &mut scratch)?;
    println!("{} values in {len} bytes", symbols.len());

    // And back.
    let mut decoded = vec![0; symbols.len()];
    bound_coder.decode(&segments, &bytes[..len], &mut decoded, &mut scratch)?;
    let steps = decoded.iter().map(|symbol| f32::from((symbol ^ 0x80) as i8) / 4.0).collect();
    let part = Array2::from_shape_vec((rows, cols), steps).map_err(|e| Error::data(e.to_string()))?;
    let mut back = Array2::zeros((rows, cols));
    bound.inverse(&tile, &[part.view()], back.view_mut())?;
    let error = back.iter().zip(&x).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    println!("largest error {error}");
    Ok(())
}
