//! Many clients at once, and what they cost. By hand, for the numbers in `docs/streaming.md`:
//! `cargo test --release -p cacheg --test serve -- --ignored --nocapture`

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::process::{Served, command};

const CLIENTS: usize = 500;
const OBJECTS: usize = 16;
const SIZE: usize = 4 << 20;
const TIME: Duration = Duration::from_secs(10);

fn objects() -> (tempfile::TempDir, Arc<Vec<Vec<u8>>>) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(folder.path().join("chunks")).unwrap();
    let mut random = Random(1);
    let objects: Vec<Vec<u8>> = (0..OBJECTS)
        .map(|at| {
            let bytes: Vec<u8> = (0..SIZE / 8).flat_map(|_| random.next().to_le_bytes()).collect();
            std::fs::write(folder.path().join(format!("chunks/{at}")), &bytes).unwrap();
            bytes
        })
        .collect();
    (folder, Arc::new(objects))
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }
}

fn raise_file_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).unwrap();
}

fn start(folder: &tempfile::TempDir) -> Served {
    // One line a request is part of the work; where it goes is not.
    let mut command = command(folder.path(), &[".", "--listen", "127.0.0.1:0"]);
    command.stderr(std::process::Stdio::null());
    Served::start(command)
}

/// Asks for a range and reads the answer's head; what came of the body with it.
async fn ask(stream: &mut TcpStream, object: usize, first: usize, last: usize) -> io::Result<Vec<u8>> {
    let request = format!("GET /chunks/{object} HTTP/1.1\r\nhost: x\r\nrange: bytes={first}-{last}\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut head = Vec::with_capacity(64 << 10);
    let end = loop {
        if stream.read_buf(&mut head).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if let Some(end) = head.windows(4).position(|four| four == b"\r\n\r\n") {
            break end + 4;
        }
    };
    let text = String::from_utf8_lossy(&head[..end]);
    let length = format!("content-length: {}\r\n", last - first + 1);
    if !text.starts_with("HTTP/1.1 206") || !text.contains(&length) {
        return Err(io::Error::other(text.into_owned()));
    }
    Ok(head.split_off(end))
}

async fn client(
    address: String,
    objects: Arc<Vec<Vec<u8>>>,
    seed: u64,
    bytes: Arc<AtomicU64>,
) -> io::Result<Vec<Duration>> {
    let mut random = Random(seed);
    let mut times = Vec::new();
    let mut buffer = vec![0; 64 << 10];
    let mut stream = TcpStream::connect(&address).await?;
    let end = Instant::now() + TIME;
    while Instant::now() < end {
        let object = random.below(OBJECTS);
        let first = random.below(SIZE);
        let last = first + random.below(SIZE - first);
        let start = Instant::now();
        let mut got = ask(&mut stream, object, first, last).await?;
        let mut rest = &objects[object][first..=last];
        loop {
            if !rest.starts_with(&got) {
                return Err(io::Error::other("wrong bytes"));
            }
            rest = &rest[got.len()..];
            bytes.fetch_add(got.len() as u64, Ordering::Relaxed);
            if rest.is_empty() {
                break;
            }
            let want = rest.len().min(buffer.len());
            let read = stream.read(&mut buffer[..want]).await?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            got.clear();
            got.extend_from_slice(&buffer[..read]);
        }
        times.push(start.elapsed());
    }
    Ok(times)
}

#[test]
#[ignore = "ten seconds at full speed"]
fn five_hundred_clients_at_full_speed() {
    raise_file_limit();
    let (folder, objects) = objects();
    let served = start(&folder);
    let idle = served.memory("VmRSS");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let bytes = Arc::new(AtomicU64::new(0));
    let begin = Instant::now();
    let mut times: Vec<Duration> = runtime.block_on(async {
        let tasks: Vec<_> = (0..CLIENTS)
            .map(|at| {
                tokio::spawn(client(
                    served.address.clone(),
                    Arc::clone(&objects),
                    at as u64 * 7919 + 1,
                    Arc::clone(&bytes),
                ))
            })
            .collect();
        let mut times = Vec::new();
        for task in tasks {
            times.extend(task.await.unwrap().unwrap());
        }
        times
    });
    let seconds = begin.elapsed().as_secs_f64();
    times.sort();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
    let gigabytes = bytes.load(Ordering::Relaxed) as f64 / 1e9;
    let peak = served.memory("VmHWM");
    println!(
        "{CLIENTS} clients, {seconds:.1} s: {} requests, {gigabytes:.1} GB, {:.2} GB/s, ms p50 {:.0} p99 {:.0}, \
         RSS idle {idle} KiB, peak {peak} KiB",
        times.len(),
        gigabytes / seconds,
        at(0.5),
        at(0.99),
    );
    assert!(peak < bound(idle), "{peak} KiB");
}

/// Two pieces and a write buffer for each client, and the stacks and heaps of threads.
fn bound(idle: u64) -> u64 {
    idle + CLIENTS as u64 * (2 * 256 + 64) + (64 << 10)
}

#[test]
#[ignore = "needs a thousand file descriptors"]
fn five_hundred_clients_that_do_not_read() {
    raise_file_limit();
    let (folder, _) = objects();
    let served = start(&folder);
    let idle = served.memory("VmRSS");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut streams = Vec::new();
        for at in 0..CLIENTS {
            let mut stream = TcpStream::connect(&served.address).await.unwrap();
            ask(&mut stream, at % OBJECTS, 0, SIZE - 1).await.unwrap();
            streams.push(stream);
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
        // Others are served meanwhile.
        let mut stream = TcpStream::connect(&served.address).await.unwrap();
        let got = ask(&mut stream, 0, 0, 9).await.unwrap();
        assert!(got.len() <= 10);
    });
    let peak = served.memory("VmHWM");
    println!("{CLIENTS} clients that do not read: RSS idle {idle} KiB, peak {peak} KiB");
    assert!(peak < bound(idle), "{peak} KiB");
}
