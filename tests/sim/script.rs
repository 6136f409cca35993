//! What happens in a simulation, as text: a line per step, the same each time it is played.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use evenkeel::observed::HandKind;

/// A seed, which everything that the steps leave open comes from, and the steps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Script {
    pub(crate) seed: u64,
    pub(crate) steps: Vec<Step>,
}

/// A document of a manifest file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Doc {
    pub(crate) name: String,
    /// `image`, `args`, `ipc`, `shm`, `state`, `restart`, `retries`, `boot`, `clear`, `stop`, `follow`, `bind` and
    /// `make`; `bad` makes it invalid.
    pub(crate) fields: BTreeMap<String, String>,
}

/// What a file holds.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Content {
    Docs(Vec<Doc>),
    /// `syntax`, `empty`, `comments`, `foreign`, `nameless`.
    Spoilt(String),
}

/// When a call of the runtime fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum When {
    /// Nothing was done.
    Before,
    /// It was done, and the answer was lost.
    After,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// Milliseconds.
    Wait(u64),
    /// Puts a whole file in place, by rename.
    Write {
        path: String,
        content: Content,
    },
    /// Begins to write a file, which does not count before it is finished.
    Begin {
        path: String,
        content: Content,
    },
    Finish {
        path: String,
    },
    Remove {
        path: String,
    },
    Rename {
        from: String,
        to: String,
    },
    /// Makes a file, a directory or, as `.`, the root unreadable, or readable again.
    Access {
        path: String,
        readable: bool,
    },
    /// The root goes, or is there, on this device.
    Root {
        device: Option<u64>,
    },
    /// All files go at once.
    Clear,
    /// While off, events of files are lost.
    Watch {
        on: bool,
    },
    Exit {
        name: String,
        code: u32,
    },
    /// Its program ends with this code as soon as it starts.
    Crashing {
        name: String,
        code: Option<u32>,
    },
    Stubborn {
        name: String,
    },
    /// Its main process does not end before those beside it are killed.
    Clinging {
        name: String,
    },
    /// Its runtime has lost it: no signal can be sent.
    Deaf {
        name: String,
    },
    Pause {
        name: String,
    },
    Hang {
        name: String,
        hung: bool,
    },
    /// Its container object vanishes; the task stays.
    LoseContainer {
        name: String,
    },
    /// containerd forgets its tasks, or containers and all, and what runs goes on.
    LoseEverything {
        tasks_only: bool,
    },
    /// The next call of that verb fails.
    Fail {
        verb: String,
        when: When,
        refused: bool,
    },
    /// The next call of that verb takes that many milliseconds.
    Slow {
        verb: String,
        ms: u64,
    },
    FailHost {
        verb: String,
    },
    Unreachable {
        on: bool,
    },
    /// containerd restarts and forgets what has ended.
    Forget,
    Hints {
        how: String,
    },
    /// The controller is killed.
    Kill,
    /// It is killed once so many more effects were made.
    KillAfterEffects(usize),
    /// It is killed in the middle of that call, counted from now.
    KillAtCall(usize),
    /// It is told to end.
    End,
    Run,
    Reboot,
    Foreign {
        id: String,
    },
    /// `directory`, `shm` or `lease`.
    Litter {
        kind: String,
        id: String,
    },
    /// The tag points at that digest from now on, or at nothing.
    Image {
        name: String,
        digest: Option<u64>,
    },
    /// What a bind may name: `directory`, `other`, `silent` or `gone`.
    Mount {
        name: String,
        kind: String,
    },
    /// A person begins to work in it: `begins`, `ends`, or `killed` with what it runs left behind.
    Exec {
        name: String,
        how: String,
    },
    /// Somebody ends everything for the end of the machine, within so many milliseconds.
    Shutdown(u64),
    /// A person releases all that is held.
    Approve,
    /// A person asks for something of one workload.
    Hand {
        name: String,
        kind: HandKind,
        /// With a restart: from the image anew.
        fresh: bool,
    },
}

impl fmt::Display for Doc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        self.fields.iter().try_for_each(|(key, value)| write!(f, " {key}={value}"))
    }
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Docs(docs) => {
                let docs: Vec<String> = docs.iter().map(ToString::to_string).collect();
                f.write_str(&docs.join(" / "))
            }
            Self::Spoilt(how) => write!(f, "!{how}"),
        }
    }
}

fn on(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}

