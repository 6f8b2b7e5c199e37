//! A server that answers as it is told, byte by byte, and no better.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::sleep;

/// What happens on a connection after its request has come.
#[derive(Clone)]
pub(crate) enum Fault {
    /// These bytes, and then an orderly end.
    Say(String),
    /// These bytes, and then a reset.
    Reset(String),
    /// These bytes, and then nothing.
    Stall(String),
}

pub(crate) struct FaultServer {
    pub(crate) url: String,
    /// The heads of requests that came.
    pub(crate) requests: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

impl FaultServer {
    /// Each connection gets the next of these, the last one for ever.
    pub(crate) async fn start(faults: &[Fault]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (faults, seen) = (faults.to_vec(), Arc::clone(&requests));
        let task = tokio::spawn(async move {
            let mut faults = faults.into_iter().peekable();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let fault = faults.next().unwrap();
                if faults.peek().is_none() {
                    faults = vec![fault.clone()].into_iter().peekable();
                }
                tokio::spawn(answer(stream, fault, Arc::clone(&seen)));
            }
        });
        Self { url, requests, task }
    }

    pub(crate) fn count(&self) -> usize {
        self.requests.lock().unwrap().len()
    }
}

impl Drop for FaultServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(mut stream: TcpStream, fault: Fault, seen: Arc<Mutex<Vec<String>>>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    seen.lock().unwrap().push(String::from_utf8_lossy(&head).into_owned());
    let (Fault::Say(text) | Fault::Reset(text) | Fault::Stall(text)) = &fault;
    let _ = stream.write_all(text.as_bytes()).await;
    match fault {
        Fault::Say(_) => {
            let _ = stream.shutdown().await;
            // Closed with something unread, the connection would be reset.
            let _ = tokio::time::timeout(Duration::from_secs(1), stream.read_to_end(&mut Vec::new())).await;
        }
        Fault::Reset(_) => {
            // What was sent shall arrive before the reset.
            sleep(Duration::from_millis(50)).await;
            #[expect(deprecated, reason = "with no time to linger it does not block")]
            let _ = stream.set_linger(Some(Duration::ZERO));
        }
        Fault::Stall(_) => sleep(Duration::from_secs(600)).await,
    }
}
