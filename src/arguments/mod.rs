//! What the values of command-line arguments name.
//!
//! Every argument that names a file, a folder, a checkpoint or a repository has a value type that says so. So has every
//! flag that the runner of recipes sets itself. Each type knows which parts of its text are paths. Recipes, `--config`,
//! references to the Hub and the JSON schema ask the types: they compare no names of flags and read no help texts.
//!
//! A new value type implements [`ArgumentValue`] and gets a row in the table of the command line (`cli/values.rs`).

mod composed;
mod paths;
mod switches;
mod trusted;

use std::any::TypeId;
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Arg;
use clap::builder::{OsStringValueParser, PathBufValueParser, TypedValueParser, ValueParser};

use crate::checkpoint::reference::SCHEME;
use crate::checkpoint::views;

pub use composed::{MaybeNamed, Named, Weighted};
pub use paths::{CheckpointPath, CorpusPath, InputPath, OutputPath, TextsPath};
pub use switches::{DryRun, Force, InPlace, Outline, Resume};
pub use trusted::TrustedText;

/// What the values of an argument mean to whoever sets them for a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArgumentRole {
    /// A file or folder that the command reads.
    Input,
    /// A checkpoint that the command reads; a reference to the Hub (`hf://…`) may stand in its place.
    Checkpoint,
    /// A file or folder that the command makes or writes to.
    Output,
    /// The name of a repository of the Hub.
    Repository,
    /// A number with a name.
    Number,
    /// A program that the command runs, or a machine that it connects to; a stranger's manifest may not choose it.
    Trusted,
    /// A switch: replace an output that exists.
    Force,
    /// A switch: resume a run that was cut short.
    Resume,
    /// A switch: show what would be done, and do nothing.
    DryRun,
    /// A switch: make the outline of the output, and print an estimate.
    Outline,
    /// A switch: change files of an input, which only a person may ask for.
    InPlace,
}

impl ArgumentRole {
    /// Whether the command reads files that the values name.
    pub fn is_read(self) -> bool {
        matches!(self, Self::Input | Self::Checkpoint)
    }

    /// Whether the values name files or folders.
    pub fn is_path(self) -> bool {
        self.is_read() || self == Self::Output
    }

    /// Whether recipes cannot set the argument: their runner chooses it, or a person.
    pub fn is_switch(self) -> bool {
        matches!(
            self,
            Self::Force | Self::Resume | Self::DryRun | Self::Outline | Self::InPlace
        )
    }
}

/// A type of values that name something outside the command line.
pub trait ArgumentValue: Clone + Send + Sync + 'static {
    /// What the values mean.
    const ROLE: ArgumentRole;
    /// Whether values are `NAME=…`, so that a file of settings may list them by name.
    const IS_NAMED: bool = false;
    /// What to do where nothing is at the path.
    const HINT: Option<&str> = None;

    /// Reads a value as it is typed; the error says what was expected and found.
    fn read(text: &OsStr) -> Result<Self, String>;

    /// How the values look, for errors: `DIR`.
    fn form() -> String;

    /// The paths that a value may hold. There are several where only the file system tells which one is meant.
    fn places(text: &str) -> Vec<&str>;
}

/// The local folders of references to the Hub, and of bases with adapters, by the text of each.
pub type PulledFolders = Arc<BTreeMap<String, PathBuf>>;

/// A row of the table of value types.
#[derive(Clone, Copy, Debug)]
pub struct ArgumentKind {
    type_id: TypeId,
    /// What the values mean.
    pub role: ArgumentRole,
    /// Whether values are `NAME=…`.
    pub is_named: bool,
    /// What to do where nothing is at the path.
    pub hint: Option<&'static str>,
    places: fn(&str) -> Vec<&str>,
    parser: fn(PulledFolders) -> ValueParser,
}

impl ArgumentKind {
    /// The row of a value type.
    pub fn of<T: ArgumentValue>() -> Self {
        Self {
            type_id: TypeId::of::<T>(),
            role: T::ROLE,
            is_named: T::IS_NAMED,
            hint: T::HINT,
            places: T::places,
            parser: parser_with::<T>,
        }
    }

