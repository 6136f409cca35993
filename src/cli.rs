//! The command line: what was typed, and a file per command. The only place that writes to a terminal.

use std::ffi::OsString;
use std::io::{IsTerminal as _, Write};
use std::path::PathBuf;

use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand, ValueEnum};

use crate::config::{self, Flags, Settings};
use crate::observed::HandKind;
use crate::status::{Chain, Exit};

mod approve;
mod attach;
mod completions;
mod connect;
mod doctor;
mod down;
mod events;
mod exec;
mod explain;
mod hand;
mod image;
mod logs;
mod plan;
mod progress;
mod reconcile;
mod schema;
mod shutdown;
mod since;
mod status;
mod validate;

/// Keeps the containers of this host as the manifests say
///
/// YAML manifests in a directory say which containers should run. Evenkeel compares that with what containerd runs,
/// and starts or cleans up the difference.
#[derive(Debug, Parser)]
#[command(
    name = "evenkeel",
    version,
    max_term_width = 100,
    subcommand_required = true,
    arg_required_else_help = true
)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Options of every command.
#[derive(Debug, Args)]
struct Global {
    /// Form of the output: `human` or `json`
    #[arg(
        long,
        global = true,
        value_enum,
        value_name = "FORM",
        hide_possible_values = true,
        default_value_t = Output::Human,
        help_heading = "Output"
    )]
    output: Output,
    /// When to colour the output: `auto`, `always` or `never`
    #[arg(
        long,
        global = true,
        value_enum,
        value_name = "WHEN",
        hide_possible_values = true,
        default_value_t = Color::Auto,
        help_heading = "Output"
    )]
    color: Color,
    /// More about what happens, on stderr; twice for everything
    #[arg(short, long, global = true, action = clap::ArgAction::Count, help_heading = "Output")]
    verbose: u8,
    #[command(flatten)]
    flags: Flags,
}

/// Form of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Human,
    Json,
}

/// When to colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Color {
    Auto,
    Always,
    Never,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Watch the manifests and keep reconciling until SIGTERM; containers keep running after it
    Run(reconcile::RunArgs),
    /// Reconcile once, then end
    Apply(reconcile::ApplyArgs),
    /// Show what apply would do, and change nothing
    Plan(plan::PlanArgs),
    /// List every problem of manifests; needs no containerd and no rights
    Validate(validate::ValidateArgs),
    /// Show what is wanted, what runs, and why not
    Status(status::StatusArgs),
    /// Explain one workload: what is wanted, what runs, why, what comes next, and the way out
    Explain(explain::ExplainArgs),
    /// Show what happened: steps with their causes, ends of runs, what is held, who asked for what
    ///
    /// From a journal in the run directory: small, without a disk, and forgotten at a reboot and by `down` of
    /// everything. Needs no containerd.
    Events(events::EventsArgs),
    /// Show what a workload printed
    Logs(logs::LogsArgs),
    /// Show what a running workload prints from now on, and end with the exit code of its present run
    ///
    /// What it prints to stderr comes to stderr. Ctrl-C detaches and does nothing to the workload. There is no input:
    /// programs of workloads read nothing yet; `exec -it` is for that. A restart ends it, as any end of the run does;
    /// `logs --follow` goes on.
    Attach(attach::AttachArgs),
    /// Run a command beside a workload's program
    Exec(exec::ExecArgs),
    /// Stop workloads, and keep them stopped until `start` or a reboot, whatever their manifests say
    Stop(hand::HandArgs),
    /// Start what `stop` has stopped
    Start(hand::HandArgs),
    /// Stop and start workloads, at once and without counting it as a failure
    Restart(hand::RestartArgs),
    /// Forget the failures of workloads, and try them at once
    Retry(hand::HandArgs),
    /// Stop and remove what Evenkeel made
    Down(down::DownArgs),
    /// End everything in order and keep it for the next start, as the machine is going down
    ///
    /// A running controller ends for it. Whoever joins another ends before it, each with its own stop signal and
    /// timeout. Containers, images and state stay: the next `run` starts everything again, so this is no `stop` of
    /// any workload. What is in memory is lost, also with `--for reboot`: there are no checkpoints yet.
    Shutdown(shutdown::ShutdownArgs),
    /// List, bring and remove images
    Image(image::ImageArgs),
    /// List held removals, or release one
    Approve(approve::ApproveArgs),
    /// Check whether this box can run workloads, and what stands in the way
    Doctor(doctor::DoctorArgs),
    /// Print a JSON Schema
    Schema(schema::SchemaArgs),
    /// Print a completion script for a shell
    Completions(completions::CompletionsArgs),
}

