//! What the command line refuses by itself: one variant per broken rule, and what to do next.
//!
//! The library's [`Error`] cannot wrap an enum of this program, and its callers have no flags. So the rules about flags are
//! here, and [`CliError::Library`] wraps the library's errors, for functions that can break rules of both.

use std::borrow::Cow;
use std::path::PathBuf;

use bam_convert::Error;
use bam_convert::error::{ErrorPlace, is_wrong_input};
use bam_convert::pipeline::Failure;
use bam_convert::table;

/// Result of a function that can break rules of the command line and of the library.
pub type Result<T, E = CliError> = std::result::Result<T, E>;

/// A rule that a command line breaks, or an error of the library.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// An error of the library.
    #[error(transparent)]
    Library(Box<Error>),

    /// A variable of the environment with a value that its flag refuses.
    #[error("{variable} is \"{value}\": {reason}")]
    Variable {
        /// The variable.
        variable: &'static str,
        /// Its value.
        value: String,
        /// Why the flag refuses it.
        reason: String,
        /// The flag, without its dashes.
        flag: String,
    },

    // ---- model cards
    /// A model whose card is not the user's to write.
    #[error("{}: has no folder of its own, expected one for --card", path.display())]
    CardElsewhere {
        /// The model.
        path: PathBuf,
    },
    /// An evaluation of other models.
    #[error("{}: measures {}, but not {}", path.display(), found.join(", "), folder.display())]
    OtherEvaluation {
        /// The result of `eval --json`.
        path: PathBuf,
        /// The models that were measured.
        found: Vec<String>,
        /// The model that should have been.
        folder: PathBuf,
    },

    // ---- recipes
    /// Pruning by a command that only submits jobs.
    #[error("--prune has no effect with --executor slurm, because the stages have not run yet")]
    PruneOnSlurm,

    // ---- models and experts
    /// A flag of methods that were not chosen.
    #[error("{flag} has no effect without --method {owners}")]
    WithoutMethod {
        /// The flag.
        flag: String,
        /// The methods that have it.
        owners: String,
    },
    /// A flag that the chosen method has no use for.
    #[error("{flag} has no effect with --method {method}, which {why}")]
    WithMethod {
        /// The flag.
        flag: &'static str,
        /// The method.
        method: &'static str,
        /// What the method does.
        why: &'static str,
        /// The methods that use the flag.
        owners: String,
    },
    /// Copies of the seed that would have the same row of the router.
    #[error(
        "with --router prompts:PATH, all copies of --seed-copies would have the same router row, and only the first would get tokens"
    )]
    CopiesTie,
    /// A row for each model where experts are parts of models.
    #[error("--router prompts:PATH makes a row for each model, but experts are no whole models")]
    PromptsOfParts,
    /// A source of shared keys and values where none are shared.
    #[error("--shared-kv has no effect without --kv shared")]
    SharedKv,
    /// Two mixtures with one name.
    #[error("two mixtures are called `{name}`; expected each name once")]
    RepeatedMixture {
        /// The name.
        name: String,
    },
    /// A base that is none of the models.
    #[error("--base {} is none of the models", base.display())]
    Base {
        /// The base.
        base: PathBuf,
    },
    /// A method that starts from a base, without one.
    #[error("--method {method} starts from a base model, but there is no --base")]
    NoBase {
        /// The method.
        method: &'static str,
    },
    /// A slice of a model that is not named.
    #[error("--slice names model {found}, but there are {models}")]
    SliceModel {
        /// The model, counted from 1.
        found: usize,
        /// The models of the command line.
        models: usize,
    },
    /// Parameters for other models than the command line names.
    #[error("{}: has parameters of {expected} models, but --model names {found}, or weights", file.display())]
    OtherModels {
        /// The file.
        file: PathBuf,
        /// Models of the file.
        expected: usize,
        /// Models of the command line.
        found: usize,
    },
    /// A model whose cost cannot be computed.
    #[error("{}: {error}", path.display())]
    Cost {
        /// Its configuration.
        path: PathBuf,
        /// The rule that it breaks.
        error: Box<Error>,
    },

    // ---- formats
    /// A layout for a file that has its own.
    #[error("--layout has no effect with --to {to}")]
    LayoutOfFile {
        /// The format of the file.
        to: String,
    },
    /// A layout for a class that has one alone.
    #[error("--to {to} has no other layout: each expert has tensors of its own")]
    LayoutOfClass {
        /// The target.
        to: &'static str,
    },
    /// Quantised numbers for something else than a GGUF file.
    #[error("--quantize is for GGUF files")]
    Quantize,
    /// A dtype that GGUF does not have.
    #[error("a GGUF file does not hold {dtype}; expected f32, f16 or bf16")]
    GgufDtype {
        /// The dtype.
        dtype: String,
    },

    // ---- evaluation
    /// A task whose name cannot come from its file.
    #[error("{}: expected a file", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// Two columns with one name.
    #[error("duplicate name `{name}`; expected one for each column")]
    RepeatedColumn {
        /// The name.
        name: String,
    },
    /// A request about routing for models without any.
    #[error("there is no routing to change or report: every model is dense")]
    NoRouting,
    /// Two prompts that are both standard input.
    #[error("--prompt - reads standard input to its end; expected it once")]
    RepeatedStdin,
    /// A dialogue whose answers would be one result.
    #[error("a dialogue has no single result for --json")]
    JsonDialogue,
    /// One model, where nothing else is asked for than a comparison.
    #[error("expected a second model to compare with, or --dump FILE to keep the logits")]
    OneModel,
    /// A dump of logits to compare with, but no tokens.
    #[error("expected --tokens: a dump does not say which tokens its logits are of")]
    NoTokens,
    /// No models to compare.
    #[error("--divergence: expected a seed and its specialists, found nothing")]
    NoSeed,
    /// A seed with a name.
    #[error("--divergence: the seed takes no name, found `{name}=`")]
    SeedName {
        /// The name.
        name: String,
    },
    /// Two specialists with one name.
    #[error("two specialists are named `{name}`; expected each name once")]
    RepeatedSpecialist {
        /// The name.
        name: String,
    },
    /// A flag of the engine torch.
    #[error("{flag} has no effect with --engine native")]
    WithoutTorch {
        /// The flag.
        flag: &'static str,
    },
    /// A GPU for a build that uses none.
    #[error("this build of bam-convert has no CUDA support")]
    NoCuda,
    /// A machine whose driver finds no GPUs.
    #[error("--device {device}: CUDA finds no GPU: {problem}")]
    NoDriver {
        /// The device.
        device: String,
        /// What the driver says.
        problem: String,
    },
    /// A GPU that the machine does not have.
    #[error("--device {device}: expected a GPU of this machine, which has {found}")]
    NoGpu {
        /// The device.
        device: String,
        /// The number of GPUs, in words.
        found: String,
    },

    // ---- recipes
    /// A stage that its command refused, or that did not make its outputs.
    #[error("{0}")]
    Stage(Failure),

    // ---- the Hub
    /// A dataset on the Hub, which this build cannot reach.
    #[cfg(not(feature = "hub"))]
    #[error("{place}: this build of bam-convert has no client of the Hub")]
    NoHub {
        /// The dataset.
        place: String,
    },
    /// A source of a manifest that is on the Hub, but at no commit.
    #[cfg(feature = "hub")]
    #[error(
        "{}: key `{key}`: expected a reference to a commit, hf://ORG/NAME@COMMIT, found {found}", path.display()
    )]
    NoCommit {
        /// The manifest.
        path: PathBuf,
        /// The key of the source.
        key: String,
        /// The reference.
        found: String,
    },
    /// Something else than a folder to publish.
    #[cfg(feature = "hub")]
    #[error("{}: expected the folder of a checkpoint", path.display())]
    NotAFolder {
        /// The path.
        path: PathBuf,
    },
    /// Two branches to publish to.
    #[cfg(feature = "hub")]
    #[error("expected one branch, found `{in_reference}` and `{in_flag}`")]
    TwoBranches {
        /// The branch in the reference.
        in_reference: String,
        /// The branch of `--revision`.
        in_flag: String,
    },
    /// A commit without a message.
    #[cfg(feature = "hub")]
    #[error("expected a message, found an empty one")]
    EmptyMessage,
}