fn hand(kind: HandKind, fresh: bool) -> &'static str {
    match kind {
        HandKind::Stop => "stop",
        HandKind::Start => "start",
        HandKind::Restart if fresh => "restart-fresh",
        HandKind::Restart => "restart",
        HandKind::Retry => "retry",
        HandKind::Down => "down",
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Wait(ms) => write!(f, "wait {ms}"),
            Self::Write { path, content } => write!(f, "write {path} = {content}"),
            Self::Begin { path, content } => write!(f, "begin {path} = {content}"),
            Self::Finish { path } => write!(f, "finish {path}"),
            Self::Remove { path } => write!(f, "remove {path}"),
            Self::Rename { from, to } => write!(f, "rename {from} {to}"),
            Self::Access { path, readable: true } => write!(f, "readable {path}"),
            Self::Access { path, readable: false } => write!(f, "unreadable {path}"),
            Self::Root { device: None } => f.write_str("root missing"),
            Self::Root { device: Some(device) } => write!(f, "root {device}"),
            Self::Clear => f.write_str("clear"),
            Self::Watch { on: it } => write!(f, "watch {}", on(*it)),
            Self::Exit { name, code } => write!(f, "exit {name} {code}"),
            Self::Crashing { name, code: Some(code) } => write!(f, "crashing {name} {code}"),
            Self::Crashing { name, code: None } => write!(f, "crashing {name} off"),
            Self::Stubborn { name } => write!(f, "stubborn {name}"),
            Self::Clinging { name } => write!(f, "clinging {name}"),
            Self::Deaf { name } => write!(f, "deaf {name}"),
            Self::Pause { name } => write!(f, "pause {name}"),
            Self::Hang { name, hung } => write!(f, "hang {name} {}", on(*hung)),
            Self::LoseContainer { name } => write!(f, "lose {name}"),
            Self::LoseEverything { tasks_only: true } => f.write_str("lose-tasks"),
            Self::LoseEverything { tasks_only: false } => f.write_str("lose-everything"),
            Self::Fail { verb, when, refused } => {
                let when = if *when == When::Before { "before" } else { "after" };
                let how = if *refused { "refused" } else { "unreachable" };
                write!(f, "fail {when} {how} {verb}")
            }
            Self::Slow { verb, ms } => write!(f, "slow {ms} {verb}"),
            Self::FailHost { verb } => write!(f, "fail-host {verb}"),
            Self::Unreachable { on: it } => write!(f, "unreachable {}", on(*it)),
            Self::Forget => f.write_str("forget"),
            Self::Hints { how } => write!(f, "hints {how}"),
            Self::Kill => f.write_str("kill"),
            Self::KillAfterEffects(n) => write!(f, "kill-after-effects {n}"),
            Self::KillAtCall(n) => write!(f, "kill-at-call {n}"),
            Self::End => f.write_str("end"),
            Self::Run => f.write_str("run"),
            Self::Reboot => f.write_str("reboot"),
            Self::Foreign { id } => write!(f, "foreign {id}"),
            Self::Litter { kind, id } => write!(f, "litter {kind} {id}"),
            Self::Image { name, digest: Some(digest) } => write!(f, "image {name} {digest}"),
            Self::Image { name, digest: None } => write!(f, "image {name} gone"),
            Self::Mount { name, kind } => write!(f, "mount {name} {kind}"),
            Self::Exec { name, how } => write!(f, "exec {name} {how}"),
            Self::Shutdown(ms) => write!(f, "shutdown {ms}"),
            Self::Approve => f.write_str("approve"),
            Self::Hand { name, kind, fresh } => write!(f, "{} {name}", hand(*kind, *fresh)),
        }
    }
}

impl fmt::Display for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {}", self.seed)?;
        self.steps.iter().try_for_each(|step| writeln!(f, "{step}"))
    }
}

fn content(text: &str) -> Content {
    if let Some(how) = text.strip_prefix('!') {
        return Content::Spoilt(how.to_owned());
    }
    let doc = |text: &str| {
        let mut words = text.split_whitespace();
        let name = words.next().unwrap_or_default().to_owned();
        let field = |it: &str| it.split_once('=').map(|(key, value)| (key.into(), value.into()));
        Doc { name, fields: words.filter_map(field).collect() }
    };
    Content::Docs(text.split(" / ").map(doc).collect())
}

impl FromStr for Step {
    type Err = String;

