//! Recipes: the whole method as one file of stages, run one after the other.
//!
//! A stage is one command of this program, run as a child process in the recipe's work folder. What a stage may say is
//! what the command line defines: its keys are the command's own flags, read from the one definition that parses them,
//! so that a recipe cannot fall behind. A stage is skipped where its record says that nothing changed: the same command
//! line, inputs with the same bytes, and outputs as it left them.

mod config;
mod execute;
mod expand;
mod lines;
mod recipe;
mod record;
mod stage;
mod yaml;

pub use config::{Settled, define, is_given, relaxed, settle};
pub use execute::{Failure, Finished, Ran, Report, Runner, Watch};
pub use recipe::Recipe;
pub use stage::Stage;
