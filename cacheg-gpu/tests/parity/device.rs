//! Chunks that stay on the device.

use cacheg_core::{
    Backend, Chunk, Decoder as _, Dtype, Encoder, Geometry, Kind, KvCache, KvOut, LayerGroup, Limits, Order,
    Pipeline, Shape,
};
use cacheg_gpu::{DeviceKv, Gpu, Options};

use super::{GPU, REGISTRY, cache, encode};

/// The bytes of a part of a buffer.
pub(crate) fn read(gpu: &Gpu, part: &wgpu::BufferBinding<'_>) -> Vec<u8> {
    let size = part.size.unwrap().get();
    let (device, queue) = (gpu.wgpu_device(), gpu.wgpu_queue());
    let staging = device.create_buffer(&wgpu::BufferDescriptor {
        label: None,
        size,
        usage: wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::MAP_READ,
        mapped_at_creation: false,
    });
    let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    encoder.copy_buffer_to_buffer(part.buffer, part.offset, &staging, 0, size);
    queue.submit([encoder.finish()]);
    let (sender, receiver) = std::sync::mpsc::channel();
    staging.map_async(wgpu::MapMode::Read, .., move |result| sender.send(result).unwrap());
    device.poll(wgpu::PollType::wait_indefinitely()).unwrap();
    receiver.recv().unwrap().unwrap();
    staging.get_mapped_range(..).unwrap().to_vec()
}

#[test]
fn several_chunks_in_one_cache_in_both_orders() {
    let shape = |heads, head_dim, dtype| Some(Shape { heads, head_dim, dtype });
    let layers = LayerGroup {
        repeat: 2,
        key: shape(2, 8, Dtype::F16),
        value: shape(3, 4, Dtype::F8E4m3),
        latent: None,
        rope: None,
    };
    let geometry = Geometry::new([layers]).unwrap();
    let source = cache(&geometry, 90, 5);
    for spec in [
        "sinks(first=4;last=3)|mean|bins(step=0.3)|rans",
        "anchor-delta|bins|range",
        "bytes|raw",
        "mean|hadamard|lloyd-max|raw",
    ] {
        let pipeline = Pipeline::parse(&REGISTRY, spec).unwrap();
        let encoder = Encoder::new(pipeline, &geometry, None).unwrap();
        for order in [Order::HeadMajor, Order::TokenMajor] {
            let mut kv = DeviceKv::new(&GPU, &geometry, 100, order).unwrap();
            let mut expected = vec![Vec::new(); geometry.planes().len()];
            for rows in [0..40, 40..41, 41..90] {
                let bytes = encoder.encode(&source.view(), rows.clone(), &|_| ()).unwrap().to_vec();
                let chunk = Chunk::parse(&bytes, &Limits::default()).unwrap();
                let plan = chunk.bind(&REGISTRY, None).unwrap();
                let to = KvOut::Device(&mut kv, 7 + rows.start);
                GPU.decoder(plan.clone()).unwrap().decode(&chunk, to, &|_| ()).unwrap();
                let decoded = super::decode(&cacheg_core::Cpu, &chunk, &plan).unwrap();
                for (plane, bytes) in geometry.planes().iter().zip(&mut expected) {
                    bytes.push(decoded.view().plane_bytes(plane.index).to_vec());
                }
            }
            for plane in kv.planes() {
                let (found, parts) = (read(&GPU, &kv.plane(plane.index).unwrap()), &expected[plane.index]);
                let heads = plane.shape.heads as usize;
                let len = plane.shape.head_dim as usize * plane.shape.dtype.size();
                let element = |row: usize, head: usize| match order {
                    Order::TokenMajor => (row * heads + head) * len,
                    _ => (head * 100 + row) * len,
                };
                let mut row = 7;
                for part in parts {
                    // One row more in front: see `decode`.
                    let tokens = part.len() / (heads * len);
                    for token in 1..tokens {
                        for head in 0..heads {
                            let from = (head * tokens + token) * len;
                            let at = element(row, head);
                            assert_eq!(found[at..at + len], part[from..from + len], "{spec} {row} {head}");
                        }
                        row += 1;
                    }
                }
                // What is around them is as it was.
                for head in 0..heads {
                    for row in (0..7).chain(97..100) {
                        assert!(found[element(row, head)..][..len].iter().all(|byte| *byte == 0));
                    }
                }
            }
        }
    }
}

