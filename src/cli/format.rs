//! `--format`, which every command that opens a model has.

use bam_convert::arguments::InputPath;
use bam_convert::family::Family;
use clap::{Arg, ArgMatches, Command, value_parser};

/// The flag, without its dashes.
const FORMAT: &str = "format";

/// The command with the flag. Where it has commands below it, those have the flag.
pub fn augmented(command: Command) -> Command {
    if command.has_subcommands() {
        return command.mut_subcommands(augmented);
    }
    let flag = Arg::new(FORMAT)
        .long(FORMAT)
        .value_name("FILE")
        .value_parser(value_parser!(InputPath))
        // The flags of the last group would take it in.
        .help_heading(None::<&str>)
        .help("Read models as the family that this format file describes (docs/reference/families.md)");
    command.arg(flag)
}

/// Reads the file that the line names with the flag, and makes its family known to this process.
///
/// # Errors
/// A file that describes no family.
pub fn bring(matches: &ArgMatches) -> bam_convert::Result<()> {
    if let Some((_, below)) = matches.subcommand() {
        return bring(below);
    }
    // A command that opens no model lacks the flag.
    match matches.try_get_one::<InputPath>(FORMAT) {
        Ok(Some(path)) => Family::read(path)?.bring(),
        _ => Ok(()),
    }
}
