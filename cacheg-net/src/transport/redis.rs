//! `redis://[USER:PASSWORD@]HOST[:PORT][/DATABASE[/NAME]]`: objects in Redis or Valkey.
//!
//! # Layout
//! All names begin with `cacheg:` or `cacheg:NAME:`.
//!
//! | name | type | |
//! |---|---|---|
//! | `…objects` | hash | key → `VERSION SIZE MILLISECONDS` |
//! | `…index` | sorted set | the keys, to be listed in order by folder |
//! | `…data:VERSION` | string | the bytes of one version of an object, which never change |
//! | `…next` | number | the last version |
//!
//! An upload fills its own `data` string piece by piece; a script then makes it the object's, at once. Uploads that never
//! get there are removed by the server after an hour. What has been replaced or deleted stays for ten minutes, for those
//! who are reading it.
//!
//! # Limits
//! A string, so an object, has at most 512 MB. Servers should run with `maxmemory-policy noeviction`: of an evicted
//! object the rest stays listed, and reading it is `Corrupt`. Redis Cluster is not supported, nor is TLS.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use cacheg_core::{
    Body, BoxFuture, Error, Key, Listing, ObjectMeta, OpenOptions, Page, Pieces, Put, PutOutcome, Result,
    Transport, TransportPlugin,
};
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::{Client, Cmd, FromRedisValue, RedisError, RedisResult};
use tokio::sync::OnceCell;
use tokio::time::{sleep, timeout};

use super::check_range;

/// The plug-in.
pub(super) const PLUGIN: TransportPlugin = TransportPlugin {
    scheme: "redis",
    origin: super::ORIGIN,
    summary: "Redis or Valkey; objects of at most 512 MB",
    usage: "redis://[USER:PASSWORD@]HOST[:PORT][/DATABASE[/NAME]]",
    open: |url, options, _| Ok(Arc::new(RedisStore::new(url, options)?)),
};

/// The longest string a server takes, in bytes.
const LARGEST: usize = 512 << 20;
/// How much is read or written by a command, in bytes.
const PIECE: usize = 1 << 20;
/// Objects in a page of a listing.
const PAGE: usize = 1_000;
/// How long an upload may take, in seconds.
const UPLOAD: u64 = 3_600;
/// How long what is replaced stays, in seconds.
const GRACE: u64 = 600;
/// The first wait before trying again; doubled each time.
const WAIT: Duration = Duration::from_millis(50);

/// Makes an upload the object: 1; 0 if there is one already and it shall stay, -1 if the upload is not all there.
const COMMIT: &str = r"
local old = redis.call('HGET', KEYS[1], ARGV[1])
if old and ARGV[4] == 'create' then
    redis.call('UNLINK', KEYS[3])
    return 0
end
if redis.call('STRLEN', KEYS[3]) ~= tonumber(ARGV[3]) or redis.call('PERSIST', KEYS[3]) == 0 then
    return -1
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('ZADD', KEYS[2], 0, ARGV[1])
if old then
    redis.call('EXPIRE', ARGV[5] .. string.match(old, '^%d+'), ARGV[6])
end
return 1
";

const REMOVE: &str = r"
local old = redis.call('HGET', KEYS[1], ARGV[1])
if old then
    redis.call('HDEL', KEYS[1], ARGV[1])
    redis.call('ZREM', KEYS[2], ARGV[1])
    redis.call('EXPIRE', ARGV[2] .. string.match(old, '^%d+'), ARGV[3])
end
return 1
";

/// Objects in a Redis database.
pub struct RedisStore {
    server: Arc<Server>,
}

