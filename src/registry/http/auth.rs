//! What a registry asks for who we are, and what it is shown.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use tokio::time::Instant;

/// How long a token is good when nothing is said of that, by the protocol.
const USUAL_LIFE: u64 = 60;

/// Longest that a token is kept, whatever is said of it.
const LONGEST_LIFE: u64 = 3600;

/// A token that ends within that is not used any more: it would be over when it arrives.
const MARGIN: Duration = Duration::from_secs(5);

/// Largest answer with a token; those of large clouds have a few KiB.
pub(super) const LIMIT: u64 = 1 << 20;

/// What a registry asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    Bearer { realm: Url, service: Option<String>, scope: Option<String> },
}

/// The best challenge that we can meet; tokens before passwords.
pub(super) fn challenge(headers: &HeaderMap) -> Option<Challenge> {
    let mut best = None;
    for value in headers.get_all(WWW_AUTHENTICATE) {
        let Ok(value) = value.to_str() else { continue };
        let Ok(challenges) = http_auth::parse_challenges(value) else { continue };
        for challenge in challenges {
            let parameter = |name: &str| {
                let found = challenge.params.iter().find(|it| it.0.eq_ignore_ascii_case(name));
                found.map(|it| it.1.to_unescaped()).filter(|it| !it.is_empty())
            };
            if challenge.scheme.eq_ignore_ascii_case("basic") {
                best = best.or(Some(Challenge::Basic));
            }
            if challenge.scheme.eq_ignore_ascii_case("bearer")
                && let Some(realm) = parameter("realm").and_then(|it| Url::parse(&it).ok())
                && matches!(realm.scheme(), "http" | "https")
            {
                let (service, scope) = (parameter("service"), parameter("scope"));
                return Some(Challenge::Bearer { realm, service, scope });
            }
        }
    }
    best
}

/// What is shown to a host.
#[derive(Debug, Clone)]
pub(super) struct Authorization {
    // Invariant: marked as sensitive.
    pub(super) header: HeaderValue,
    /// What must not be told, should the host repeat it.
    pub(super) secrets: Vec<SecretString>,
}

impl Authorization {
    pub(super) fn bearer(token: &SecretString) -> Option<Self> {
        Self::new(format!("Bearer {}", token.expose_secret()), vec![token.clone()])
    }

    pub(super) fn basic(username: &str, password: &SecretString) -> Option<Self> {
        let pair = STANDARD.encode(format!("{username}:{}", password.expose_secret()));
        let header = format!("Basic {pair}");
        Self::new(header, vec![SecretString::from(pair), password.clone()])
    }

    fn new(header: String, secrets: Vec<SecretString>) -> Option<Self> {
        let mut header = HeaderValue::try_from(header).ok()?;
        header.set_sensitive(true);
        Some(Self { header, secrets })
    }
}

/// The answer of a realm: a token and how many seconds it is good.
pub(super) fn token(bytes: &[u8]) -> Option<(SecretString, Duration)> {
    #[derive(Deserialize)]
    struct Answer {
        token: Option<String>,
        access_token: Option<String>,
        expires_in: Option<f64>,
    }
    let answer: Answer = serde_json::from_slice(bytes).ok()?;
    let filled = |it: Option<String>| it.filter(|it| !it.is_empty());
    let token = filled(answer.token).or_else(|| filled(answer.access_token))?;
    let usual = Duration::from_secs(USUAL_LIFE);
    let life = answer.expires_in.and_then(|it| Duration::try_from_secs_f64(it).ok());
    Some((token.into(), life.unwrap_or(usual).min(Duration::from_secs(LONGEST_LIFE))))
}

/// `a=b&c=d`, encoded as forms are.
pub(super) fn form(pairs: &[(&str, &str)]) -> String {
    let mut url = Url::parse("http://localhost/").expect("a constant URL");
    url.query_pairs_mut().extend_pairs(pairs);
    url.query().unwrap_or_default().to_owned()
}

/// Tokens by host and repository, until they end.
#[derive(Debug, Default)]
pub(super) struct Tokens(Mutex<BTreeMap<(String, String), Kept>>);

#[derive(Debug)]
struct Kept {
    authorization: Authorization,
    until: Instant,
}

impl Tokens {
    pub(super) fn get(&self, host: &Url, repository: &str) -> Option<Authorization> {
        let tokens = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = tokens.get(&(host.to_string(), repository.to_owned()))?;
        (Instant::now() + MARGIN < kept.until).then(|| kept.authorization.clone())
    }

    pub(super) fn put(
        &self,
        host: &Url,
        repository: &str,
        authorization: &Authorization,
        until: Instant,
    ) {
        let mut tokens = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        tokens.retain(|_, it| now < it.until);
        let kept = Kept { authorization: authorization.clone(), until };
        tokens.insert((host.to_string(), repository.to_owned()), kept);
    }

    pub(super) fn remove(&self, host: &Url, repository: &str) {
        let mut tokens = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tokens.remove(&(host.to_string(), repository.to_owned()));
    }
}
