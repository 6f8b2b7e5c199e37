//! Numbers as people read them.

/// Three digits that say something, without exponents unless there are many zeros.
pub(crate) fn short(x: f64) -> String {
    if x == 0.0 || !x.is_finite() {
        return if x == 0.0 { "0".into() } else { "–".into() };
    }
    let digits = x.abs().log10().floor();
    if !(-6.0..9.0).contains(&digits) {
        return format!("{x:.1e}");
    }
    let decimals = (2.0 - digits).clamp(0.0, 8.0) as usize;
    let text = format!("{x:.decimals$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// Three digits that say something, zeros included, so that columns look even.
pub(crate) fn digits(x: f64) -> String {
    if x == 0.0 || !x.is_finite() {
        return short(x);
    }
    let digits = x.abs().log10().floor();
    if !(-5.0..9.0).contains(&digits) {
        return format!("{x:.1e}");
    }
    let decimals = (2.0 - digits).clamp(0.0, 4.0) as usize;
    let decimals = if digits < -2.0 { (1.0 - digits) as usize } else { decimals };
    format!("{x:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_digits() {
        let cases = [
            (0.0, "0"),
            (0.01, "0.01"),
            (0.00006, "0.00006"),
            (2.5, "2.5"),
            (1234.5, "1234"),
            (100.0, "100"),
            (0.0000001, "1.0e-7"),
            (f64::NAN, "–"),
            (-3.15159, "-3.15"),
            (9.999, "10"),
        ];
        for (x, want) in cases {
            assert_eq!(short(x), want);
        }
        let cases = [
            (0.0, "0"),
            (0.2, "0.200"),
            (0.0195, "0.0195"),
            (0.000064, "0.000064"),
            (2.0, "2.00"),
            (16.0, "16.0"),
            (1234.5, "1234"),
        ];
        for (x, want) in cases {
            assert_eq!(digits(x), want);
        }
    }
}
