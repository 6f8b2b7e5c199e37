//! Bounds on what a file may ask for.

/// Checked before anything is allocated; what exceeds them is an [`ErrorKind::Limit`](crate::ErrorKind::Limit).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Layers of a model.
    pub max_layers: u32,
    /// Channels of one plane.
    pub max_channels: u32,
    /// Channels of all planes of a model: tables and indices grow with them.
    pub max_model_channels: u64,
    /// Tokens of one container.
    pub max_tokens: u64,
    /// Bytes of a header (JSON).
    pub max_header: u32,
    /// Bytes of data that a chunk carries for its stages (tables, means …).
    pub max_carried: u32,
    /// Bytes of the decoded KV cache.
    pub max_output: u64,
    /// Values (all its planes and tokens together) of one tile.
    pub max_tile_values: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_layers: 4096,
            max_channels: 1 << 20,
            max_model_channels: 1 << 24,
            max_tokens: 1 << 26,
            max_header: 64 << 20,
            max_carried: 1 << 30,
            max_output: 64 << 30,
            max_tile_values: 1 << 24,
        }
    }
}