    /// The paths that a value may hold; references to the Hub are none. The parts of `BASE+ADAPTER` are paths, too.
    pub fn places<'a>(&self, text: &'a str) -> Vec<&'a str> {
        let mut places = self.parts(text);
        places.retain(|place| !place.is_empty() && !self.is_reference(place));
        places
    }

    /// Where a value holds references to the Hub: after `NAME=`, between `+`, and before `:WEIGHT`.
    pub fn references(&self, text: &str) -> Vec<Range<usize>> {
        let mut found = Vec::new();
        for place in self.parts(text) {
            if !self.is_reference(place) {
                continue;
            }
            let begin = offset(text, place);
            let name = place[SCHEME.len()..].find(':');
            let length = name.map_or(place.len(), |colon| SCHEME.len() + colon);
            let range = begin..begin + length;
            if !found.contains(&range) {
                found.push(range);
            }
        }
        found
    }

    /// Where a value holds a base with adapters: after `NAME=` and before `:WEIGHT`.
    pub fn adapted(&self, text: &str) -> Option<Range<usize>> {
        if self.role != ArgumentRole::Checkpoint {
            return None;
        }
        let composed = |place: &&str| views::parts(place).is_some();
        let places: Vec<&str> = (self.places)(text).into_iter().filter(composed).collect();
        let is_there = |part: &str| self.is_reference(part) || Path::new(part).exists();
        let all_there = |place: &&&str| {
            let parts = views::parts(place).into_iter().flatten();
            parts.into_iter().all(is_there)
        };
        // The last one lacks the name and the weight.
        let place = places.iter().find(all_there).or(places.last())?;
        let begin = offset(text, place);
        Some(begin..begin + place.len())
    }

    /// The paths that a value may hold, those with adapters taken apart.
    fn parts<'a>(&self, text: &'a str) -> Vec<&'a str> {
        let places = (self.places)(text).into_iter();
        if self.role != ArgumentRole::Checkpoint {
            return places.collect();
        }
        let parts = places.flat_map(|place| views::parts(place).unwrap_or_else(|| vec![place]));
        parts.collect()
    }

    /// A parser of these values. It replaces each reference by the folder that the reference was pulled to.
    pub fn parser(&self, folders: PulledFolders) -> ValueParser {
        (self.parser)(folders)
    }

    fn is_reference(&self, place: &str) -> bool {
        self.role == ArgumentRole::Checkpoint && place.starts_with(SCHEME)
    }
}

/// The table of all value types of a command line.
#[derive(Clone, Debug)]
pub struct ArgumentKinds(Vec<ArgumentKind>);

impl ArgumentKinds {
    /// A table of these rows.
    pub fn new(rows: Vec<ArgumentKind>) -> Self {
        Self(rows)
    }

    /// The row for an argument; none where its values name nothing.
    pub fn of(&self, argument: &Arg) -> Option<ArgumentKind> {
        let type_id = argument.get_value_parser().type_id();
        self.0.iter().find(|kind| type_id == kind.type_id).copied()
    }

    /// What an argument's values mean; none where they name nothing.
    pub fn role(&self, argument: &Arg) -> Option<ArgumentRole> {
        self.of(argument).map(|kind| kind.role)
    }
}

/// The parser that `clap` uses for a value type. It refuses an empty value.
fn parser<T: ArgumentValue>() -> ValueParser {
    ValueParser::new(PathBufValueParser::new().try_map(|text| T::read(text.as_os_str())))
}

fn parser_with<T: ArgumentValue>(folders: PulledFolders) -> ValueParser {
    let read = move |text: OsString| T::read(&with_folder::<T>(text, &folders));
    ValueParser::new(OsStringValueParser::new().try_map(read))
}

/// A value with a folder in the place of its base with adapters, or of its reference, if there is one for it.
fn with_folder<T: ArgumentValue>(text: OsString, folders: &PulledFolders) -> OsString {
    let Some(words) = text.to_str() else {
        return text;
    };
    let kind = ArgumentKind::of::<T>();
    let mut places = kind
        .adapted(words)
        .into_iter()
        .chain(kind.references(words));
    let place = places.find(|place| folders.contains_key(&words[place.clone()]));
    let Some((place, folder)) =
        place.and_then(|place| Some((place.clone(), folders.get(&words[place])?)))
    else {
        return text;
    };
    let mut found = OsString::from(&words[..place.start]);
    found.push(folder);
    found.push(&words[place.end..]);
    found
}

