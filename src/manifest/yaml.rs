//! YAML text → documents of nodes that know where they stand: the one adapter on the event parser.
//!
//! Knows YAML 1.2 and its core schema, and nothing of manifests. Whatever two readers of YAML could take for two
//! things (a repeated key, `<<`, `0755`, a tag) is a [`Flaw`], never a guess, and what a text costs is bounded by
//! [`DEPTH`], [`NODES`] and [`ALIAS_NODES`], whatever it says.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::rc::Rc;

use granit_parser::{ErrorKind, Event, Marker, Parser, ScalarStyle, ScanError, Span, Tag, options};
use serde_json::{Map, Number, Value};

/// Deepest nesting, aliases included; a manifest needs six.
pub(super) const DEPTH: usize = 64;

/// Most nodes of one document; the largest file has room for a few times as many.
pub(super) const NODES: usize = 50_000;

/// Most nodes that the aliases of one document add; a text of 32 bytes more counts as one node more.
pub(super) const ALIAS_NODES: usize = 10_000;

/// A place in the text. Lines and columns count from 1, columns in characters.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Mark {
    pub(super) bytes: Range<usize>,
    pub(super) line: u32,
    pub(super) column: u32,
}

/// Something that YAML allows or a scanner trips over, and that is wrong in a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Flaw {
    pub(super) code: &'static str,
    pub(super) pointer: String,
    pub(super) mark: Mark,
    pub(super) message: String,
    pub(super) hint: Option<String>,
    pub(super) fix: Option<String>,
    /// The first of two.
    pub(super) related: Option<Mark>,
}

impl Flaw {
    pub(super) fn new(
        code: &'static str,
        pointer: String,
        mark: Mark,
        message: impl Into<String>,
    ) -> Self {
        Self { code, pointer, mark, message: message.into(), hint: None, fix: None, related: None }
    }

    pub(super) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    pub(super) fn fix(mut self, fix: impl Into<String>) -> Self {
        self.fix = Some(fix.into());
        self
    }
}

/// A value and its place. An alias shares what it stands for, so a copy costs nothing.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Node {
    pub(super) mark: Mark,
    pub(super) kind: Kind,
    /// Nodes in it, itself included, with aliases expanded.
    weight: usize,
    /// Levels of nesting in it; 1 for a scalar.
    depth: usize,
}

/// What a node is.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Kind {
    Null,
    Bool(bool),
    Number(Number),
    Text(Rc<str>),
    List(Rc<Vec<Node>>),
    Map(Rc<Fields>),
}

/// The entries of a mapping, in the order of the text.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Fields {
    entries: Vec<Entry>,
    /// Indices of the entries by key, when there are many, so that looking all of them up is not quadratic.
    order: Vec<usize>,
}

impl Fields {
    fn new(entries: Vec<Entry>) -> Self {
        let mut order = Vec::new();
        if entries.len() > 16 {
            order.extend(0..entries.len());
            order.sort_by(|a, b| entries[*a].key.cmp(&entries[*b].key));
        }
        Self { entries, order }
    }

    fn find(&self, key: &str) -> Option<&Entry> {
        if self.order.is_empty() {
            return self.entries.iter().find(|it| &*it.key == key);
        }
        let found = self.order.binary_search_by(|it| (*self.entries[*it].key).cmp(key)).ok()?;
        self.entries.get(self.order[found])
    }
}

/// A key with its value.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Entry {
    pub(super) key: Rc<str>,
    pub(super) mark: Mark,
    pub(super) node: Node,
}

impl Node {
    /// The entry of that key, when the node is a mapping.
    pub(super) fn entry(&self, key: &str) -> Option<&Entry> {
        match &self.kind {
            Kind::Map(fields) => fields.find(key),
            Kind::Null | Kind::Bool(_) | Kind::Number(_) | Kind::Text(_) | Kind::List(_) => None,
        }
    }

    pub(super) fn get(&self, key: &str) -> Option<&Self> {
        self.entry(key).map(|it| &it.node)
    }

    pub(super) fn text(&self) -> Option<&str> {
        match &self.kind {
            Kind::Text(text) => Some(text),
            Kind::Null | Kind::Bool(_) | Kind::Number(_) | Kind::List(_) | Kind::Map(_) => None,
        }
    }

