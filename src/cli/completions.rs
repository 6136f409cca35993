//! `evenkeel completions`.

use clap::{Args, CommandFactory as _};

use super::{Cli, Context, Failure};
use crate::status::Exit;

#[derive(Debug, Args)]
pub(super) struct CompletionsArgs {
    /// Shell to complete for
    #[arg(value_enum)]
    shell: clap_complete::Shell,
}

pub(super) fn completions(
    context: &mut Context<'_>,
    args: &CompletionsArgs,
) -> Result<Exit, Failure> {
    // Written at once, so that a closed pipe is seen as such.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "evenkeel", &mut script);
    context.out.write_all(&script)?;
    Ok(Exit::Success)
}