impl RedisStore {
    /// What the URL names. Nothing is sent yet.
    ///
    /// # Errors
    /// `InvalidSetting` if it is no such URL.
    pub fn new(url: &str, options: &OpenOptions) -> Result<Self> {
        // The URL may have a password and is not shown.
        let wrong = || Error::setting("this is no URL of a Redis server (redis://HOST:PORT/DATABASE/NAME)");
        let mut base = redis::parse_redis_url(url).ok_or_else(wrong)?;
        if base.scheme() != "redis" || base.query().is_some() || base.fragment().is_some() {
            return Err(wrong());
        }
        let path = base.path().trim_matches('/').to_owned();
        let (database, name) = path.split_once('/').unwrap_or((&path, ""));
        if !database.is_empty() && database.parse::<u32>().is_err() {
            return Err(wrong());
        }
        if !name.is_empty() {
            Key::new(name)?;
        }
        base.set_path(database);
        let client = Client::open(base.as_str()).map_err(|_| wrong())?;
        let prefix = if name.is_empty() { "cacheg:".to_owned() } else { format!("cacheg:{name}:") };
        let host = base.host_str().unwrap_or_default();
        let port = base.port().map_or_else(String::new, |port| format!(":{port}"));
        let slash = if path.is_empty() { "" } else { "/" };
        let server = Server {
            url: format!("redis://{host}{port}{slash}{path}"),
            prefix,
            client,
            connection: OnceCell::new(),
            patience: options.patience,
            retries: options.retries,
        };
        Ok(Self { server: Arc::new(server) })
    }
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStore").field("url", &self.server.url).finish_non_exhaustive()
    }
}

impl Transport for RedisStore {
    fn url(&self) -> &str {
        &self.server.url
    }

    fn get<'a>(&'a self, key: &'a Key, range: Option<Range<u64>>) -> BoxFuture<'a, Result<Body>> {
        Box::pin(async move {
            let found = self.server.find(key).await?;
            let meta = found.object_meta();
            let range = check_range(&self.server.url, key, range, meta.size)?;
            let pieces = Reader {
                server: Arc::clone(&self.server),
                key: key.clone(),
                version: found.version,
                rest: range.clone(),
            };
            Ok(Body { meta, range, pieces: Box::new(pieces) })
        })
    }

    fn put<'a>(&'a self, key: &'a Key, bytes: Bytes, mode: Put) -> BoxFuture<'a, Result<PutOutcome>> {
        Box::pin(self.server.write(key, bytes, mode))
    }

    fn head<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<ObjectMeta>> {
        Box::pin(async move { Ok(self.server.find(key).await?.object_meta()) })
    }

    fn delete<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let server = &*self.server;
            let mut script = script(REMOVE);
            script.arg(2).arg(server.name("objects")).arg(server.name("index"));
            script.arg(key.as_str()).arg(server.name("data:")).arg(GRACE);
            server.ask::<i64>(&script).await?;
            Ok(())
        })
    }

    fn list<'a>(&'a self, folder: Option<&'a Key>) -> Box<dyn Listing + 'a> {
        let (first, last) = match folder {
            Some(folder) => (format!("[{folder}/"), format!("({folder}0")),
            None => ("-".into(), "+".into()),
        };
        Box::new(Pages { server: &self.server, first, last })
    }
}

fn script(text: &str) -> Cmd {
    let mut command = redis::cmd("EVAL");
    command.arg(text);
    command
}

struct Server {
    /// Without user and password.
    url: String,
    /// Of all names.
    prefix: String,
    client: Client,
    connection: OnceCell<ConnectionManager>,
    patience: Duration,
    retries: u32,
}

/// What is known of an object's version.
struct Found {
    version: u64,
    size: u64,
    milliseconds: u64,
}

impl Found {
    fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.split(' ').map(str::parse);
        let mut next = || numbers.next()?.ok();
        Some(Self { version: next()?, size: next()?, milliseconds: next()? })
    }

    fn object_meta(&self) -> ObjectMeta {
        let mut meta = ObjectMeta::new(self.size);
        meta.modified = UNIX_EPOCH.checked_add(Duration::from_millis(self.milliseconds));
        // The time, too, should the numbers of versions begin anew.
        meta.etag = Some(format!("{:x}-{:x}", self.version, self.milliseconds));
        meta
    }
}

impl Server {
    fn name(&self, of: &str) -> String {
        format!("{}{of}", self.prefix)
    }

    async fn connection(&self) -> Result<ConnectionManager> {
        let make = async || {
            let config = ConnectionManagerConfig::new()
                .set_connection_timeout(Some(self.patience))
                .set_response_timeout(Some(self.patience))
                .set_number_of_retries(self.retries as usize)
                .set_min_delay(WAIT)
                .set_max_delay(self.patience);
            ConnectionManager::new_lazy_with_config(self.client.clone(), config)
        };
        let connection = self.connection.get_or_try_init(make).await;
        connection.cloned().map_err(|e| self.failed(&e))
    }