    fn from_str(line: &str) -> Result<Self, String> {
        let bad = || format!("`{line}` is no step");
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        let rest = rest.trim();
        let own = rest.to_owned();
        let two =
            || rest.split_once(' ').map(|(a, b)| (a.to_owned(), b.to_owned())).ok_or_else(bad);
        let number = |text: &str| text.parse::<u64>().map_err(|_| bad());
        let small = |text: &str| text.parse::<u32>().map_err(|_| bad());
        let count = |text: &str| text.parse::<usize>().map_err(|_| bad());
        let filled = || {
            let (path, text) = rest.split_once(" = ").ok_or_else(bad)?;
            Ok::<_, String>((path.to_owned(), content(text)))
        };
        Ok(match word {
            "wait" => Self::Wait(number(rest)?),
            "write" => filled().map(|(path, content)| Self::Write { path, content })?,
            "begin" => filled().map(|(path, content)| Self::Begin { path, content })?,
            "finish" => Self::Finish { path: own },
            "remove" => Self::Remove { path: own },
            "rename" => two().map(|(from, to)| Self::Rename { from, to })?,
            "readable" => Self::Access { path: own, readable: true },
            "unreadable" if !matches!(rest, "on" | "off") => {
                Self::Access { path: own, readable: false }
            }
            "root" if rest == "missing" => Self::Root { device: None },
            "root" => Self::Root { device: Some(number(rest)?) },
            "clear" => Self::Clear,
            "watch" => Self::Watch { on: rest == "on" },
            "exit" => {
                two().and_then(|(name, code)| Ok(Self::Exit { name, code: small(&code)? }))?
            }
            "crashing" => {
                let (name, code) = two()?;
                let code = if code == "off" { None } else { Some(small(&code)?) };
                Self::Crashing { name, code }
            }
            "stubborn" => Self::Stubborn { name: own },
            "clinging" => Self::Clinging { name: own },
            "deaf" => Self::Deaf { name: own },
            "pause" => Self::Pause { name: own },
            "hang" => two().map(|(name, it)| Self::Hang { name, hung: it == "on" })?,
            "lose" => Self::LoseContainer { name: own },
            "lose-tasks" => Self::LoseEverything { tasks_only: true },
            "lose-everything" => Self::LoseEverything { tasks_only: false },
            "fail" => {
                let mut words = rest.splitn(3, ' ');
                let when = match words.next() {
                    Some("before") => When::Before,
                    Some("after") => When::After,
                    _ => return Err(bad()),
                };
                let refused = words.next() == Some("refused");
                Self::Fail { verb: words.next().ok_or_else(bad)?.to_owned(), when, refused }
            }
            "slow" => two().and_then(|(ms, verb)| Ok(Self::Slow { verb, ms: number(&ms)? }))?,
            "fail-host" => Self::FailHost { verb: own },
            "unreachable" => Self::Unreachable { on: rest == "on" },
            "forget" => Self::Forget,
            "hints" => Self::Hints { how: own },
            "kill" => Self::Kill,
            "kill-after-effects" => Self::KillAfterEffects(count(rest)?),
            "kill-at-call" => Self::KillAtCall(count(rest)?),
            "end" => Self::End,
            "run" => Self::Run,
            "reboot" => Self::Reboot,
            "foreign" => Self::Foreign { id: own },
            "litter" => two().map(|(kind, id)| Self::Litter { kind, id })?,
            "image" => {
                let (name, digest) = two()?;
                let digest = if digest == "gone" { None } else { Some(number(&digest)?) };
                Self::Image { name, digest }
            }
            "mount" => two().map(|(name, kind)| Self::Mount { name, kind })?,
            "exec" => two().map(|(name, how)| Self::Exec { name, how })?,
            "shutdown" => Self::Shutdown(number(rest)?),
            "approve" => Self::Approve,
            "stop" => Self::Hand { name: own, kind: HandKind::Stop, fresh: false },
            "start" => Self::Hand { name: own, kind: HandKind::Start, fresh: false },
            "restart" => Self::Hand { name: own, kind: HandKind::Restart, fresh: false },
            "restart-fresh" => Self::Hand { name: own, kind: HandKind::Restart, fresh: true },
            "retry" => Self::Hand { name: own, kind: HandKind::Retry, fresh: false },
            "down" => Self::Hand { name: own, kind: HandKind::Down, fresh: false },
            _ => return Err(bad()),
        })
    }
}

impl FromStr for Script {
    type Err = String;

    /// Lines that are empty or begin with `#` are for people.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut script = Self { seed: 0, steps: Vec::new() };
        for line in text.lines().map(str::trim) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            match line.strip_prefix("seed ") {
                Some(seed) => script.seed = seed.parse().map_err(|_| format!("`{line}`"))?,
                None => script.steps.push(line.parse()?),
            }
        }
        Ok(script)
    }
}
