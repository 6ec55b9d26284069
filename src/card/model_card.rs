//! The card of a checkpoint that a command writes.

use std::path::Path;

use serde_json::{Map, Value};

use super::ancestry;
use super::carried::{CarriedCard, CopyOf};
use super::front_matter::{self, FrontMatter};
use super::licence::Licences;
use super::source::SourceFacts;
use super::training::TrainingSummary;
use super::{experts, usage};
use crate::Result;
use crate::checkpoint::card_text::{COPY, sealed};
use crate::checkpoint::manifest::{MANIFEST, Origin, model_name};
use crate::family::Architecture;
use crate::markdown;
use crate::table::Align;

/// Prompts of an expert that a card shows, and characters of each.
const MOST_PROMPTS: usize = 16;
const LONGEST_PROMPT: usize = 200;

/// What a model card says.
pub struct ModelCard<'a> {
    /// Heading.
    pub title: &'a str,
    /// What the model is, and how it was made: Markdown.
    pub about: String,
    /// Tags on the Hub.
    pub tags: &'a [&'a str],
    /// What the model is to its base models, where the Hub has a word for it.
    pub relation: Option<Relation>,
    /// Names and paths of the models it was made from.
    pub sources: Vec<(&'a str, &'a Path)>,
    /// Settings as the manifest records them.
    pub settings: &'a Map<String, Value>,
    /// The model itself; none where its configuration is missing or of an unknown family.
    pub model: Option<CardModel<'a>>,
    /// How it was trained, where it was.
    pub training: Option<TrainingSummary>,
    /// The model that this one is a copy of, in the same or another form: its card's text is kept.
    pub copy_of: Option<CopyOf<'a>>,
    /// What a user of the model should know of how it was made.
    pub notes: &'a [String],
    /// The prompts that rows of routers were computed from.
    pub prompts: &'a [PromptsOfExpert],
}

/// The model of a card.
pub struct CardModel<'a> {
    /// What its configuration says.
    pub architecture: &'a Architecture,
    /// Names of its feed-forward experts; none if dense.
    pub experts: Vec<String>,
    /// Whether the checkpoint has a `tokenizer.json`.
    pub has_tokenizer: bool,
    /// Whether its shared expert is there for its format alone, and adds nothing.
    pub has_neutral_shared_expert: bool,
}

/// The prompts of one expert.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PromptsOfExpert {
    /// Its name.
    pub name: String,
    /// What it is for.
    pub positive: Vec<String>,
    /// What it is not for.
    pub negative: Vec<String>,
}

/// What a model is to its base models, in the Hub's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    /// Made of several models, without training.
    Merge,
    /// Trained further.
    Finetune,
}

impl Relation {
    fn name(self) -> &'static str {
        match self {
            Self::Merge => "merge",
            Self::Finetune => "finetune",
        }
    }
}

