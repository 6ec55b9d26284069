//! What a model card says once its checkpoint is published: the repositories it was made of, its licence, its lineage and
//! how good it is. What a person has written stays as it is.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Map, Value};

use super::card;
use super::export_error::ExportError;
use super::licence::{Licences, lineage};
use crate::Result;
use crate::checkpoint::folder::CARD;
use crate::checkpoint::manifest::{MANIFEST, Manifest, Origin, SourceRecord};
use crate::checkpoint::yaml;
use crate::markdown;
use crate::table::{self, Align};

/// Around what is written anew each time.
const BEGIN: &str = "<!-- bam-convert: from here to the end mark, push writes this anew -->";
const END: &str = "<!-- bam-convert: end -->";

/// A checkpoint that is to be published.
pub struct Publication<'a> {
    /// Its folder.
    pub folder: &'a Path,
    /// Heading of its card, if it has no card yet.
    pub title: &'a str,
    /// Its manifest, as the folder has it.
    pub manifest: Option<&'a Manifest>,
    /// How good it is, as Markdown.
    pub evaluation: Option<String>,
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
        let (front, body) = split(&path, &text)?;
        let known: Map<String, Value> = if front.trim().is_empty() {
            Map::new()
        } else {
            yaml::parse(&path, front)?
        };
        let mut front: Vec<&str> = front.lines().collect();
        let mut added = String::new();
        if !known.contains_key("library_name") && self.manifest.is_some() {
            added.push_str("library_name: transformers\n");
        }
        if !known.contains_key("license") {
            added.push_str(&self.licence());
        }
        let bases = self.bases();
        if self.is_ours(known.get("base_model"), &bases) {
            remove(&mut front, "base_model");
            let relation = known.get("base_model_relation").and_then(Value::as_str);
            // Nothing can be related to no model.
            if bases.is_empty() {
                remove(&mut front, "base_model_relation");
            } else {
                added.push_str("base_model:\n");
                bases
                    .iter()
                    .for_each(|base| added.push_str(&format!("- {}\n", card::quoted(base))));
                if relation.is_none() {
                    let kind = if bases.len() == 1 {
                        "finetune"
                    } else {
                        "merge"
                    };
                    added.push_str(&format!("base_model_relation: {kind}\n"));
                }
            }
        }
        let front: String = front.iter().map(|line| format!("{line}\n")).collect();
        let front = match format!("{added}{front}") {
            empty if empty.trim().is_empty() => String::new(),
            lines => format!("---\n{lines}---\n"),
        };
        let own = self.section();
        let body = match (body.find(BEGIN), body.find(END)) {
            (Some(begin), Some(end)) if begin < end => {
                format!(
                    "{}{own}{}",
                    &body[..begin],
                    body[end + END.len()..].trim_start_matches('\n')
                )
            }
            _ if own.is_empty() => body.to_owned(),
            _ => format!("{}\n\n{own}", body.trim_end()),
        };
        let gap = if front.is_empty() || body.starts_with('\n') {
            ""
        } else {
            "\n"
        };
        Ok(format!("{front}{gap}{body}"))
    }

    /// Repositories of the models that it was made of, each once.
    fn bases(&self) -> Vec<String> {
        let mut bases = Vec::new();
        for source in self
            .manifest
            .into_iter()
            .flat_map(|manifest| &manifest.sources)
        {
            let nearest = || {
                let folders = lineage(&self.folder.join(&source.path));
                folders
                    .iter()
                    .find_map(|folder| Origin::of(folder, &[]))
                    .map(|(repository, _)| repository)
            };
            let base = source.repository.clone().or_else(nearest);
            bases.extend(base.filter(|base| !bases.contains(base)));
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

    fn licence(&self) -> String {
        let sources = self
            .manifest
            .into_iter()
            .flat_map(|manifest| &manifest.sources);
        let paths: Vec<_> = sources
            .map(|source| (source.name.as_str(), self.folder.join(&source.path)))
            .collect();
        Licences::of(paths.iter().map(|(name, path)| (*name, path.as_path()))).front_matter()
    }

    /// Lineage and evaluation, between marks; nothing where neither is known.
    fn section(&self) -> String {
        let mut parts = Vec::new();
        if let Some(manifest) = self.manifest {
            parts.push(self.lineage(manifest));
        }
        if let Some(tables) = &self.evaluation {
            parts.push(format!("## Evaluation\n\n{tables}"));
        }
        if parts.is_empty() {
            String::new()
        } else {
            format!("{BEGIN}\n\n{}\n{END}\n", parts.join("\n"))
        }
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
                let local = || format!("{} (not on the Hub)", source.bare_name(self.folder));
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

/// Front matter and what follows it; the front matter is empty where the text has none.
fn split<'t>(path: &Path, text: &'t str) -> Result<(&'t str, &'t str)> {
    let Some(rest) = text
        .strip_prefix("---\n")
        .or_else(|| text.strip_prefix("---\r\n"))
    else {
        return Ok(("", text));
    };
    let mut start = 0;
    for line in rest.split_inclusive('\n') {
        if line.trim_end() == "---" {
            return Ok((&rest[..start], &rest[start + line.len()..]));
        }
        start += line.len();
    }
    let path = path.to_path_buf();
    Err(ExportError::FrontMatter { path }.into())
}

/// Removes a key and the lines that belong to it.
fn remove(lines: &mut Vec<&str>, key: &str) {
    let is_key = |line: &&str| {
        line.strip_prefix(key)
            .is_some_and(|rest| rest.starts_with(':'))
    };
    let Some(at) = lines.iter().position(is_key) else {
        return;
    };
    let belongs = |line: &&&str| line.starts_with([' ', '\t', '-']);
    let count = lines[at + 1..].iter().take_while(belongs).count();
    lines.drain(at..=at + count);
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
            evaluation,
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

    #[test]
    fn keys_go_with_their_lines() {
        let mut lines = vec!["a: 1", "b:", "- x", "  y", "bc: 2"];
        remove(&mut lines, "b");
        assert_eq!(lines, ["a: 1", "bc: 2"]);
    }
}