/// Where a part of a text begins in it.
fn offset(text: &str, part: &str) -> usize {
    (part.as_ptr() as usize).saturating_sub(text.as_ptr() as usize)
}

/// The text of a value that must be UTF-8 to be cut into parts.
fn utf8(text: &OsStr) -> Result<&str, String> {
    text.to_str()
        .ok_or_else(|| format!("expected UTF-8, found {}", text.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places<T: ArgumentValue>(text: &str) -> Vec<&str> {
        ArgumentKind::of::<T>().places(text)
    }

    fn reference<T: ArgumentValue>(text: &str) -> Option<&str> {
        let mut found = ArgumentKind::of::<T>().references(text).into_iter();
        found.next().map(|place| &text[place])
    }

    #[test]
    fn each_type_knows_the_paths_in_its_values() {
        type Weight = Weighted<CheckpointPath>;
        assert_eq!(places::<InputPath>("a=b:c"), ["a=b:c"]);
        assert_eq!(places::<Named<CheckpointPath>>("a=b=c"), ["b=c"]);
        assert_eq!(places::<Named<Weight>>("a=b:2"), ["b:2", "b"]);
        assert_eq!(places::<MaybeNamed<InputPath>>("a=b"), ["a=b", "b"]);
        assert_eq!(places::<TextsPath>("a/b*.md"), ["a/b*.md", "a"]);
        assert_eq!(places::<TextsPath>("*.md"), ["*.md", "."]);
        assert_eq!(places::<CorpusPath>("a/b*.md"), ["a/b*.md", "a"]);
        assert_eq!(places::<CorpusPath>("hf://datasets/o/n"), [""; 0]);
        let dataset = std::ffi::OsStr::new("hf://datasets/o/n");
        assert!(CorpusPath::read(dataset).is_ok());
        assert!(TextsPath::read(dataset).is_err());
    }

    #[test]
    fn references_are_no_paths() {
        type Weight = Weighted<CheckpointPath>;
        assert_eq!(places::<Named<Weight>>("a=hf://o/n@v:2"), [""; 0]);
        assert_eq!(
            reference::<Named<Weight>>("a=hf://o/n@v:2"),
            Some("hf://o/n@v")
        );
        assert_eq!(reference::<CheckpointPath>("hf://o/n"), Some("hf://o/n"));
        assert_eq!(reference::<CheckpointPath>("./hf://o/n"), None);
        assert_eq!(reference::<InputPath>("hf://o/n"), None);
        assert!(InputPath::read(OsStr::new("hf://o/n")).is_err());
    }

    #[test]
    fn the_parts_of_a_base_with_adapters_are_places() {
        type Weight = Weighted<CheckpointPath>;
        assert_eq!(places::<CheckpointPath>("a+b+c"), ["a", "b", "c"]);
        assert_eq!(places::<InputPath>("a+b"), ["a+b"]);
        assert_eq!(places::<Named<CheckpointPath>>("n=a+hf://o/n"), ["a"]);
        let kind = ArgumentKind::of::<Named<Weight>>();
        let text = "n=hf://o/base+hf://o/lora@v:0.5";
        let found: Vec<&str> = kind
            .references(text)
            .into_iter()
            .map(|place| &text[place])
            .collect();
        assert_eq!(found, ["hf://o/base", "hf://o/lora@v"]);
        assert_eq!(kind.adapted("n=a+b:0.5"), Some(2..5));
        assert_eq!(kind.adapted("n=a:0.5"), None);
        let folders = BTreeMap::from([("a+b".to_owned(), PathBuf::from("/view/a+b"))]);
        let found = with_folder::<Named<Weight>>("n=a+b:0.5".into(), &folders.into());
        assert_eq!(found, "n=/view/a+b:0.5");
    }

    #[test]
    fn a_pulled_folder_takes_the_place_of_its_reference() {
        let folders = BTreeMap::from([("hf://o/n".to_owned(), PathBuf::from("/cache/n"))]);
        let found = with_folder::<Weighted<CheckpointPath>>("hf://o/n:0.5".into(), &folders.into());
        assert_eq!(found, "/cache/n:0.5");
    }
}
