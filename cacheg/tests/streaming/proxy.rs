//! A TCP relay in front of a server that does to connections what networks do.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

/// What happens to the bytes that the server sends.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Fault {
    /// No more come; the connection stays.
    Stall,
    /// The connection is closed.
    Close,
    /// They change.
    Damage,
}

/// Passes `after` bytes on, from the server, of all connections together; then the fault happens, `times` times, and is
/// over.
pub(crate) struct Proxy {
    port: u16,
    stop: Arc<AtomicBool>,
}

struct State {
    fault: Fault,
    /// Bytes until the next fault.
    left: AtomicU64,
    after: u64,
    times: AtomicU64,
}

impl Proxy {
    pub(crate) fn start(server: &str, fault: Fault, after: u64, times: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state =
            Arc::new(State { fault, left: AtomicU64::new(after), after, times: AtomicU64::new(times) });
        let stop = Arc::new(AtomicBool::new(false));
        let (server, ended) = (server.to_owned(), stop.clone());
        thread::spawn(move || {
            for client in listener.incoming() {
                if ended.load(Ordering::SeqCst) {
                    break;
                }
                let (Ok(client), Ok(server)) = (client, TcpStream::connect(&server)) else { continue };
                relay(client, server, state.clone());
            }
        });
        Self { port, stop }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}/", self.port)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // Wakes it up.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

fn relay(client: TcpStream, server: TcpStream, state: Arc<State>) {
    let (mut from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
    thread::spawn(move || {
        let _ = std::io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Write);
    });
    thread::spawn(move || {
        let (mut from, mut to) = (server, client);
        let mut buffer = [0; 4096];
        while let Ok(read @ 1..) = from.read(&mut buffer) {
            if state.happens(read as u64) {
                match state.fault {
                    Fault::Stall => thread::sleep(Duration::from_secs(30)),
                    Fault::Close => break,
                    Fault::Damage => buffer[read / 2] ^= 0x55,
                }
            }
            if to.write_all(&buffer[..read]).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
        let _ = from.shutdown(Shutdown::Both);
    });
}

impl State {
    fn happens(&self, bytes: u64) -> bool {
        let left = self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
            Some(if left <= bytes { self.after } else { left - bytes })
        });
        let due = left.unwrap_or(0) <= bytes;
        let one_less = |times: u64| times.checked_sub(1);
        due && self.times.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less).is_ok()
    }
}