    /// The node at a JSON pointer below this one, and the place of the key that leads to it.
    pub(super) fn at(&self, pointer: &str) -> Option<(Option<&Mark>, &Self)> {
        let mut found = (None, self);
        for token in pointer.split('/').skip(1) {
            found = match &found.1.kind {
                Kind::List(items) => (None, items.get(token.parse::<usize>().ok()?)?),
                Kind::Map(_) => {
                    let entry = found.1.entry(&unescape(token))?;
                    (Some(&entry.mark), &entry.node)
                }
                Kind::Null | Kind::Bool(_) | Kind::Number(_) | Kind::Text(_) => return None,
            };
        }
        Some(found)
    }

    /// The JSON value it stands for. A whole number written `2.0` is 2, as JSON Schema has it.
    pub(super) fn json(&self) -> Value {
        match &self.kind {
            Kind::Null => Value::Null,
            Kind::Bool(value) => Value::Bool(*value),
            Kind::Number(number) => Value::Number(number.clone()),
            Kind::Text(text) => Value::String(text.to_string()),
            Kind::List(items) => Value::Array(items.iter().map(Self::json).collect()),
            Kind::Map(fields) => {
                let pairs = fields.entries.iter().map(|it| (it.key.to_string(), it.node.json()));
                Value::Object(pairs.collect::<Map<_, _>>())
            }
        }
    }
}

/// One key or index as a token of a JSON pointer.
pub(super) fn escape(token: &str) -> Cow<'_, str> {
    if token.contains(['~', '/']) {
        token.replace('~', "~0").replace('/', "~1").into()
    } else {
        token.into()
    }
}

fn unescape(token: &str) -> Cow<'_, str> {
    if token.contains('~') {
        token.replace("~1", "/").replace("~0", "~").into()
    } else {
        token.into()
    }
}

/// One document of a text.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Parsed {
    /// It could be read; flaws are what is wrong with it as YAML. Where a key comes twice, the first is here.
    Document { root: Node, flaws: Vec<Flaw> },
    /// It could not, and what it says is not known.
    Broken(Flaw),
}

/// All documents of `text` in their order, without the empty ones; `base` is the offset of `text` in its file.
///
/// A document that cannot be read takes nothing else with it: reading goes on behind the next `---` at the start of
/// a line, which is a marker even inside a quoted text, as YAML says.
pub(super) fn documents(text: &str, base: usize) -> Vec<Parsed> {
    let limits = options! {
        emit_comments: false,
        // Ours comes first and says more; these bound the scanner's own stack.
        flow_nesting_limit: DEPTH + 8,
        block_nesting_limit: DEPTH + 8,
    };
    let mut parser = Parser::new_from_str_with_options(text, limits);
    let mut composer = Composer::new(base);
    let mut parsed = Vec::new();
    let mut reached = None;
    // Where the last document ended, until the next one begins.
    let mut ended = None;
    while let Some(next) = parser.next_event() {
        let flaw = match next {
            Ok((event, span)) => match composer.take(event, &span) {
                Ok(Some(document)) => {
                    parsed.push(document);
                    ended = span.start.byte_offset();
                    continue;
                }
                Ok(None) if composer.is_inside() => {
                    ended = None;
                    continue;
                }
                Ok(None) => continue,
                Err(flaw) => *flaw,
            },
            Err(error) => scan_flaw(&error, text, base),
        };
        let at = flaw.mark.bytes.start;
        // Without a marker between them, what cannot be read is the rest of the document before: the parser took it
        // for complete too early, and half a document must not act.
        let separate = |end: usize| text.get(end..at - base).is_none_or(has_marker);
        if ended.take().is_some_and(|end| !separate(end)) {
            parsed.pop();
        }
        parsed.push(Parsed::Broken(flaw));
        composer = Composer::new(base);
        // Each recovery has to get further, whatever the parser does.
        let stuck = reached.is_some_and(|it| at < it);
        reached = Some(at);
        if stuck || parsed.len() > text.len() || !parser.proceed_next_document().unwrap_or(false) {
            break;
        }
    }
    parsed
}

/// Whether a line of `text` ends a document or begins one.
fn has_marker(text: &str) -> bool {
    let ends = |rest: &str| rest.is_empty() || rest.starts_with([' ', '\t']);
    let marker =
        |line: &str| ["---", "..."].iter().any(|it| line.strip_prefix(it).is_some_and(ends));
    text.split(['\n', '\r']).any(marker)
}

