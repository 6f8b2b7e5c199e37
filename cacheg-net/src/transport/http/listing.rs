//! `PROPFIND` answers (RFC 4918), read as they come: a page is given as soon as it is there, and memory is needed for one.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::{io, mem};

use bytes::{Buf, Bytes};
use cacheg_core::{BoxFuture, Error, Key, Listing, ObjectMeta, Page, Result};
use http::{HeaderName, HeaderValue, Method, StatusCode};
use http_body::Body;
use quick_xml::Reader;
use quick_xml::escape::resolve_predefined_entity;
use quick_xml::events::Event;
use tokio::io::{AsyncBufRead, AsyncRead, ReadBuf};
use tokio::time::timeout;

use super::{HttpStore, client};

/// Objects in a page.
const PAGE: usize = 1_000;
/// The longest tag or text, and the longest element of all texts, in bytes.
const LONGEST: usize = 64 << 10;

/// The pages of one listing.
pub(super) struct Pages<'a> {
    store: &'a HttpStore,
    folder: Option<&'a Key>,
    state: State,
}

enum State {
    Start,
    Reading(Box<Reading>),
    /// At the end, and after errors.
    End,
}

impl<'a> Pages<'a> {
    pub(super) fn new(store: &'a HttpStore, folder: Option<&'a Key>) -> Self {
        Self { store, folder, state: State::Start }
    }

    async fn page(&mut self) -> Result<Option<Page>> {
        let mut reading = match mem::replace(&mut self.state, State::End) {
            State::Start => match self.ask().await? {
                Some(reading) => reading,
                None => return Ok(None),
            },
            State::Reading(reading) => reading,
            State::End => return Ok(None),
        };
        let mut page = Vec::new();
        while page.len() < PAGE {
            let Ok(found) = timeout(self.store.patience, reading.next()).await else {
                let patience = self.store.patience;
                return Err(Error::unavailable(format!(
                    "{}: a listing fell silent for {patience:?}",
                    self.store.url
                )));
            };
            let Some(found) = found.map_err(|e| e.at(format!("listing of {}", self.store.url)))? else {
                return Ok((!page.is_empty()).then_some(page));
            };
            page.extend(self.object(found)?);
        }
        self.state = State::Reading(reading);
        Ok(Some(page))
    }

    async fn ask(&self) -> Result<Option<Box<Reading>>> {
        let method = Method::from_bytes(b"PROPFIND").map_err(|e| Error::unsupported(e.to_string()))?;
        let depth = (HeaderName::from_static("depth"), HeaderValue::from_static("infinity"));
        let path = self.folder.map_or("", Key::as_str);
        let (response, _) = self.store.send(&method, path, &[depth], None).await?;
        match response.status() {
            StatusCode::MULTI_STATUS => {
                let response: http::Response<reqwest::Body> = response.into();
                Ok(Some(Box::new(Reading::new(response.into_body()))))
            }
            StatusCode::NOT_FOUND => Ok(None),
            StatusCode::OK | StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED => {
                Err(Error::unsupported(format!("{} does not list (no WebDAV)", self.store.url)))
            }
            _ => Err(self.store.refused(response, path).await),
        }
    }

    /// The object of an entry; `None` for folders, for what is no key, and for what is not below the folder.
    fn object(&self, found: Found) -> Result<Option<(Key, ObjectMeta)>> {
        // A reference, or a whole URL.
        let path = match found.href.split_once("://") {
            Some((_, rest)) => rest.find('/').map_or("/", |slash| &rest[slash..]),
            None => &found.href,
        };
        let decoded =
            |path: &str| percent_encoding::percent_decode_str(path).decode_utf8_lossy().into_owned();
        let (path, base) = (decoded(path), decoded(self.store.base.path()));
        if path.trim_end_matches('/') == base.trim_end_matches('/') {
            return Ok(None);
        }
        let Some(name) = path.strip_prefix(&base) else {
            let shown: String = path.chars().take(80).collect();
            return Err(Error::corrupt(format!("{} lists {shown:?}, which is not below it", self.store.url)));
        };
        if found.is_folder {
            return Ok(None);
        }
        let inside = |name: &str| {
            self.folder.is_none_or(|folder| {
                name.strip_prefix(folder.as_str()).is_some_and(|rest| rest.starts_with('/'))
            })
        };
        let key = Key::new(name).ok().filter(|key| inside(key.as_str()));
        let Some(key) = key else { return Ok(None) };
        let size = found
            .size
            .parse()
            .map_err(|_| Error::corrupt(format!("{} lists {key} without a length", self.store.url)))?;
        let mut meta = ObjectMeta::new(size);
        meta.modified = httpdate::parse_http_date(&found.modified).ok();
        meta.etag = (!found.etag.is_empty()).then_some(found.etag);
        Ok(Some((key, meta)))
    }
}

impl Listing for Pages<'_> {
    fn next(&mut self) -> BoxFuture<'_, Result<Option<Page>>> {
        Box::pin(async move {
            loop {
                match self.page().await? {
                    // Nothing but folders.
                    Some(page) if page.is_empty() => {}
                    page => return Ok(page),
                }
            }
        })
    }
}

