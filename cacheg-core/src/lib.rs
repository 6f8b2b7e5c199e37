//! The core of cacheg: what a KV cache is ([`Geometry`], [`KvView`]), what the stages of a codec are
//! ([`Select`], [`Transform`], [`Quantizer`], [`Coder`]), how they are found ([`Registry`]) and written down ([`spec`]),
//! and how a pipeline of them turns a KV cache into a container and back.
//!
//! The crate knows no codec. The codecs are in `cacheg-quant` and `cacheg-entropy`; the facade `cacheg` names
//! them and is where to start.

mod aligned;
mod arrange;
mod backend;
mod calibrate;
mod chunk;
mod container;
mod data;
mod dtype;
mod elements;
mod error;
mod exact;
mod front;
mod geometry;
mod grade;
mod importance;
mod json;
mod kept;
mod kernel;
mod kv;
mod kv_file;
mod limits;
mod pipeline;
mod plan;
mod predicted;
mod profile;
mod registry;
#[cfg(feature = "testkit")]
pub mod reseal;
mod select;
pub mod spec;
mod stage;
mod statistics;
mod tensor_file;
#[cfg(feature = "testkit")]
pub mod testkit;
mod tile;
mod transport;
mod wire;

pub use backend::{Backend, Cpu, Decoder, KvOut};
pub use calibrate::{calibrate, calibrate_with};
pub use chunk::{Chunk, ChunkBytes, EncodedChunk, Encoder, OpenChunk, Progress};
pub use container::{Container, ContainerHeader};
pub use data::StageData;
pub use dtype::Dtype;
pub use error::{Error, ErrorKind, Result, ResultExt};
pub use exact::ExactTokens;
pub use geometry::{Geometry, Kind, LayerGroup, Pairing, Plane, Rope, RopeScaling, Shape};
pub use grade::{GRADE_OF_ONE, GRADES, GradeCx, Grader};
pub use importance::Importance;
pub use json::canonical as canonical_json;
pub use kept::Kept;
pub use kernel::{CoderKernel, Kernel, KernelRun, KernelStream, Kernels, Rows, dtype_code};
pub use kv::{KvCache, KvView, KvViewMut, Order, PlaneViewMut};
pub use kv_file::{ExtraTensor, KvFile, KvFileMut, kv_metadata, write_kv, write_kv_with};
pub use limits::Limits;
pub use pipeline::Pipeline;
pub use plan::Plan;
pub use profile::Profile;
pub use registry::{Build, Linked, Plugin, Registry};
pub use select::{BoundSelect, Select, SelectCx};
pub use stage::*;
pub use statistics::{Counts, ImportanceSums, Origin, Statistics, Sums};
#[cfg(feature = "testkit")]
#[doc(hidden)]
pub use tile::tile_work;
pub use tile::{Layout, OpenTile, TileBytes};
pub use transport::{
    Body, BoxFuture, Key, LinkedTransport, Listing, ObjectMeta, OpenOptions, Page, Pieces, Put, PutOutcome,
    Transport, TransportPlugin, Transports,
};

#[doc(hidden)]
pub use inventory as __inventory;