    /// Sends a command once.
    async fn once<T: FromRedisValue>(&self, command: &Cmd) -> Result<RedisResult<T>> {
        let mut connection = self.connection().await?;
        match timeout(self.patience, command.query_async(&mut connection)).await {
            Ok(answer) => Ok(answer),
            Err(_) => Err(Error::unavailable(format!("{}: no answer for {:?}", self.url, self.patience))),
        }
    }

    /// Sends a command that may be sent twice, again if the connection broke.
    async fn ask<T: FromRedisValue>(&self, command: &Cmd) -> Result<T> {
        let mut attempt = 0;
        loop {
            match self.once(command).await? {
                Ok(answer) => return Ok(answer),
                Err(e) if attempt < self.retries && is_passing(&e) => {
                    sleep(self.pause(attempt, &e)).await;
                    attempt += 1;
                }
                Err(e) => return Err(self.failed(&e)),
            }
        }
    }

    fn pause(&self, attempt: u32, error: &RedisError) -> Duration {
        tracing::info!(target: "cacheg::transport", url = self.url, %error, attempt, "trying again");
        (WAIT * 2_u32.saturating_pow(attempt.min(10))).min(self.patience)
    }

    async fn find(&self, key: &Key) -> Result<Found> {
        let mut command = redis::cmd("HGET");
        command.arg(self.name("objects")).arg(key.as_str());
        let text: Option<String> = self.ask(&command).await?;
        let text = text.ok_or_else(|| super::missing(&self.url, key))?;
        Found::parse(&text).ok_or_else(|| {
            Error::corrupt(format!("{}: not what cacheg has written", super::at(&self.url, key)))
        })
    }

    async fn write(&self, key: &Key, bytes: Bytes, mode: Put) -> Result<PutOutcome> {
        if bytes.len() > LARGEST {
            let object = super::at(&self.url, key);
            return Err(Error::Limit(format!(
                "{object}: {} bytes; Redis holds at most {LARGEST}",
                bytes.len()
            )));
        }
        let mut attempt = 0;
        loop {
            let mut next = redis::cmd("INCR");
            next.arg(self.name("next"));
            let version = self.ask(&next).await?;
            match self.upload(key, version, &bytes, mode).await? {
                Ok(1) => return Ok(PutOutcome::Written),
                Ok(0) => return Ok(PutOutcome::Exists),
                Ok(_) => {
                    let object = super::at(&self.url, key);
                    return Err(Error::unavailable(format!("{object}: the server lost the upload")));
                }
                Err(e) if is_passing(&e) => {
                    // Perhaps only the answer was lost.
                    if self.find(key).await.is_ok_and(|found| found.version == version) {
                        return Ok(PutOutcome::Written);
                    }
                    if attempt >= self.retries {
                        return Err(self.failed(&e));
                    }
                    sleep(self.pause(attempt, &e)).await;
                    attempt += 1;
                }
                Err(e) => return Err(self.failed(&e)),
            }
        }
    }