/// What the first document of a text says about whose it is.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) api_version: Option<String>,
    pub(super) kind: Option<String>,
    pub(super) name: Option<String>,
    /// The document ended inside of the text, and another began.
    pub(super) whole: bool,
}

/// The head of a text that may be cut anywhere. Builds nothing, so its size does not matter.
pub(super) fn head(text: &str) -> Head {
    let mut head = Head::default();
    let mut path: Vec<String> = Vec::new();
    // For each open collection, whether it is a mapping, and the key that is waiting for its value.
    let mut open: Vec<(bool, Option<String>)> = Vec::new();
    let limits = options! { emit_comments: false, flow_nesting_limit: DEPTH + 8, block_nesting_limit: DEPTH + 8 };
    // An empty document is none, as for a whole file.
    let mut begun = false;
    for next in Parser::new_from_str_with_options(text, limits) {
        let Ok((event, _)) = next else { return head };
        let value = match event {
            Event::DocumentStart(..) if begun => {
                head.whole = true;
                return head;
            }
            Event::SequenceStart(..) | Event::MappingStart(..) => {
                begun = true;
                let key =
                    open.last_mut().and_then(|(map, key)| if *map { key.take() } else { None });
                path.push(key.unwrap_or_default());
                open.push((matches!(event, Event::MappingStart(..)), None));
                continue;
            }
            Event::SequenceEnd | Event::MappingEnd => {
                path.pop();
                open.pop();
                continue;
            }
            Event::Scalar(text, style, _, tag) => {
                let untagged = tag.is_none_or(|it| it.is_yaml_core_schema_tag("null"));
                let is_null = style == ScalarStyle::Plain && resolve(&text) == Kind::Null;
                begun |= !(is_null && untagged);
                Some(text)
            }
            Event::Alias(_) | Event::UnresolvedAlias(_) => None,
            Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(..)
            | Event::DocumentEnd
            | Event::Anchor(..) => continue,
            _ => return head,
        };
        let Some((true, key)) = open.last_mut() else { continue };
        let Some(field) = key.take() else {
            *key = Some(value.unwrap_or_default().into_owned());
            continue;
        };
        let value = value.map(Cow::into_owned);
        match (path.get(1..).unwrap_or_default(), field.as_str()) {
            // Where a key comes twice, the first counts.
            ([], "apiVersion") => head.api_version = head.api_version.or(value),
            ([], "kind") => head.kind = head.kind.or(value),
            ([parent], "name") if parent == "metadata" => head.name = head.name.or(value),
            _ => {}
        }
    }
    head
}

/// A collection that is not complete yet.
struct Frame {
    mark: Mark,
    anchor: usize,
    weight: usize,
    depth: usize,
    items: Items,
}

enum Items {
    List(Vec<Node>),
    Map { entries: Vec<Entry>, seen: HashMap<Rc<str>, Mark>, key: Option<Key> },
}

/// A key whose value has not come yet; `None`: there is no name for it, and its value is left out.
type Key = Option<(Rc<str>, Mark)>;

/// Puts the events of one document together.
struct Composer {
    base: usize,
    stack: Vec<Frame>,
    root: Option<Node>,
    anchors: HashMap<usize, Node>,
    /// Anchors whose node is not complete.
    open: HashSet<usize>,
    nodes: usize,
    alias_nodes: usize,
    flaws: Vec<Flaw>,
}

impl Composer {
    fn new(base: usize) -> Self {
        Self {
            base,
            stack: Vec::new(),
            root: None,
            anchors: HashMap::new(),
            open: HashSet::new(),
            nodes: 0,
            alias_nodes: 0,
            flaws: Vec::new(),
        }
    }

