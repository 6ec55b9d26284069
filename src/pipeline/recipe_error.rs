//! Why a recipe, or a file of settings, cannot be read: one variant per broken rule, and what to do next.

use std::borrow::Cow;
use std::path::PathBuf;

use super::expand::NameError;
use crate::error::{ErrorPlace, Location, nearest};
use crate::printable::excerpt;

/// A rule that the text of a recipe, or of a file of settings, breaks.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecipeError {
    // ---- YAML
    /// A text that is not YAML.
    #[error("{at}: not YAML that can be read: {problem}")]
    NotYaml {
        /// Where.
        at: Location,
        /// What the parser says.
        problem: String,
    },
    /// A file with more than one document.
    #[error("{at}: not YAML that can be read: {problem}")]
    ManyDocuments {
        /// Where the second document is.
        at: Location,
        /// What the parser says.
        problem: String,
    },
    /// A key that is there twice.
    #[error("{at}: duplicate key `{key}`")]
    DuplicateKey {
        /// Where it is for the second time.
        at: Location,
        /// The key.
        key: String,
    },
    /// A key that the format does not have.
    #[error("{at}: key `{key}`: unknown key of {owner}")]
    UnknownKey {
        /// Where.
        at: Location,
        /// The key.
        key: String,
        /// What it would be a key of.
        owner: String,
        /// All keys that may be there.
        known: Vec<String>,
    },
    /// A value of another kind: one value, a list, or keys with values.
    #[error("{at}: expected {expected}, found {found}")]
    Kind {
        /// Where.
        at: Location,
        /// What may be there.
        expected: Cow<'static, str>,
        /// What is there.
        found: &'static str,
    },
    /// A text whose names cannot be replaced.
    #[error("{at}: {rule}")]
    Name {
        /// Where.
        at: Location,
        /// The rule that it breaks.
        rule: NameError,
    },

    // ---- the recipe
    /// A work folder that a terminal or a script cannot show.
    #[error("{at}: `work` must be a path of printable characters, but is `{found}`")]
    Work {
        /// Where.
        at: Location,
        /// The path, made printable.
        found: String,
    },
    /// A variable with the name of something else.
    #[error("{at}: `{name}` has a meaning of its own; choose another name")]
    ReservedName {
        /// Where.
        at: Location,
        /// The name.
        name: String,
    },
    /// A recipe without stages.
    #[error("{at}: expected at least one stage below the key `stages`")]
    NoStages {
        /// Where.
        at: Location,
    },
    /// Two stages with one name.
    #[error("{at}: two stages are named `{name}`")]
    RepeatedStage {
        /// The second of them.
        at: Location,
        /// The name.
        name: String,
    },
    /// A stage that makes what another one makes.
    #[error("{at}: stage `{stage}` makes {} again", output.display())]
    RepeatedOutput {
        /// The second stage.
        at: Location,
        /// Its name.
        stage: String,
        /// The output.
        output: PathBuf,
    },
    /// A stage whose output is inside another stage's output, or holds it.
    #[error("{at}: stage `{stage}` makes {output}, within or around what `{other}` makes")]
    OverlappingOutput {
        /// The second stage.
        at: Location,
        /// Its name.
        stage: Box<str>,
        /// Its output.
        output: Box<str>,
        /// The first stage.
        other: Box<str>,
    },

    // ---- loops
    /// A loop whose stages would all have one name.
    #[error("{at}: the name of a stage for each `{variable}` must hold `${{{variable}}}`")]
    LoopName {
        /// The name.
        at: Location,
        /// The variable of the loop.
        variable: String,
    },
    /// A loop over a variable that there is already.
    #[error("{at}: `{name}` is a variable already; choose another name")]
    RepeatedVariable {
        /// Where.
        at: Location,
        /// The variable.
        name: String,
    },
    /// A loop with too many combinations.
    #[error("{at}: expected at most {most} combinations of values, found {found}")]
    ManyCombinations {
        /// The values that make them too many.
        at: Location,
        /// The most.
        most: usize,
        /// Combinations so far.
        found: usize,
    },

    // ---- a stage
    /// A stage without a name.
    #[error("{at}: a stage lacks its `name`")]
    NoName {
        /// Where.
        at: Location,
    },
    /// A name that no file could have.
    #[error("{at}: a stage cannot be named `{name}`; expected letters, digits, `-`, `_` and `.`")]
    StageName {
        /// Where.
        at: Location,
        /// The name.
        name: String,
    },
    /// A stage without a command.
    #[error("{at}: stage `{stage}` lacks its command")]
    NoCommand {
        /// Where.
        at: Location,
        /// The stage.
        stage: String,
        /// The commands of stages.
        known: Vec<String>,
    },
    /// A stage with two commands.
    #[error("{at}: a stage is one command, found a second one")]
    SecondCommand {
        /// The second one.
        at: Location,
    },
    /// A stage that its command would refuse.
    #[error("{at}: stage `{stage}`: {problem}")]
    StageRefused {
        /// The command.
        at: Location,
        /// The stage.
        stage: String,
        /// What the parser of command lines says.
        problem: String,
    },
    /// Something else than one text as a command of the shell.
    #[error("{at}: expected one text for the shell")]
    ShellTexts {
        /// Where.
        at: Location,
    },
    /// A stage of the shell without its command.
    #[error("{at}: `shell` lacks its `command`")]
    NoShellCommand {
        /// Where.
        at: Location,
    },
    /// A value that no directive of Slurm can hold.
    #[error(
        "{at}: `{key}` must be a line without quotes, backslashes and `#`, but is `{}`",
        excerpt(found).escape_debug()
    )]
    Directive {
        /// Where.
        at: Location,
        /// The key.
        key: &'static str,
        /// The value.
        found: String,
    },

    // ---- settings
    /// A setting that its command would refuse.
    #[error("{at}: {problem}")]
    SettingRefused {
        /// Where.
        at: Location,
        /// What the parser of command lines says.
        problem: String,
    },
    /// A setting of one value with another number of values.
    #[error("{at}: `{key}` takes one value, found {found}")]
    OneValue {
        /// Where.
        at: Location,
        /// The key.
        key: String,
        /// Their number, or what is there.
        found: Cow<'static, str>,
    },
    /// A value that would be read as a flag.
    #[error(
        "{at}: `{key}` takes no value that begins with a dash, found `{}`: it would be read as a flag",
        excerpt(value)
    )]
    Dash {
        /// Where.
        at: Location,
        /// The key.
        key: String,
        /// The value.
        value: String,
    },
    /// A switch with another value.
    #[error(
        "{at}: `{key}` is on or off; expected true or false, found `{}`",
        excerpt(found)
    )]
    Switch {
        /// Where.
        at: Location,
        /// The key.
        key: String,
        /// Its value.
        found: String,
    },
    /// A file of mergekit for another command.
    #[error("{at}: is a file of {dialect}, which is for `bam-convert {command}`")]
    OtherCommand {
        /// The file.
        at: Location,
        /// The program of mergekit that reads it.
        dialect: &'static str,
        /// The command that takes it.
        command: &'static str,
    },
    /// A key that is nearly one of mergekit's.
    #[error("{at}: key `{key}`: is not known")]
    MisspeltOfMergekit {
        /// The file, and where in it.
        at: Location,
        /// The key.
        key: String,
        /// The program of mergekit that has a key like it.
        dialect: &'static str,
        /// That key.
        near: &'static str,
    },
    /// A key of mergekit in a file that lacks the key by which its files are known.
    #[error("{at}: key `{key}`: is a key of {dialect}, whose files also have `{missing}`")]
    KeyOfMergekit {
        /// The file, and where in it.
        at: Location,
        /// The key.
        key: String,
        /// The program of mergekit.
        dialect: &'static str,
        /// The key that its files have.
        missing: &'static str,
    },
}

