//! Why stages cannot run: one variant per broken rule, and what to do next.
//!
//! What is wrong with the text of a recipe is in [`RecipeError`](super::RecipeError).

use std::borrow::Cow;
use std::path::PathBuf;

use crate::error::{ErrorPlace, nearest};
use crate::table::quoted;

/// A rule that a request to run stages, a work folder, or the recipe of a manifest breaks.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PipelineError {
    // ---- the request
    /// A value for a variable that the recipe does not have.
    #[error("{} has no variable `{name}`", path.display())]
    NoVariable {
        /// The recipe.
        path: PathBuf,
        /// The variable.
        name: String,
        /// The variables of the recipe.
        known: Vec<String>,
    },
    /// A choice of stages that is no pattern.
    #[error("cannot read the pattern `{pattern}`: {problem}")]
    Pattern {
        /// The choice.
        pattern: String,
        /// What the parser of patterns says.
        problem: String,
    },
    /// A choice of stages that fits none.
    #[error("no stage is named `{name}`")]
    NoStage {
        /// The name, or the pattern.
        name: String,
        /// The stages of the recipe.
        stages: Vec<String>,
    },
    /// A signal stopped the run, which is no fault.
    #[error("stopped by a signal; stages that ended stay as they are")]
    Stopped,
    /// Nothing to supervise.
    #[error("expected a program to supervise")]
    NoProgram,
    /// A work folder that no directive of Slurm can hold.
    #[error(
        "{}: the path holds a quote, a backslash, a `#` or a control character, which no directive of Slurm can",
        path.display()
    )]
    SlurmPath {
        /// The folder of the logs, made printable.
        path: PathBuf,
    },

    // ---- the work folder
    /// An output that something else than the stage made.
    #[error("{}: exists already, and stage `{stage}` did not make it", path.display())]
    NotMade {
        /// The output.
        path: PathBuf,
        /// The stage.
        stage: String,
    },
    /// A work folder that another run has locked.
    #[error("{}: another run works in this folder", path.display())]
    Busy {
        /// The folder.
        path: PathBuf,
    },
    /// A link out of the work folder of a stranger's recipe.
    #[error("{}: is a link that leads out of the work folder, or nowhere", path.display())]
    LinkOut {
        /// The link.
        path: PathBuf,
    },
    /// A link in the place of the work folder that is chosen by default.
    #[error("{}: is a link, expected a folder of its own", path.display())]
    WorkIsLink {
        /// The link.
        path: PathBuf,
    },

    // ---- the recipe of a manifest
    /// A folder without a manifest.
    #[error("{}: is missing", path.display())]
    NoManifest {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// A manifest without a recipe.
    #[error("{}: key `recipe`: is absent: no recipe made this checkpoint", path.display())]
    NoRecipe {
        /// The manifest.
        path: PathBuf,
    },
    /// A recipe without stages.
    #[error("{}: key `recipe.stages`: expected one stage at least", path.display())]
    NoStages {
        /// The manifest.
        path: PathBuf,
    },
    /// A checkpoint outside of the work folder.
    #[error("{}: key `recipe.output`: expected a path below the work folder", path.display())]
    OutputElsewhere {
        /// The manifest.
        path: PathBuf,
    },
    /// A stage that publishes.
    #[error("{}: key `recipe.stages`: stage `{stage}` publishes a checkpoint, which a recorded recipe may not do", path.display())]
    Pushes {
        /// The manifest.
        path: PathBuf,
        /// The stage.
        stage: String,
    },
    /// A stage of the shell, which the user has not allowed.
    #[error("{}: stage `{stage}` is a command of the shell: {command}", path.display())]
    Shell {
        /// The manifest.
        path: PathBuf,
        /// The stage.
        stage: String,
        /// Its command.
        command: String,
    },
    /// A setting that chooses a program or a machine, which the user has not allowed.
    #[error("{}: stage `{stage}` would run or connect to {value}, its `{key}`", path.display())]
    Trusted {
        /// The manifest.
        path: PathBuf,
        /// The stage.
        stage: String,
        /// The setting.
        key: String,
        /// Its value.
        value: String,
    },
    /// A setting that names an input outside of the work folder and the sources.
    #[error("{}: key `{key}`: stage `{stage}` reads {value} outside the work folder", path.display())]
    ReadsOutside {
        /// The manifest.
        path: PathBuf,
        /// The setting.
        key: Box<str>,
        /// The stage.
        stage: Box<str>,
        /// The value.
        value: Box<str>,
    },
    /// A setting that names an output outside of the work folder.
    #[error("{}: key `{key}`: stage `{stage}` writes {value} outside the work folder", path.display())]
    WritesOutside {
        /// The manifest.
        path: PathBuf,
        /// The setting.
        key: Box<str>,
        /// The stage.
        stage: Box<str>,
        /// The value.
        value: Box<str>,
    },
    /// An output outside of the work folder that no one setting names.
    #[error("{}: stage `{stage}` writes {} outside the work folder", path.display(), output.display())]
    OutputOutside {
        /// The manifest.
        path: PathBuf,
        /// The stage.
        stage: String,
        /// The output.
        output: PathBuf,
    },

    // ---- the sources of that recipe
    /// A place for a source that the recipe does not have.
    #[error("--source: the recipe of {} has no source `{name}`", folder.display())]
    NoSource {
        /// The checkpoint.
        folder: PathBuf,
        /// The source.
        name: String,
        /// The sources of the recipe.
        known: Vec<String>,
    },
    /// A source that is not where it was said to be.
    #[error("{}: is missing: source `{name}` of the recipe", path.display())]
    MissingSource {
        /// Where it was looked for.
        path: PathBuf,
        /// The source.
        name: String,
    },
    /// An input in none of the sources.
    #[error("{}: key `recipe.stages`: stage `{stage}` read {input}, which is in no source", path.display())]
    InputElsewhere {
        /// The manifest.
        path: PathBuf,
        /// The stage.
        stage: String,
        /// The input.
        input: String,
    },
    /// A file of a source that is not what it was.
    #[error(
        "{}: source `{name}` is missing or has changed: expected SHA-256 {sha256}", path.display()
    )]
    SourceChanged {
        /// The file.
        path: PathBuf,
        /// The source.
        name: String,
        /// Its SHA-256 in the manifest.
        sha256: String,
    },
    /// A source that a manifest alone does not lead to.
    #[error(
        "{}: key `{key}`: source `{name}` of the recipe is recorded at {recorded}. It is not beside this folder, or holds \
         too many files or links that lead away; a manifest alone does not lead there",
        path.display()
    )]
    FarSource {
        /// The manifest.
        path: PathBuf,
        /// The key of the source.
        key: Box<str>,
        /// The source.
        name: Box<str>,
        /// Its path in the manifest.
        recorded: Box<str>,
        /// Flags that name each of these sources.
        flags: Box<str>,
    },
}