    fn take(&mut self, event: Event<'_>, span: &Span) -> Result<Option<Parsed>, Box<Flaw>> {
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let mark = self.mark(span);
                let kind = self.scalar(&text, style, tag.as_deref(), &mark);
                let weight = 1 + text.len() / 32;
                self.complete(Node { mark, kind, weight, depth: 1 }, anchor)?;
            }
            Event::SequenceStart(_, anchor, tag) => {
                self.open(span, anchor, tag.as_deref(), "seq", Items::List(Vec::new()))?;
            }
            Event::MappingStart(_, anchor, tag) => {
                let items = Items::Map { entries: Vec::new(), seen: HashMap::new(), key: None };
                self.open(span, anchor, tag.as_deref(), "map", items)?;
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(span)?,
            Event::Alias(anchor) => self.alias(span, anchor)?,
            Event::DocumentStart(..) => *self = Self::new(self.base),
            Event::DocumentEnd => {
                let flaws = std::mem::take(&mut self.flaws);
                let root = self.root.take().filter(|it| it.kind != Kind::Null || !flaws.is_empty());
                return Ok(root.map(|root| Parsed::Document { root, flaws }));
            }
            Event::StreamStart | Event::StreamEnd | Event::Anchor(..) => {}
            // Not asked for, or of a later parser: to leave a node out would shift the others.
            Event::UnresolvedAlias(_) | _ => {
                return Err(self.too_much(
                    "syntax-error",
                    &self.mark(span),
                    "not understood".to_owned(),
                ));
            }
        }
        Ok(None)
    }

    /// Whether a node of a document has come, and not its end.
    fn is_inside(&self) -> bool {
        self.nodes > 0 || !self.stack.is_empty()
    }

    fn mark(&self, span: &Span) -> Mark {
        let start = span.start.byte_offset().unwrap_or_default();
        let end = span.end.byte_offset().unwrap_or(start).max(start);
        mark(&span.start, self.base + start..self.base + end)
    }

    fn pointer(&self) -> String {
        let mut pointer = String::new();
        for frame in &self.stack {
            pointer.push('/');
            match &frame.items {
                Items::List(items) => pointer.push_str(&items.len().to_string()),
                Items::Map { key: Some(Some((key, _))), .. } => pointer.push_str(&escape(key)),
                Items::Map { .. } => {
                    pointer.pop();
                }
            }
        }
        pointer
    }

    /// Whether the next node is a key.
    fn expects_key(&self) -> bool {
        matches!(self.stack.last(), Some(Frame { items: Items::Map { key: None, .. }, .. }))
    }

    fn too_much(&self, code: &'static str, mark: &Mark, message: String) -> Box<Flaw> {
        Box::new(Flaw::new(code, self.pointer(), mark.clone(), message))
    }

    fn open(
        &mut self,
        span: &Span,
        anchor: usize,
        tag: Option<&Tag>,
        plain: &str,
        items: Items,
    ) -> Result<(), Box<Flaw>> {
        let mark = self.mark(span);
        if self.stack.len() >= DEPTH {
            return Err(self.too_deep(&mark));
        }
        if let Some(tag) = tag.filter(|it| !it.is_yaml_core_schema_tag(plain) && !is_bang(it)) {
            self.flaws.push(tag_flaw(tag, self.pointer(), &mark));
        }
        if anchor > 0 {
            self.open.insert(anchor);
        }
        self.stack.push(Frame { mark, anchor, weight: 1, depth: 0, items });
        Ok(())
    }

    fn close(&mut self, span: &Span) -> Result<(), Box<Flaw>> {
        // The parser closes only what it opened.
        let Some(Frame { mut mark, anchor, weight, depth, items }) = self.stack.pop() else {
            return Ok(());
        };
        mark.bytes.end = mark.bytes.end.max(self.mark(span).bytes.end);
        let kind = match items {
            Items::List(items) => Kind::List(Rc::new(items)),
            Items::Map { entries, .. } => Kind::Map(Rc::new(Fields::new(entries))),
        };
        self.open.remove(&anchor);
        self.complete(Node { mark, kind, weight, depth: depth + 1 }, anchor)
    }

    fn too_deep(&self, mark: &Mark) -> Box<Flaw> {
        self.too_much("too-deep", mark, format!("nested deeper than {DEPTH} levels"))
    }

    fn alias(&mut self, span: &Span, anchor: usize) -> Result<(), Box<Flaw>> {
        let mark = self.mark(span);
        if self.open.contains(&anchor) {
            return Err(self.too_much(
                "alias-loop",
                &mark,
                "this alias stands inside what it stands for".to_owned(),
            ));
        }
        let Some(node) = self.anchors.get(&anchor).cloned() else {
            return Err(self.too_much(
                "syntax-error",
                &mark,
                "this alias has no anchor before it".to_owned(),
            ));
        };
        self.alias_nodes = self.alias_nodes.saturating_add(node.weight);
        if self.alias_nodes > ALIAS_NODES {
            let message =
                format!("the aliases of this document stand for more than {ALIAS_NODES} values");
            return Err(self.too_much("too-many-aliases", &mark, message));
        }
        if self.stack.len() + node.depth > DEPTH {
            return Err(self.too_deep(&mark));
        }
        self.complete(node, 0)
    }

    /// Puts a complete node where it belongs: a key, a value, an item or the root.
    fn complete(&mut self, node: Node, anchor: usize) -> Result<(), Box<Flaw>> {
        self.nodes += 1;
        if self.nodes > NODES {
            return Err(self.too_much(
                "too-many-nodes",
                &node.mark,
                format!("more than {NODES} values"),
            ));
        }
        if anchor > 0 {
            self.anchors.insert(anchor, node.clone());
        }
        if self.expects_key() {
            let key = self.key(node);
            if let Some(Frame { items: Items::Map { key: place, .. }, .. }) = self.stack.last_mut()
            {
                *place = Some(key);
            }
            return Ok(());
        }
        let Some(frame) = self.stack.last_mut() else {
            self.root = Some(node);
            return Ok(());
        };
        frame.weight = frame.weight.saturating_add(node.weight);
        frame.depth = frame.depth.max(node.depth);
        match &mut frame.items {
            Items::List(items) => items.push(node),
            Items::Map { entries, key, .. } => {
                if let Some(Some((key, mark))) = key.take() {
                    frame.weight = frame.weight.saturating_add(key.len() / 32);
                    entries.push(Entry { key, mark, node });
                }
            }
        }
        Ok(())
    }

    /// The key that a node is, unless it came before or is no key.
    fn key(&mut self, node: Node) -> Key {
        let parent = self.pointer();
        let text = match &node.kind {
            Kind::Text(text) => Rc::clone(text),
            Kind::Null | Kind::Bool(_) | Kind::Number(_) | Kind::List(_) | Kind::Map(_) => {
                let message = format!("a key has to be text, and this one is {}", describe(&node));
                let mut flaw = Flaw::new("key-not-text", parent, node.mark, message);
                if matches!(node.kind, Kind::Bool(_) | Kind::Number(_)) {
                    flaw = flaw.hint("put it in quotes");
                }
                self.flaws.push(flaw);
                return None;
            }
        };
        if &*text == "<<" {
            let flaw = Flaw::new(
                "merge-key",
                format!("{parent}/<<"),
                node.mark,
                "`<<` does not merge mappings here",
            );
            self.flaws.push(flaw.hint("write the fields out, or use an alias for the whole value"));
            return None;
        }
        let Some(Frame { items: Items::Map { seen, .. }, .. }) = self.stack.last_mut() else {
            return None;
        };
        if let Some(first) = seen.get(&text) {
            let pointer = format!("{parent}/{}", escape(&text));
            let message = format!("the key `{}` is here twice", shorten(&text));
            let first = first.clone();
            let hint = format!("the first is at line {}; keep one of them", first.line);
            let flaw = Flaw::new("duplicate-key", pointer, node.mark, message).hint(hint);
            self.flaws.push(Flaw { related: Some(first), ..flaw });
            return None;
        }
        seen.insert(Rc::clone(&text), node.mark.clone());
        Some((text, node.mark))
    }

    fn scalar(&mut self, text: &str, style: ScalarStyle, tag: Option<&Tag>, mark: &Mark) -> Kind {
        if text.contains('\0') {
            let flaw = Flaw::new(
                "nul-byte",
                self.pointer(),
                mark.clone(),
                "a text cannot contain a NUL character",
            );
            self.flaws.push(flaw);
        }
        let plain = style == ScalarStyle::Plain;
        let kind = match tag {
            None if plain => resolve(text),
            None => Kind::Text(text.into()),
            Some(tag) if is_bang(tag) || tag.is_yaml_core_schema_tag("str") => {
                Kind::Text(text.into())
            }
            Some(tag) => {
                let kind = resolve(text);
                let fits = match &kind {
                    Kind::Null => tag.is_yaml_core_schema_tag("null"),
                    Kind::Bool(_) => tag.is_yaml_core_schema_tag("bool"),
                    Kind::Number(number) => {
                        let whole = number.is_i64() || number.is_u64();
                        tag.is_yaml_core_schema_tag("float")
                            || whole && tag.is_yaml_core_schema_tag("int")
                    }
                    Kind::Text(_) | Kind::List(_) | Kind::Map(_) => false,
                };
                if !fits {
                    self.flaws.push(tag_flaw(tag, self.pointer(), mark));
                }
                kind
            }
        };
        if plain && tag.is_none() && is_old_octal(text) {
            let message =
                format!("`{}` means different things to different readers of YAML", shorten(text));
            let octal = text.trim_start_matches(['-', '+', '0']);
            let flaw = Flaw::new("number-ambiguous", self.pointer(), mark.clone(), message);
            let hint = if !octal.is_empty() && octal.bytes().all(|c| (b'0'..=b'7').contains(&c)) {
                format!(
                    "write \"{0}\" in quotes for a text, 0o{octal} for an octal number",
                    shorten(text)
                )
            } else {
                format!(
                    "write \"{}\" in quotes for a text, or the number without leading zeros",
                    shorten(text)
                )
            };
            self.flaws.push(flaw.hint(hint).fix(format!("\"{text}\"")));
            // A text, so that a field that takes one says nothing more about it.
            return Kind::Text(text.into());
        }
        kind
    }
}

