//! KV caches in a device's memory.

use std::num::NonZeroU64;

use cacheg_core::{Error, Geometry, Kind, KvCache, Order, Plane, Result};

use crate::device::Device;
use crate::engine::Copy;
use crate::work::{PlaneOutput, PlaneTarget};
use crate::{Gpu, GpuError};

/// Planes begin at multiples of this, so that each can be bound by itself.
const ALIGNMENT: u64 = 256;

/// A KV cache on a GPU.
///
/// A plane's elements are `[heads, tokens, head_dim]` or `[tokens, heads, head_dim]`, little-endian, without gaps. Chunks
/// are decoded to any of its rows; what other rows hold stays. Planes are parts of few large buffers (one, if the device can bind
/// that much), which can be bound as storage, copied from and to.
#[derive(Debug)]
pub struct DeviceKv {
    planes: Vec<Plane>,
    tokens: usize,
    order: Order,
    buffers: Vec<wgpu::Buffer>,
    /// Of each plane: its buffer, and its bytes there.
    places: Vec<Place>,
    gpu: Gpu,
}

#[derive(Debug, Clone, Copy)]
struct Place {
    buffer: usize,
    offset: u64,
    size: u64,
}

impl DeviceKv {
    /// Room for so many tokens, zeros.
    ///
    /// # Errors
    /// If a row of a plane is no whole number of 32-bit words, if a plane is larger than the device can bind, or if its
    /// memory does not suffice.
    pub fn new(gpu: &Gpu, geometry: &Geometry, tokens: usize, order: Order) -> Result<Self> {
        let planes = geometry.planes();
        let sequence: Vec<usize> = (0..planes.len()).collect();
        Self::arrange(gpu, planes, tokens, order, &sequence, ALIGNMENT)
    }

    /// The same as one tensor, as LMCache moves it: `[2, layers, tokens, heads * head_dim]`, keys first, without gaps; of models that
    /// cache latents `[1, layers, tokens, width]`. It is all of the only buffer.
    ///
    /// # Errors
    /// The same; and if planes differ in shape, which no tensor can.
    pub fn new_lmcache(gpu: &Gpu, geometry: &Geometry, tokens: usize) -> Result<Self> {
        let planes = geometry.planes();
        if planes.windows(2).any(|pair| {
            let [a, b] = [pair[0].shape, pair[1].shape];
            (a.heads * a.head_dim, a.dtype) != (b.heads * b.head_dim, b.dtype)
        }) {
            return Err(Error::unsupported("planes of different shapes in one tensor; use `DeviceKv::new`"));
        }
        let of = |kind: Kind| planes.iter().filter(move |plane| plane.kind == kind).map(|plane| plane.index);
        let sequence: Vec<usize> = [Kind::Key, Kind::Value, Kind::Latent].into_iter().flat_map(of).collect();
        let kv = Self::arrange(gpu, planes.clone(), tokens, Order::TokenMajor, &sequence, 4)?;
        if kv.buffers.len() > 1 {
            return Err(Error::limit("a KV cache of one tensor that is larger than the device can bind"));
        }
        Ok(kv)
    }

