//! Recipes: the whole method as one file of stages, run side by side where nothing makes them wait.
//!
//! A stage is one command of this program, or of the shell. It runs as a child process in the recipe's work folder. The
//! keys of a stage are the command's own flags, read from the definition that parses them. The runner skips a stage whose
//! record says that nothing changed: the same command line, inputs with the same bytes, and outputs as it left them.

mod child;
mod config;
mod confine;
mod error;
mod execute;
mod expand;
mod forecast;
mod graph;
mod lines;
mod missing;
mod outcome;
mod program;
mod progress;
mod provenance;
mod prune;
mod rebuild;
mod recipe;
mod recipe_error;
mod recipe_text;
mod record;
mod runner;
mod schedule;
mod schema;
mod select;
mod shadow;
mod shell;
mod slurm;
mod sources;
mod stage;
mod status;
mod supervise;
mod times;
mod yaml;

pub use config::{Settled, is_given, relaxed, settle};
pub use error::PipelineError;
pub use expand::NameError;
pub use forecast::Forecast;
pub use graph::Graph;
pub use missing::MissingInput;
pub use outcome::{Failure, Finished, Ran, Report};
pub use program::{Declaration, FormerSettings, Program, RecordedSettings, StageUse, is_before};
pub use progress::{Progress, progress, work_folder};
pub use provenance::published_card;
pub use prune::FinishedStage;
pub use rebuild::{Compared, Rebuild, comparison_table};
pub use recipe::Recipe;
pub use recipe_error::RecipeError;
pub use runner::{Runner, Watch};
pub use schema::schema;
pub use select::{Choice, Selection};
pub use slurm::{Job, JobState, Site, Submitted, submission_script, submitted_table};
pub use stage::Stage;
pub use status::{StageState, StageStatus, last_lines, status_table};
pub use supervise::supervise;
pub use times::Time;