fn small() -> Geometry {
    let shape = Some(Shape { heads: 2, head_dim: 8, dtype: Dtype::F16 });
    let layers = LayerGroup { repeat: 3, key: shape, value: shape, latent: None, rope: None };
    Geometry::new([layers]).unwrap()
}

/// `[2, layers, tokens, heads * head_dim]`.
#[test]
fn one_tensor_as_lmcache_has_it() {
    let geometry = small();
    let source = cache(&geometry, 50, 5);
    let bytes = encode(&source.view(), "sinks(first=4)|mean|bins(step=0.3)|rans").unwrap();
    let chunk = Chunk::parse(&bytes, &Limits::default()).unwrap();
    let plan = chunk.bind(&REGISTRY, None).unwrap();
    let mut kv = DeviceKv::new_lmcache(&GPU, &geometry, 60).unwrap();
    GPU.decoder(plan.clone()).unwrap().decode(&chunk, KvOut::Device(&mut kv, 10), &|_| ()).unwrap();
    assert_eq!((kv.buffers().len(), kv.buffers()[0].size()), (1, 2 * 3 * 60 * 2 * 8 * 2));
    let found = read(
        &GPU,
        &wgpu::BufferBinding {
            buffer: &kv.buffers()[0],
            offset: 0,
            size: std::num::NonZeroU64::new(kv.buffers()[0].size()),
        },
    );
    let decoded = super::decode(&cacheg_core::Cpu, &chunk, &plan).unwrap();
    for plane in geometry.planes() {
        let kind = usize::from(plane.kind == Kind::Value);
        let elements = decoded.view().plane_bytes(plane.index).to_vec();
        for (token, head) in (0..50).flat_map(|token| [(token, 0), (token, 1)]) {
            let at = (((kind * 3 + plane.layer as usize) * 60 + 10 + token) * 2 + head) * 16;
            // One row more in front: see `decode`.
            let from = (head * 51 + 1 + token) * 16;
            assert_eq!(found[at..at + 16], elements[from..from + 16], "{} {token} {head}", plane.name());
        }
    }
    let shape = |heads| Some(Shape { heads, head_dim: 8, dtype: Dtype::F16 });
    let layers = LayerGroup { repeat: 1, key: shape(2), value: shape(1), latent: None, rope: None };
    let uneven = Geometry::new([layers]).unwrap();
    let message = DeviceKv::new_lmcache(&GPU, &uneven, 8).unwrap_err().to_string();
    assert!(message.contains("different shapes"), "{message}");
}

