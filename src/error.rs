//! The error of the library: what was wrong, where (file, position, tensor or key), and what to do next.
//!
//! Each room has its own enums with one variant per broken rule, in `src/<room>/error.rs`. [`Error`] wraps these enums.
//! Rules that several rooms check are in [`InputError`]. `docs/design/architecture.md` says how to add an enum or a rule.

use std::borrow::Cow;
use std::io;
use std::path::{Path, PathBuf};

use crate::card::CardError;
use crate::checkpoint::{
    AdapterError, CheckpointError, ForeignError, GgufError, HeaderError, NpzError, PytorchError,
};
use crate::data::{DataError, TokenError};
use crate::evaluate::EvaluateError;
use crate::family::{ConfigError, FamilyError, FormatError, GgufModelError};
use crate::gpu::{self, GpuMemory};
#[cfg(feature = "hub")]
use crate::hub::HubError;
use crate::mergekit::MergekitError;
use crate::model::chat::ChatError;
use crate::model::{ModelError, TokenizerError};
use crate::pipeline::{PipelineError, RecipeError};
use crate::printable::excerpt;
use crate::surgery::{ExportError, FitError, MethodError, PlanError, SurgeryError};
use crate::train::{RunError, TorchError, TrainError};
use crate::verify::VerifyError;

pub use crate::error_place::{ErrorPlace, Location, Position};
pub(crate) use crate::input_error::one_of;
pub use crate::input_error::{InputError, nearest};

