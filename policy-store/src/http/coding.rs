//! Content negotiation: whether a client accepts gzip (RFC 9110, 12.5.3).

use http::{HeaderMap, header::ACCEPT_ENCODING};

use super::frames::Coding;

/// Content coding for a client with these headers.
#[must_use]
pub fn coding(headers: &HeaderMap) -> Coding {
    let values = headers.get_all(ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    let (mut named, mut any) = (None, None);
    for choice in values.flat_map(|value| value.split(',')) {
        let (name, weight) = choice.split_once(';').unwrap_or((choice, ""));
        let is_wanted = weight
            .trim()
            .strip_prefix(['q', 'Q'])
            .and_then(|weight| weight.strip_prefix('='))
            .is_none_or(|weight| weight.trim().parse::<f32>().is_ok_and(|weight| weight > 0.0));
        match name.trim().to_ascii_lowercase().as_str() {
            "gzip" | "x-gzip" => named = Some(is_wanted),
            "*" => any = Some(is_wanted),
            _ => {}
        }
    }
    match named.or(any) {
        Some(true) => Coding::Gzip,
        Some(false) | None => Coding::Identity,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_takes_gzip_gets_it() {
        for (value, expected) in [
            ("gzip", Coding::Gzip),
            ("deflate, GZIP;q=0.5", Coding::Gzip),
            ("*", Coding::Gzip),
            ("*;q=0.1, identity", Coding::Gzip),
            ("gzip;q=0", Coding::Identity),
            ("gzip;Q=0", Coding::Identity),
            ("gzip; q=0.000, *", Coding::Identity),
            ("gzip;q=x", Coding::Identity),
            ("br, deflate", Coding::Identity),
            ("", Coding::Identity),
        ] {
            let headers = [(ACCEPT_ENCODING, value.parse().unwrap())].into_iter().collect();
            assert_eq!(coding(&headers), expected, "{value:?}");
        }
        assert_eq!(coding(&HeaderMap::new()), Coding::Identity);
    }
}