impl RecipeError {
    /// What to do next.
    pub fn hint(&self) -> Option<Cow<'_, str>> {
        Some(Cow::Borrowed(match self {
            Self::ManyDocuments { .. } => "put each document into a file of its own",
            Self::UnknownKey { key, known, .. } => {
                let near = nearest(key, known.iter().map(String::as_str));
                let hint = near.map_or_else(
                    || format!("known keys: {}", known.join(", ")),
                    |near| format!("the nearest known key is `{near}`"),
                );
                return Some(hint.into());
            }
            Self::Name { rule, .. } => return rule.hint(),
            Self::RepeatedStage { .. } => "with for_each, let the name hold the variable",
            Self::NoCommand { known, .. } => {
                return Some(format!("known commands: {}", known.join(", ")).into());
            }
            Self::Dash { value, .. } => {
                return Some(format!("a file of that name is `./{value}`").into());
            }
            Self::OtherCommand { at, command, .. } => {
                let file = at.path.display();
                return Some(format!("bam-convert {command} --config {file}").into());
            }
            Self::MisspeltOfMergekit { dialect, near, .. } => {
                return Some(format!("the nearest key of {dialect}'s files is `{near}`").into());
            }
            Self::KeyOfMergekit { missing, .. } => {
                return Some(
                    format!(
                        "add `{missing}`, or name the flags of this command (docs/reference/settings-files.md)"
                    )
                    .into(),
                );
            }
            _ => return None,
        }))
    }

    /// The file, and where in it.
    pub fn place(&self) -> ErrorPlace<'_> {
        match self {
            Self::UnknownKey { at, key, .. }
            | Self::MisspeltOfMergekit { at, key, .. }
            | Self::KeyOfMergekit { at, key, .. } => ErrorPlace::of(at).with_key(key),
            Self::NotYaml { at, .. }
            | Self::ManyDocuments { at, .. }
            | Self::DuplicateKey { at, .. }
            | Self::Kind { at, .. }
            | Self::Name { at, .. }
            | Self::Work { at, .. }
            | Self::ReservedName { at, .. }
            | Self::NoStages { at }
            | Self::RepeatedStage { at, .. }
            | Self::RepeatedOutput { at, .. }
            | Self::OverlappingOutput { at, .. }
            | Self::LoopName { at, .. }
            | Self::RepeatedVariable { at, .. }
            | Self::ManyCombinations { at, .. }
            | Self::NoName { at }
            | Self::StageName { at, .. }
            | Self::NoCommand { at, .. }
            | Self::SecondCommand { at }
            | Self::StageRefused { at, .. }
            | Self::ShellTexts { at }
            | Self::NoShellCommand { at }
            | Self::Directive { at, .. }
            | Self::SettingRefused { at, .. }
            | Self::OneValue { at, .. }
            | Self::Dash { at, .. }
            | Self::Switch { at, .. }
            | Self::OtherCommand { at, .. } => ErrorPlace::of(at),
        }
    }
}
