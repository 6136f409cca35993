//! Problems as text for people: with the source line, or one line each.
//!
//! Writes nothing itself and looks at no terminal; the caller says how wide and whether in colour. The form for
//! programs is [`Problem`]'s own serialisation.

use annotate_snippets::renderer::DecorStyle;
use annotate_snippets::{AnnotationKind, Group, Level, Origin, Patch, Renderer, Snippet};

use super::{LINE_BEFORE, Problem, Severity};

/// How text is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Style {
    /// With ANSI escapes.
    pub colour: bool,
    /// Columns of the terminal; long source lines are cut around the value.
    pub width: usize,
}

impl Default for Style {
    fn default() -> Self {
        Self { colour: false, width: 120 }
    }
}

/// One line, as compilers write it: `file:line:column: error[code]: message`.
pub fn line(problem: &Problem) -> String {
    let severity = match problem.severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
    };
    let file = printable(&problem.position.file.display().to_string());
    let place = match problem.position.line {
        0 => file,
        line => format!("{file}:{line}:{}", problem.position.column),
    };
    format!("{place}: {severity}[{}]: {}", problem.code, printable(&problem.message))
}

/// The [`line()`], then the source line with the value marked, the hint, and the line as the fix would have it. Ends
/// with a line break.
pub fn text(problem: &Problem, style: Style) -> String {
    let renderer = if style.colour { Renderer::styled() } else { Renderer::plain() };
    let renderer = renderer.decor_style(DecorStyle::Ascii).term_width(style.width.max(40));
    let bold = |text: String| if style.colour { format!("\u{1b}[1m{text}\u{1b}[0m") } else { text };
    let mut out = bold(line(problem));
    out.push('\n');
    let level = match problem.severity {
        Severity::Error => Level::ERROR,
        Severity::Warning => Level::WARNING,
    };
    let hint = problem.hint.as_deref().map(printable);
    if problem.source_line.is_empty() {
        if let Some(hint) = hint {
            out.extend(["  = help: ", &hint, "\n"]);
        }
        return out;
    }
    let source = printable(&problem.source_line);
    let line_number = usize::try_from(problem.position.line).unwrap_or(1);
    let span = span(problem, &source);
    let snippet = Snippet::source(source.clone()).line_start(line_number);
    let mut group = Group::with_level(level)
        .element(snippet.annotation(AnnotationKind::Primary.span(span.clone())));
    if let Some(related) = &problem.related {
        let file = printable(&related.file.display().to_string());
        let line = usize::try_from(related.line).unwrap_or_default();
        let column = usize::try_from(related.column).unwrap_or_default();
        group = group.element(Origin::path(file).line(line).char_column(column));
    }
    let mut groups = Vec::new();
    match (hint, problem.fix.as_deref().map(printable)) {
        // A patch of a line that is not whole would show something else than what is in the file.
        (hint, Some(fix)) if problem.source_line.chars().count() < super::LINE_LIMIT => {
            groups.push(group);
            let title = Level::HELP.secondary_title(hint.unwrap_or_else(|| "write".to_owned()));
            groups.push(title.element(
                Snippet::source(source).line_start(line_number).patch(Patch::new(span, fix)),
            ));
        }
        (Some(hint), _) => groups.push(group.element(Level::HELP.message(hint))),
        (None, _) => groups.push(group),
    }
    out.push_str(&renderer.render(&groups));
    out.push('\n');
    out
}

/// Where the value is in its source line.
fn span(problem: &Problem, source: &str) -> std::ops::Range<usize> {
    let column = usize::try_from(problem.position.column).unwrap_or_default().saturating_sub(1);
    // A line that was cut before the value begins with `…` and a fixed number of characters.
    let cut = source.starts_with('…') && column > LINE_BEFORE;
    let skipped = if cut { LINE_BEFORE + 1 } else { column };
    let start = source.char_indices().nth(skipped).map_or(source.len(), |it| it.0);
    let end = source.len().min(start + problem.bytes.len());
    let end = (start..=end).rev().find(|it| source.is_char_boundary(*it)).unwrap_or(start);
    start..end
}

/// A text of the user's without what could move the cursor or colour the terminal. Keeps the number of characters.
fn printable(text: &str) -> String {
    let safe = |c: char| match c {
        '\t' => ' ',
        c if c.is_control() => '\u{fffd}',
        // Marks of direction, which show a line as another one than it is.
        '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => '\u{fffd}',
        c => c,
    };
    text.chars().map(safe).collect()
}
