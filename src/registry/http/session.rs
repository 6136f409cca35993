//! One host, asked for one image.

use std::sync::Arc;

use reqwest::header::{
    ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderMap,
    HeaderValue, LOCATION, RANGE,
};
use reqwest::{Client, Method, Response, StatusCode, Url};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use sha2::{Digest as _, Sha512};
use tokio::sync::OnceCell;
use tokio::time::Instant;

use super::auth::{self, Authorization, Challenge};
use super::client::{self, Body, mismatch};
use super::credentials::{self, Credentials, Found, Looked, seconds};
use super::hosts::{Host, authority};
use super::{Name, Shared, answer};
use crate::content::{self, Descriptor, Digest, INDEX, JSON_LIMIT, MANIFEST, hex};
use crate::registry::{Error, Pieces, Reason};

/// Docker's manifest and index, which are OCI's under other names.
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// What a name may stand for.
const TARGETS: [&str; 4] = [INDEX, DOCKER_INDEX, MANIFEST, DOCKER_MANIFEST];

/// Most redirects of one request; registries need one or two.
const REDIRECTS: usize = 5;

/// Most that is read of why a host refuses.
const REFUSAL_LIMIT: u64 = 64 << 10;

/// As the registry that a mirror stands for is told.
const NAMESPACE: &str = "ns";

pub(super) struct Session<'a> {
    shared: &'a Shared,
    client: Client,
    host: Host,
    name: Name,
    /// Looked for once, and only if the host asks for any.
    looked: OnceCell<Looked>,
    /// There is nobody else to ask.
    is_last: bool,
}

/// What is asked of a registry.
struct Question {
    method: Method,
    /// Below the repository.
    path: String,
    accept: Option<String>,
    offset: u64,
    /// For people.
    subject: String,
}

/// An answer, and who gave it.
struct Answer {
    response: Response,
    host: String,
    /// Not somebody to whom we were redirected.
    is_own: bool,
    /// What it was shown, and may repeat.
    secrets: Vec<SecretString>,
}

/// One request, redirects included.
struct Request<'a> {
    method: Method,
    url: Url,
    headers: HeaderMap,
    /// For this host and no other.
    own_headers: HeaderMap,
    form: Option<&'a SecretString>,
}

impl<'a> Session<'a> {
    pub(super) fn new(
        shared: &'a Shared,
        client: Client,
        host: Host,
        name: Name,
        is_last: bool,
    ) -> Self {
        Self { shared, client, host, name, looked: OnceCell::new(), is_last }
    }

    /// A mirror is left alone for a while.
    pub(super) fn shun(&self) {
        if !self.is_last {
            self.shared.shunned.add(&self.host);
        }
    }

    /// What the name stands for.
    pub(super) async fn resolve(&self) -> Result<Descriptor, Error> {
        let wanted = self.name.digest();
        let mut question = Question {
            method: Method::HEAD,
            path: format!("manifests/{}", self.name.reference),
            accept: Some(TARGETS.join(", ")),
            offset: 0,
            subject: format!("`{}`", self.name),
        };
        // Only the bytes can be compared with a digest of another kind than ours.
        let other_digits = self.name.reference.strip_prefix("sha512:");
        if other_digits.is_none() {
            let answer = self.ask(&question).await?;
            let status = answer.response.status();
            let knows_no_head = matches!(status, StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED)
                    // Only a whole answer says whether it wants TLS.
                    || (status == StatusCode::BAD_REQUEST && self.is_plain());
            if !status.is_success() && !knows_no_head {
                return Err(self.refusal(answer, &question).await);
            }
            if status.is_success()
                && let Some(found) = described(answer.response.headers())
            {
                return self.fits(found, wanted.as_ref());
            }
        }
        question.method = Method::GET;
        let answer = self.success(&question).await?;
        let media_type = media_type(answer.response.headers());
        let host = answer.host.clone();
        let bytes = self.collect(answer, JSON_LIMIT).await?;
        let target = content::parse_target(&bytes).map_err(|error| {
            let media_type = media_type.as_deref().unwrap_or("nothing").escape_debug();
            let what = format!("`{host}` answered with what is no image ({media_type}): {error}");
            Error::new(Reason::Broken, what)
        })?;
        let usual = match target {
            content::Target::Manifest(_) => MANIFEST,
            content::Target::Index(_) => INDEX,
        };
        let known = media_type.filter(|it| TARGETS.contains(&it.as_str()));
        let inside = || media_type_inside(&bytes).filter(|it| TARGETS.contains(&it.as_str()));
        let media_type = known.or_else(inside).unwrap_or_else(|| usual.to_owned());
        if other_digits.is_some_and(|it| hex(&Sha512::digest(&bytes)) != it) {
            return Err(mismatch(&host, &self.name.reference));
        }
        let size = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        self.fits(Descriptor::new(&media_type, Digest::of(&bytes), size), wanted.as_ref())
    }

