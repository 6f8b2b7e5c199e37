//! KV caches in a device's memory.

use cacheg_core::{Error, Geometry, KvCache, Order, Plane, Result};

use crate::device::Device;
use crate::{Gpu, GpuError};

/// A KV cache on a GPU: one buffer for each plane, as engines have one tensor for each.
///
/// A plane's elements are `[heads, tokens, head_dim]` or `[tokens, heads, head_dim]`, little-endian, without gaps. Chunks
/// are decoded to any of its rows; what other rows hold stays. The buffers can be bound as storage, copied from and to.
#[derive(Debug)]
pub struct DeviceKv {
    planes: Vec<Plane>,
    tokens: usize,
    order: Order,
    buffers: Vec<wgpu::Buffer>,
}

impl DeviceKv {
    /// Room for so many tokens, zeros.
    ///
    /// # Errors
    /// If a row of a plane is no whole number of 32-bit words, if a plane is larger than the device can bind, or if its
    /// memory does not suffice.
    pub fn new(gpu: &Gpu, geometry: &Geometry, tokens: usize, order: Order) -> Result<Self> {
        let planes = geometry.planes();
        let device = gpu.device();
        let limit = gpu.info().max_binding.min(gpu.info().max_buffer);
        let mut sizes = Vec::with_capacity(planes.len());
        for plane in &planes {
            let row = plane.shape.head_dim as usize * plane.shape.dtype.size();
            if !row.is_multiple_of(4) {
                return Err(Error::unsupported(format!(
                    "{}: rows of {row} bytes in a device's memory; decode to the host",
                    plane.name()
                )));
            }
            let size = (row * plane.shape.heads as usize) as u64 * tokens as u64;
            if size > limit {
                return Err(GpuError::Limit { what: "a plane", size, limit }.into());
            }
            sizes.push(size.max(16));
        }
        let buffers = device.scoped(|| {
            let buffer = |size| {
                device.device.create_buffer(&wgpu::BufferDescriptor {
                    label: Some("KV"),
                    size,
                    usage: wgpu::BufferUsages::STORAGE
                        | wgpu::BufferUsages::COPY_SRC
                        | wgpu::BufferUsages::COPY_DST,
                    mapped_at_creation: false,
                })
            };
            sizes.into_iter().map(buffer).collect()
        })?;
        Ok(Self { planes, tokens, order, buffers })
    }

    /// Copies some rows of a cache to the same rows here, counted from `first`.
    pub(crate) fn write(
        &self,
        device: &Device,
        cache: &KvCache,
        first: usize,
        rows: impl Iterator<Item = usize> + Clone,
    ) -> Result<(), GpuError> {
        let view = cache.view();
        device.scoped(|| {
            for (plane, buffer) in self.planes.iter().zip(&self.buffers) {
                let (heads, bytes) = (plane.shape.heads as usize, view.plane_bytes(plane.index));
                let len = plane.shape.head_dim as usize * plane.shape.dtype.size();
                for (row, head) in rows.clone().flat_map(|row| (0..heads).map(move |head| (row, head))) {
                    let from = (head * cache.tokens() + row) * len;
                    let to = match self.order {
                        Order::TokenMajor => (first + row) * heads + head,
                        _ => head * self.tokens + first + row,
                    };
                    device.queue.write_buffer(buffer, (to * len) as u64, &bytes[from..from + len]);
                }
            }
        })
    }

    /// Number of tokens.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// The order of a plane's elements.
    pub fn order(&self) -> Order {
        self.order
    }

    /// The planes, in the order of the buffers.
    pub fn planes(&self) -> &[Plane] {
        &self.planes
    }

    /// The planes' buffers.
    pub fn buffers(&self) -> &[wgpu::Buffer] {
        &self.buffers
    }
}
