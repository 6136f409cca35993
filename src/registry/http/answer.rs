//! What a host's refusals mean, and what of its words is told.

use std::time::Duration;

use jiff::Timestamp;
use reqwest::StatusCode;
use reqwest::header::{HeaderMap, RETRY_AFTER};
use secrecy::SecretString;
use serde_json::Value;

use crate::registry::{Error, Reason};

/// Longest that a registry keeps us from asking again: one that is misconfigured must not do it for days.
const LONGEST_WAIT: Duration = Duration::from_hours(1);

/// Longest that is quoted of what a host says, in characters.
const QUOTED: usize = 200;

/// What a status that is no success means. `subject`: what it was asked for.
pub(super) fn refusal(
    host: &str,
    subject: &str,
    status: StatusCode,
    headers: &HeaderMap,
    words: Option<&str>,
) -> Error {
    let said = words.map_or_else(String::new, |it| format!(": {it}"));
    let (reason, what) = match status.as_u16() {
        401 => (Reason::Unauthorized, format!("`{host}` wants other credentials for {subject}")),
        403 => (Reason::Unauthorized, format!("`{host}` does not let us have {subject}")),
        404 | 410 => (Reason::NotFound, format!("`{host}` has no {subject}")),
        429 => (Reason::RateLimited, format!("`{host}` has had too many requests")),
        _ => {
            let name = status.canonical_reason().map_or_else(String::new, |it| format!(" {it}"));
            let status = status.as_u16();
            (Reason::Broken, format!("`{host}` answered {status}{name} for {subject}"))
        }
    };
    let mut error = Error::new(reason, format!("{what}{said}"));
    if status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error() {
        error.retry_after = retry_after(headers, Timestamp::now());
    }
    error
}

/// Whether a server of TLS says that it was spoken to without: in the words of Go's, and of nginx.
pub(super) fn wants_tls(status: StatusCode, body: &[u8]) -> bool {
    let body = String::from_utf8_lossy(body);
    let words = ["HTTP request to an HTTPS server", "plain HTTP request was sent to HTTPS port"];
    status == StatusCode::BAD_REQUEST && words.iter().any(|it| body.contains(it))
}

/// What is to be done about that.
pub(super) fn without_tls(host: &str) -> Error {
    let what = format!(
        "`{host}` is asked in plain http, and speaks TLS: write `server = \"https://{host}\"` into its hosts.toml, in a \
         directory of `registries.hostsDirs`"
    );
    Error::new(Reason::Untrusted, what)
}

/// `120`, or a date.
pub(super) fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = if text.bytes().all(|c| c.is_ascii_digit()) {
        // One with too many digits is long.
        text.parse().map_or(LONGEST_WAIT, Duration::from_secs)
    } else {
        let date = jiff::fmt::rfc2822::parse(text).ok()?;
        Duration::try_from(date.timestamp().duration_since(now)).ok()?
    };
    Some(wait.min(LONGEST_WAIT)).filter(|it| !it.is_zero())
}

/// What the body of a refusal says, fit to be told: short, on one line, without secrets.
pub(super) fn quoted(body: &[u8], secrets: &[SecretString]) -> Option<String> {
    let body: Value = serde_json::from_slice(body).ok()?;
    let text = |value: &Value| value.as_str().filter(|it| !it.is_empty()).map(str::to_owned);
    let first = &body["errors"][0];
    let said = match (text(&first["code"]), text(&first["message"])) {
        (Some(code), Some(message)) => Some(format!("{code}: {message}")),
        (code, message) => code.or(message),
    };
    let others = ["details", "message", "error_description", "error"];
    let mut said = said.or_else(|| others.iter().find_map(|key| text(&body[key])))?;
    for secret in
        secrets.iter().map(secrecy::ExposeSecret::expose_secret).filter(|it| !it.is_empty())
    {
        said = said.replace(secret, "…");
    }
    let words: Vec<&str> = said.split(' ').map(without_query).collect();
    let said: String = words.join(" ").chars().take(QUOTED).collect();
    Some(said.escape_debug().to_string()).filter(|it| !it.trim().is_empty())
}

/// What a storage's URL has behind its path opens it.
fn without_query(word: &str) -> &str {
    if word.contains("://") { word.split(['?', '@']).next().unwrap_or_default() } else { word }
}
