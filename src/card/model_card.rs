//! The card of a checkpoint that a command writes.

use std::path::Path;

use serde_json::{Map, Value};

use super::front_matter::{self, FrontMatter};
use super::licence::Licences;
use super::scores::{BITS_PER_BYTE, DataScore, PERPLEXITY, put_results};
use super::source::{SourceFacts, card_of};
use super::{experts, usage};
use crate::Result;
use crate::checkpoint::card_text::{
    COPY, PUBLISHED, RECIPE, sealed, unsealed, without_seal, without_section,
};
use crate::checkpoint::folder::CARD;
use crate::checkpoint::manifest::{MANIFEST, model_name};
use crate::family::Architecture;
use crate::markdown;
use crate::table::{Align, counted, grouped, number};

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
    /// The folder of the model that this one is a copy of, in the same or another form: its card's text is kept.
    pub copy_of: Option<&'a Path>,
}

/// The model of a card.
pub struct CardModel<'a> {
    /// What its configuration says.
    pub architecture: &'a Architecture,
    /// Names of its feed-forward experts; none if dense.
    pub experts: Vec<String>,
    /// Whether the checkpoint has a `tokenizer.json`.
    pub has_tokenizer: bool,
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

/// How a model was trained.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainingSummary {
    /// Steps taken.
    pub steps: u64,
    /// Tokens predicted.
    pub tokens: u64,
    /// The domains.
    pub data: Vec<TrainedOn>,
    /// Peak of the learning rate.
    pub learning_rate: f64,
    /// Its peak for routers.
    pub router_learning_rate: f64,
    /// Losses of the last step.
    pub last: Option<LastLosses>,
    /// Scores on held-back text.
    pub held_back: Vec<DataScore>,
    /// The step after which held-back text was scored.
    pub held_back_step: u64,
}

/// A domain of the training data.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainedOn {
    /// Its name.
    pub name: String,
    /// Its weight in the mixture of domains.
    pub weight: f64,
}

/// Losses of one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LastLosses {
    /// Everything that is minimised.
    pub loss: f64,
    /// Mean negative log-likelihood of a token, in nats.
    pub nll: f64,
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
        let text = match self.copy_of.and_then(written_card) {
            Some(written) => self.continued(front, &written, &licences)?,
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
        for base in facts.iter().filter_map(|facts| facts.repository.as_ref()) {
            if !bases.contains(&base) {
                bases.push(base);
            }
        }
        if let Some(relation) = self.relation.filter(|_| !bases.is_empty()) {
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
            let experts = experts::sentences(model.architecture, &model.experts);
            parts.extend(
                experts.map(|sentences| format!("## Routers and experts\n\n{sentences}\n")),
            );
            parts.push(usage::section(model.architecture, model.has_tokenizer));
        }
        parts.extend(self.training.as_ref().map(TrainingSummary::section));
        parts.push(format!("## How it was made\n\n{}", self.record(licences)));
        parts.join("\n")
    }

    /// A card that a person has written, with the keys that it lacks and a section about this copy.
    fn continued(
        &self,
        front: FrontMatter,
        written: &WrittenCard,
        licences: &Licences,
    ) -> Result<String> {
        let added = front.without(&written.keys).lines()?;
        let lines = format!("{}{added}", written.lines);
        let usage = self.model.as_ref().map_or_else(String::new, |model| {
            format!(
                "\n#{}",
                usage::section(model.architecture, model.has_tokenizer)
            )
        });
        let section = format!(
            "{}## About this copy\n\n{} The text above is the card of the model that it was made of.\n\n{}{usage}{}",
            COPY.begin,
            self.about,
            self.record(licences),
            COPY.end
        );
        let body = format!("{}\n\n{section}", written.body.trim_end());
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
                let cells = [*name, &model_name(path), &licences.of_source(name)];
                cells.map(markdown::text).to_vec()
            };
            let columns = ["source", "model", "licence"].map(|title| (title, Align::Left));
            let rows: Vec<_> = self.sources.iter().map(row).collect();
            text.push_str(&format!("\n{}", markdown::table(&columns, &rows)));
        }
        let conflicts = licences.conflicts();
        let conflicts = conflicts
            .iter()
            .map(|conflict| format!("- {}\n", markdown::text(conflict)));
        let conflicts: String = conflicts.collect();
        if !conflicts.is_empty() {
            text.push_str(&format!("\n{conflicts}"));
        }
        if !self.settings.is_empty() {
            let row = |(key, value): (&String, &Value)| {
                vec![markdown::code(key), markdown::code(&value.to_string())]
            };
            let columns = ["setting", "value"].map(|title| (title, Align::Left));
            let rows: Vec<_> = self.settings.iter().map(row).collect();
            text.push_str(&format!("\n{}", markdown::table(&columns, &rows)));
        }
        text
    }
}