/// What a plain scalar is in YAML's core schema.
fn resolve(text: &str) -> Kind {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Kind::Null,
        "true" | "True" | "TRUE" => return Kind::Bool(true),
        "false" | "False" | "FALSE" => return Kind::Bool(false),
        _ => {}
    }
    number(text).map_or_else(|| Kind::Text(text.into()), Kind::Number)
}

/// The number that a text is in YAML's core schema. `.inf` and `.nan` are none, because JSON has no such numbers.
fn number(text: &str) -> Option<Number> {
    if let Some(digits) = text.strip_prefix("0o") {
        return radix(digits, 8);
    }
    if let Some(digits) = text.strip_prefix("0x") {
        return radix(digits, 16);
    }
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    if !digits.is_empty() && digits.bytes().all(|c| c.is_ascii_digit()) {
        let whole = if negative {
            text.parse::<i64>().ok().map(Number::from)
        } else {
            digits.parse::<u64>().ok().map(Number::from)
        };
        return whole.or_else(|| Number::from_f64(text.parse().ok()?));
    }
    // What is left of `[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?`; `parse` would take words too.
    let mantissa = digits.split(['e', 'E']).next().unwrap_or_default();
    let allowed = |c: u8| c.is_ascii_digit() || matches!(c, b'.' | b'e' | b'E' | b'-' | b'+');
    if !digits.bytes().all(allowed)
        || !mantissa.bytes().any(|c| c.is_ascii_digit())
        || digits.starts_with(['-', '+'])
    {
        return None;
    }
    let value: f64 = text.parse().ok()?;
    if value.fract() == 0.0 {
        let digits = format!("{value:.0}");
        let whole = digits.parse::<i64>().map(Number::from);
        if let Ok(whole) = whole.or_else(|_| digits.parse::<u64>().map(Number::from)) {
            return Some(whole);
        }
    }
    Number::from_f64(value)
}

