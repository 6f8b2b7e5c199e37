//! Bodies that keep their word: [`Exact`].

use std::time::Duration;

use bytes::Bytes;
use cacheg_core::{BoxFuture, Error, Pieces, Result};
use tokio::time::timeout;

/// Gives exactly as many bytes as were announced, or an error: what is too long or too short, what breaks off, and what
/// falls silent.
pub(super) struct Exact {
    /// `None` after an error.
    source: Option<Box<dyn Pieces>>,
    /// Bytes that come before those that are wanted.
    skip: u64,
    left: u64,
    /// Whether the source ends where the wanted bytes do.
    ends: bool,
    patience: Duration,
    /// For messages.
    object: String,
}

impl Exact {
    /// All of a source, which should have `length` bytes.
    pub(super) fn new(source: Box<dyn Pieces>, length: u64, patience: Duration, object: String) -> Self {
        Self { source: Some(source), skip: 0, left: length, ends: true, patience, object }
    }

    /// Only a part of it.
    #[cfg(feature = "http")]
    #[must_use]
    pub(super) fn part(mut self, skip: u64, length: u64) -> Self {
        self.ends = skip + length == self.skip + self.left;
        (self.skip, self.left) = (skip, length);
        self
    }

    async fn step(&mut self, source: &mut dyn Pieces) -> Result<Option<Bytes>> {
        loop {
            if self.left == 0 && !self.ends {
                return Ok(None);
            }
            let Ok(piece) = timeout(self.patience, source.next()).await else {
                return Err(Error::unavailable(format!(
                    "{}: nothing came for {:?}, {} bytes before the end",
                    self.object, self.patience, self.left
                )));
            };
            let Some(mut piece) = piece? else {
                if self.left == 0 {
                    return Ok(None);
                }
                return Err(Error::corrupt(format!(
                    "{} ended {} bytes before the announced length",
                    self.object, self.left
                )));
            };
            let skipped = self.skip.min(piece.len() as u64);
            self.skip -= skipped;
            // At most the piece's length.
            let mut piece = piece.split_off(skipped as usize);
            if piece.len() as u64 > self.left {
                if self.ends {
                    return Err(Error::corrupt(format!("{} is longer than announced", self.object)));
                }
                piece.truncate(self.left as usize);
            }
            if !piece.is_empty() {
                self.left -= piece.len() as u64;
                return Ok(Some(piece));
            }
        }
    }
}

impl Pieces for Exact {
    fn next(&mut self) -> BoxFuture<'_, Result<Option<Bytes>>> {
        Box::pin(async move {
            // Taken: an error, or a future that is dropped in the middle, ends the transfer.
            let Some(mut source) = self.source.take() else {
                if self.left == 0 {
                    return Ok(None);
                }
                return Err(Error::unavailable(format!("{}: the transfer has failed before", self.object)));
            };
            let piece = self.step(&mut *source).await?;
            if piece.is_some() {
                self.source = Some(source);
            }
            Ok(piece)
        })
    }
}

#[cfg(test)]
mod tests {
    use cacheg_core::ErrorKind;

    use super::*;

    struct Script(Vec<&'static str>);

    impl Pieces for Script {
        fn next(&mut self) -> BoxFuture<'_, Result<Option<Bytes>>> {
            Box::pin(async move {
                match self.0.pop() {
                    Some("(silence)") => std::future::pending().await,
                    piece => Ok(piece.map(Bytes::from)),
                }
            })
        }
    }

    fn script(text: &'static str, length: u64) -> Exact {
        let mut pieces: Vec<_> = text.split(' ').collect();
        pieces.reverse();
        Exact::new(Box::new(Script(pieces)), length, Duration::from_secs(5), "x".into())
    }

    async fn all(mut body: Exact) -> Result<String> {
        let mut text = String::new();
        while let Some(piece) = body.next().await? {
            assert!(!piece.is_empty());
            text.push_str(std::str::from_utf8(&piece).unwrap());
        }
        assert!(body.next().await.unwrap().is_none(), "it ends twice");
        Ok(text)
    }

    #[tokio::test(start_paused = true)]
    async fn lengths() {
        assert_eq!(all(script("ab  c", 3)).await.unwrap(), "abc", "an empty piece is none");
        assert_eq!(all(script("ab c", 2)).await.unwrap_err().kind(), ErrorKind::Corrupt);
        assert_eq!(all(script("ab c", 4)).await.unwrap_err().kind(), ErrorKind::Corrupt);
        assert_eq!(all(script("", 0)).await.unwrap(), "");
        assert_eq!(all(script("a", 0)).await.unwrap_err().kind(), ErrorKind::Corrupt);
        assert_eq!(all(script("ab (silence)", 3)).await.unwrap_err().kind(), ErrorKind::Unavailable);
    }

    #[cfg(feature = "http")]
    #[tokio::test(start_paused = true)]
    async fn parts() {
        assert_eq!(all(script("abc def gh", 8).part(2, 3)).await.unwrap(), "cde");
        assert_eq!(all(script("abc def gh", 8).part(4, 4)).await.unwrap(), "efgh");
        assert_eq!(
            all(script("abc def gh more", 8).part(4, 4)).await.unwrap_err().kind(),
            ErrorKind::Corrupt
        );
        assert_eq!(all(script("abc", 8).part(2, 3)).await.unwrap_err().kind(), ErrorKind::Corrupt);
        let mut body = script("abc (silence)", 4);
        body.next().await.unwrap();
        body.next().await.unwrap_err();
        assert!(body.next().await.is_err(), "an error is not an end");
    }
}
