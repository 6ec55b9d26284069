//! What a model card says once its checkpoint is published: the repositories it was made of, its licence, its lineage and
//! how good it is. What a person has written stays as it is.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Map, Value};

use super::front_matter::{self, FrontMatter};
use super::licence::Licences;
use super::scores::{DataScore, replace_results};
use super::source::{SourceFacts, lineage};
use super::{evaluation, usage};
use crate::Result;
use crate::checkpoint::card_text::{PUBLISHED, unsealed, without_seal};
use crate::checkpoint::folder::CARD;
use crate::checkpoint::manifest::{MANIFEST, Manifest, SourceRecord};
use crate::checkpoint::yaml;
use crate::markdown;
use crate::table::{self, Align};

/// A checkpoint that is to be published.
pub struct Publication<'a> {
    /// Its folder.
    pub folder: &'a Path,
    /// Heading of its card, if it has no card yet.
    pub title: &'a str,
    /// Its manifest, as the folder has it.
    pub manifest: Option<&'a Manifest>,
    /// Its repository on the Hub.
    pub repository: &'a str,
    /// How good it is, as Markdown.
    pub evaluation: Option<String>,
    /// Its scores, for the Hub's `model-index`.
    pub scores: Vec<DataScore>,
}

impl Publication<'_> {
    /// The card of the folder, or a new one.
    ///
    /// # Errors
    /// A card that is not UTF-8, or whose front matter is no YAML.
    pub fn card(&self) -> Result<String> {
        let path = self.folder.join(CARD);
        let text = if path.exists() {
            yaml::read_text(&path)?
        } else {
            format!("# {}\n", markdown::text(self.title))
        };
        let (lines, body) = front_matter::split(&path, without_seal(&text))?;
        let known = front_matter::keys(&path, lines)?;
        let mut lines: Vec<&str> = lines.lines().collect();
        let added = self.added((&known, unsealed(&text).is_some()), &mut lines)?;
        let kept: String = lines.iter().map(|line| format!("{line}\n")).collect();

        let mut body = usage::published(body, self.repository);
        if let Some(tables) = &self.evaluation {
            body = evaluation::put(&body, tables);
        }
        let own = self.section();
        let body = match (body.find(PUBLISHED.begin), body.find(PUBLISHED.end)) {
            (Some(begin), Some(end)) if begin < end => {
                let after = body[end + PUBLISHED.end.len()..].trim_start_matches('\n');
                format!("{}{own}{after}", &body[..begin])
            }
            _ if own.is_empty() => body,
            _ => format!("{}\n\n{own}", body.trim_end()),
        };
        Ok(front_matter::joined(&format!("{kept}{added}"), &body))
    }

    /// Lines of front matter that the card lacks; removes from `lines` the keys that it gets anew.
    fn added(
        &self,
        (known, is_ours): (&Map<String, Value>, bool),
        lines: &mut Vec<&str>,
    ) -> Result<String> {
        let mut added = FrontMatter::default();
        if self.manifest.is_some() {
            added.text("library_name", "transformers");
            added.text("pipeline_tag", "text-generation");
        }
        self.licences().put(&mut added);
        let mut added = added.without(known);
        replace_results(
            self.title,
            &self.scores,
            (known, is_ours),
            lines,
            &mut added,
        );

        let bases = self.bases();
        if self.is_ours(known.get("base_model"), &bases) {
            front_matter::remove(lines, "base_model");
            // Nothing can be related to no model.
            if bases.is_empty() {
                front_matter::remove(lines, "base_model_relation");
            } else {
                if !known.contains_key("base_model_relation") {
                    let kind = if bases.len() == 1 {
                        "finetune"
                    } else {
                        "merge"
                    };
                    added.text("base_model_relation", kind);
                }
                added.list("base_model", &bases);
            }
        }
        added.lines()
    }

    /// Repositories of the models that it was made of, each once.
    fn bases(&self) -> Vec<String> {
        let mut bases = Vec::new();
        for source in self
            .manifest
            .into_iter()
            .flat_map(|manifest| &manifest.sources)
        {
            let nearest = match &source.repository {
                Some(repository) => vec![repository.clone()],
                None => SourceFacts::of(&self.folder.join(&source.path)).repositories,
            };
            for base in nearest {
                if !bases.contains(&base) {
                    bases.push(base);
                }
            }
        }
        bases
    }

    /// Whether no person has said what models it is made of: nothing is said, or what surgery and pushes write.
    fn is_ours(&self, said: Option<&Value>, bases: &[String]) -> bool {
        let said: Vec<&str> = match said {
            None => return true,
            Some(Value::String(one)) => vec![one],
            Some(Value::Array(many)) => many.iter().filter_map(Value::as_str).collect(),
            Some(_) => return false,
        };
        let mut names = BTreeSet::new();
        for folder in lineage(self.folder) {
            let sources = Manifest::read(&folder)
                .ok()
                .flatten()
                .map(|manifest| manifest.sources)
                .unwrap_or_default();
            names.extend(
                sources
                    .iter()
                    .flat_map(|source| [source.name.clone(), source.bare_name(&folder)]),
            );
        }
        said.iter()
            .all(|name| names.contains(*name) || bases.iter().any(|base| base == name))
    }

    fn licences(&self) -> Licences {
        let sources = self
            .manifest
            .into_iter()
            .flat_map(|manifest| &manifest.sources);
        let facts: Vec<(&str, SourceFacts)> = sources
            .map(|source| {
                let place = self.folder.join(&source.path);
                (source.name.as_str(), SourceFacts::of(&place))
            })
            .collect();
        Licences::of(facts.iter().map(|(name, facts)| (*name, facts)))
    }

    /// The lineage, between marks; nothing without a manifest.
    fn section(&self) -> String {
        self.manifest.map_or_else(String::new, |manifest| {
            let (begin, end) = (PUBLISHED.begin, PUBLISHED.end);
            format!("{begin}\n\n{}\n{end}\n", self.lineage(manifest))
        })
    }

    fn lineage(&self, manifest: &Manifest) -> String {
        let mut text = format!(
            "## Lineage\n\nMade with {} by bam-convert {}; `{MANIFEST}` has all of it.\n",
            markdown::code(&manifest.method),
            markdown::text(&manifest.tool.version)
        );
        if let Some(lineage) = &manifest.lineage {
            let data = lineage
                .data
                .iter()
                .map(|data| format!("{} (weight {})", markdown::text(&data.name), data.weight));
            text.push_str(&format!(
                "Trained for {} on {} of {}.\n",
                table::counted(lineage.step, "step"),
                table::counted(lineage.tokens, "token"),
                data.collect::<Vec<_>>().join(", ")
            ));
        }
        if !manifest.sources.is_empty() {
            let columns = [
                ("source", Align::Left),
                ("repository", Align::Left),
                ("commit", Align::Left),
            ];
            let row = |source: &SourceRecord| {
                let local = || {
                    let name = source.bare_name(self.folder);
                    if source.is_kept() {
                        format!("{name} (in this repository)")
                    } else {
                        format!("{name} (not on the Hub)")
                    }
                };
                let repository = source.repository.clone().unwrap_or_else(local);
                [
                    &source.name,
                    &repository,
                    source.commit.as_ref().unwrap_or(&String::new()),
                ]
                .map(|cell| markdown::text(cell))
                .to_vec()
            };
            let rows: Vec<_> = manifest.sources.iter().map(row).collect();
            text.push_str(&format!("\n{}", markdown::table(&columns, &rows)));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn card(text: &str, evaluation: Option<&str>) -> Result<String> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(CARD), text).unwrap();
        let evaluation = evaluation.map(str::to_owned);
        Publication {
            folder: folder.path(),
            title: "name",
            manifest: None,
            repository: "org/name",
            evaluation,
            scores: Vec::new(),
        }
        .card()
    }

    #[test]
    fn what_a_person_wrote_stays() {
        let text = "---\nlicense: mit\nbase_model: org/seed\n---\n\n# Mine\n\nWords.\n";
        assert_eq!(card(text, None).unwrap(), text);
        let once = card(text, Some("| a |\n")).unwrap();
        assert!(
            once.starts_with(text.trim_end()) && once.contains("## Evaluation"),
            "{once}"
        );
        // What is written anew is not written twice.
        let longer = format!("{once}\nAfterwards.\n");
        let twice = card(&longer, Some("| b |\n")).unwrap();
        assert!(
            twice.matches("## Evaluation").count() == 1 && twice.contains("| b |"),
            "{twice}"
        );
        assert!(twice.ends_with("Afterwards.\n"), "{twice}");
    }

    #[test]
    fn a_front_matter_without_an_end_is_refused() {
        assert!(card("---\nlicense: mit\n", None).is_err());
        assert!(card("---\nlicense: [\n---\n", None).is_err());
    }
}
