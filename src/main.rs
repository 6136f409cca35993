//! Parses arguments, starts tracing, calls, and maps the result to an exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    // The shim starts one such process per container: it stays small and starts nothing else.
    if arguments.next().is_some_and(|it| it == evenkeel::log::PIPE_COMMAND) {
        let parameter = arguments.next().unwrap_or_default();
        return match evenkeel::log::pipe(&parameter) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        };
    }
    command()
}

/// Not a part of `main`, whose frame the log writers would carry with them.
#[inline(never)]
fn command() -> ExitCode {
    ExitCode::from(evenkeel::cli::main(std::env::args_os()).code())
}
