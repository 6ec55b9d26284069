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
    /// Worker threads [default: all cores].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Print the result as JSON.
    #[arg(long)]
    pub json: bool,
}

impl WorkArguments {
    /// The number of worker threads: as asked for, else one a core.
    pub fn thread_count(&self) -> usize {
        self.threads.map_or_else(
            || std::thread::available_parallelism().map_or(1, usize::from),
            usize::from,
        )
    }
}