    /// Puts planes into buffers in some sequence.
    fn arrange(
        gpu: &Gpu,
        planes: Vec<Plane>,
        tokens: usize,
        order: Order,
        sequence: &[usize],
        alignment: u64,
    ) -> Result<Self> {
        let device = gpu.device();
        let limit = gpu.buffer_limit();
        let mut places = vec![Place { buffer: 0, offset: 0, size: 0 }; planes.len()];
        let mut sizes: Vec<u64> = vec![0];
        for index in sequence {
            let plane = &planes[*index];
            let row = plane.shape.head_dim as usize * plane.shape.dtype.size();
            if !row.is_multiple_of(4) {
                return Err(Error::unsupported(format!(
                    "{}: rows of {row} bytes in a device's memory; decode to the host",
                    plane.name()
                )));
            }
            let size = (row * plane.shape.heads as usize) as u64 * tokens as u64;
            device.check_binding("a plane", size)?;
            let last = sizes.len() - 1;
            let offset = sizes[last].next_multiple_of(alignment);
            if offset + size > limit {
                sizes.push(size);
                places[*index] = Place { buffer: last + 1, offset: 0, size };
            } else {
                sizes[last] = offset + size;
                places[*index] = Place { buffer: last, offset, size };
            }
        }
        let buffers = device.scoped(|| {
            let buffer = |size: u64| {
                device.device.create_buffer(&wgpu::BufferDescriptor {
                    label: Some("KV"),
                    size: size.max(16),
                    usage: wgpu::BufferUsages::STORAGE
                        | wgpu::BufferUsages::COPY_SRC
                        | wgpu::BufferUsages::COPY_DST,
                    mapped_at_creation: false,
                })
            };
            sizes.into_iter().map(buffer).collect()
        })?;
        Ok(Self { planes, tokens, order, buffers, places, gpu: gpu.clone() })
    }

    /// Whose memory it is in.
    pub(crate) fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// Which buffer a plane is in.
    pub(crate) fn buffer_of(&self, plane: usize) -> usize {
        self.places[plane].buffer
    }

    /// Where the rows from one of them go.
    pub(crate) fn target(&self, plane: usize, row: usize) -> PlaneTarget {
        PlaneTarget { word: (self.places[plane].offset / 4) as usize, capacity: self.tokens, row }
    }

    /// Copies of the rows of a plane from the output of a window, the first coded row being `first`.
    pub(crate) fn copies<'a>(&'a self, output: &PlaneOutput, first: usize) -> Vec<Copy<'a>> {
        let (shape, place) = (self.planes[output.plane].shape, self.places[output.plane]);
        let (heads, len) = (shape.heads as usize, shape.head_dim as usize * shape.dtype.size());
        let (rows, row) = (output.rows.len(), first + output.rows.start);
        // Runs of bytes, and where the first is and how far apart they are, in rows of a head: one of all heads, or one for each.
        let (runs, size, begin, stride) = match self.order {
            Order::TokenMajor => (1, output.bytes, row * heads, 0),
            _ => (heads, rows * len, row, self.tokens),
        };
        let copy = |run: usize| Copy {
            from: (4 * output.word + run * size) as u64,
            buffer: &self.buffers[place.buffer],
            to: place.offset + ((begin + run * stride) * len) as u64,
            size: size as u64,
        };
        (0..runs).map(copy).collect()
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
            for (plane, place) in self.planes.iter().zip(&self.places) {
                let buffer = &self.buffers[place.buffer];
                let (heads, bytes) = (plane.shape.heads as usize, view.plane_bytes(plane.index));
                let len = plane.shape.head_dim as usize * plane.shape.dtype.size();
                for (row, head) in rows.clone().flat_map(|row| (0..heads).map(move |head| (row, head))) {
                    let from = (head * cache.tokens() + row) * len;
                    let to = match self.order {
                        Order::TokenMajor => (first + row) * heads + head,
                        _ => head * self.tokens + first + row,
                    };
                    let at = place.offset + (to * len) as u64;
                    device.queue.write_buffer(buffer, at, &bytes[from..from + len]);
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

    /// The planes.
    pub fn planes(&self) -> &[Plane] {
        &self.planes
    }

    /// A plane's part of its buffer, ready to be bound (of [one tensor](Self::new_lmcache) only if planes happen to be multiples of 256
    /// bytes); `None` if there is no such plane, or no token.
    pub fn plane(&self, index: usize) -> Option<wgpu::BufferBinding<'_>> {
        let Place { buffer, offset, size } = *self.places.get(index)?;
        let size = Some(NonZeroU64::new(size)?);
        Some(wgpu::BufferBinding { buffer: &self.buffers[buffer], offset, size })
    }

    /// All buffers.
    pub fn buffers(&self) -> &[wgpu::Buffer] {
        &self.buffers
    }
}
