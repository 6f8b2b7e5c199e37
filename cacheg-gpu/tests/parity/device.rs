//! Chunks that stay on the device.

use cacheg_core::{
    Backend, Chunk, Dtype, Encoder, Geometry, KvOut, LayerGroup, Limits, Order, Pipeline, Shape,
};
use cacheg_gpu::DeviceKv;

use super::{GPU, REGISTRY, cache};

/// The bytes of a part of a buffer.
fn read(part: &wgpu::BufferBinding<'_>) -> Vec<u8> {
    let size = part.size.unwrap().get();
    let (device, queue) = (GPU.wgpu_device(), GPU.wgpu_queue());
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
    for spec in ["sinks(first=4;last=3)|mean|bins(step=0.3)|rans", "anchor-delta|bins|range", "bytes|raw"] {
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
                let (found, parts) = (read(&kv.plane(plane.index).unwrap()), &expected[plane.index]);
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

#[test]
fn what_does_not_fit_is_refused() {
    let shape = Some(Shape { heads: 1, head_dim: 3, dtype: Dtype::F16 });
    let layers = LayerGroup { repeat: 1, key: shape, value: None, latent: None, rope: None };
    let odd = Geometry::new([layers]).unwrap();
    let message = DeviceKv::new(&GPU, &odd, 8, Order::HeadMajor).unwrap_err().to_string();
    assert!(message.contains("6 bytes"), "{message}");
}