    fn is_plain(&self) -> bool {
        self.host.base.scheme() == "http"
    }

    fn fits(&self, found: Descriptor, wanted: Option<&Digest>) -> Result<Descriptor, Error> {
        if wanted.is_some_and(|it| *it != found.digest) {
            return Err(mismatch(self.host.name(), &self.name.reference));
        }
        if found.size > JSON_LIMIT {
            let (host, size) = (self.host.name(), found.size);
            let what = format!("the manifest of `{}` on `{host}` has {size} bytes", self.name);
            return Err(Error::new(Reason::Broken, what));
        }
        Ok(found)
    }

    /// Something small, verified.
    pub(super) async fn read(&self, content: &Descriptor) -> Result<Vec<u8>, Error> {
        let is_target = TARGETS.contains(&content.media_type.as_str());
        let folder = if is_target { "manifests" } else { "blobs" };
        let question = Question {
            method: Method::GET,
            path: format!("{folder}/{}", content.digest),
            accept: is_target.then(|| format!("{}, */*", content.media_type)),
            offset: 0,
            subject: format!("`{}` of `{}`", content.digest, self.name.repository),
        };
        let answer = self.success(&question).await?;
        let host = answer.host.clone();
        let bytes = self.collect(answer, JSON_LIMIT).await?;
        if Digest::of(&bytes) == content.digest {
            Ok(bytes)
        } else {
            Err(mismatch(&host, content.digest.as_str()))
        }
    }

    /// Something large, as it comes.
    pub(super) async fn stream(&self, content: &Descriptor, offset: u64) -> Result<Pieces, Error> {
        let question = Question {
            method: Method::GET,
            path: format!("blobs/{}", content.digest),
            accept: None,
            offset,
            subject: format!("`{}` of `{}`", content.digest, self.name.repository),
        };
        let answer = self.ask(&question).await?;
        let status = answer.response.status();
        if status == StatusCode::RANGE_NOT_SATISFIABLE && offset == content.size {
            return Ok(Box::pin(tokio_stream::empty()));
        }
        if !status.is_success() {
            return Err(self.refusal(answer, &question).await);
        }
        // Who knows no ranges sends all from the start.
        let start = match status {
            StatusCode::PARTIAL_CONTENT => range_start(answer.response.headers()),
            _ => Some(0),
        };
        let Some(skip) = start.and_then(|it| offset.checked_sub(it)) else {
            let what =
                format!("`{}` sends another part of a layer than it was asked for", answer.host);
            return Err(Error::new(Reason::Broken, what));
        };
        let stall = self.shared.options.deadlines.stall;
        let mut body = Body::new(answer.response, &answer.host, skip, stall);
        if !self.is_last {
            let (shunned, host) = (Arc::clone(&self.shared.shunned), self.host.clone());
            let left = content.size.saturating_sub(offset);
            let digest = (offset == 0).then(|| content.digest.clone());
            body = body.checked(left, digest, Box::new(move || shunned.add(&host)));
        }
        Ok(Box::pin(body))
    }

    async fn success(&self, question: &Question) -> Result<Answer, Error> {
        let answer = self.ask(question).await?;
        if answer.response.status().is_success() {
            Ok(answer)
        } else {
            Err(self.refusal(answer, question).await)
        }
    }

    /// Asks, and shows who we are when asked for that. What else is refused is for the caller to see.
    async fn ask(&self, question: &Question) -> Result<Answer, Error> {
        let repository = &self.name.repository;
        let kept = self.shared.tokens.get(&self.host.base, repository);
        let answer = self.put(question, kept.as_ref()).await?;
        if answer.response.status() != StatusCode::UNAUTHORIZED || !answer.is_own {
            return Ok(answer);
        }
        let Some(challenge) = auth::challenge(answer.response.headers()) else {
            return Ok(answer);
        };
        let authorization = self.authorize(&challenge).await?;
        self.put(question, Some(&authorization)).await
    }