/// Which events are logged, in the syntax of tracing's filters.
const LOG_VARIABLE: &str = "EVENKEEL_LOG";

/// What every command gets.
struct Context<'a> {
    out: &'a mut dyn Write,
    err: &'a mut dyn Write,
    output: Output,
    color: bool,
    flags: Flags,
    verbose: u8,
}

/// A text in a table, or in a list of one line each: whatever a runtime says in it, it has one line and moves no cursor.
fn one_line(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|it| !it.is_empty()).collect();
    lines.join(" ").replace(char::is_control, " ")
}

impl Context<'_> {
    fn is_json(&self) -> bool {
        self.output == Output::Json
    }

    /// Writes a value as JSON, with a line end.
    fn json<T: serde::Serialize>(&mut self, value: &T) -> Result<(), Failure> {
        serde_json::to_writer_pretty(&mut *self.out, value).map_err(std::io::Error::from)?;
        writeln!(self.out)?;
        Ok(())
    }

    /// How problems are shown here.
    fn problem_style(&self) -> crate::manifest::render::Style {
        let default = crate::manifest::render::Style::default();
        // Of the terminal that stdout or stderr is; a file is as wide as it likes.
        let columns = rustix::termios::tcgetwinsize(std::io::stdout())
            .or_else(|_| rustix::termios::tcgetwinsize(std::io::stderr()))
            .map_or(0, |it| usize::from(it.ws_col));
        let width = if columns < 20 { default.width } else { columns };
        crate::manifest::render::Style { colour: self.color, width }
    }

    /// Flags, environment and configuration file together.
    fn settings(&mut self) -> Result<Settings, Failure> {
        let loaded = Settings::load(&self.flags);
        let settings = self.loaded(loaded)?;
        if let Some(problem) = &settings.emptied {
            let style = self.problem_style();
            // Nobody reads it, and the command goes on as it was told to.
            drop(writeln!(self.err, "{}", crate::manifest::render::text(problem, style)));
        }
        Ok(settings)
    }

    /// The same, but for the controller.
    fn strict_settings(&mut self) -> Result<Settings, Failure> {
        let loaded = Settings::load_strictly(&self.flags);
        self.loaded(loaded)
    }

    fn loaded(&mut self, loaded: Result<Settings, config::Error>) -> Result<Settings, Failure> {
        let error = match loaded {
            Ok(settings) => return Ok(settings),
            Err(error) => error,
        };
        let config::Error::Problems(problems) = &error else {
            return Err(Failure::new(Exit::Usage, Chain(&error)));
        };
        let style = self.problem_style();
        for problem in problems {
            // Nobody reads it: the exit code still says it.
            drop(writeln!(self.err, "{}", crate::manifest::render::text(problem, style)));
        }
        Err(Failure::new(Exit::Usage, "the configuration has problems"))
    }
}

/// A command that could not do its work: an exit code and what to say.
#[derive(Debug)]
struct Failure {
    exit: Exit,
    message: String,
    closed_pipe: bool,
}

impl Failure {
    fn new(exit: Exit, message: impl std::fmt::Display) -> Self {
        Self { exit, message: message.to_string(), closed_pipe: false }
    }

    fn environment(error: &dyn std::error::Error) -> Self {
        Self::new(Exit::Environment, crate::status::Chain(error))
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        let closed_pipe = error.kind() == std::io::ErrorKind::BrokenPipe;
        Self {
            closed_pipe,
            ..Self::new(Exit::Environment, format_args!("failed to write: {error}"))
        }
    }
}

/// Takes nothing from others but the right to write, whatever mask a hardened shell has: an engine that is started
/// from there would keep containers' users out of their own root directories. What only root may see is made so by its
/// own mode.
const MASK: rustix::fs::Mode = rustix::fs::Mode::WGRP.union(rustix::fs::Mode::WOTH);

