//! Trace contexts: the id of one sync, from the syncer's log to the log of each cell.
//!
//! The text form is that of the HTTP header `traceparent` (W3C Trace Context, section 3.2).

use std::fmt;

/// Length of `traceparent` in version 00.
const LENGTH: usize = 55;

/// Names a trace, and the span in it that caused a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceContext {
    /// Never 0.
    trace: u128,
    /// Never 0.
    span: u64,
    flags: u8,
}

/// Id of a trace: 32 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceId(u128);

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl TraceContext {
    /// A new trace from random numbers; marked as sampled, since an unsampled one is dropped by
    /// tracing tools.
    #[must_use]
    pub fn from_random(trace: u128, span: u64) -> Self {
        Self { trace: trace.max(1), span: span.max(1), flags: 1 }
    }

    /// Parses a `traceparent`; `None` if the text is not valid. Fields of later versions are
    /// ignored.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (context, more) = text.split_at_checked(LENGTH)?;
        let [version, trace, span, flags] =
            context.split('-').collect::<Vec<_>>().try_into().ok()?;
        let digits = |text: &str, length| {
            let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
            text.len() == length && text.bytes().all(is_digit)
        };
        let valid = [(version, 2), (trace, 32), (span, 16), (flags, 2)];
        let complete = match version {
            "ff" => false,
            "00" => more.is_empty(),
            _ => more.is_empty() || more.starts_with('-'),
        };
        if !complete || !valid.into_iter().all(|(text, length)| digits(text, length)) {
            return None;
        }
        let trace = u128::from_str_radix(trace, 16).ok().filter(|trace| *trace != 0)?;
        let span = u64::from_str_radix(span, 16).ok().filter(|span| *span != 0)?;
        let flags = u8::from_str_radix(flags, 16).ok()?;
        Some(Self { trace, span, flags })
    }

    /// The ids of the trace and of the span that caused the message.
    #[must_use]
    pub fn ids(&self) -> (u128, u64) {
        (self.trace, self.span)
    }

    /// The id of the trace.
    #[must_use]
    pub fn trace_id(&self) -> TraceId {
        TraceId(self.trace)
    }
}

/// `traceparent` in version 00.
impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { trace, span, flags } = self;
        write!(f, "00-{trace:032x}-{span:016x}-{flags:02x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIVEN: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_context_is_written_as_it_was_read() {
        let context = TraceContext::parse(GIVEN).unwrap();
        assert_eq!(context.to_string(), GIVEN);
        assert_eq!(context.trace_id().to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
        let new = TraceContext::from_random(0, 0);
        assert_eq!(TraceContext::parse(&new.to_string()), Some(new), "zeros are not valid ids");
    }

    #[test]
    fn a_later_version_may_have_more_fields() {
        let later = GIVEN.replacen("00", "cc", 1);
        assert!(TraceContext::parse(&later).is_some());
        assert!(TraceContext::parse(&format!("{later}-more")).is_some());
        assert!(TraceContext::parse(&format!("{later}more")).is_none());
    }

    #[test]
    fn an_invalid_context_is_none() {
        let zeros = |text: &str| GIVEN.replace(text, &"0".repeat(text.len()));
        for bad in [
            String::new(),
            GIVEN[..54].to_owned(),
            format!("{GIVEN}-more"),
            GIVEN.to_uppercase(),
            GIVEN.replacen("00", "ff", 1),
            GIVEN.replace("-01", "-0g"),
            GIVEN.replace("0f06", "0é6"),
            zeros("4bf92f3577b34da6a3ce929d0e0e4736"),
            zeros("00f067aa0ba902b7"),
        ] {
            assert_eq!(TraceContext::parse(&bad), None, "{bad:?}");
        }
    }
}