impl From<Error> for CliError {
    fn from(error: Error) -> Self {
        Self::Library(Box::new(error))
    }
}

impl CliError {
    /// What to do next.
    fn hint(&self) -> Option<Cow<'_, str>> {
        Some(Cow::Borrowed(match self {
            Self::Library(error) | Self::Cost { error, .. } => return error.hint(),
            Self::WithoutMethod { owners, .. } | Self::WithMethod { owners, .. } => {
                return Some(format!("leave it out, or pass --method {owners}").into());
            }
            Self::Variable { flag, .. } => {
                return Some(format!("unset it, or give it a value that --{flag} takes").into());
            }
            Self::PruneOnSlurm => {
                "run it with --prune and without --executor, once the jobs have ended"
            }
            Self::CopiesTie => "pass --router normal, or leave --seed-copies out",
            Self::PromptsOfParts => "pass --router normal",
            Self::SharedKv => "pass --kv shared",
            Self::RepeatedMixture { .. } => "name them: NAME=DIR",
            Self::Base { .. } => "name one of the folders of --model with the same words",
            Self::LayoutOfClass { .. } => "leave --layout out",
            Self::NoBase { .. } => "pass --base DIR: the model that the others were trained from",
            Self::OtherModels { .. } => {
                "pass as many models as the file, in its order, and no weights"
            }
            Self::LayoutOfFile { .. } => {
                "first convert to a folder with --layout, then convert that folder"
            }
            Self::CardElsewhere { .. } => {
                "`bam-convert pull` or `bam-convert convert` makes a folder of your own"
            }
            Self::OtherEvaluation { folder, .. } => {
                let folder = table::quoted(&folder.to_string_lossy());
                return Some(
                    format!("measure it: bam-convert eval {folder} --data NAME=PATH --json").into(),
                );
            }
            Self::Quantize => "pass --to gguf with it",
            Self::GgufDtype { .. } => "or pass --quantize q8_0",
            Self::JsonDialogue => "pass the message with --prompt, or leave out --json",
            Self::OneModel => "`bam-convert logits --help` shows both",
            Self::SeedName { .. } => "the seed comes first: --divergence SEED NAME=DIR…",
            Self::RepeatedSpecialist { .. } => "name them: --divergence SEED NAME=DIR…",
            Self::WithoutTorch { .. } => "leave it out, or pass --engine torch",
            Self::NoCuda => {
                "build it with `cargo build --release --features cuda`, or use --device cpu"
            }
            Self::NoDriver { .. } => "use --device cpu, or ask the driver with `nvidia-smi`",
            Self::NoGpu { .. } => {
                "GPUs have numbers from 0; with CUDA_DEVICE_ORDER=PCI_BUS_ID, `nvidia-smi` has the same"
            }
            Self::Stage(_) => "the last lines are above",
            #[cfg(feature = "hub")]
            Self::NoCommit { .. } => {
                "name it yourself: `validate --against hf://…`, or `run --source NAME=hf://…`"
            }
            _ => return None,
        }))
    }

    /// Where the error is, as far as the library knows.
    fn place(&self) -> ErrorPlace<'_> {
        match self {
            Self::Library(error) | Self::Cost { error, .. } => error.place(),
            _ => ErrorPlace::default(),
        }
    }

    /// The exit code: 2 for what the command line refuses, 3 for what the machine lacks; the library decides for its own
    /// errors.
    fn exit_code(&self) -> u8 {
        match self {
            Self::Library(error) => error.exit_code(),
            Self::NoDriver { .. } | Self::NoGpu { .. } => 3,
            _ => 2,
        }
    }
}