    async fn put(
        &self,
        question: &Question,
        authorization: Option<&Authorization>,
    ) -> Result<Answer, Error> {
        let mut headers = HeaderMap::new();
        // Layers are kept as they are; a transfer that is compressed once more could not be continued.
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        if let Some(accept) = &question.accept {
            let accept = HeaderValue::from_str(accept);
            headers.extend(accept.ok().map(|it| (ACCEPT, it)));
        }
        if question.offset > 0 {
            let range = HeaderValue::from_str(&format!("bytes={}-", question.offset));
            headers.extend(range.ok().map(|it| (RANGE, it)));
        }
        let mut own_headers = self.host.headers.clone();
        if let Some(it) = authorization {
            own_headers.insert(AUTHORIZATION, it.header.clone());
        }
        let base = self.host.base.as_str().trim_end_matches('/');
        let url = format!("{base}/{}/{}", self.name.repository, question.path);
        let mut url = Url::parse(&url).map_err(|_| {
            let what = format!("`{}` cannot be asked of `{}`", self.name, self.host.name());
            Error::new(Reason::Settings, what)
        })?;
        if let Some(namespace) = &self.host.namespace {
            url.query_pairs_mut().append_pair(NAMESPACE, namespace);
        }
        let method = question.method.clone();
        let answer = self.send(Request { method, url, headers, own_headers, form: None }).await?;
        let secrets = authorization.map_or_else(Vec::new, |it| it.secrets.clone());
        Ok(Answer { secrets, ..answer })
    }

    async fn send(&self, request: Request<'_>) -> Result<Answer, Error> {
        let Request { method, mut url, headers, own_headers, form } = request;
        let origin = url.origin();
        for _ in 0..=REDIRECTS {
            let host = authority(&url);
            let is_own = url.origin() == origin;
            let mut builder =
                self.client.request(method.clone(), url.clone()).headers(headers.clone());
            if is_own {
                builder = builder.headers(own_headers.clone());
            }
            if let Some(form) = form {
                let kind = "application/x-www-form-urlencoded";
                let body = form.expose_secret().to_owned();
                builder = builder.header(CONTENT_TYPE, kind).body(body);
            }
            let head = self.shared.options.deadlines.head;
            let response = match tokio::time::timeout(head, builder.send()).await {
                Ok(response) => response.map_err(|error| client::failure(error, &host))?,
                Err(_) => {
                    let what = format!("`{host}` did not answer within {}", seconds(head));
                    return Err(Error::new(Reason::Silent, what));
                }
            };
            let next = response.headers().get(LOCATION).filter(|_| {
                // A form is for who was asked.
                response.status().is_redirection() && form.is_none()
            });
            let Some(next) = next else {
                return Ok(Answer { response, host, is_own, secrets: Vec::new() });
            };
            let next = next.to_str().ok().and_then(|it| url.join(it).ok());
            let next = next.filter(|it| matches!(it.scheme(), "http" | "https"));
            let Some(next) = next else {
                let what = format!("`{host}` redirects to what is no URL");
                return Err(Error::new(Reason::Broken, what));
            };
            if url.scheme() == "https" && next.scheme() == "http" {
                let what = format!(
                    "`{host}` redirects to plain HTTP on `{}`, which is refused",
                    authority(&next)
                );
                return Err(Error::new(Reason::Untrusted, what));
            }
            url = next;
        }
        let what = format!("`{}` redirects more than {REDIRECTS} times", self.host.name());
        Err(Error::new(Reason::Broken, what))
    }

    /// What is shown to a host that asks for it.
    async fn authorize(&self, challenge: &Challenge) -> Result<Authorization, Error> {
        let looked = self.looked().await;
        let found = looked.found.as_ref();
        match challenge {
            Challenge::Basic => match found.map(|it| (&it.credentials, it)) {
                Some((Credentials::Password { username, password }, found)) => {
                    Authorization::basic(username, password).ok_or_else(|| unusable(found))
                }
                Some((Credentials::Identity(_) | Credentials::Token(_), found)) => {
                    let (host, from) = (self.host.name(), &found.from);
                    let what = format!("`{host}` wants a password, and {from} has a token for it");
                    Err(Error::new(Reason::Unauthorized, what))
                }
                None => Err(self.without_credentials(looked)),
            },
            Challenge::Bearer { realm, service, scope } => {
                if let Some(it) = found
                    && let Credentials::Token(token) = &it.credentials
                {
                    return Authorization::bearer(token).ok_or_else(|| unusable(it));
                }
                self.buy(realm, service.as_deref(), scope.as_deref(), looked).await
            }
        }
    }