/// One `response` element.
#[derive(Debug, Default)]
struct Found {
    href: String,
    size: String,
    modified: String,
    etag: String,
    is_folder: bool,
}

struct Reading {
    reader: Reader<Incoming>,
    buffer: Vec<u8>,
    ended: bool,
}

impl Reading {
    fn new(body: reqwest::Body) -> Self {
        let incoming = Incoming { body, rest: Bytes::new(), since: 0 };
        Self { reader: Reader::from_reader(incoming), buffer: Vec::new(), ended: false }
    }

    /// The next entry.
    async fn next(&mut self) -> Result<Option<Found>> {
        if self.ended {
            return Ok(None);
        }
        let broken = |what: &str| Error::corrupt(format!("this is no list of WebDAV's: {what}"));
        let mut entry: Option<Found> = None;
        // Properties count once their status is known to be good.
        let (mut properties, mut good) = (Found::default(), true);
        let mut text = String::new();
        let mut length = 0;
        loop {
            self.buffer.clear();
            self.reader.get_mut().since = 0;
            let event = self.reader.read_event_into_async(&mut self.buffer).await;
            let event = event.map_err(|e| match e {
                quick_xml::Error::Io(e) => Error::unavailable(client::chain(&*e)),
                e => broken(&e.to_string()),
            })?;
            match event {
                Event::Start(tag) => {
                    text.clear();
                    match tag.local_name().as_ref() {
                        b"response" => (entry, length) = (Some(Found::default()), 0),
                        b"propstat" => (properties, good) = (Found::default(), true),
                        b"collection" => properties.is_folder = true,
                        _ => {}
                    }
                }
                Event::Empty(tag) => {
                    properties.is_folder |= tag.local_name().as_ref() == b"collection";
                }
                Event::Text(piece) => text.push_str(&piece.decode().map_err(|e| broken(&e.to_string()))?),
                Event::CData(piece) => text.push_str(&piece.decode().map_err(|e| broken(&e.to_string()))?),
                Event::GeneralRef(reference) => {
                    match reference.resolve_char_ref().map_err(|e| broken(&e.to_string()))? {
                        Some(letter) => text.push(letter),
                        None => {
                            let name = reference.decode().map_err(|e| broken(&e.to_string()))?;
                            let known = resolve_predefined_entity(&name);
                            text.push_str(known.ok_or_else(|| broken("an unknown entity"))?);
                        }
                    }
                }
                Event::End(tag) => {
                    let value = mem::take(&mut text).trim().to_owned();
                    match (tag.local_name().as_ref(), &mut entry) {
                        (b"href", Some(entry)) if entry.href.is_empty() => entry.href = value,
                        (b"getcontentlength", _) => properties.size = value,
                        (b"getlastmodified", _) => properties.modified = value,
                        (b"getetag", _) => properties.etag = value,
                        (b"status", _) => good = value.contains(" 200"),
                        (b"propstat", Some(entry)) if good => {
                            let href = mem::take(&mut entry.href);
                            *entry = Found { href, ..mem::take(&mut properties) };
                        }
                        (b"response", entry) => {
                            return entry
                                .take()
                                .map(Some)
                                .ok_or_else(|| broken("a `response` that has not begun"));
                        }
                        (b"multistatus", _) => {
                            self.ended = true;
                            return Ok(None);
                        }
                        _ => {}
                    }
                }
                Event::Eof => {
                    return Err(Error::unavailable("the answer breaks off before its end"));
                }
                Event::Decl(_) | Event::Comment(_) | Event::PI(_) => {}
                Event::DocType(_) => return Err(broken("a document type")),
            }
            length += self.buffer.len();
            if length > LONGEST {
                return Err(Error::Limit(format!("an entry of a listing has more than {LONGEST} bytes")));
            }
        }
    }
}

/// A body as something to read from, which fails when one tag or text becomes too long.
struct Incoming {
    body: reqwest::Body,
    rest: Bytes,
    /// Bytes since the last event.
    since: usize,
}

impl AsyncBufRead for Incoming {
    fn poll_fill_buf(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        let this = self.get_mut();
        if this.since > LONGEST {
            return Poll::Ready(Err(io::Error::other(format!("a tag or text of more than {LONGEST} bytes"))));
        }
        while this.rest.is_empty() {
            match ready!(Pin::new(&mut this.body).poll_frame(cx)) {
                None => break,
                Some(Err(e)) => return Poll::Ready(Err(io::Error::other(client::reason(e)))),
                Some(Ok(frame)) => this.rest = frame.into_data().unwrap_or_default(),
            }
        }
        Poll::Ready(Ok(&this.rest))
    }

    fn consume(self: Pin<&mut Self>, amount: usize) {
        let this = self.get_mut();
        this.since += amount;
        this.rest.advance(amount);
    }
}

impl AsyncRead for Incoming {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let piece = ready!(self.as_mut().poll_fill_buf(cx))?;
        let amount = piece.len().min(buffer.remaining());
        buffer.put_slice(&piece[..amount]);
        self.consume(amount);
        Poll::Ready(Ok(()))
    }
}
