//! What every command that reads or writes whole checkpoints takes.

use bytesize::ByteSize;
use clap::Args;

use super::names::memory;

/// Means and form of the result.
#[derive(Debug, Args)]
pub struct WorkArguments {
    /// Working memory, all threads together.
    #[arg(long, value_name = "SIZE", default_value = "128MiB", value_parser = memory)]
    pub memory: ByteSize,
    /// Print the result as JSON.
    #[arg(long)]
    pub json: bool,
}