/// Result of this crate's operations.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, named by the place where a user would look for it.
///
/// [`Error::Io`], [`Error::Compute`], [`Error::GpuMemory`], [`InputError::Memory`] and some kinds of `Error::Hub` mean that the machine or the
/// network failed (exit code 3); so does a run that a signal stopped. All others mean that the request or an input is bad (exit code 2). So does an [`Error::Io`] about a path that
/// leads nowhere.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused an operation on `path`.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// The verb: `read`, `write`, `rename`, …
        action: &'static str,
        /// The file or folder acted on.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
        /// What to do next.
        hint: Option<String>,
    },
    /// A computation with tensors failed: a device does not work.
    #[error("cannot {action}: {problem}")]
    Compute {
        /// What was to be computed, and of which model.
        action: String,
        /// What the tensor library said.
        problem: String,
        /// What to do next.
        hint: Option<String>,
    },
    /// A computation needs more memory than a GPU has left.
    #[error(
        "cannot {action}: the GPU is out of memory{}",
        memory.map(|memory| format!(", with {}", memory.text())).unwrap_or_default()
    )]
    GpuMemory {
        /// What was to be computed, and of which model.
        action: String,
        /// The memory of the GPU, where its driver tells.
        memory: Option<GpuMemory>,
        /// What needs how much memory, and what lowers it.
        hint: Option<String>,
    },
    /// A file breaks a rule that several rooms check.
    #[error(transparent)]
    Input(#[from] InputError),
    /// A file of a checkpoint, or an output, breaks a rule.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A LoRA adapter breaks a rule, or does not fit its base.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// A safetensors file breaks a rule of its format.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// A GGUF file breaks a rule of its format.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// An archive of numpy arrays breaks a rule.
    #[error(transparent)]
    Npz(#[from] NpzError),
    /// A file of PyTorch breaks a rule.
    #[error(transparent)]
    Pytorch(#[from] PytorchError),
    /// An input is something else than a checkpoint.
    #[error(transparent)]
    Foreign(#[from] ForeignError),
    /// The Hub refused, could not be reached, or answered what cannot be right.
    #[cfg(feature = "hub")]
    #[error(transparent)]
    Hub(#[from] HubError),
    /// Texts or a tokenizer break a rule.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A token folder, or a mixture of them, breaks a rule.
    #[error(transparent)]
    Tokens(#[from] TokenError),
    /// A model, its tensors or a request for a model breaks a rule.
    #[error(transparent)]
    Family(#[from] FamilyError),
    /// A `config.json` breaks a rule.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A format file breaks a rule.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// A GGUF file cannot be read as a model, or a model not be written as one.
    #[error(transparent)]
    GgufModel(#[from] GgufModelError),
    /// An evaluation cannot be made of its inputs.
    #[error(transparent)]
    Evaluate(#[from] EvaluateError),
    /// A request to a model breaks a rule.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A `tokenizer.json`, or a text for it, breaks a rule.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// A chat template breaks a rule.
    #[error(transparent)]
    Chat(#[from] ChatError),
    /// A request to train breaks a rule, or a step stops the run.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// The folder of a run breaks a rule.
    #[error(transparent)]
    Run(#[from] RunError),
    /// PyTorch, its Python or its processes break a rule.
    #[error(transparent)]
    Torch(#[from] TorchError),
    /// A configuration file of mergekit asks for something that bam-convert does not do.
    #[error(transparent)]
    Mergekit(#[from] MergekitError),
    /// A recipe, or a file of settings, cannot be read.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    /// Stages cannot run.
    #[error(transparent)]
    Pipeline(#[from] PipelineError),
    /// A request for surgery makes no sense.
    #[error(transparent)]
    Surgery(#[from] SurgeryError),
    /// A method cannot make experts as its flags say.
    #[error(transparent)]
    Method(#[from] MethodError),
    /// Models do not fit together.
    #[error(transparent)]
    Fit(#[from] FitError),
    /// A plan cannot be computed.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A model cannot be written in another form.
    #[error(transparent)]
    Export(#[from] ExportError),
    /// A model card.
    #[error(transparent)]
    Card(#[from] CardError),
    /// A check cannot run, or finds something that an error describes.
    #[error(transparent)]
    Verify(#[from] VerifyError),
    /// Another error, with the advice of a caller that knows what the user was doing.
    #[error("{error}")]
    Advised {
        /// The error itself.
        error: Box<Error>,
        /// What to do next.
        hint: String,
    },
}

impl Error {
    /// An operating-system error on `path` while doing `action` (a verb: `read`, `create`, …).
    pub fn io(action: &'static str, path: impl AsRef<Path>, source: io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        Self::Io {
            action,
            path,
            source,
            hint: None,
        }
    }

    /// A computation that failed; `action` completes “cannot …”.
    pub fn compute(action: impl Into<String>, problem: impl ToString) -> Self {
        let (action, problem) = (action.into(), problem.to_string());
        if gpu::is_out_of_memory(&problem) {
            let memory = GpuMemory::current();
            return Self::GpuMemory {
                action,
                memory,
                hint: None,
            };
        }
        Self::Compute {
            action,
            problem,
            hint: None,
        }
    }

    /// The same error with advice on what to do next, which replaces its own.
    #[must_use]
    pub fn with_hint(mut self, advice: impl Into<String>) -> Self {
        let advice = advice.into();
        match &mut self {
            Self::Io { hint, .. } | Self::Compute { hint, .. } | Self::GpuMemory { hint, .. } => {
                *hint = Some(advice);
            }
            Self::Advised { hint, .. } => *hint = advice,
            _ => {
                return Self::Advised {
                    error: Box::new(self),
                    hint: advice,
                };
            }
        }
        self
    }

    /// Whether a signal interrupted the work.
    pub fn is_interruption(&self) -> bool {
        match self {
            Self::Io { source, .. } => source.kind() == io::ErrorKind::Interrupted,
            Self::Run(RunError::Stopped { .. }) | Self::Pipeline(PipelineError::Stopped) => true,
            Self::Advised { error, .. } => error.is_interruption(),
            _ => false,
        }
    }

    /// Whether a run of training can continue after it from its newest checkpoint.
    pub fn leaves_run(&self) -> bool {
        match self {
            Self::Torch(error) => error.leaves_run(),
            Self::Advised { error, .. } => error.leaves_run(),
            error => error.is_interruption(),
        }
    }

    /// What to do next, where the error knows.
    pub fn hint(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::Io { hint, .. } | Self::Compute { hint, .. } => {
                hint.as_deref().map(Cow::Borrowed)
            }
            Self::GpuMemory { hint, .. } => Some(hint.as_deref().map_or(
                "free the GPU of other programs, or compute with less at a time".into(),
                Cow::Borrowed,
            )),
            Self::Advised { hint, .. } => Some(hint.as_str().into()),
            Self::Input(error) => error.hint(),
            #[cfg(feature = "hub")]
            Self::Hub(error) => error.hint(),
            Self::Checkpoint(error) => error.hint(),
            Self::Header(error) => error.hint(),
            Self::Gguf(error) => error.hint(),
            Self::Adapter(error) => error.hint(),
            Self::Npz(error) => error.hint(),
            Self::Pytorch(error) => error.hint(),
            Self::Foreign(error) => error.hint(),
            Self::Data(error) => error.hint(),
            Self::Tokens(error) => error.hint(),
            Self::Family(error) => error.hint(),
            Self::Config(error) => error.hint(),
            Self::Format(error) => error.hint(),
            Self::GgufModel(error) => error.hint(),
            Self::Evaluate(error) => error.hint(),
            Self::Model(error) => error.hint(),
            Self::Tokenizer(error) => error.hint(),
            Self::Chat(error) => error.hint(),
            Self::Train(error) => error.hint(),
            Self::Run(error) => error.hint(),
            Self::Torch(error) => error.hint(),
            Self::Mergekit(error) => error.hint(),
            Self::Recipe(error) => error.hint(),
            Self::Pipeline(error) => error.hint(),
            Self::Surgery(error) => error.hint(),
            Self::Method(error) => error.hint(),
            Self::Fit(error) => error.hint(),
            Self::Plan(error) => error.hint(),
            Self::Export(error) => error.hint(),
            Self::Card(error) => error.hint(),
            Self::Verify(error) => error.hint(),
        }
    }

    /// Where the error is, as far as it knows; an empty place for errors of requests, of computations and of the network.
    pub fn place(&self) -> ErrorPlace<'_> {
        match self {
            Self::Io { path, .. } => ErrorPlace::of(path),
            Self::Advised { error, .. } => error.place(),
            Self::Input(error) => error.place(),
            Self::Checkpoint(error) => error.place(),
            Self::Header(error) => error.place(),
            Self::Gguf(error) => error.place(),
            Self::Adapter(error) => error.place(),
            Self::Npz(error) => error.place(),
            Self::Pytorch(error) => error.place(),
            Self::Foreign(error) => error.place(),
            Self::Data(error) => error.place(),
            Self::Tokens(error) => error.place(),
            Self::Family(error) => error.place(),
            Self::Config(error) => error.place(),
            Self::Format(error) => error.place(),
            Self::GgufModel(error) => error.place(),
            Self::Evaluate(error) => error.place(),
            Self::Model(error) => error.place(),
            Self::Tokenizer(error) => error.place(),
            Self::Chat(error) => error.place(),
            Self::Train(error) => error.place(),
            Self::Run(error) => error.place(),
            Self::Torch(error) => error.place(),
            Self::Mergekit(error) => error.place(),
            Self::Recipe(error) => error.place(),
            Self::Pipeline(error) => error.place(),
            Self::Surgery(error) => error.place(),
            Self::Fit(error) => error.place(),
            Self::Plan(error) => error.place(),
            Self::Export(error) => error.place(),
            Self::Card(error) => error.place(),
            Self::Verify(error) => error.place(),
            _ => ErrorPlace::default(),
        }
    }

    /// What is wrong, without the place.
    pub fn problem(&self) -> String {
        let text = self.to_string();
        let place = self.place().to_string();
        match text
            .strip_prefix(&place)
            .and_then(|rest| rest.strip_prefix(": "))
        {
            Some(problem) if !place.is_empty() => problem.to_owned(),
            _ => text,
        }
    }

    /// Exit code of the binary: 3 where the machine or the network failed, 2 where the request or an input is bad.
    pub fn exit_code(&self) -> u8 {
        match self {
            // A program that cannot start, or a `TMPDIR` that is missing, is no input.
            Self::Io { action, .. } if OF_THE_MACHINE.contains(action) => 3,
            Self::Io { source, .. } if is_wrong_input(source) => 2,
            Self::Io { .. }
            | Self::Compute { .. }
            | Self::GpuMemory { .. }
            | Self::Input(InputError::Memory { .. })
            | Self::Run(RunError::Stopped { .. })
            | Self::Pipeline(PipelineError::Stopped) => 3,
            Self::Torch(error) if error.is_outside() => 3,
            #[cfg(feature = "hub")]
            Self::Hub(error) if error.is_outside() => 3,
            Self::Advised { error, .. } => error.exit_code(),
            _ => 2,
        }
    }
}

/// Actions on paths that the user has not typed.
const OF_THE_MACHINE: [&str; 2] = ["run", TEMPORARY_FOLDER];

/// The action of making a folder for temporary files.
pub(crate) const TEMPORARY_FOLDER: &str = "create a folder for temporary files in";

/// Whether an error of the operating system is about what the user typed or gave: a path that leads nowhere, or a file that
/// is no text. All others are about the machine.
pub fn is_wrong_input(error: &io::Error) -> bool {
    let kinds = [
        io::ErrorKind::NotFound,
        io::ErrorKind::NotADirectory,
        io::ErrorKind::IsADirectory,
        io::ErrorKind::InvalidFilename,
        io::ErrorKind::InvalidInput,
        io::ErrorKind::InvalidData,
    ];
    kinds.contains(&error.kind()) || error.raw_os_error() == Some(libc::ELOOP)
}

/// Errors of several rooms, as the rooms return them.
impl InputError {
    /// A value of another type, or outside of its range.
    pub(crate) fn wrong_value(
        at: impl Into<Location>,
        key: &str,
        expected: impl Into<Cow<'static, str>>,
        found: impl ToString,
    ) -> Error {
        Error::Input(Self::WrongValue {
            at: at.into(),
            key: key.to_owned().into(),
            expected: expected.into(),
            found: excerpt(&found.to_string()).into_owned(),
        })
    }

    /// A key that must be there and is not.
    pub(crate) fn missing_key(
        at: impl Into<Location>,
        key: &str,
        expected: impl Into<Cow<'static, str>>,
    ) -> Error {
        Error::Input(Self::MissingKey {
            at: at.into(),
            key: key.to_owned().into(),
            expected: expected.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_without_memory_is_an_error_of_its_own() {
        let problem = "DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")";
        let error = Error::compute("take the gradients", problem);
        assert!(matches!(error, Error::GpuMemory { .. }));
        assert_eq!(error.exit_code(), 3);
        assert_eq!(
            error.to_string(),
            "cannot take the gradients: the GPU is out of memory"
        );
        assert!(error.hint().unwrap().contains("less at a time"));
        let memory = Some(GpuMemory {
            total: 24_000_000_000,
            free: 10_000_000,
        });
        let action = "take the gradients".to_owned();
        let hint = None;
        let known = Error::GpuMemory {
            action,
            memory,
            hint,
        };
        assert_eq!(
            known.to_string(),
            "cannot take the gradients: the GPU is out of memory, with 10.0 MB of 24.0 GB free"
        );
        let advised = error.with_hint("pass a smaller --batch");
        assert_eq!(advised.hint().unwrap(), "pass a smaller --batch");
    }

    #[test]
    fn a_position_is_a_field_and_a_problem_has_no_place() {
        let error = Error::from(InputError::UnknownKey {
            at: Location {
                path: PathBuf::from("a.yaml"),
                position: Some(Position { line: 3, column: 5 }),
            },
            key: "wieght".to_owned(),
            known: vec!["model", "weight"],
        });
        assert_eq!(
            error.to_string(),
            "a.yaml:3:5: key `wieght`: expected one of `model`, `weight`"
        );
        assert_eq!(error.problem(), "expected one of `model`, `weight`");
        assert_eq!(
            error.place(),
            ErrorPlace {
                path: Some(Path::new("a.yaml")),
                position: Some(Position { line: 3, column: 5 }),
                tensor: None,
                key: Some("wieght"),
            }
        );
        assert_eq!(
            error.hint().as_deref(),
            Some("the nearest known key is `weight`")
        );
        assert_eq!(error.exit_code(), 2);

        let advised = error.with_hint("remove it");
        assert_eq!(advised.hint().as_deref(), Some("remove it"));
        assert_eq!(advised.problem(), "expected one of `model`, `weight`");
        assert_eq!(advised.exit_code(), 2);
    }
}
