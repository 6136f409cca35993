//! `--since`: a while ago, or a time.

use std::str::FromStr;

use crate::workload::Span;

/// From when on something is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Since {
    Ago(Span),
    Time(jiff::Timestamp),
}

impl FromStr for Since {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(span) = text.parse() {
            return Ok(Self::Ago(span));
        }
        text.parse().map(Self::Time).map_err(|_| {
            format!(
                "`{text}` is not a duration, such as 10m or 1h30m, and not a time with its offset, such as \
                 2026-01-31T10:00:00Z or 2026-01-31T10:00:00+01:00"
            )
        })
    }
}

impl Since {
    /// The time that is meant, if it is `now`; the earliest there is when that would be before it.
    pub(super) fn before(self, now: jiff::Timestamp) -> jiff::Timestamp {
        match self {
            Self::Time(time) => time,
            Self::Ago(Span(ago)) => jiff::SignedDuration::try_from(ago)
                .ok()
                .and_then(|ago| now.checked_sub(ago).ok())
                .unwrap_or(jiff::Timestamp::MIN),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_while_and_a_time_are_told_apart() {
        let now: jiff::Timestamp = "2026-01-31T12:00:00Z".parse().unwrap();
        for (text, time) in [
            ("90m", "2026-01-31T10:30:00Z"),
            ("1h30m", "2026-01-31T10:30:00Z"),
            ("2026-01-31T10:30:00Z", "2026-01-31T10:30:00Z"),
            ("2026-01-31T11:30:00+01:00", "2026-01-31T10:30:00Z"),
            ("2026-01-31T10:30:00.25Z", "2026-01-31T10:30:00.25Z"),
        ] {
            let since: Since = text.parse().unwrap();
            assert_eq!(since.before(now), time.parse().unwrap(), "{text}");
        }
    }

    #[test]
    fn a_time_without_an_offset_could_be_any_and_is_refused() {
        for text in ["", "10", "-5m", "yesterday", "2026-01-31", "2026-01-31T10:30:00", "10:30"] {
            let error = text.parse::<Since>().unwrap_err();
            assert!(error.starts_with(&format!("`{text}` is not a duration")), "{error}");
        }
    }
}
