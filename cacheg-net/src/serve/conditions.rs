//! Conditional requests (RFC 9110, section 13).

use std::time::{SystemTime, UNIX_EPOCH};

use http::header::{
    HeaderMap, HeaderName, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE,
};

/// What a condition makes of a `GET` or `HEAD`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Answer,
    NotModified,
    Failed,
}

/// The validators of an object.
pub(crate) struct Validators<'a> {
    /// Strong, quoted.
    pub(crate) etag: Option<&'a str>,
    pub(crate) modified: Option<SystemTime>,
}

impl Validators<'_> {
    /// The preconditions in the order that the standard sets.
    pub(crate) fn check(&self, headers: &HeaderMap) -> Verdict {
        if headers.contains_key(IF_MATCH) {
            if !self.any(headers, &IF_MATCH, Strength::Strong) {
                return Verdict::Failed;
            }
        } else if let Some(since) = date(headers, &IF_UNMODIFIED_SINCE)
            && self.modified.is_some_and(|modified| seconds(modified) > seconds(since))
        {
            return Verdict::Failed;
        }
        if headers.contains_key(IF_NONE_MATCH) {
            if self.any(headers, &IF_NONE_MATCH, Strength::Weak) {
                return Verdict::NotModified;
            }
        } else if let Some(since) = date(headers, &IF_MODIFIED_SINCE)
            && self.modified.is_some_and(|modified| seconds(modified) <= seconds(since))
        {
            return Verdict::NotModified;
        }
        Verdict::Answer
    }

    /// Whether `Range` is to be honoured. Only a tag can promise that the bytes are the same: a date has seconds.
    pub(crate) fn range_holds(&self, headers: &HeaderMap) -> bool {
        headers.get(IF_RANGE).is_none_or(|value| {
            self.etag.is_some_and(|etag| value.to_str().is_ok_and(|value| value.trim() == etag))
        })
    }

    fn any(&self, headers: &HeaderMap, name: &HeaderName, strength: Strength) -> bool {
        let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
        let mut tags = values.flat_map(|value| value.split(',')).map(str::trim);
        tags.any(|tag| {
            let tag = match strength {
                Strength::Weak => tag.strip_prefix("W/").unwrap_or(tag),
                Strength::Strong => tag,
            };
            tag == "*" || self.etag == Some(tag)
        })
    }
}

#[derive(Clone, Copy)]
enum Strength {
    Strong,
    Weak,
}

fn date(headers: &HeaderMap, name: &HeaderName) -> Option<SystemTime> {
    httpdate::parse_http_date(headers.get(name)?.to_str().ok()?).ok()
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::HeaderValue;

    use super::*;

    #[test]
    fn by_hand() {
        // Half a second after the second that HTTP can say.
        let modified = UNIX_EPOCH + Duration::from_millis(784_111_777_500);
        let object = Validators { etag: Some("\"a\""), modified: Some(modified) };
        let (then, before) = ("Sun, 06 Nov 1994 08:49:37 GMT", "Sun, 06 Nov 1994 08:49:36 GMT");
        use Verdict::{Answer, Failed, NotModified};
        for (headers, expected) in [
            (&[][..], Answer),
            (&[("if-none-match", "\"a\"")], NotModified),
            (&[("if-none-match", "W/\"a\"")], NotModified),
            (&[("if-none-match", "\"b\", \"a\"")], NotModified),
            (&[("if-none-match", "\"b\""), ("if-none-match", "\"a\"")], NotModified),
            (&[("if-none-match", "*")], NotModified),
            (&[("if-none-match", "\"b\"")], Answer),
            (&[("if-none-match", "a")], Answer),
            (&[("if-match", "\"a\"")], Answer),
            (&[("if-match", "*")], Answer),
            (&[("if-match", "W/\"a\"")], Failed),
            (&[("if-match", "\"b\"")], Failed),
            (&[("if-modified-since", then)], NotModified),
            (&[("if-modified-since", before)], Answer),
            (&[("if-modified-since", "yesterday")], Answer),
            (&[("if-none-match", "\"b\""), ("if-modified-since", then)], Answer),
            (&[("if-unmodified-since", then)], Answer),
            (&[("if-unmodified-since", before)], Failed),
            (&[("if-match", "\"a\""), ("if-unmodified-since", before)], Answer),
        ] {
            let mut map = HeaderMap::new();
            for (name, value) in headers {
                map.append(*name, HeaderValue::from_static(value));
            }
            assert_eq!(object.check(&map), expected, "{headers:?}");
        }
    }

    #[test]
    fn if_range() {
        let holds = |etag, value: &'static str| {
            let headers = HeaderMap::from_iter([(IF_RANGE, HeaderValue::from_static(value))]);
            Validators { etag, modified: Some(UNIX_EPOCH) }.range_holds(&headers)
        };
        assert!(holds(Some("\"a\""), "\"a\""));
        assert!(!holds(Some("\"a\""), "\"b\""));
        assert!(!holds(Some("\"a\""), "W/\"a\""));
        assert!(!holds(Some("\"a\""), "Thu, 01 Jan 1970 00:00:00 GMT"));
        assert!(!holds(None, "\"a\""));
        assert!(Validators { etag: None, modified: None }.range_holds(&HeaderMap::new()));
    }
}
