//! The `Range` header (RFC 9110, section 14).

use std::ops::Range;

/// What a `Range` header asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// Everything: no header, one that cannot be read, or several ranges, which a server may ignore.
    All,
    /// These bytes.
    Part(Range<u64>),
    /// Bytes that the object does not have.
    Nothing,
}

/// Reads a header's value for an object of that size.
pub(crate) fn wanted(header: &str, size: u64) -> Wanted {
    let Some((unit, set)) = header.split_once('=') else { return Wanted::All };
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return Wanted::All;
    }
    let Some((first, last)) = set.trim().split_once('-') else { return Wanted::All };
    match (number(first), number(last)) {
        // The last bytes. None of an empty object can be named in `Content-Range`, all of it is nothing.
        (Number::None, Number::Some(count)) => match count {
            0 => Wanted::Nothing,
            _ if size == 0 => Wanted::All,
            _ => Wanted::Part(size.saturating_sub(count)..size),
        },
        (Number::Some(first), Number::None) if first < size => Wanted::Part(first..size),
        (Number::Some(first), Number::Some(last)) if first <= last && first < size => {
            Wanted::Part(first..last.saturating_add(1).min(size))
        }
        (Number::Some(first), Number::Some(last)) if first > last => Wanted::All,
        (Number::Some(_), Number::None | Number::Some(_)) => Wanted::Nothing,
        _ => Wanted::All,
    }
}

enum Number {
    None,
    Some(u64),
    Bad,
}

fn number(text: &str) -> Number {
    match text {
        "" => Number::None,
        _ if !text.bytes().all(|b| b.is_ascii_digit()) => Number::Bad,
        // Only too many digits are left as a reason to fail.
        _ => Number::Some(text.parse().unwrap_or(u64::MAX)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        for (header, size, expected) in [
            ("bytes=0-0", 10, Wanted::Part(0..1)),
            ("bytes=0-9", 10, Wanted::Part(0..10)),
            ("bytes=2-4", 10, Wanted::Part(2..5)),
            ("bytes=2-", 10, Wanted::Part(2..10)),
            ("bytes=9-", 10, Wanted::Part(9..10)),
            ("bytes=5-99", 10, Wanted::Part(5..10)),
            ("bytes=5-18446744073709551615", 10, Wanted::Part(5..10)),
            ("bytes=5-99999999999999999999999", 10, Wanted::Part(5..10)),
            ("Bytes=-3", 10, Wanted::Part(7..10)),
            ("bytes=-99", 10, Wanted::Part(0..10)),
            ("bytes= 1-2 ", 10, Wanted::Part(1..3)),
            ("bytes=10-", 10, Wanted::Nothing),
            ("bytes=10-11", 10, Wanted::Nothing),
            ("bytes=99999999999999999999999-", 10, Wanted::Nothing),
            ("bytes=-0", 10, Wanted::Nothing),
            ("bytes=0-", 0, Wanted::Nothing),
            ("bytes=0-0", 0, Wanted::Nothing),
            ("bytes=-1", 0, Wanted::All),
            ("bytes=4-2", 10, Wanted::All),
            ("bytes=0-1,3-4", 10, Wanted::All),
            ("bytes=", 10, Wanted::All),
            ("bytes=-", 10, Wanted::All),
            ("bytes=a-b", 10, Wanted::All),
            ("bytes=+1-2", 10, Wanted::All),
            ("bytes=1", 10, Wanted::All),
            ("lines=0-1", 10, Wanted::All),
            ("", 10, Wanted::All),
        ] {
            assert_eq!(wanted(header, size), expected, "{header:?} of {size}");
        }
    }
}