    /// Gets a token.
    async fn buy(
        &self,
        realm: &Url,
        service: Option<&str>,
        scope: Option<&str>,
        looked: &Looked,
    ) -> Result<Authorization, Error> {
        let usual_scope = format!("repository:{}:pull", self.name.repository);
        let scope = scope.unwrap_or(&usual_scope);
        // What is sent there is readable on the way, which nobody expects of a registry with TLS.
        let is_safe = realm.scheme() == "https" || self.host.base.scheme() == "http";
        let found = looked.found.as_ref().filter(|_| is_safe);
        let mut pairs = Vec::new();
        pairs.extend(service.map(|it| ("service", it)));
        pairs.push(("scope", scope));
        let mut own_headers = HeaderMap::new();
        let mut secrets = Vec::new();
        let mut body = None;
        let mut url = realm.clone();
        match found.map(|it| (&it.credentials, it)) {
            Some((Credentials::Identity(identity), _)) => {
                pairs.extend([("grant_type", "refresh_token"), ("client_id", "evenkeel")]);
                pairs.push(("refresh_token", identity.expose_secret()));
                body = Some(SecretString::from(auth::form(&pairs)));
                secrets.push(identity.clone());
            }
            Some((Credentials::Password { username, password }, found)) => {
                pairs.push(("account", username));
                url.query_pairs_mut().extend_pairs(&pairs);
                let basic =
                    Authorization::basic(username, password).ok_or_else(|| unusable(found))?;
                own_headers.insert(AUTHORIZATION, basic.header);
                secrets = basic.secrets;
            }
            // A token for the registry would have been shown to it.
            Some((Credentials::Token(_), _)) | None => {
                url.query_pairs_mut().extend_pairs(&pairs);
            }
        }
        let method = if body.is_some() { Method::POST } else { Method::GET };
        let asked = Instant::now();
        let request =
            Request { method, url, headers: HeaderMap::new(), own_headers, form: body.as_ref() };
        let answer = self.send(request).await?;
        let (host, status) = (answer.host.clone(), answer.response.status());
        if !status.is_success() {
            let headers = answer.response.headers().clone();
            let words = self.words(answer, &secrets).await;
            if !matches!(status.as_u16(), 400 | 401 | 403) {
                let subject = format!("a token for `{}`", self.name.repository);
                return Err(answer::refusal(&host, &subject, status, &headers, words.as_deref()));
            }
            let said = words.map_or_else(String::new, |it| format!(": {it}"));
            return Err(match found {
                Some(found) => {
                    let what =
                        format!("`{host}` refuses the credentials from {}{said}", found.from);
                    Error::new(Reason::Unauthorized, what)
                }
                None if looked.found.is_some() => {
                    let what = format!(
                        "`{host}` gives tokens for `{}` by plain HTTP, so it was not sent the credentials{said}",
                        self.host.name()
                    );
                    Error::new(Reason::Unauthorized, what)
                }
                None => self.without_credentials(looked),
            });
        }
        let bytes = self.collect(answer, auth::LIMIT).await?;
        let (token, life) = auth::token(&bytes).ok_or_else(|| {
            let what = format!("`{host}` was asked for a token, and answered with none");
            Error::new(Reason::Broken, what)
        })?;
        let authorization = Authorization::bearer(&token).ok_or_else(|| {
            Error::new(Reason::Broken, format!("`{host}` gave a token that cannot be sent"))
        })?;
        let (tokens, base) = (&self.shared.tokens, &self.host.base);
        tokens.put(base, &self.name.repository, &authorization, asked + life);
        Ok(authorization)
    }

    async fn looked(&self) -> &Looked {
        let (options, host) = (&self.shared.options, self.host.name());
        let look = || credentials::look(options, host, &self.name.repository);
        self.looked.get_or_init(look).await
    }

