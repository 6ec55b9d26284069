//! The `bam-convert` binary.
fn main() {}
