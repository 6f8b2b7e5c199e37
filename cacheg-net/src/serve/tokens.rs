//! Bearer tokens, with expiry.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use cacheg_core::{Error, Result};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};

/// The tokens a server accepts. Kept as hashes.
#[derive(Clone)]
pub struct Tokens(Arc<[Token]>);

struct Token {
    hash: [u8; 32],
    expiry: Option<SystemTime>,
}

/// What a token is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Worth {
    Good,
    Expired,
    Unknown,
}

impl Tokens {
    /// Reads a file of lines `token` or `token expiry`, the expiry as in `2026-12-31T23:59:59Z`. Empty lines and lines
    /// that begin with `#` are skipped.
    ///
    /// # Errors
    /// If it cannot be read, or for what [`parse`](Self::parse) refuses.
    pub fn open(path: &Path) -> Result<Self> {
        let text =
            std::fs::read_to_string(path).map_err(|e| Error::io("cannot read tokens from", path, e))?;
        Self::parse(&text).map_err(|e| e.at(path.display()))
    }

    /// Reads such lines.
    ///
    /// # Errors
    /// `InvalidSetting` with the number of the line, never its text, if it has more than two words or an expiry that is
    /// no UTC time, or if there is no token at all.
    pub fn parse(text: &str) -> Result<Self> {
        let mut tokens = Vec::new();
        for (number, line) in (1..).zip(text.lines()) {
            let mut words = line.split_whitespace();
            let Some(token) = words.next().filter(|word| !word.starts_with('#')) else { continue };
            let expiry = words.next().map(humantime::parse_rfc3339).transpose().map_err(|_| {
                Error::setting(format!("line {number}: the expiry is not like 2026-12-31T23:59:59Z"))
            })?;
            if words.next().is_some() {
                return Err(Error::setting(format!("line {number}: more than a token and its expiry")));
            }
            let token = checked(token).map_err(|e| e.at(format_args!("line {number}")))?;
            tokens.push(Token { hash: hash(token), expiry });
        }
        if tokens.is_empty() {
            return Err(Error::setting("no tokens: nobody could be let in"));
        }
        Ok(Self(tokens.into()))
    }

    /// One token that does not expire.
    ///
    /// # Errors
    /// `InvalidSetting` if it is empty or not printable ASCII without spaces.
    pub fn one(token: &str) -> Result<Self> {
        Ok(Self([Token { hash: hash(checked(token)?), expiry: None }].into()))
    }

    /// Compares with all tokens, in a time that does not depend on where they differ.
    pub(crate) fn worth(&self, token: &str, now: SystemTime) -> Worth {
        let given = hash(token);
        let (mut known, mut good) = (Choice::from(0), Choice::from(0));
        for token in self.0.iter() {
            let same = token.hash.ct_eq(&given);
            let valid = token.expiry.is_none_or(|expiry| now < expiry);
            known |= same;
            good = Choice::conditional_select(&good, &(good | Choice::from(u8::from(valid))), same);
        }
        match (bool::from(good), bool::from(known)) {
            (true, _) => Worth::Good,
            (false, true) => Worth::Expired,
            (false, false) => Worth::Unknown,
        }
    }
}

/// What HTTP can carry.
fn checked(token: &str) -> Result<&str> {
    if token.is_empty() || !token.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(Error::setting("a token is printable ASCII without spaces"));
    }
    Ok(token)
}

/// Hashes have one length and say nothing of how much of a token was right.
fn hash(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} tokens", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    #[test]
    fn good_expired_and_unknown() {
        let tokens = Tokens::parse("# staff\n\nalpha\nbeta 1970-01-01T00:01:40Z\n").unwrap();
        let at = |token, seconds| tokens.worth(token, UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at("alpha", 1 << 40), Worth::Good);
        assert_eq!(at("beta", 99), Worth::Good);
        assert_eq!(at("beta", 100), Worth::Expired);
        for wrong in ["", "alph", "alphaa", "Alpha", "#", "1970-01-01T00:01:40Z"] {
            assert_eq!(at(wrong, 0), Worth::Unknown, "{wrong}");
        }
        assert_eq!(format!("{tokens:?}"), "2 tokens");
    }

    #[test]
    fn the_same_token_twice_lasts_as_long_as_the_longer() {
        for text in ["x 1970-01-01T00:00:10Z\nx", "x\nx 1970-01-01T00:00:10Z"] {
            assert_eq!(Tokens::parse(text).unwrap().worth("x", SystemTime::now()), Worth::Good);
        }
    }

    #[test]
    fn wrong_files() {
        for (text, says) in [
            ("", "no tokens"),
            ("# only\n", "no tokens"),
            ("good\nsecret tomorrow", "line 2"),
            ("secret 2026-12-31T23:59:59Z x", "line 1"),
            ("sécret", "printable"),
        ] {
            assert!(Tokens::one(text).is_err());
            let message = Tokens::parse(text).unwrap_err().to_string();
            assert!(message.contains(says) && !message.contains("secret"), "{message}");
        }
    }
}
