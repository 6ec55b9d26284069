//! Training, of dense models and mixtures alike: losses, gradients layer by layer, AdamW, and a run that survives.
//!
//! [`run()`] is the whole of it: from a checkpoint and token folders to a checkpoint, with everything that happens on the
//! way in the folder `OUT.run` beside the output. `docs/reference/run-folder.md` describes both.

mod backward;
mod check;
mod engine;
mod error;
mod event;
mod extend;
mod folder;
mod machine;
mod measure;
pub mod metrics;
mod native;
mod outlook;
mod output_state;
mod parameters;
mod parent;
mod request;
mod resume;
mod run;
mod run_error;
mod save;
mod save_bytes;
mod schedule;
pub mod select;
mod session;
pub mod settings;
mod state;
mod tensorboard;
mod torch;
mod trainer;

pub use crate::checkpoint::output::beside;
pub use crate::model::{AdamW, LoadBalance};
pub use check::check;
pub use engine::EngineFacts;
pub use error::{BadStep, TrainError};
pub use event::{Event, Watcher};
pub use extend::{begun, earlier_plans};
pub use folder::{checkpoint_bytes, checkpoints_of, remove_checkpoints, steps_taken};
pub use machine::{Memory, matmul_peak, peak_memory};
pub use metrics::Step as StepRecord;
pub use outlook::Outlook;
pub use request::{EngineRequest, Placement, Request, TorchDevice, TorchRequest};
pub use run::{End, run};
pub use run_error::RunError;
pub use schedule::{Decay, Schedule};
pub use session::EndLosses;
pub use settings::{Operation, Settings};
pub use torch::{Launch, Probe, TorchError, default_python, follow, probe};