impl TrainingSummary {
    fn section(&self) -> String {
        let weighted = self.data.iter().any(|data| data.weight != 1.0);
        let data = self.data.iter().map(|data| {
            let name = markdown::text(&data.name);
            if weighted {
                format!("{name} (weight {})", data.weight)
            } else {
                name
            }
        });
        let data: Vec<String> = data.collect();
        let routers = if self.router_learning_rate == self.learning_rate {
            String::new()
        } else {
            format!(" ({} for routers)", self.router_learning_rate)
        };
        let mut text = format!(
            "## Training\n\nTrained for {} on {} tokens of {}. The peak learning rate was {}{routers}.\n",
            counted(self.steps, "step"),
            grouped(self.tokens),
            data.join(", "),
            self.learning_rate
        );
        if let Some(last) = self.last {
            text.push_str(&format!(
                "The last step had a loss of {}, and a negative log-likelihood of {} nats per token.\n",
                number(last.loss),
                number(last.nll)
            ));
        }
        if !self.held_back.is_empty() {
            let columns = [
                ("domain", Align::Left),
                ("perplexity", Align::Right),
                ("bits per byte", Align::Right),
            ];
            let row = |score: &DataScore| {
                let metrics = [PERPLEXITY, BITS_PER_BYTE].map(|metric| score.shown(metric));
                std::iter::once(markdown::text(&score.data))
                    .chain(metrics)
                    .collect()
            };
            let rows: Vec<Vec<String>> = self.held_back.iter().map(row).collect();
            text.push_str(&format!(
                "Held-back text after step {}:\n\n{}",
                self.held_back_step,
                markdown::table(&columns, &rows)
            ));
        }
        text
    }

    /// Adds the scores to the front matter, where they are scores of this very checkpoint.
    fn put_results(&self, name: &str, front: &mut FrontMatter) {
        if self.held_back_step != self.steps {
            return;
        }
        put_results(name, &self.held_back, front);
    }
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

/// A card with words of a person.
struct WrittenCard {
    /// Lines of the front matter.
    lines: String,
    keys: Map<String, Value>,
    body: String,
}

/// The card of a folder, where a person has written or edited it, without the sections that commands write.
///
/// Front matter that is no YAML stays out of the new card, which could not be published with it.
fn written_card(folder: &Path) -> Option<WrittenCard> {
    let card = card_of(folder)?;
    let is_ours = unsealed(&card).is_some();
    let text = without_seal(&card);
    let copied = without_section(text, COPY);
    if is_ours && copied.is_none() {
        return None;
    }

    let mut text = copied.unwrap_or_else(|| text.to_owned());
    for marks in [RECIPE, PUBLISHED] {
        text = without_section(&text, marks).unwrap_or(text);
    }
    let path = folder.join(CARD);
    let (lines, body) = front_matter::split(&path, &text).unwrap_or(("", &text));
    let (lines, keys) = match front_matter::keys(&path, lines) {
        Ok(keys) => (lines, keys),
        Err(_) => ("", Map::new()),
    };
    let mut lines = lines.to_owned();
    if !lines.is_empty() && !lines.ends_with('\n') {
        lines.push('\n');
    }
    Some(WrittenCard {
        lines,
        keys,
        body: body.trim_start_matches(['\r', '\n']).to_owned(),
    })
}