/// Runs the command line to its exit code.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> Exit {
    rustix::process::umask(MASK);
    let parsed = Cli::command().try_get_matches_from(arguments).and_then(|matches| {
        let mut cli = Cli::from_arg_matches(&matches)?;
        cli.global.flags.note_typed(&matches);
        Ok(cli)
    });
    let cli = match parsed {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are errors to the parser, and a closed pipe is none to us.
            drop(error.print());
            return if error.use_stderr() { Exit::Usage } else { Exit::Success };
        }
    };
    let stdout = std::io::stdout();
    let color = match cli.global.color {
        Color::Always => true,
        Color::Never => false,
        Color::Auto => {
            stdout.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|it| it.is_empty())
        }
    };
    let mut out = stdout;
    let mut err = std::io::stderr();
    let Global { output, color: _, verbose, flags } = cli.global;
    let mut context = Context { out: &mut out, err: &mut err, output, color, flags, verbose };
    let result = match cli.command {
        Command::Run(args) => reconcile::run(&mut context, &args),
        Command::Apply(args) => reconcile::apply(&mut context, args),
        Command::Plan(args) => plan::plan(&mut context, args),
        Command::Validate(args) => validate::validate(&mut context, &args),
        Command::Status(args) => status::status(&mut context, &args),
        Command::Explain(args) => explain::explain(&mut context, &args),
        Command::Events(args) => events::events(&mut context, &args),
        Command::Logs(args) => logs::logs(&mut context, &args),
        Command::Attach(args) => attach::attach(&mut context, &args),
        Command::Exec(args) => exec::exec(&mut context, args),
        Command::Stop(args) => hand::hand(&mut context, HandKind::Stop, args),
        Command::Start(args) => hand::hand(&mut context, HandKind::Start, args),
        Command::Restart(args) => hand::restart(&mut context, args),
        Command::Retry(args) => hand::hand(&mut context, HandKind::Retry, args),
        Command::Down(args) => down::down(&mut context, args),
        Command::Shutdown(args) => shutdown::shutdown(&mut context, &args),
        Command::Image(args) => image::image(&mut context, args),
        Command::Approve(args) => approve::approve(&mut context, &args),
        Command::Doctor(args) => doctor::doctor(&mut context, &args),
        Command::Schema(args) => schema::schema(&mut context, &args),
        Command::Completions(args) => completions::completions(&mut context, &args),
    };
    match result.and_then(|exit| Ok(context.out.flush().map(|()| exit)?)) {
        Ok(exit) => exit,
        Err(failure) if failure.closed_pipe => Exit::Success,
        Err(failure) => {
            drop(writeln!(context.err, "error: {}", failure.message));
            failure.exit
        }
    }
}

/// Logs to stderr: `info` for what changes, more with `-v`. `EVENKEEL_LOG` overrides it.
fn start_tracing(verbose: u8, json: bool) -> Result<(), Failure> {
    let level = match verbose {
        0 => "evenkeel=info",
        1 => "evenkeel=debug",
        _ => "debug",
    };
    let filter = match std::env::var(LOG_VARIABLE) {
        Ok(text) if !text.is_empty() => {
            tracing_subscriber::EnvFilter::try_new(&text).map_err(|error| {
                let message = format!(
                    "`{LOG_VARIABLE}` is `{text}`: {error}; write a level, such as `debug`, or `evenkeel=debug`"
                );
                Failure::new(Exit::Usage, message)
            })?
        }
        _ => tracing_subscriber::EnvFilter::new(level),
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| progress::AboveBars)
        .with_target(false);
    // A second call, as in a test, keeps the first one's settings.
    if json {
        drop(builder.json().try_init());
    } else {
        let color = std::io::stderr().is_terminal()
            && std::env::var_os("NO_COLOR").is_none_or(|it| it.is_empty());
        drop(builder.with_ansi(color).try_init());
    }
    Ok(())
}

/// Whether nobody can read what is written to stdout any more; a write would say so, but there may be none.
fn is_stdout_closed() -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let stdout = std::io::stdout();
    let mut waiting = [PollFd::new(&stdout, PollFlags::empty())];
    // What is no pipe or terminal says nothing.
    poll(&mut waiting, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok()
        && waiting[0].revents().intersects(PollFlags::ERR | PollFlags::HUP)
}

/// Paths given to a command, or the configured ones.
fn sources(paths: &[PathBuf], settings: &Settings) -> Vec<PathBuf> {
    if paths.is_empty() { settings.manifests.clone() } else { paths.to_vec() }
}