impl ModelCard<'_> {
    /// The text of `README.md`, with the seal by which a later command sees whether a person has edited it.
    ///
    /// # Errors
    /// A front matter that cannot be written.
    pub fn text(&self) -> Result<String> {
        let facts: Vec<SourceFacts> = self
            .sources
            .iter()
            .map(|(_, path)| SourceFacts::of(path))
            .collect();
        let names = self.sources.iter().map(|(name, _)| *name);
        let licences = Licences::of(names.zip(&facts));
        let front = self.front_matter(&facts, &licences);
        let text = match self.copy_of.and_then(CarriedCard::of) {
            Some(carried) => self.continued(front, &carried, &licences)?,
            None => front_matter::joined(&front.lines()?, &self.body(&licences)),
        };
        Ok(sealed(&text))
    }

    fn front_matter(&self, facts: &[SourceFacts], licences: &Licences) -> FrontMatter {
        let mut front = FrontMatter::default();
        if self.model.is_some() {
            front.text("library_name", "transformers");
            front.text("pipeline_tag", "text-generation");
        }
        licences.put(&mut front);
        front.list("language", union(facts, |facts| &facts.languages));
        front.list("datasets", union(facts, |facts| &facts.datasets));
        let mut bases: Vec<&String> = Vec::new();
        for base in facts.iter().flat_map(|facts| &facts.repositories) {
            if !bases.contains(&base) {
                bases.push(base);
            }
        }
        if let Some(relation) = self.relation.filter(|_| !bases.is_empty()) {
            // A model that is made of several is no fine-tune of one.
            let relation = if bases.len() > 1 {
                Relation::Merge
            } else {
                relation
            };
            front.text("base_model_relation", relation.name());
        }
        front.list("base_model", bases);
        front.list("tags", self.tags);
        if let Some(training) = &self.training {
            training.put_results(self.title, &mut front);
        }
        front
    }

    /// The text of a new card below its front matter.
    fn body(&self, licences: &Licences) -> String {
        let mut parts = vec![format!(
            "# {}\n\n{}\n",
            markdown::text(self.title),
            self.about
        )];
        if let Some(model) = &self.model {
            let experts = experts::sentences(model);
            parts.extend(
                experts.map(|sentences| format!("## Routers and experts\n\n{sentences}\n")),
            );
            if !self.prompts.is_empty() {
                parts.push(self.prompts());
            }
            parts.push(usage::section(model.architecture, model.has_tokenizer));
        }
        parts.extend(self.training.as_ref().map(TrainingSummary::section));
        parts.push(format!("## How it was made\n\n{}", self.record(licences)));
        parts.join("\n")
    }

    /// The carried card of a model, with the keys that it lacks and a section about this copy.
    fn continued(
        &self,
        front: FrontMatter,
        carried: &CarriedCard,
        licences: &Licences,
    ) -> Result<String> {
        let added = front.without(&carried.keys).lines()?;
        let lines = format!("{}{added}", carried.lines);
        let usage = self.model.as_ref().map_or_else(String::new, |model| {
            format!(
                "\n#{}",
                usage::section(model.architecture, model.has_tokenizer)
            )
        });
        let scores = if carried.lost_scores {
            " The scores of that model are left out, because weights were rounded."
        } else {
            ""
        };
        let section = format!(
            "{}## About this copy\n\n{} The text above is the card of the model that it was made of.{scores}\n\n{}{usage}{}",
            COPY.begin,
            self.about,
            self.record(licences),
            COPY.end
        );
        let body = format!("{}\n\n{section}", carried.body.trim_end());
        Ok(front_matter::joined(&lines, &body))
    }

    /// Program, sources with their licences, and settings.
    fn record(&self, licences: &Licences) -> String {
        let mut text = format!(
            "Made by bam-convert {}. `{MANIFEST}` records how each tensor was made and the SHA-256 of every file.\n",
            env!("CARGO_PKG_VERSION")
        );
        if !self.sources.is_empty() {
            let row = |(name, path): &(&str, &Path)| {
                let model = match Origin::of(path, &[]) {
                    Some((repository, commit)) => format!("{repository} at {commit}"),
                    None => model_name(path),
                };
                let cells = [*name, &model, &licences.of_source(name)];
                cells.map(markdown::text).to_vec()
            };
            let columns = ["source", "model", "licence"].map(|title| (title, Align::Left));
            let rows: Vec<_> = self.sources.iter().map(row).collect();
            text.push_str(&format!("\n{}", markdown::table(&columns, &rows)));
            let paths = self.sources.iter().map(|(_, path)| *path);
            text.push_str(&ancestry::table(paths));
        }
        let conflicts = licences.conflicts();
        let notes = self.notes.iter().map(|note| self.without_paths(note));
        let items = conflicts.iter().cloned().chain(notes);
        let items: String = items
            .map(|item| format!("- {}\n", markdown::text(&item)))
            .collect();
        if !items.is_empty() {
            text.push_str(&format!("\n{items}"));
        }
        if !self.settings.is_empty() {
            // A setting without a value leaves the choice to the models.
            let is_empty =
                |value: &Value| value.is_null() || value.as_array().is_some_and(Vec::is_empty);
            let settings = self.settings.iter().filter(|(_, value)| !is_empty(value));
            let columns = ["setting", "value"].map(|title| (title, Align::Left));
            let rows: Vec<_> = settings
                .map(|(key, value)| vec![markdown::code(key), shown(value)])
                .collect();
            text.push_str(&format!("\n{}", markdown::table(&columns, &rows)));
        }
        text
    }

    /// A note without paths of this machine: names of sources replace their paths.
    fn without_paths(&self, note: &str) -> String {
        let paths = self.sources.iter().flat_map(|(name, path)| {
            // A note about a single weight file may name a file beside it.
            let beside = path.parent().filter(|_| path.is_file());
            let places = [Some(*path), beside].into_iter().flatten();
            places.map(|place| (place.display().to_string(), *name))
        });
        // Shells complete a folder with a slash.
        let paths = paths.map(|(path, name)| (path.trim_end_matches('/').to_owned(), name));
        let mut paths: Vec<(String, &str)> = paths.filter(|(path, _)| !path.is_empty()).collect();
        // A path may begin like another one.
        paths.sort_by_key(|(path, _)| std::cmp::Reverse(path.len()));
        paths.iter().fold(note.to_owned(), |note, (path, name)| {
            note.replace(&format!("{path}/"), &format!("{name}/"))
                .replace(&format!("{path}:"), &format!("{name}:"))
        })
    }

    /// The prompts of each expert.
    fn prompts(&self) -> String {
        let columns = ["expert", "prompts", "negative prompts"].map(|title| (title, Align::Left));
        let row = |expert: &PromptsOfExpert| {
            let name = markdown::text(&expert.name);
            vec![name, quoted(&expert.positive), quoted(&expert.negative)]
        };
        let rows: Vec<_> = self.prompts.iter().map(row).collect();
        format!(
            "The first rows of the routers were computed from these prompts:\n\n{}",
            markdown::table(&columns, &rows)
        )
    }
}

/// The value of a setting in a cell of a table.
fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => markdown::code(text),
        Value::Array(items) if !items.is_empty() => {
            let items: Vec<String> = items.iter().map(shown).collect();
            items.join(", ")
        }
        other => markdown::code(&other.to_string()),
    }
}

/// Prompts in one cell of a table, shortened where they are long or many.
fn quoted(prompts: &[String]) -> String {
    let shown = prompts.iter().take(MOST_PROMPTS).map(|prompt| {
        let mut characters = prompt.chars();
        let mut text: String = characters.by_ref().take(LONGEST_PROMPT).collect();
        if characters.next().is_some() {
            text.push('…');
        }
        markdown::code(&text)
    });
    let mut shown: Vec<String> = shown.collect();
    if prompts.len() > MOST_PROMPTS {
        shown.push(format!("and {} more", prompts.len() - MOST_PROMPTS));
    }
    shown.join(", ")
}

/// Every text that a source lists, each once, in the order of the sources.
fn union(facts: &[SourceFacts], of: fn(&SourceFacts) -> &Vec<String>) -> Vec<&String> {
    let mut all: Vec<&String> = Vec::new();
    for text in facts.iter().flat_map(of) {
        if !all.contains(&text) {
            all.push(text);
        }
    }
    all
}