/// Many chunks under way, the verdict on each by a call.
#[test]
fn starts_return_and_ends_are_told() {
    let options = Options { depth: 3, window: Some(10_000), ..Options::default() };
    let gpu = Gpu::open_with(Some(&GPU.info().name), options).unwrap();
    let geometry = small();
    let source = cache(&geometry, 96, 5);
    let good = encode(&source.view(), "mean|bins(step=0.3)|rans").unwrap();
    let mut bad = good.clone();
    let end = bad.len() - 9;
    bad[end] ^= 0x55;
    cacheg_core::reseal::chunk(&mut bad);
    let chunks = [&good, &bad].map(|bytes| Chunk::parse(bytes, &Limits::default()).unwrap());
    let plan = chunks[0].bind(&REGISTRY, None).unwrap();
    let kv = DeviceKv::new(&gpu, &geometry, 4 * 96, Order::HeadMajor).unwrap();
    let mut decoder = gpu.open_decoder(plan.clone()).unwrap();
    let (sender, verdicts) = std::sync::mpsc::channel();
    for (number, chunk) in [&chunks[0], &chunks[0], &chunks[1], &chunks[0]].into_iter().enumerate() {
        let sender = sender.clone();
        let done = move |verdict: Result<_, _>| sender.send((number, verdict.is_ok())).unwrap();
        decoder.start(chunk, &kv, 96 * number, done).unwrap();
    }
    assert!(decoder.finish().is_err());
    assert!(decoder.finish().is_ok());
    drop(sender);
    let verdicts: Vec<(usize, bool)> = verdicts.iter().collect();
    assert_eq!(verdicts, [(0, true), (1, true), (2, false), (3, true)]);
    // Memory of another device is refused.
    let other = DeviceKv::new(&GPU, &geometry, 96, Order::HeadMajor).unwrap();
    let message = decoder.start(&chunks[0], &other, 0, |_| ()).unwrap_err().to_string();
    assert!(message.contains("another device"), "{message}");
    // A decoder goes on after errors, and to the host while something is under way.
    decoder.start(&chunks[1], &kv, 96, |verdict| assert!(verdict.is_err())).unwrap();
    decoder.start(&chunks[0], &kv, 0, |verdict| verdict.unwrap()).unwrap();
    let mut host = KvCache::zeros(&geometry, 97, 0);
    decoder.decode(&chunks[0], KvOut::Host(&mut host.view_mut(), 1), &|_| ()).unwrap();
    let decoded = super::decode(&cacheg_core::Cpu, &chunks[0], &plan).unwrap();
    assert!(host == decoded);
    assert!(decoder.finish().is_err());
    let found = read(&gpu, &kv.plane(0).unwrap());
    assert_eq!(found[..96 * 16], decoded.view().plane_bytes(0)[16..97 * 16]);
}

/// Planes in several buffers, and tiles whose planes are in two of them.
#[test]
fn several_buffers() {
    let geometry = small();
    let plane = 60 * 2 * 8 * 2;
    let options = Options { buffer: Some(2 * plane + 512), ..Options::default() };
    let gpu = Gpu::open_with(Some(&GPU.info().name), options).unwrap();
    let source = cache(&geometry, 50, 5);
    for spec in ["sinks(first=2)|mean|bins(step=0.3)|rans", "anchor-delta|bins|range", "hadamard|uniform|raw"]
    {
        let bytes = encode(&source.view(), spec).unwrap();
        let chunk = Chunk::parse(&bytes, &Limits::default()).unwrap();
        assert!(chunk.layout().planes > 2, "tiles of several planes");
        let plan = chunk.bind(&REGISTRY, None).unwrap();
        let decoded = super::decode(&cacheg_core::Cpu, &chunk, &plan).unwrap();
        for order in [Order::HeadMajor, Order::TokenMajor] {
            let mut kv = DeviceKv::new(&gpu, &geometry, 60, order).unwrap();
            assert_eq!(kv.buffers().len(), 3);
            gpu.decoder(plan.clone()).unwrap().decode(&chunk, KvOut::Device(&mut kv, 4), &|_| ()).unwrap();
            for plane in geometry.planes() {
                let found = read(&gpu, &kv.plane(plane.index).unwrap());
                let elements = decoded.view().plane_bytes(plane.index).to_vec();
                for (token, head) in (0..50).flat_map(|token| [(token, 0), (token, 1)]) {
                    let at = match order {
                        Order::TokenMajor => ((4 + token) * 2 + head) * 16,
                        _ => (head * 60 + 4 + token) * 16,
                    };
                    // One row more in front: see `decode`.
                    let from = (head * 51 + 1 + token) * 16;
                    assert_eq!(found[at..at + 16], elements[from..from + 16], "{spec} {token} {head}");
                }
            }
        }
    }
    assert!(DeviceKv::new_lmcache(&gpu, &geometry, 60).unwrap_err().to_string().contains("one tensor"));
}

#[test]
fn what_does_not_fit_is_refused() {
    let shape = Some(Shape { heads: 1, head_dim: 3, dtype: Dtype::F16 });
    let layers = LayerGroup { repeat: 1, key: shape, value: None, latent: None, rope: None };
    let odd = Geometry::new([layers]).unwrap();
    let message = DeviceKv::new(&GPU, &odd, 8, Order::HeadMajor).unwrap_err().to_string();
    assert!(message.contains("6 bytes"), "{message}");
}
