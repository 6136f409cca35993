//! The program. A container's log writer is the same binary and must stay tiny, so it comes before everything else.

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|it| it == evenkeel::log::PIPE_COMMAND) {
        let parameter = arguments.next().unwrap_or_default();
        return evenkeel::log::pipe(&parameter).map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS);
    }
    ExitCode::SUCCESS
}
