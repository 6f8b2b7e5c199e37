//! Buffers that are used again and again.

use wgpu::BufferUsages;

/// The buffers of a window that is under way.
#[derive(Debug, Default)]
pub(crate) struct Slot {
    pub(crate) payload: Reused,
    pub(crate) table: Reused,
    pub(crate) scratch: Reused,
    pub(crate) states: Reused,
    pub(crate) output: Reused,
    pub(crate) faults: Reused,
    pub(crate) windows: Reused,
    pub(crate) times: Reused,
    pub(crate) staging: Reused,
}

/// A buffer that grows.
#[derive(Debug, Default)]
pub(crate) struct Reused(Option<wgpu::Buffer>);

impl Reused {
    /// A buffer of at least so many bytes; what it holds is left over from before.
    pub(crate) fn get(
        &mut self,
        device: &wgpu::Device,
        label: &'static str,
        size: u64,
        usage: BufferUsages,
    ) -> wgpu::Buffer {
        // Bindings are not empty.
        let size = size.max(16).next_multiple_of(16);
        match &self.0 {
            Some(buffer) if buffer.size() >= size => buffer.clone(),
            _ => {
                // The old one first, or both would be there.
                self.0 = None;
                let buffer = device.create_buffer(&wgpu::BufferDescriptor {
                    label: Some(label),
                    size,
                    usage,
                    mapped_at_creation: false,
                });
                self.0.insert(buffer).clone()
            }
        }
    }
}
