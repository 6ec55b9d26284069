//! Checks after the fact: [`validate()`] one checkpoint, replay its manifest, [`diff()`] two.
//!
//! A fault of a checkpoint is a finding in a [`ValidationReport`], not an error: one fault must not hide the next. Errors are for a
//! machine that fails and for requests that make no sense. Everything streams, in parallel and in bounded memory, and
//! gives the same numbers on any number of threads.

mod compare;
pub mod diff;
mod diff_table;
pub mod divergence;
mod divergence_chart;
mod error;
mod expert_pairs;
mod limits;
mod manifest;
mod mixture;
mod numbers;
mod pairs;
mod pieces;
mod recipe;
mod replay;
pub mod report;
mod sides;
mod sources;
mod subject;
mod tensors;
mod tokenizer;
pub mod validate;

pub use diff::{Diff, diff};
pub use error::VerifyError;
pub use expert_pairs::ExpertPair;
pub use report::ValidationReport;
pub use subject::ValidateOptions;
pub use validate::validate;

#[cfg(test)]
mod diff_tests;
#[cfg(test)]
mod samples;
#[cfg(test)]
mod validate_tests;