/// The message of a command's error. Ours name their cause themselves; of others, all causes follow.
pub fn text(error: &anyhow::Error) -> String {
    if error.is::<CliError>() || error.is::<Error>() {
        error.to_string()
    } else {
        format!("{error:#}")
    }
}

/// What to do next, where the error knows.
pub fn hint(error: &anyhow::Error) -> Option<Cow<'_, str>> {
    match error.downcast_ref::<CliError>() {
        Some(error) => error.hint(),
        None => error.downcast_ref::<Error>()?.hint(),
    }
}

/// The same error with `advice` if it is about a GPU without memory and has none yet.
pub fn with_memory_advice(error: anyhow::Error, advice: &str) -> anyhow::Error {
    let advised = |error: Error| match error {
        error @ Error::GpuMemory { hint: None, .. } => error.with_hint(advice),
        error => error,
    };
    match error.downcast::<Error>() {
        Ok(error) => advised(error).into(),
        Err(error) => match error.downcast::<CliError>() {
            Ok(CliError::Library(error)) => advised(*error).into(),
            Ok(error) => error.into(),
            Err(error) => error,
        },
    }
}

/// Where the error is, where it knows.
pub fn place(error: &anyhow::Error) -> ErrorPlace<'_> {
    match error.downcast_ref::<CliError>() {
        Some(error) => error.place(),
        None => error
            .downcast_ref::<Error>()
            .map_or_else(ErrorPlace::default, Error::place),
    }
}

/// Whether a signal ended the work.
pub fn is_interruption(error: &anyhow::Error) -> bool {
    match error.downcast_ref::<CliError>() {
        Some(CliError::Library(error)) => error.is_interruption(),
        Some(_) => false,
        None => error
            .downcast_ref::<Error>()
            .is_some_and(Error::is_interruption),
    }
}

/// The exit code. An error of neither kind comes from the machine, unless the system says that the input is wrong.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    if let Some(error) = error.downcast_ref::<CliError>() {
        return error.exit_code();
    }
    if let Some(error) = error.downcast_ref::<Error>() {
        return error.exit_code();
    }
    match error.downcast_ref::<std::io::Error>() {
        Some(error) if is_wrong_input(error) => 2,
        _ => 3,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advice_on_memory_is_for_a_gpu_without_memory() {
        let out = "DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")";
        let library = |problem| Error::compute("run the model m", problem);
        let advised = |error: anyhow::Error| {
            let error = with_memory_advice(error, "pass --dtype bf16");
            hint(&error).map(Cow::into_owned)
        };
        let bf16 = Some("pass --dtype bf16".to_owned());
        assert_eq!(advised(library(out).into()), bf16);
        assert_eq!(advised(CliError::from(library(out)).into()), bf16);
        assert_eq!(advised(library("shape mismatch").into()), None);
        let own = library(out).with_hint("pass --batch 4");
        assert_eq!(advised(own.into()), Some("pass --batch 4".to_owned()));
        let other = advised(CliError::OneModel.into());
        assert!(other.unwrap().contains("logits --help"));
    }
}
