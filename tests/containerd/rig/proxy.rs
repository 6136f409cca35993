//! A proxy in front of a registry that sees each request, and lets it go wrong as it is told.
//!
//! It knows as much of HTTP as that needs: one request a connection, and bodies of requests have a length.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What a test waits for happens within milliseconds; this is for a busy machine.
const SOON: Duration = Duration::from_mins(1);

/// What is passed on at once.
const PIECE: usize = 1 << 16;

/// What a request is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Asked {
    Anything,
    /// `/v2/`, which says whether one is let in.
    Version,
    Manifest,
    /// A layer or a configuration.
    Blob,
    /// Whatever has this in its path: a digest, the name of a repository.
    Containing(String),
}

impl Asked {
    pub(crate) fn containing(text: &impl ToString) -> Self {
        Self::Containing(text.to_string())
    }

    fn is(&self, path: &str) -> bool {
        match self {
            Self::Anything => true,
            Self::Version => path == "/v2/" || path == "/v2",
            Self::Manifest => path.contains("/manifests/"),
            Self::Blob => path.contains("/blobs/"),
            Self::Containing(text) => path.contains(text.as_str()),
        }
    }
}

/// What goes wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fault {
    /// This is the answer, whatever the registry would say.
    Answer { status: u16, headers: Vec<(String, String)>, body: String },
    /// The connection ends without an answer.
    HangUp,
    /// There is no answer; the connection stays.
    Silence,
    /// The connection ends after so many bytes of the body.
    Cut(u64),
    /// Nothing comes after so many bytes of the body; the connection stays.
    Stall(u64),
    /// This byte of the body is another one.
    Corrupt(u64),
    /// So many bytes of the body come in a second.
    Slow(u64),
    /// A part that is asked for comes as the whole, as registries may do that know no parts.
    Whole,
}

impl Fault {
    /// An answer without more.
    pub(crate) fn status(status: u16) -> Self {
        Self::Answer { status, headers: Vec::new(), body: String::new() }
    }

    /// Another header of an answer.
    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        if let Self::Answer { headers, .. } = &mut self {
            headers.push((name.to_owned(), value.to_owned()));
        }
        self
    }
}

/// A request as it was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    /// The value of its header `Range`.
    pub(crate) range: Option<String>,
    /// Whether somebody says who it is.
    pub(crate) has_authorization: bool,
    /// Of the answer, once it has begun.
    pub(crate) status: Option<u16>,
    /// So much of the answer's body has been passed on.
    pub(crate) sent: u64,
}

/// A proxy that runs until it is dropped.
pub(crate) struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

struct Shared {
    registry: SocketAddr,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    requests: Vec<Request>,
    rules: Vec<Rule>,
    connections: Vec<TcpStream>,
    /// How often what was wrong has been mended; who is held by an older fault lets go.
    mended: u64,
    is_unplugged: bool,
}

struct Rule {
    asked: Asked,
    fault: Fault,
    /// For so many requests; `None` for all.
    left: Option<usize>,
}