    /// Credentials are needed, and there are none, or something was in the way of them.
    fn without_credentials(&self, looked: &Looked) -> Error {
        looked.trouble.clone().unwrap_or_else(|| {
            let what = format!(
                "`{}` wants credentials for `{}`, and there are none for it; or it has no such image",
                self.host.name(),
                self.name.repository
            );
            Error::new(Reason::Unauthorized, what)
        })
    }

    /// What an answer that is no success means.
    async fn refusal(&self, answer: Answer, question: &Question) -> Error {
        let (status, is_own) = (answer.response.status(), answer.is_own);
        let mut secrets = answer.secrets.clone();
        let (host, headers) = (answer.host.clone(), answer.response.headers().clone());
        if let Some(Found { credentials, .. }) = self.looked.get().and_then(|it| it.found.as_ref())
        {
            secrets.extend(match credentials {
                Credentials::Password { username, password } => {
                    Authorization::basic(username, password).map_or_else(Vec::new, |it| it.secrets)
                }
                Credentials::Identity(token) | Credentials::Token(token) => vec![token.clone()],
            });
        }
        let body = self.collect(answer, REFUSAL_LIMIT).await.unwrap_or_default();
        if is_own && self.is_plain() && answer::wants_tls(status, &body) {
            return answer::without_tls(&host);
        }
        let words = answer::quoted(&body, &secrets);
        let words = words.as_deref();
        if !is_own {
            let (keeper, subject) = (self.host.name(), &question.subject);
            // It is the registry that has sent us there, with a permission that it has given.
            if matches!(status.as_u16(), 401 | 403 | 404) {
                let what = format!("`{host}`, where `{keeper}` keeps {subject}, answered {status}");
                return Error::new(Reason::Broken, what);
            }
            let what = format!("{subject} (where `{keeper}` keeps it)");
            return answer::refusal(&host, &what, status, &headers, words);
        }
        let may_lack = matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
        if may_lack && let Some(looked) = self.looked.get() {
            let said = words.map_or_else(String::new, |it| format!(": {it}"));
            match &looked.found {
                Some(found) => {
                    let what = format!(
                        "`{host}` does not let us have {} with the credentials from {}{said}",
                        question.subject, found.from
                    );
                    return Error::new(Reason::Unauthorized, what);
                }
                None => {
                    let mut error = self.without_credentials(looked);
                    error.message.push_str(&said);
                    return error;
                }
            }
        }
        answer::refusal(&host, &question.subject, status, &headers, words)
    }

    /// What a refusal says of itself. That it cannot be read does not matter.
    async fn words(&self, answer: Answer, secrets: &[SecretString]) -> Option<String> {
        let body = self.collect(answer, REFUSAL_LIMIT).await.ok()?;
        answer::quoted(&body, secrets)
    }

    async fn collect(&self, answer: Answer, limit: u64) -> Result<Vec<u8>, Error> {
        let deadlines = &self.shared.options.deadlines;
        let (stall, whole) = (deadlines.stall, deadlines.whole);
        client::collect(answer.response, &answer.host, limit, stall, whole).await
    }
}

/// What the head of an answer says of a manifest, if it says enough.
fn described(headers: &HeaderMap) -> Option<Descriptor> {
    let media_type = media_type(headers).filter(|it| TARGETS.contains(&it.as_str()))?;
    let text = |name: &str| headers.get(name)?.to_str().ok();
    let digest = text("docker-content-digest")?.trim().parse().ok()?;
    let size = text(CONTENT_LENGTH.as_str())?.trim().parse().ok()?;
    Some(Descriptor::new(&media_type, digest, size))
}

fn media_type(headers: &HeaderMap) -> Option<String> {
    let text = headers.get(CONTENT_TYPE)?.to_str().ok()?;
    Some(text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase())
}

/// What a manifest says of itself.
fn media_type_inside(bytes: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Inside {
        media_type: Option<String>,
    }
    serde_json::from_slice::<Inside>(bytes).ok()?.media_type
}

/// Where a part starts: `bytes 5-9/10`.
fn range_start(headers: &HeaderMap) -> Option<u64> {
    let text = headers.get(CONTENT_RANGE)?.to_str().ok()?;
    text.trim().strip_prefix("bytes")?.trim_start().split('-').next()?.parse().ok()
}

/// Credentials that fit into no header.
fn unusable(found: &Found) -> Error {
    Error::new(Reason::Settings, format!("the credentials from {} cannot be sent", found.from))
}