fn radix(digits: &str, radix: u32) -> Option<Number> {
    if !digits.chars().all(|c| c.is_digit(radix)) {
        return None;
    }
    u64::from_str_radix(digits, radix).ok().map(Number::from)
}

fn is_old_octal(text: &str) -> bool {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    digits.len() > 1 && digits.starts_with('0') && digits.bytes().all(|c| c.is_ascii_digit())
}

/// The lone `!`, which says that a scalar is text and says nothing of a collection.
fn is_bang(tag: &Tag) -> bool {
    tag.original() == "!"
}

fn tag_flaw(tag: &Tag, pointer: String, mark: &Mark) -> Flaw {
    let message = format!("the tag `{}` means nothing here", shorten(&tag.original()));
    Flaw::new("unknown-tag", pointer, mark.clone(), message)
        .hint("leave the tag out, or put the text in quotes")
}

/// What a node is, for a message.
pub(super) fn describe(node: &Node) -> String {
    match &node.kind {
        Kind::Null => "nothing".to_owned(),
        Kind::Bool(value) => format!("`{value}`"),
        Kind::Number(number) => format!("the number {number}"),
        Kind::Text(text) if text.is_empty() => "an empty text".to_owned(),
        Kind::Text(text) => format!("the text `{}`", shorten(text)),
        Kind::List(_) => "a list".to_owned(),
        Kind::Map(_) => "a mapping".to_owned(),
    }
}

/// Longest part of the user's text in a message, in characters.
const SHOWN: usize = 60;

