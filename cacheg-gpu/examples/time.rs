//! tmp
use cacheg_core::testkit::Random;
use cacheg_core::*;
use cacheg_gpu::*;
use std::time::Instant;
fn main() {
    let registry =
        Registry::new(cacheg_quant::PLUGINS.iter().chain(cacheg_entropy::PLUGINS).copied()).unwrap();
    let shape = Some(Shape { heads: 3, head_dim: 64, dtype: Dtype::F16 });
    let group = LayerGroup { repeat: 30, key: shape, value: shape, latent: None, rope: None };
    let geometry = Geometry::new([group]).unwrap();
    let tokens: usize = std::env::var("TOKENS").ok().and_then(|t| t.parse().ok()).unwrap_or(340);
    let mut random = Random::new(1);
    let cache =
        KvCache::from_fn(&geometry, tokens, |_, _, channel| (channel % 7) as f32 - 3.0 + random.normal());
    let gpu = Gpu::open(Some("llvmpipe")).unwrap();
    for spec in std::env::args().skip(1) {
        let encoder = Encoder::new(Pipeline::parse(&registry, &spec).unwrap(), &geometry, None).unwrap();
        let bytes = encoder.encode(&cache.view(), 0..tokens, &|_| ()).unwrap().to_vec();
        let chunk = Chunk::parse(&bytes, &Limits::default()).unwrap();
        let plan = chunk.bind(&registry, None).unwrap();
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        let mut out = KvCache::zeros(&geometry, tokens, 0);
        let gb = (geometry.bytes_per_token() * tokens as u64) as f64 / 1e9;
        let mut best = [f64::MAX; 2];
        let mut d = Measured::default();
        for _ in 0..4 {
            let mut decoder = Cpu.decoder(plan.clone()).unwrap();
            let t = Instant::now();
            pool.install(|| decoder.decode(&chunk, KvOut::Host(&mut out.view_mut(), 0), &|_| ()).unwrap());
            best[0] = best[0].min(t.elapsed().as_secs_f64());
            let mut decoder = gpu.decoder(plan.clone()).unwrap();
            let t = Instant::now();
            decoder.decode(&chunk, KvOut::Host(&mut out.view_mut(), 0), &|_| ()).unwrap();
            best[1] = best[1].min(t.elapsed().as_secs_f64());
            d = gpu.measure(plan.clone(), &chunk, &mut out.view_mut()).unwrap();
        }
        println!(
            "{spec}: {} MB, {} tiles, cpu thread {:.3} GB/s, gpu {:.3} GB/s, ratio {:.2}; decode {:?} reconstruct {:?} dispatches {} one pass {}",
            (gb * 1e3) as u32,
            chunk.layout().tiles(),
            gb / best[0],
            gb / best[1],
            best[0] / best[1],
            d.decode,
            d.reconstruct,
            d.dispatches,
            d.one_pass
        );
    }
}
