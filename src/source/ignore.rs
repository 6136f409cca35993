//! `.evenkeelignore`: which files and directories below a root are no manifests.
//!
//! A subset of what git understands, one glob a line:
//!
//! * an empty line and one that starts with `#` mean nothing; white space at both ends is dropped;
//! * `*` and `?` match within a name, `**` across directories, `[a-z]` one of several, `{a,b}` one of two, and `\`
//!   takes away the meaning of the next character;
//! * `/` at the end: directories only;
//! * `/` at the beginning or inside: the path is meant from the root; otherwise a name at any depth.
//!
//! There is no `!`, and the file counts in the root only. A directory that is ignored is not entered.

use std::path::Path;

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};

/// Name of the file.
pub(super) const FILE: &str = ".evenkeelignore";

/// Most patterns of one file: they are all tried on every name.
const PATTERN_LIMIT: usize = 1000;

/// The patterns of one root.
#[derive(Debug, Clone, Default)]
pub(super) struct Ignore {
    anything: GlobSet,
    directories: GlobSet,
}

/// A line that is not a pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BadLine {
    /// From 1.
    pub(super) line: u32,
    pub(super) text: String,
    pub(super) message: String,
}

impl Ignore {
    pub(super) fn parse(text: &str) -> Result<Self, Vec<BadLine>> {
        let mut anything = GlobSetBuilder::new();
        let mut directories = GlobSetBuilder::new();
        let mut bad = Vec::new();
        let mut patterns = 0;
        for (line, whole) in (1..).zip(text.lines()) {
            let pattern = whole.trim();
            if pattern.is_empty() || pattern.starts_with('#') {
                continue;
            }
            patterns += 1;
            let mut refuse =
                |message: String| bad.push(BadLine { line, text: whole.to_owned(), message });
            if patterns > PATTERN_LIMIT {
                refuse(format!(
                    "is pattern number {patterns}; at most {PATTERN_LIMIT} are allowed"
                ));
                break;
            }
            if pattern.starts_with('!') {
                refuse("begins with `!`, which is not supported".to_owned());
                continue;
            }
            let (pattern, only_directories) = match pattern.strip_suffix('/') {
                Some(pattern) => (pattern, true),
                None => (pattern, false),
            };
            let glob = match pattern.strip_prefix('/') {
                Some(anchored) => anchored.to_owned(),
                None if pattern.contains('/') => pattern.to_owned(),
                None => format!("**/{pattern}"),
            };
            match GlobBuilder::new(&glob).literal_separator(true).backslash_escape(true).build() {
                Ok(glob) if only_directories => {
                    directories.add(glob);
                }
                Ok(glob) => {
                    anything.add(glob);
                }
                Err(error) => refuse(format!("is not a pattern: {}", error.kind())),
            }
        }
        if !bad.is_empty() {
            return Err(bad);
        }
        let too_much = |error: globset::Error| {
            vec![BadLine {
                line: 0,
                text: String::new(),
                message: format!("has patterns that are too much: {error}"),
            }]
        };
        Ok(Self {
            anything: anything.build().map_err(too_much)?,
            directories: directories.build().map_err(too_much)?,
        })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.anything.is_empty() && self.directories.is_empty()
    }

    /// Whether a path below the root is left out.
    pub(super) fn matches(&self, path: &Path, is_directory: bool) -> bool {
        self.anything.is_match(path) || (is_directory && self.directories.is_match(path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(patterns: &str, ignored: &[&str], kept: &[&str]) {
        let ignore = Ignore::parse(patterns).unwrap();
        let matches = |path: &str| match path.strip_suffix('/') {
            Some(directory) => ignore.matches(Path::new(directory), true),
            None => ignore.matches(Path::new(path), false),
        };
        for path in ignored {
            assert!(matches(path), "{patterns:?} leaves out {path}");
        }
        for path in kept {
            assert!(!matches(path), "{patterns:?} keeps {path}");
        }
    }

    #[test]
    fn patterns_mean_what_git_means_by_them() {
        check("*.json", &["a.json", "x/y/a.json"], &["a.yaml", "a.json.yaml"]);
        check("# *.json\n\n", &[], &["a.json", "# *.json"]);
        check("/a.yaml", &["a.yaml"], &["x/a.yaml"]);
        check("x/a.yaml", &["x/a.yaml"], &["y/x/a.yaml", "a.yaml"]);
        check("drafts/", &["drafts/", "x/drafts/"], &["drafts", "drafts.yaml"]);
        check("/drafts/", &["drafts/"], &["x/drafts/"]);
        check("**/test/*.yaml", &["test/a.yaml", "x/test/a.yaml"], &["test/x/a.yaml"]);
        check("x/**", &["x/a.yaml", "x/y/a.yaml"], &["a.yaml"]);
        check("a?.yaml", &["ab.yaml"], &["a.yaml", "a/.yaml"]);
        check("[ab].yaml\r\n", &["a.yaml"], &["c.yaml"]);
        check("\\#a.yaml", &["#a.yaml"], &["a.yaml"]);
        check("a*.yaml", &["abc.yaml"], &["a/b.yaml"]);
    }

    #[test]
    fn a_line_that_is_no_pattern_is_told_with_its_number() {
        let bad = Ignore::parse("ok\n!a.yaml\n[z\n").unwrap_err();
        assert_eq!(bad.iter().map(|it| it.line).collect::<Vec<_>>(), [2, 3]);
        let many = "a\n".repeat(PATTERN_LIMIT + 5);
        assert_eq!(Ignore::parse(&many).unwrap_err().len(), 1);
    }
}