/// The user's text as a message shows it: not too long, and on one line.
pub(super) fn shorten(text: &str) -> String {
    let mut shown = String::new();
    for (count, c) in text.chars().enumerate() {
        if count == SHOWN {
            shown.push('…');
            break;
        }
        if c.is_control() { shown.extend(c.escape_default()) } else { shown.push(c) }
    }
    shown
}

fn mark(start: &Marker, bytes: Range<usize>) -> Mark {
    let number = |it: usize| u32::try_from(it).unwrap_or(u32::MAX);
    Mark { bytes, line: number(start.line()), column: number(start.col() + 1) }
}

fn scan_flaw(error: &ScanError, text: &str, base: usize) -> Flaw {
    let start = error.marker().byte_offset().unwrap_or(text.len()).min(text.len());
    let mark = mark(error.marker(), base + start..base + start);
    let (code, message, hint) = scan_text(error.kind());
    let flaw = Flaw::new(code, String::new(), mark, message);
    if hint.is_empty() { flaw } else { flaw.hint(hint) }
}

/// What the scanner tripped over, in our own words; where we have none, in those of its name for it.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the parser's own enum, and the rest is named well enough"
)]
fn scan_text(kind: &ErrorKind) -> (&'static str, String, &'static str) {
    let text = match kind {
        ErrorKind::RecursionLimitExceeded => {
            return ("too-deep", format!("nested deeper than {DEPTH} levels"), "");
        }
        ErrorKind::TabNotAllowed
        | ErrorKind::TabInBlockIndentation
        | ErrorKind::TabInIndentation
        | ErrorKind::TabAtBlockScalarStart
        | ErrorKind::TabInPlainScalar => ("a tab cannot indent", "use spaces"),
        ErrorKind::UnclosedQuotedScalar => ("this quoted text has no end", "add the closing quote"),
        ErrorKind::DocumentIndicatorInQuotedScalar => {
            ("a new document starts inside a quoted text", "add the closing quote before it")
        }
        ErrorKind::UnclosedFlowCollection { open: '[' } | ErrorKind::UnexpectedEofFlowSequence => {
            ("this list has no end", "add the closing `]`")
        }
        ErrorKind::UnclosedFlowCollection { .. } | ErrorKind::UnexpectedEofFlowMapping => {
            ("this mapping has no end", "add the closing `}`")
        }
        ErrorKind::MismatchedFlowCollectionEnd { .. } | ErrorKind::MisplacedFlowCollectionEnd => {
            ("this bracket closes nothing", "")
        }
        ErrorKind::ExpectedFlowMappingSeparator => ("expected `,` or `}`", ""),
        ErrorKind::ExpectedFlowSequenceSeparator => ("expected `,` or `]`", ""),
        ErrorKind::ExpectedBlockMappingKey | ErrorKind::ExpectedBlockSequenceEntry => {
            ("this line belongs to nothing above it", "check its indentation")
        }
        ErrorKind::MappingValueNotAllowed => (
            "a `:` cannot stand here",
            "check the indentation, or put a text that contains `: ` in quotes",
        ),
        ErrorKind::SimpleKeyExpected | ErrorKind::InvalidSimpleKey => {
            ("expected a `:` after this key", "")
        }
        ErrorKind::InvalidIndentation => ("this indentation fits nothing above it", ""),
        ErrorKind::UnknownAnchor => {
            ("this alias has no anchor before it", "put a text that starts with `*` in quotes")
        }
        ErrorKind::UnknownQuotedScalarEscape => {
            ("unknown escape in a quoted text", "double the backslash, or use single quotes")
        }
        ErrorKind::UnexpectedCharacter { character } => {
            let message = format!("`{}` cannot start a value", character.escape_default());
            return ("syntax-error", message, "put the text in quotes");
        }
        ErrorKind::BomInsideDocument => {
            ("a byte order mark inside the document", "remove the invisible character")
        }
        ErrorKind::MissingDocumentEndBeforeDirective | ErrorKind::ExpectedDocumentStart => {
            ("expected a new document", "put `---` on a line of its own before it")
        }
        other => {
            let name = format!("{other:?}");
            let name = name.split([' ', '(', '{']).next().unwrap_or_default();
            let mut words = String::new();
            for c in name.chars() {
                if c.is_uppercase() && !words.is_empty() {
                    words.push(' ');
                }
                words.extend(c.to_lowercase());
            }
            return ("syntax-error", format!("not valid YAML: {words}"), "");
        }
    };
    ("syntax-error", text.0.to_owned(), text.1)
}
