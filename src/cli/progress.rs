//! How far pulls have come: bars on a terminal, lines elsewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::io::{IsTerminal as _, Write};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::time::Instant;
use tracing::info;

use crate::controller::Edge;
use crate::host::Host;
use crate::observed::Progress;
use crate::runtime::Runtime;

/// How often it is looked, and how often a line is written where there are no bars.
const LOOK: Duration = Duration::from_millis(200);
const LINE: Duration = Duration::from_secs(10);

const KNOWN: &str = "{msg} [{wide_bar}] {bytes}/{total_bytes} {bytes_per_sec} {eta}";
const UNKNOWN: &str = "{msg} {spinner}";

/// The bars of this process; `None`: its standard error is no terminal.
fn bars() -> Option<&'static MultiProgress> {
    static BARS: OnceLock<Option<MultiProgress>> = OnceLock::new();
    let make = || {
        std::io::stderr()
            .is_terminal()
            .then(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr()))
    };
    BARS.get_or_init(make).as_ref()
}

/// Standard error, with the bars out of the way of each line.
pub(super) struct AboveBars;

impl Write for AboveBars {
    fn write(&mut self, text: &[u8]) -> std::io::Result<usize> {
        match bars() {
            Some(bars) => bars.suspend(|| std::io::stderr().write(text)),
            None => std::io::stderr().write(text),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        std::io::stderr().flush()
    }
}

/// Tells how far pulls have come until it is dropped. Costs nothing while there are none.
pub(super) async fn tell<R: Runtime, H: Host>(edge: Arc<Edge<R, H>>) -> Infallible {
    loop {
        edge.until_pulling().await;
        let mut shown = Shown::default();
        loop {
            let pulls = edge.progress();
            shown.show(&pulls);
            if pulls.is_empty() {
                break;
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// What is told at the moment.
#[derive(Default)]
pub(super) struct Shown {
    bars: BTreeMap<String, ProgressBar>,
    lines: BTreeMap<String, Instant>,
}

impl Shown {
    pub(super) fn show(&mut self, pulls: &BTreeMap<String, Progress>) {
        let now: BTreeSet<&String> = pulls.keys().collect();
        self.lines.retain(|image, _| now.contains(image));
        self.bars.retain(|image, bar| {
            let stays = now.contains(image);
            if !stays {
                bar.finish_and_clear();
            }
            stays
        });
        for (image, progress) in pulls {
            match bars() {
                Some(all) => {
                    let bar = self.bars.entry(image.clone()).or_insert_with(|| {
                        let bar = ProgressBar::no_length().with_message(image.clone());
                        // Before it is shown for the first time.
                        all.add(styled(bar, UNKNOWN))
                    });
                    draw(bar, *progress);
                }
                None => self.line(image, *progress),
            }
        }
    }

    fn line(&mut self, image: &str, progress: Progress) {
        let last = self.lines.get(image);
        if last.is_some_and(|it| it.elapsed() < LINE) {
            return;
        }
        if last.is_some() || progress.total > 0 {
            info!(image, progress = %progress, "pulling");
            self.lines.insert(image.to_owned(), Instant::now());
        }
    }
}

fn draw(bar: &ProgressBar, progress: Progress) {
    if progress.total == 0 {
        bar.tick();
        return;
    }
    if bar.length() != Some(progress.total) {
        bar.set_length(progress.total);
        // What was there already has not come at any rate.
        bar.set_position(progress.done);
        bar.reset_eta();
        styled(bar.clone(), KNOWN);
    }
    bar.set_position(progress.done);
}

fn styled(bar: ProgressBar, template: &str) -> ProgressBar {
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar
}

impl Drop for Shown {
    fn drop(&mut self) {
        for bar in self.bars.values() {
            bar.finish_and_clear();
        }
    }
}