    async fn upload(&self, key: &Key, version: u64, bytes: &Bytes, mode: Put) -> Result<RedisResult<i64>> {
        let data = self.name(&format!("data:{version}"));
        let first = bytes.slice(..PIECE.min(bytes.len()));
        let mut command = redis::cmd("SET");
        command.arg(&data).arg(&first[..]).arg("EX").arg(UPLOAD);
        if let Err(e) = self.once::<()>(&command).await? {
            return Ok(Err(e));
        }
        for piece in bytes[first.len()..].chunks(PIECE) {
            let mut command = redis::cmd("APPEND");
            command.arg(&data).arg(piece);
            if let Err(e) = self.once::<u64>(&command).await? {
                return Ok(Err(e));
            }
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let mut commit = script(COMMIT);
        commit.arg(3).arg(self.name("objects")).arg(self.name("index")).arg(&data);
        commit.arg(key.as_str()).arg(format!("{version} {} {now}", bytes.len())).arg(bytes.len());
        commit.arg(if mode == Put::Create { "create" } else { "replace" });
        commit.arg(self.name("data:")).arg(GRACE);
        self.once(&commit).await
    }

    fn failed(&self, error: &RedisError) -> Error {
        let text = format!("{}: {error}", self.url);
        match error.code() {
            Some("NOAUTH" | "WRONGPASS" | "NOPERM" | "READONLY" | "DENIED") => Error::denied(text),
            Some("OOM") => Error::Io {
                context: text,
                source: std::io::Error::new(std::io::ErrorKind::StorageFull, "the server has no memory left"),
            },
            _ if error.kind() == redis::ErrorKind::AuthenticationFailed => Error::denied(text),
            Some("WRONGTYPE") => Error::corrupt(text),
            _ => Error::unavailable(text),
        }
    }
}

fn is_passing(error: &RedisError) -> bool {
    (error.is_io_error() && !error.is_timeout())
        || error.is_connection_dropped()
        || matches!(error.code(), Some("LOADING" | "BUSY" | "TRYAGAIN"))
}

struct Reader {
    server: Arc<Server>,
    key: Key,
    version: u64,
    rest: Range<u64>,
}

impl Pieces for Reader {
    fn next(&mut self) -> BoxFuture<'_, Result<Option<Bytes>>> {
        Box::pin(async move {
            if self.rest.is_empty() {
                return Ok(None);
            }
            let end = self.rest.end.min(self.rest.start + PIECE as u64);
            let mut command = redis::cmd("GETRANGE");
            command
                .arg(self.server.name(&format!("data:{}", self.version)))
                .arg(self.rest.start)
                .arg(end - 1);
            let piece: Vec<u8> = self.server.ask(&command).await?;
            if piece.len() as u64 != end - self.rest.start {
                let object = super::at(&self.server.url, &self.key);
                let same = self.server.find(&self.key).await.is_ok_and(|found| found.version == self.version);
                return Err(if same {
                    Error::corrupt(format!(
                        "{object} is not as long as announced; has the server evicted it?"
                    ))
                } else {
                    Error::unavailable(format!("{object} was replaced too long ago to be read on"))
                });
            }
            self.rest.start = end;
            Ok(Some(piece.into()))
        })
    }
}

struct Pages<'a> {
    server: &'a Server,
    /// Bounds, as `ZRANGEBYLEX` takes them.
    first: String,
    last: String,
}

impl Listing for Pages<'_> {
    fn next(&mut self) -> BoxFuture<'_, Result<Option<Page>>> {
        Box::pin(async move {
            loop {
                let mut command = redis::cmd("ZRANGEBYLEX");
                command.arg(self.server.name("index")).arg(&self.first).arg(&self.last);
                command.arg("LIMIT").arg(0).arg(PAGE);
                let names: Vec<String> = self.server.ask(&command).await?;
                let Some(last) = names.last() else { return Ok(None) };
                self.first = format!("({last}");
                let mut command = redis::cmd("HMGET");
                command.arg(self.server.name("objects"));
                for name in &names {
                    command.arg(name);
                }
                let found: Vec<Option<String>> = self.server.ask(&command).await?;
                let page: Page = names
                    .into_iter()
                    .zip(found)
                    // What has been removed meanwhile is not there.
                    .filter_map(|(name, found)| {
                        Some((Key::new(name).ok()?, Found::parse(&found?)?.object_meta()))
                    })
                    .collect();
                if !page.is_empty() {
                    return Ok(Some(page));
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_shown() {
        let options = OpenOptions::default();
        for (url, shown) in [
            ("redis://:hush@localhost:1234/2/a-name", "redis://localhost:1234/2/a-name"),
            ("redis://user:hush@localhost", "redis://localhost"),
            ("redis://localhost/1", "redis://localhost/1"),
        ] {
            let store = RedisStore::new(url, &options).unwrap();
            assert_eq!(store.url(), shown);
            assert!(!format!("{store:?}").contains("hush"));
        }
        for url in [
            "redis://:hush@localhost/x",
            "redis://:hush@localhost/0/../x",
            "redis://:hush@localhost?hush",
            "rediss://:hush@localhost",
            "redis:hush",
            "redis://:hush@h:99999",
        ] {
            let error = RedisStore::new(url, &options).unwrap_err().to_string();
            assert!(!error.contains("hush"), "{error}");
        }
    }
}
