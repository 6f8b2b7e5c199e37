//! Chunks from text: the model's side.

use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Instant;

use cacheg_core::{Error, KvCache, KvView, Result};
use tokio::sync::mpsc;

use super::receive::{Receiver, copy_rows, lock};
use super::run::Event;

/// A model that prefills chunks on top of what came before them.
pub trait Recompute: Send {
    /// Takes over `rows` of `view`, which follow those that it was given or has computed before.
    ///
    /// # Errors
    /// What the model reports; the chunk is then fetched.
    fn prefix(&mut self, view: &KvView<'_>, rows: Range<usize>) -> Result<()>;

    /// The KV cache of these tokens, which follow. Positions, geometry and element types are the context's.
    ///
    /// # Errors
    /// What the model reports; the chunk is then fetched.
    fn compute(&mut self, tokens: &[u32]) -> Result<KvCache>;
}

/// A chunk to recompute.
pub(super) struct Order {
    /// Index in the controller's job.
    pub(super) job: usize,
    pub(super) rows: Range<usize>,
    pub(super) chunk: usize,
}

/// Runs the model on a thread of its own until the sender of orders is gone.
pub(super) fn start(
    mut model: Box<dyn Recompute>,
    tokens: Arc<Vec<u32>>,
    receiver: Arc<Mutex<dyn Receiver>>,
    events: mpsc::Sender<Event>,
) -> Result<std::sync::mpsc::Sender<Order>> {
    let (orders, inbox) = std::sync::mpsc::channel::<Order>();
    let work = move || {
        // Rows that the model knows.
        let mut known = 0;
        while let Ok(Order { job, rows, chunk }) = inbox.recv() {
            let start = Instant::now();
            let result = recompute(&mut *model, &tokens, &receiver, &mut known, rows, chunk);
            let (end, event) = (Instant::now(), result);
            if events.blocking_send(Event::Recomputed { job, start, end, result: event }).is_err() {
                break;
            }
        }
    };
    let thread = thread::Builder::new().name("cacheg-recompute".into()).spawn(work);
    thread.map_err(|source| Error::Io { context: "cannot start a thread".into(), source })?;
    Ok(orders)
}

fn recompute(
    model: &mut dyn Recompute,
    tokens: &[u32],
    receiver: &Mutex<dyn Receiver>,
    known: &mut usize,
    rows: Range<usize>,
    chunk: usize,
) -> Result<()> {
    let wanted =
        tokens.get(rows.clone()).ok_or_else(|| Error::corrupt("the text is shorter than the context"))?;
    if *known > rows.start {
        return Err(Error::unsupported("the model is further on already"));
    }
    if *known < rows.start {
        // Only as long as this takes, nobody can decode.
        model.prefix(&lock(receiver).read()?, *known..rows.start)?;
        *known = rows.start;
    }
    let cache = model.compute(wanted)?;
    *known = rows.end;
    let mut receiver = lock(receiver);
    copy_rows(&cache.view(), &mut receiver.view()?, rows.start)?;
    receiver.arrived(chunk, None)
}