impl Proxy {
    pub(crate) fn to(registry: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Shared { registry, state: Mutex::default(), changed: Condvar::new() };
        let shared = Arc::new(shared);
        let acceptor = Some(accept(listener, Arc::clone(&shared)));
        Self { address, shared, acceptor }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The name of what was pushed to the registry, as pulled through here.
    pub(crate) fn name(&self, name: &str) -> String {
        let (_, rest) = name.split_once('/').unwrap();
        format!("{}/{rest}", self.address)
    }

    /// The next request for that goes wrong; after that the next rule counts, or none.
    pub(crate) fn fail_next(&self, asked: Asked, fault: Fault) {
        self.fail(asked, fault, Some(1));
    }

    /// Every request for that goes wrong until [`Proxy::mend`].
    pub(crate) fn fail_all(&self, asked: Asked, fault: Fault) {
        self.fail(asked, fault, None);
    }

    fn fail(&self, asked: Asked, fault: Fault, left: Option<usize>) {
        self.shared.state().rules.push(Rule { asked, fault, left });
    }

    /// From now on nothing goes wrong. Connections that are held end.
    pub(crate) fn mend(&self) {
        let mut state = self.shared.state();
        state.rules.clear();
        state.mended += 1;
        drop(state);
        self.shared.changed.notify_all();
    }

    /// From now on nobody listens, and connections are cut.
    pub(crate) fn unplug(&mut self) {
        let mut state = self.shared.state();
        state.is_unplugged = true;
        state.mended += 1;
        for connection in state.connections.drain(..) {
            // It may have ended by itself.
            drop(connection.shutdown(Shutdown::Both));
        }
        drop(state);
        self.shared.changed.notify_all();
        if let Some(acceptor) = self.acceptor.take() {
            // It waits for somebody to come.
            drop(TcpStream::connect(self.address));
            drop(acceptor.join());
        }
    }

    /// Listens again, where it did.
    pub(crate) fn plug_in(&mut self) {
        let listener = TcpListener::bind(self.address).unwrap();
        self.shared.state().is_unplugged = false;
        self.acceptor = Some(accept(listener, Arc::clone(&self.shared)));
    }

    /// All that were seen, in their order.
    pub(crate) fn requests(&self) -> Vec<Request> {
        self.shared.state().requests.clone()
    }

    /// How many were seen.
    pub(crate) fn count(&self, method: &str, asked: &Asked) -> usize {
        let requests = self.requests();
        requests.iter().filter(|it| it.method == method && asked.is(&it.path)).count()
    }

    /// Waits until the requests are like that, and returns what is made of them.
    pub(crate) fn until<T>(&self, what: &str, is_so: impl Fn(&[Request]) -> Option<T>) -> T {
        let mut state = self.shared.state();
        let deadline = now() + SOON;
        loop {
            if let Some(found) = is_so(&state.requests) {
                return found;
            }
            let left = deadline.saturating_duration_since(now());
            assert!(!left.is_zero(), "{what}: not within {SOON:?}; {:#?}", state.requests);
            state = self.shared.wait(state, left);
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.unplug();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>, limit: Duration) -> MutexGuard<'a, State> {
        let waited = self.changed.wait_timeout(state, limit);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    /// Waits until what is wrong is mended, at most for so long.
    fn hold(&self, mended: u64, limit: Option<Duration>) {
        let deadline = limit.map(|it| now() + it);
        let mut state = self.state();
        while state.mended == mended {
            let left = deadline.map(|it| it.saturating_duration_since(now()));
            if left.is_some_and(|it| it.is_zero()) {
                return;
            }
            state = self.wait(state, left.unwrap_or(SOON));
        }
    }

    /// Changes what is known of a request.
    fn note(&self, request: usize, change: impl FnOnce(&mut Request)) {
        change(&mut self.state().requests[request]);
        self.changed.notify_all();
    }
}

/// Takes up connections until it is unplugged.
fn accept(listener: TcpListener, shared: Arc<Shared>) -> JoinHandle<()> {
    std::thread::spawn(move || {
        for connection in listener.incoming().map_while(Result::ok) {
            let mut state = shared.state();
            if state.is_unplugged {
                return;
            }
            state.connections.push(connection.try_clone().unwrap());
            drop(state);
            let shared = Arc::clone(&shared);
            // One that is cut on either side has nothing more to say.
            std::thread::spawn(move || drop(serve(&shared, &connection)));
        }
    })
}

/// What was found at the beginning of a message: the first line, and the headers.
struct Head {
    first: String,
    headers: Vec<(String, String)>,
}

impl Head {
    fn read(from: &mut impl std::io::BufRead) -> std::io::Result<Self> {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            if from.read_line(&mut line)? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            match line.trim_end() {
                "" => break,
                line => lines.push(line.to_owned()),
            }
        }
        let mut lines = lines.into_iter();
        let first = lines.next().unwrap_or_default();
        let pair =
            |it: String| Some(it.split_once(": ").map(|(a, b)| (a.to_owned(), b.to_owned())))?;
        Ok(Self { first, headers: lines.filter_map(pair).collect() })
    }

    fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.headers.iter();
        headers.find(|it| it.0.eq_ignore_ascii_case(name)).map(|it| it.1.as_str())
    }

    fn set(&mut self, name: &str, value: Option<&str>) {
        self.headers.retain(|it| !it.0.eq_ignore_ascii_case(name));
        self.headers.extend(value.map(|it| (name.to_owned(), it.to_owned())));
    }

    fn text(&self) -> String {
        let headers = self.headers.iter().map(|(name, value)| format!("{name}: {value}\r\n"));
        format!("{}\r\n{}\r\n", self.first, headers.collect::<String>())
    }
}