impl PipelineError {
    /// What to do next.
    pub fn hint(&self) -> Option<Cow<'_, str>> {
        Some(Cow::Borrowed(match self {
            Self::NoVariable { name, known, .. } | Self::NoSource { name, known, .. } => {
                return Some(nearest_or_all("it has", name, known).into());
            }
            Self::NoStage { name, stages } => {
                return Some(nearest_or_all("stages", name, stages).into());
            }
            Self::SlurmPath { .. } => "choose another folder to work in with --work",
            Self::NotMade { .. } | Self::LinkOut { .. } => "remove it, or choose another --work",
            Self::Busy { .. } => "wait for it, or choose another --work",
            Self::WorkIsLink { .. } => "remove it, or choose the folder to work in with --work DIR",
            Self::NoManifest { .. } => "a checkpoint is made again from its manifest",
            Self::NoRecipe { .. } => {
                "`bam-convert validate DIR --against` compares it with its sources"
            }
            Self::Shell { .. } => "it can do whatever you can: read it, then pass --allow-shell",
            Self::Trusted { .. } => "if you know what it is, pass --allow-shell",
            Self::ReadsOutside { .. } => {
                "a recorded stage reads what stages before it made, or sources by name: `${NAME}/…`"
            }
            Self::WritesOutside { .. } => "nothing was run; do not trust this manifest",
            Self::MissingSource { name, .. } => {
                let source = quoted(&format!("{name}=PATH"));
                return Some(format!("--source {source} says where it is now").into());
            }
            Self::SourceChanged { name, .. } => {
                let source = quoted(&format!("{name}=PATH"));
                let hint = format!("--source {source} says where a source with the same bytes is");
                return Some(hint.into());
            }
            Self::FarSource { flags, .. } => {
                let hint = format!("if you mean to read these, name them yourself: {flags}");
                return Some(hint.into());
            }
            Self::Pattern { .. }
            | Self::NoProgram
            | Self::Stopped
            | Self::NoStages { .. }
            | Self::OutputElsewhere { .. }
            | Self::Pushes { .. }
            | Self::OutputOutside { .. }
            | Self::InputElsewhere { .. } => return None,
        }))
    }

    /// The file or folder, and the key.
    pub fn place(&self) -> ErrorPlace<'_> {
        match self {
            Self::NoVariable { .. }
            | Self::Pattern { .. }
            | Self::NoStage { .. }
            | Self::NoProgram
            | Self::Stopped
            | Self::NoSource { .. } => ErrorPlace::default(),
            Self::SlurmPath { path }
            | Self::NotMade { path, .. }
            | Self::Busy { path }
            | Self::LinkOut { path }
            | Self::WorkIsLink { path }
            | Self::NoManifest { path }
            | Self::Shell { path, .. }
            | Self::Trusted { path, .. }
            | Self::OutputOutside { path, .. }
            | Self::MissingSource { path, .. }
            | Self::SourceChanged { path, .. } => ErrorPlace::of(path),
            Self::NoRecipe { path } => ErrorPlace::of(path).with_key("recipe"),
            Self::OutputElsewhere { path } => ErrorPlace::of(path).with_key("recipe.output"),
            Self::NoStages { path }
            | Self::Pushes { path, .. }
            | Self::InputElsewhere { path, .. } => ErrorPlace::of(path).with_key("recipe.stages"),
            Self::ReadsOutside { path, key, .. }
            | Self::WritesOutside { path, key, .. }
            | Self::FarSource { path, key, .. } => ErrorPlace::of(path).with_key(key),
        }
    }
}

/// The nearest of the known names, or all of them.
fn nearest_or_all(what: &str, name: &str, known: &[String]) -> String {
    nearest(name, known.iter().map(String::as_str)).map_or_else(
        || format!("{what}: {}", known.join(", ")),
        |near| format!("the nearest is `{near}`"),
    )
}
