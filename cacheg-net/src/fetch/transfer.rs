//! One object on its way here.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cacheg_core::{Error, ErrorKind, Key, Result, Transport};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

use super::run::Event;
use crate::control::TransferId;
use crate::store::Hash;

/// Progress is reported this often.
const REPORT: Duration = Duration::from_millis(10);

/// Room for what is expected to come; the rest is asked for as it comes.
const FIRST_ROOM: u64 = 4 << 20;

/// The longest pause before a broken transfer is taken up again.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// What to fetch.
pub(super) struct Wanted {
    pub(super) transport: Arc<dyn Transport>,
    pub(super) key: Key,
    pub(super) bytes: u64,
    pub(super) sha256: Hash,
}

/// Fetches it and says what becomes of it. A transfer that breaks off goes on where it was, for as long as each attempt
/// brings something; the first that brings nothing, and fails, is reported.
pub(super) async fn run(wanted: Wanted, id: TransferId, events: mpsc::Sender<Event>) {
    let result = fetch(&wanted, id, &events).await;
    let event = match result {
        Ok((bytes, at)) => Event::Received { id, bytes, at },
        Err(error) => {
            Event::Failed { id, error: error.at(format!("{} in {}", wanted.key, wanted.transport.url())) }
        }
    };
    // Nobody listens any more: the request is over.
    let _ = events.send(event).await;
}

async fn fetch(wanted: &Wanted, id: TransferId, events: &mpsc::Sender<Event>) -> Result<(Vec<u8>, Instant)> {
    let mut bytes: Vec<u8> = Vec::new();
    let room = usize::try_from(wanted.bytes.min(FIRST_ROOM)).unwrap_or(0);
    bytes.try_reserve(room).map_err(|_| Error::limit("no memory for a chunk"))?;
    let mut hash = Sha256::new();
    let mut pause = Duration::from_millis(20);
    loop {
        let before = bytes.len();
        match attempt(wanted, &mut bytes, &mut hash, id, events).await {
            Ok(()) => break,
            Err(error)
                if bytes.len() > before && matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Io) =>
            {
                tracing::info!(key = %wanted.key, at = bytes.len(), %error, "going on");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            Err(error) => return Err(error),
        }
    }
    let at = Instant::now();
    if Hash::from_digest(hash.finalize().into()) != wanted.sha256 {
        return Err(Error::corrupt("it is not the object that its name promises"));
    }
    Ok((bytes, at))
}

async fn attempt(
    wanted: &Wanted,
    bytes: &mut Vec<u8>,
    hash: &mut Sha256,
    id: TransferId,
    events: &mpsc::Sender<Event>,
) -> Result<()> {
    let from = bytes.len() as u64;
    let range = (from > 0).then_some(from..wanted.bytes);
    let mut body = wanted.transport.get(&wanted.key, range).await?;
    if body.meta.size != wanted.bytes {
        return Err(Error::corrupt(format!("{} bytes, {} are expected", body.meta.size, wanted.bytes)));
    }
    let mut reported = Instant::now();
    while let Some(piece) = body.pieces.next().await? {
        if bytes.len() as u64 + piece.len() as u64 > wanted.bytes {
            return Err(Error::corrupt("longer than announced"));
        }
        bytes.try_reserve(piece.len()).map_err(|_| Error::limit("no memory for a chunk"))?;
        bytes.extend_from_slice(&piece);
        hash.update(&piece);
        if reported.elapsed() >= REPORT {
            reported = Instant::now();
            let progress = Event::Progress { id, bytes: bytes.len() as u64, at: reported };
            // A report that finds no room is not worth waiting for: the next one says more.
            let _ = events.try_send(progress);
        }
    }
    if bytes.len() as u64 != wanted.bytes {
        return Err(Error::unavailable(format!("it ended after {} of {} bytes", bytes.len(), wanted.bytes)));
    }
    Ok(())
}
