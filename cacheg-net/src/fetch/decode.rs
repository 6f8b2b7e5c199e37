//! The decoder's thread.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender as StdSender;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Instant;

use cacheg_core::{Backend, Chunk, Decoder, Error, KvCache, KvOut, Limits, Profile, Registry, Result};
use tokio::sync::mpsc;

use super::receive::{Receiver, copy_rows, lock};
use super::run::Event;
use crate::store::Manifest;

/// Bytes to decode.
pub(super) struct Order {
    /// Index in the controller's job.
    pub(super) job: usize,
    /// Index of its level there.
    pub(super) level: usize,
    pub(super) name: String,
    pub(super) chunk: usize,
    pub(super) bytes: Vec<u8>,
    /// Something decodable is there already, and must stay if this is not.
    pub(super) upgrade: bool,
}

/// What decoding needs.
pub(super) struct Decoding {
    pub(super) manifest: Arc<Manifest>,
    pub(super) profile: Option<Arc<Profile>>,
    pub(super) registry: Arc<Registry>,
    pub(super) backend: Arc<dyn Backend>,
    pub(super) limits: Limits,
    pub(super) receiver: Arc<Mutex<dyn Receiver>>,
    /// Set when nobody wants anything decoded any more.
    pub(super) stop: Arc<AtomicBool>,
}

/// Decodes on a thread of its own until the sender of orders is gone.
pub(super) fn start(decoding: Decoding, events: mpsc::Sender<Event>) -> Result<StdSender<Order>> {
    let (orders, inbox) = std::sync::mpsc::channel::<Order>();
    let work = move || {
        let starts = decoding.manifest.starts();
        // By level: chunks that a profile serves share a decoder.
        let mut decoders: BTreeMap<String, Box<dyn Decoder>> = BTreeMap::new();
        while let Ok(order) = inbox.recv() {
            if decoding.stop.load(Ordering::Relaxed) {
                break;
            }
            let start = Instant::now();
            let first = starts[order.chunk];
            let result = decoding.decode(&order, first, &mut decoders);
            let (job, level) = (order.job, order.level);
            let event = Event::Decoded { job, level, start, end: Instant::now(), result };
            if events.blocking_send(event).is_err() {
                break;
            }
        }
    };
    let thread = thread::Builder::new().name("cacheg-decode".into()).spawn(work);
    thread.map_err(|source| Error::Io { context: "cannot start a thread".into(), source })?;
    Ok(orders)
}

impl Decoding {
    fn decode(
        &self,
        order: &Order,
        first: u64,
        decoders: &mut BTreeMap<String, Box<dyn Decoder>>,
    ) -> Result<()> {
        let chunk = Chunk::parse(&order.bytes, &self.limits)?;
        self.manifest.check_chunk(order.chunk, first, &order.name, &chunk, order.bytes.len())?;
        let shared = chunk.profile().is_some();
        let mut own = match decoders.remove(&order.name).filter(|_| shared) {
            Some(decoder) => decoder,
            None => {
                let plan = chunk.bind(&self.registry, self.profile.as_deref())?;
                self.backend.decoder(plan)?
            }
        };
        // The manifest was checked: it fits memory.
        let row = first as usize;
        if order.upgrade {
            let mut cache = KvCache::try_zeros(&self.manifest.geometry, chunk.rows(), chunk.position())?;
            own.decode(&chunk, KvOut::Host(&mut cache.view_mut(), 0), &|_| ())?;
            let mut receiver = lock(&self.receiver);
            copy_rows(&cache.view(), &mut receiver.view()?, row)?;
            receiver.arrived(order.chunk, Some(&order.name))?;
        } else {
            let mut receiver = lock(&self.receiver);
            own.decode(&chunk, KvOut::Host(&mut receiver.view()?, row), &|_| ())?;
            receiver.arrived(order.chunk, Some(&order.name))?;
        }
        if shared {
            decoders.insert(order.name.clone(), own);
        }
        Ok(())
    }
}
