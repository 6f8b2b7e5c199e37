//! `PROPFIND`: listings as WebDAV (RFC 4918) says them, page by page.

use std::collections::HashSet;
use std::fmt::Write;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use bytes::Bytes;
use cacheg_core::{Error, ErrorKind, Key, ObjectMeta, Transport};
use futures_util::stream;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderMap, HeaderValue};
use http::{HeaderName, Response, StatusCode};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

use super::answer::{Answer, Content};
use super::etag;
use super::place::Folder;
use super::refusal::Refusal;
use super::service::Shared;

const DEPTH: HeaderName = HeaderName::from_static("depth");

type Page = Vec<(Key, ObjectMeta)>;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Depth {
    Itself,
    Children,
    All,
}

/// Lists a folder, the whole store, or one object. What properties the request asks for is not looked at: all that
/// there are come.
pub(crate) async fn list(
    shared: &Shared,
    place: Option<(Key, Folder)>,
    headers: &HeaderMap,
) -> Result<Answer, Refusal> {
    let depth = match headers.get(DEPTH).map(HeaderValue::as_bytes) {
        Some(b"0") => Depth::Itself,
        Some(b"1") => Depth::Children,
        None | Some(b"infinity" | b"Infinity") => Depth::All,
        Some(_) => return Err(Refusal::new(StatusCode::BAD_REQUEST, "`Depth` is 0, 1 or infinity")),
    };
    let object = match &place {
        Some((key, Folder::No)) => match shared.transport.head(key).await {
            Ok(meta) => Some((key.clone(), meta)),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(error.into()),
        },
        _ => None,
    };
    let folder = place.map(|(key, _)| key);
    let mut text = Text::new();
    let mut pages = None;
    if let Some((key, meta)) = &object {
        text.object(key, meta);
    }
    if object.is_none() || depth != Depth::Itself {
        let mut source = pages_of(Arc::clone(&shared.transport), folder.clone());
        let first = source.recv().await.transpose()?;
        if first.is_none() && object.is_none() && folder.is_some() {
            return Err(Refusal::new(StatusCode::NOT_FOUND, "no such object or folder"));
        }
        if object.is_none() {
            text.folder(folder.as_ref().map_or("", Key::as_str));
        }
        if let Some(first) = first.filter(|_| depth != Depth::Itself) {
            pages = Some((first, source));
        }
    }
    let left = shared.settings.max_listing;
    let walk = Walk { folder, depth, pages, text, seen: HashSet::new(), left };
    let body = stream::try_unfold(Some(walk), |walk| async move {
        match walk {
            Some(walk) => walk.step().await.map(Some),
            None => Ok(None),
        }
    });
    let mut answer = Response::new(Content::stream(body, None));
    *answer.status_mut() = StatusCode::MULTI_STATUS;
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/xml; charset=utf-8"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    Ok(answer)
}

/// A listing borrows its transport; a task of its own can hold both. It ends when nobody listens any more, and is never
/// more than a page ahead.
fn pages_of(transport: Arc<dyn Transport>, folder: Option<Key>) -> mpsc::Receiver<Result<Page, Error>> {
    let (send, receive) = mpsc::channel(1);
    tokio::spawn(async move {
        let mut listing = transport.list(folder.as_ref());
        while let Some(page) = listing.next().await.transpose() {
            let last = page.is_err();
            if send.send(page).await.is_err() || last {
                break;
            }
        }
    });
    receive
}

struct Walk {
    folder: Option<Key>,
    depth: Depth,
    /// A page that came, and where more come from.
    pages: Option<(Page, mpsc::Receiver<Result<Page, Error>>)>,
    text: Text,
    /// Hashes of the folders that were shown. A transport may list in any order.
    seen: HashSet<[u8; 16]>,
    left: usize,
}

impl Walk {
    /// The text of a page, and what is to be done after it.
    async fn step(mut self) -> Result<(Bytes, Option<Self>), Error> {
        let Some((page, mut source)) = self.pages.take() else {
            return Ok((self.text.end(), None));
        };
        for (key, meta) in &page {
            self.entry(key, meta)?;
        }
        self.pages = source.recv().await.transpose()?.map(|page| (page, source));
        Ok((self.text.take(), Some(self)))
    }

    fn entry(&mut self, key: &Key, meta: &ObjectMeta) -> Result<(), Error> {
        let skip = self.folder.as_ref().map_or(0, |folder| folder.as_str().len() + 1);
        let child = match (self.depth, key.as_str().get(skip..).and_then(|rest| rest.split_once('/'))) {
            (Depth::Children, Some((child, _))) => &key.as_str()[..skip + child.len()],
            _ => {
                self.count()?;
                self.text.object(key, meta);
                return Ok(());
            }
        };
        let mut hash = [0; 16];
        hash.copy_from_slice(&Sha256::digest(child)[..16]);
        if self.seen.insert(hash) {
            self.count()?;
            self.text.folder(child);
        }
        Ok(())
    }

    fn count(&mut self) -> Result<(), Error> {
        self.left = self.left.checked_sub(1).ok_or_else(|| Error::limit("a listing of too many entries"))?;
        Ok(())
    }
}

/// Elements of the answer. Nothing in a key needs to be escaped, in XML or in a URL.
struct Text(String);

impl Text {
    fn new() -> Self {
        Self("<?xml version=\"1.0\" encoding=\"utf-8\"?>\n<D:multistatus xmlns:D=\"DAV:\">\n".into())
    }

    fn object(&mut self, key: &Key, meta: &ObjectMeta) {
        // Clients insist on a time.
        let modified = httpdate::fmt_http_date(meta.modified.unwrap_or(UNIX_EPOCH));
        let etag = etag::of(key, meta).map_or_else(String::new, |etag| {
            let etag = etag.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
            format!("<D:getetag>{etag}</D:getetag>")
        });
        self.response(
            key.as_str(),
            &format!(
                "<D:resourcetype/><D:getcontentlength>{}</D:getcontentlength>\
                 <D:getlastmodified>{modified}</D:getlastmodified>{etag}",
                meta.size
            ),
        );
    }

    fn folder(&mut self, name: &str) {
        let slash = if name.is_empty() { "" } else { "/" };
        let epoch = httpdate::fmt_http_date(UNIX_EPOCH);
        self.response(
            &format!("{name}{slash}"),
            &format!(
                "<D:resourcetype><D:collection/></D:resourcetype><D:getlastmodified>{epoch}</D:getlastmodified>"
            ),
        );
    }

    fn response(&mut self, path: &str, properties: &str) {
        // Writing to a string cannot fail.
        let _ = writeln!(
            self.0,
            "<D:response><D:href>/{path}</D:href><D:propstat><D:prop>{properties}</D:prop>\
             <D:status>HTTP/1.1 200 OK</D:status></D:propstat></D:response>"
        );
    }

    fn take(&mut self) -> Bytes {
        std::mem::take(&mut self.0).into()
    }

    fn end(mut self) -> Bytes {
        self.0.push_str("</D:multistatus>\n");
        self.0.into()
    }
}
