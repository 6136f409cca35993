//! Parses arguments, starts tracing, calls, and maps the result to an exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    // The shim starts one such process per container: it stays small and starts nothing else.
    if arguments.next().is_some_and(|it| it == "log-pipe") {
        let parameter = arguments.next().unwrap_or_default();
        return match evenkeel::log::pipe(&parameter.to_string_lossy()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        };
    }
    ExitCode::from(evenkeel::cli::main(std::env::args_os()).code())
}
