//! The recipe of a checkpoint, put into its manifest and on its card once its stage has ended well.
//!
//! The runner does so, and not the stage: only the runner knows what the stage follows from, and any command that writes a
//! manifest gets its recipe the same way. Both files are replaced as a whole; a run that is killed between leaves a stage
//! that did not end.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::confine::leads_below;
use super::graph::{Graph, Makers};
use super::lines::SettingValue;
use super::recipe_text;
use super::record::{Record, Records};
use super::runner::Runner;
use super::sources::Sources;
use super::stage::Stage;
use crate::Result;
use crate::arguments::ArgumentRole;
use crate::checkpoint::CheckpointError;
use crate::checkpoint::card_text::{RECIPE, sealed, unsealed, with_section};
use crate::checkpoint::filesystem::folder_of;
use crate::checkpoint::folder::CARD;
use crate::checkpoint::manifest::{MANIFEST, Manifest, Origin, relative_to};
use crate::checkpoint::recipe::{RecipeRecord, StageRecord};
use crate::checkpoint::reference::SCHEME;
use crate::checkpoint::{json, single};
use crate::markdown;

impl Runner<'_> {
    /// Puts the recipe into every checkpoint that a stage has just made, and into nothing else; says why, where that cannot
    /// be done truthfully.
    pub(super) fn record_recipe(
        &self,
        stages: &[Stage],
        graph: &Graph,
        number: usize,
        record: &Record,
    ) -> Result<Option<String>> {
        let stage = &stages[number];
        let records = self.records();
        let mut folders = Vec::new();
        for output in stage.outputs.iter().filter(|_| stage.makes_manifests) {
            let files = records.files(output)?.into_iter();
            folders.extend(
                files
                    .filter(|file| file.ends_with(MANIFEST))
                    .map(|file| folder_of(&file).to_path_buf()),
            );
        }
        if folders.is_empty() {
            return Ok(None);
        }
        let (line, why) = self.line_of_descent(&records, stages, graph, number)?;
        if why.is_some() {
            return Ok(why);
        }
        let makers = Makers::of_stages(stages, self.work)?;
        let sources = Sources::of(
            line.iter().map(|n| &stages[*n]),
            &makers,
            self.variables,
            self.work,
        )?;
        let mut read = Vec::with_capacity(line.len());
        for n in &line {
            read.extend(records.read(&stages[*n])?);
        }
        read.pop();
        read.push(record.clone());
        let mut made = Vec::with_capacity(line.len());
        for (n, record) in line.iter().zip(&read) {
            let mut made_here = stage_record(&stages[*n], &sources, record);
            self.pin(&records, &stages[*n], &mut made_here)?;
            made_here.needs = graph
                .needs(*n)
                .iter()
                .map(|needed| stages[*needed].name.clone())
                .collect();
            if *n != number {
                made_here.outputs = records.output_hashes(&stages[*n], &read)?;
            }
            made.push(made_here);
        }
        if let Some(why) = unaccounted(&made) {
            return Ok(Some(why));
        }
        for output in folders {
            let folder = self.work.join(&output);
            let place = |place: &String| relative_to(&self.work.join(place), &folder);
            let named = sources
                .named
                .iter()
                .map(|(name, root)| Ok((name.clone(), place(root)?)));
            let recipe = RecipeRecord {
                output: output.to_string_lossy().into_owned(),
                sources: named.collect::<Result<_>>()?,
                stages: made.clone(),
            };
            write(&folder, recipe, &recipe_text::of(&made, &sources.named)?)?;
        }
        Ok(None)
    }

    /// Repositories of the Hub that a stage took something from, each at the commit that it was.
    fn pin(&self, records: &Records, stage: &Stage, record: &mut StageRecord) -> Result<()> {
        let mut commits = BTreeMap::new();
        for output in stage.outputs.iter().filter(|_| stage.is_own) {
            for file in records.files(output)? {
                let folder = self.work.join(folder_of(&file));
                if file.ends_with(MANIFEST) && stage.makes_manifests {
                    let sources = Manifest::read(&folder)?
                        .into_iter()
                        .flat_map(|manifest| manifest.sources);
                    commits.extend(
                        sources.filter_map(|source| Some((source.repository?, source.commit?))),
                    );
                } else if !stage.makes_manifests {
                    commits.extend(Origin::of(&folder, &[]));
                }
            }
        }
        for (key, values) in &mut record.settings {
            let mut settings = stage.settings.iter();
            let role = settings
                .find(|setting| setting.key == *key)
                .and_then(|setting| setting.role);
            let names_one = |value: &str| match role {
                Some(ArgumentRole::Checkpoint) => value.contains(SCHEME),
                role => role == Some(ArgumentRole::Repository),
            };
            for value in values.iter_mut().filter(|value| names_one(value)) {
                let pinned = commits
                    .iter()
                    .find_map(|(repository, commit)| at_commit(value, repository, commit));
                *value = pinned.unwrap_or_else(|| value.clone());
            }
        }
        Ok(())
    }

    /// A stage and all that it follows from, in order; and what of them is not as the recipe has it.
    fn line_of_descent(
        &self,
        records: &Records,
        stages: &[Stage],
        graph: &Graph,
        number: usize,
    ) -> Result<(BTreeSet<usize>, Option<String>)> {
        let mut line = BTreeSet::from([number]);
        let mut next = vec![number];
        while let Some(stage) = next.pop() {
            next.extend(
                graph
                    .needs(stage)
                    .iter()
                    .filter(|needed| line.insert(**needed)),
            );
        }
        for stage in line.iter().map(|n| &stages[*n]) {
            if let Some(output) = stage.outputs.iter().find(|output| !leads_below(output)) {
                let why = format!(
                    "stage `{}` makes {} outside the work folder",
                    stage.name,
                    output.display()
                );
                return Ok((line, Some(why)));
            }
        }
        for stage in line.iter().filter(|n| **n != number).map(|n| &stages[*n]) {
            if let Some(reason) = records.reason(stage, records.read(stage)?.as_ref())? {
                let why = format!("stage `{}` did not make its output: {reason}", stage.name);
                return Ok((line, Some(why)));
            }
        }
        Ok((line, None))
    }
}