fn serve(shared: &Shared, client: &TcpStream) -> std::io::Result<()> {
    let result = answer(shared, client);
    // Another handle of it is kept.
    client.shutdown(Shutdown::Both).ok();
    result
}

fn answer(shared: &Shared, mut client: &TcpStream) -> std::io::Result<()> {
    let mut input = BufReader::new(client);
    let mut head = Head::read(&mut input)?;
    let mut words = head.first.split(' ').map(str::to_owned);
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut state = shared.state();
    let request = state.requests.len();
    state.requests.push(Request {
        method,
        path: path.clone(),
        range: head.header("range").map(str::to_owned),
        has_authorization: head.header("authorization").is_some(),
        status: None,
        sent: 0,
    });
    let fault = state.next_fault(&path);
    let mended = state.mended;
    drop(state);
    shared.changed.notify_all();

    match &fault {
        Some(Fault::HangUp) => return Ok(()),
        Some(Fault::Silence) => {
            shared.hold(mended, None);
            return Ok(());
        }
        Some(Fault::Answer { status, headers, body }) => {
            shared.note(request, |it| it.status = Some(*status));
            let mut answer =
                Head { first: format!("HTTP/1.1 {status} Told"), headers: headers.clone() };
            answer.set("Content-Length", Some(&body.len().to_string()));
            answer.set("Connection", Some("close"));
            return client.write_all(format!("{}{body}", answer.text()).as_bytes());
        }
        Some(Fault::Whole) => head.set("Range", None),
        Some(Fault::Cut(_) | Fault::Stall(_) | Fault::Corrupt(_) | Fault::Slow(_)) | None => {}
    }

    let length = head.header("content-length").and_then(|it| it.parse().ok()).unwrap_or(0);
    head.set("Connection", Some("close"));
    let mut registry = TcpStream::connect(shared.registry)?;
    registry.write_all(head.text().as_bytes())?;
    std::io::copy(&mut input.by_ref().take(length), &mut registry)?;
    let mut output = BufReader::with_capacity(PIECE, registry);
    let answer = Head::read(&mut output)?;
    let status = answer.first.split(' ').nth(1).and_then(|it| it.parse().ok());
    shared.note(request, |it| it.status = status);
    client.write_all(answer.text().as_bytes())?;
    let mut sent = 0;
    loop {
        let mut piece = output.fill_buf()?.to_vec();
        if piece.is_empty() {
            return Ok(());
        }
        match fault {
            Some(Fault::Cut(after) | Fault::Stall(after)) => {
                piece.truncate(usize::try_from(after - sent).unwrap_or(usize::MAX));
            }
            Some(Fault::Corrupt(at)) => {
                let at = at.checked_sub(sent).and_then(|it| usize::try_from(it).ok());
                if let Some(byte) = at.and_then(|it| piece.get_mut(it)) {
                    *byte ^= 1;
                }
            }
            Some(Fault::Slow(rate)) => {
                piece.truncate(usize::try_from(rate.div_ceil(10)).unwrap_or(usize::MAX));
            }
            Some(Fault::Whole | Fault::HangUp | Fault::Silence | Fault::Answer { .. }) | None => {}
        }
        client.write_all(&piece)?;
        output.consume(piece.len());
        sent += u64::try_from(piece.len()).unwrap();
        shared.note(request, |it| it.sent = sent);
        match fault {
            Some(Fault::Cut(after)) if sent >= after => return Ok(()),
            Some(Fault::Stall(after)) if sent >= after => {
                shared.hold(mended, None);
                return Ok(());
            }
            Some(Fault::Slow(rate)) => {
                let micros = 1_000_000 * u64::try_from(piece.len()).unwrap() / rate;
                shared.hold(mended, Some(Duration::from_micros(micros)));
            }
            _ => {}
        }
    }
}

impl State {
    fn next_fault(&mut self, path: &str) -> Option<Fault> {
        let rule = self.rules.iter_mut().find(|it| it.left != Some(0) && it.asked.is(path))?;
        rule.left = rule.left.map(|it| it - 1);
        Some(rule.fault.clone())
    }
}

#[expect(clippy::disallowed_methods, reason = "tests wait for another process, with a deadline")]
fn now() -> Instant {
    Instant::now()
}