/// A value that names a repository, `[hf://]ORG/NAME[@REVISION]`, with the commit for its revision.
fn at_commit(value: &str, repository: &str, commit: &str) -> Option<String> {
    let at = value.find(repository)?;
    let (before, after) = (&value[..at], &value[at + repository.len()..]);
    let is_whole = before.is_empty() || before.ends_with(SCHEME);
    let rest = match after.strip_prefix('@') {
        Some(revision) => revision.find(':').map_or("", |colon| &revision[colon..]),
        None if after.is_empty() || after.starts_with(':') => after,
        None => return None,
    };
    is_whole.then(|| format!("{before}{repository}@{commit}{rest}"))
}

/// An input that neither a stage made nor a source holds: put among what a stage made.
fn unaccounted(stages: &[StageRecord]) -> Option<String> {
    let made: BTreeSet<&String> = stages
        .iter()
        .flat_map(|stage| stage.outputs.keys())
        .collect();
    let strange = |path: &&String| !path.starts_with("${") && !made.contains(path);
    let found = stages
        .iter()
        .find_map(|stage| Some((stage, stage.inputs.keys().find(strange)?)));
    found.map(|(stage, path)| format!("stage `{}` read {path}, which no stage made", stage.name))
}

/// The settings of a stage, and the hashes of what it has read.
fn stage_record(stage: &Stage, sources: &Sources, record: &Record) -> StageRecord {
    let text = |role: Option<ArgumentRole>, value: &SettingValue| match role {
        Some(role) if role.is_read() => sources.in_value(value),
        None if !stage.is_own => sources.in_command(&value.text),
        _ => value.text.clone(),
    };
    let settings = stage.settings.iter().map(|setting| {
        let values = setting.values.iter();
        let values = values.map(|value| text(setting.role, value));
        (setting.key.clone(), values.collect())
    });
    let inputs = record
        .input_hashes()
        .into_iter()
        .map(|(path, sha256)| (sources.in_path(&path), sha256));
    StageRecord {
        name: stage.name.clone(),
        command: stage.kind().to_owned(),
        settings: settings.collect(),
        stdout: stage
            .stdout
            .as_ref()
            .map(|file| file.to_string_lossy().into_owned()),
        needs: Vec::new(),
        inputs: inputs.collect(),
        outputs: Default::default(),
    }
}

/// Puts the recipe into the manifest of a checkpoint, and its text on the card, if the card is one that people edit.
fn write(folder: &Path, recipe: RecipeRecord, text: &str) -> Result<()> {
    let Some(mut manifest) = Manifest::read(folder)? else {
        return Ok(());
    };
    if manifest.unhashed_files.iter().any(|file| file == CARD) {
        let card = folder.join(CARD);
        let old = String::from_utf8(json::read_bytes(&card)?).map_err(|e| {
            let (path, problem) = (card.clone(), e.to_string());
            CheckpointError::NotUtf8 { path, problem }
        })?;
        // The seal goes below the recipe where nobody has edited the card.
        let new = match unsealed(&old) {
            Some(old) => sealed(&with_recipe(old, text)),
            None => with_recipe(&old, text),
        };
        single::write(&card, &[new.as_bytes()])?;
    }
    manifest.recipe = Some(recipe);
    single::write(&folder.join(MANIFEST), &[&manifest.to_bytes()])
}

/// The card with the recipe as it is published, where it has one. Sources are on the Hub, or have no place.
///
/// # Errors
/// A recipe that cannot be written as YAML.
pub fn published_card(card: &str, recipe: &RecipeRecord) -> Result<String> {
    if !card.contains(RECIPE.begin) || !card.contains(RECIPE.end) {
        return Ok(card.to_owned());
    }
    let text = recipe_text::of(&recipe.stages, &recipe.sources)?;
    Ok(with_recipe(card, &text))
}

/// The card with this recipe in the place of another that it may have.
fn with_recipe(card: &str, text: &str) -> String {
    let content = format!(
        "## How to make it again\n\n`bam-convert run --from-manifest DIR`, with this folder for DIR, runs this recipe \
         and compares what it makes with\nthis checkpoint. `{MANIFEST}` has the SHA-256 of every file that the stages read \
         and made.\n\n{}",
        markdown::block("yaml", text)
    );
    with_section(card, RECIPE, &content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn revisions_become_commits() {
        let at = |value: &str| at_commit(value, "org/name", "0123");
        assert_eq!(at("org/name").as_deref(), Some("org/name@0123"));
        assert_eq!(
            at("a=hf://org/name@main:0.5").as_deref(),
            Some("a=hf://org/name@0123:0.5")
        );
        assert_eq!(
            (
                at("hf://org/names"),
                at("hf://my-org/name"),
                at("x/org/name")
            ),
            (None, None, None)
        );
    }

    #[test]
    fn a_card_has_one_recipe() {
        let once = with_recipe("# A model\n\nWords.\n", "stages: 1\n");
        assert!(
            once.starts_with("# A model\n\nWords.\n\n<!-- recipe -->\n## How"),
            "{once}"
        );
        let twice = with_recipe(&once.replace("stages: 1", "stages: 0"), "stages: 1\n");
        assert_eq!(twice, once);
    }
}
