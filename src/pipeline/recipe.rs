//! A recipe as it is written, and the stages that it means.

use std::path::{Path, PathBuf};

use serde_saphyr::Spanned;

use super::error::PipelineError;
use super::expand::{STAGE, Scope, refers_to};
use super::graph::Makers;
use super::lines::text;
use super::program::Program;
use super::recipe_error::RecipeError;
use super::slurm::resources::{self, SLURM};
use super::stage::{Stage, Written};
use super::yaml::{self, Node, unknown_key, wrong_kind};
use crate::checkpoint::filesystem::folder_of;
use crate::checkpoint::manifest::relative_to;
use crate::checkpoint::version;
use crate::checkpoint::yaml::place;
use crate::error::Location;
use crate::printable::{is_printable, printable};
use crate::{Error, Result};

/// Keys at the top of a recipe.
pub(super) const KEYS: [&str; 6] = [
    FORMAT_VERSION_KEY,
    "description",
    "work",
    "variables",
    SLURM,
    "stages",
];
/// The key of the version, and the one that is read; a recipe without the key has it.
const FORMAT_VERSION_KEY: &str = "format_version";
pub(super) const FORMAT_VERSION: u64 = 1;
/// Keys of a stage beside its command.
pub(super) const STAGE_KEYS: [&str; 4] = ["name", "for_each", "stdout", SLURM];
/// Most stages that one entry may stand for.
const MOST_STAGES: usize = 10_000;
/// The folder of the recipe, as seen from the work folder.
const RECIPE: &str = "recipe";

/// A recipe, read and not yet resolved.
#[derive(Debug)]
pub struct Recipe {
    path: PathBuf,
    work: Option<String>,
    variables: Vec<(Spanned<String>, Spanned<String>)>,
    slurm: Option<Spanned<Node>>,
    stages: Vec<Spanned<Node>>,
}

impl Recipe {
    /// Reads a recipe.
    ///
    /// # Errors
    /// Where it is no YAML, has unknown keys, or lacks stages; the place is `FILE:LINE:COLUMN`.
    pub fn read(path: &Path) -> Result<Self> {
        Self::from_tree(path, yaml::read(path)?)
    }

    /// Reads a recipe from its text; `path` only names the place in errors, and its folder is the recipe's.
    pub(super) fn parse(path: &Path, text: &str) -> Result<Self> {
        Self::from_tree(path, yaml::parse(path, text)?)
    }

    fn from_tree(path: &Path, tree: Spanned<Node>) -> Result<Self> {
        let (work, variables, slurm, stages) = Default::default();
        let mut recipe = Self {
            path: path.to_path_buf(),
            work,
            variables,
            slurm,
            stages,
        };
        let keys = map(path, &tree, "the keys of a recipe")?;
        // Before anything else: a later version may give every other key another meaning.
        if let Some((_, value)) = keys.iter().find(|(key, _)| key.value == FORMAT_VERSION_KEY) {
            let written = scalar(path, value)?.value;
            let found = serde_json::from_str(&written).unwrap_or_else(|_| written.into());
            let place = place(path, value.referenced);
            version::check(place, FORMAT_VERSION_KEY, Some(&found), FORMAT_VERSION)?;
        }
        for (key, value) in keys {
            match key.value.as_str() {
                FORMAT_VERSION_KEY => {}
                "description" => drop(scalar(path, value)?),
                "work" => recipe.work = Some(read_work(path, value)?),
                "variables" => recipe.variables = read_variables(path, value)?,
                SLURM => recipe.slurm = Some(value.clone()),
                "stages" => match &value.value {
                    Node::List(stages) => recipe.stages.clone_from(stages),
                    _ => return Err(wrong_kind(path, value, "a list of stages")),
                },
                _ => return Err(unknown_key(path, key, "a recipe", &KEYS)),
            }
        }
        if recipe.stages.is_empty() {
            let at = place(path, tree.referenced);
            return Err(RecipeError::NoStages { at }.into());
        }
        Ok(recipe)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder to work in: as chosen, else the recipe's `work`, else one named after it, in the current folder.
    pub fn work(&self, chosen: Option<&Path>) -> PathBuf {
        let named = || self.work.clone().map(PathBuf::from);
        let stem = || self.path.file_stem().map(PathBuf::from);
        chosen
            .map(Path::to_path_buf)
            .or_else(named)
            .or_else(stem)
            .unwrap_or_else(|| PathBuf::from("work"))
    }

    /// The variables in order, each with its value: as `set` has it, else as the recipe does.
    ///
    /// # Errors
    /// Where `set` names no variable, or a value refers to none.
    pub fn variables(
        &self,
        set: &[(String, String)],
        work: &Path,
    ) -> Result<Vec<(String, String)>> {
        self.scope(set, work).map(|(_, values)| values)
    }

    /// The stages in order, each with its command line as `program` defines it.
    ///
    /// `set` replaces values of variables. Stages with `for_each` come once for each combination of its values.
    ///
    /// # Errors
    /// Whatever a command would refuse of its arguments alone, unknown keys, names and variables, with the place of each.
    pub fn stages(
        &self,
        set: &[(String, String)],
        work: &Path,
        program: &Program,
    ) -> Result<Vec<Stage>> {
        let program = program.built();
        let (mut scope, _) = self.scope(set, work)?;
        let mut stages: Vec<Stage> = Vec::new();
        let mut makers = Makers::new(work)?;
        for (entry, tree) in self.stages.iter().enumerate() {
            // What a stage uses is its own.
            scope = scope.unused();
            for mut stage in self.resolve(tree, &program, &mut scope)? {
                stage.entry = entry;
                let at = || place(&self.path, tree.referenced);
                if stages.iter().any(|other| other.name == stage.name) {
                    let (at, name) = (at(), stage.name);
                    return Err(RecipeError::RepeatedStage { at, name }.into());
                }
                for output in &stage.outputs {
                    let mut others = makers.of(output).into_iter();
                    match others.find(|other| *other != stages.len()) {
                        Some(other) => {
                            return Err(made_twice(at(), &stage, output, &stages[other]).into());
                        }
                        None => makers.insert(output, stages.len()),
                    }
                }
                stages.push(stage);
            }
        }
        Ok(stages)
    }

    /// What names stand for before the first stage, and the variables among them.
    fn scope(
        &self,
        set: &[(String, String)],
        work: &Path,
    ) -> Result<(Scope, Vec<(String, String)>)> {
        let folder = folder_of(&self.path);
        let mut scope = Scope::new([(RECIPE.to_owned(), relative_to(folder, work)?)]);
        for (name, _) in set {
            let known = || self.variables.iter().map(|(name, _)| &name.value);
            if !known().any(|known| known == name) {
                let error = PipelineError::NoVariable {
                    path: self.path.clone(),
                    name: name.clone(),
                    known: known().cloned().collect(),
                };
                return Err(error.into());
            }
        }
        let mut values = Vec::with_capacity(self.variables.len());
        for (name, value) in &self.variables {
            let chosen = set.iter().rev().find(|(set, _)| *set == name.value);
            let value = match chosen {
                Some((_, value)) => value.clone(),
                None => text(&self.path, value.referenced, &value.value, &scope)?,
            };
            scope.insert(name.value.clone(), value.clone());
            values.push((name.value.clone(), value));
        }
        Ok((scope, values))
    }

    /// One entry of the list: a stage for each combination of its loop's values.
    fn resolve(
        &self,
        tree: &Spanned<Node>,
        program: &Program,
        scope: &mut Scope,
    ) -> Result<Vec<Stage>> {
        let path = &self.path;
        let Entry {
            written,
            slurm,
            loops,
        } = self.entry(tree, program, scope)?;
        let name = &written.name;
        let mut stages = Vec::new();
        for values in combinations(&loops) {
            let mut inner = scope.clone();
            loops
                .iter()
                .zip(values)
                .for_each(|((name, _), value)| inner.insert(name.value.clone(), value));
            let mut stage = written.resolve(program, &inner)?;
            for asked in self.slurm.iter().chain(slurm) {
                resources::read(path, asked, &inner, &mut stage.slurm)?;
            }
            stages.push(stage);
        }
        for (variable, _) in &loops {
            if !refers_to(&name.value, &variable.value) {
                let at = place(path, name.referenced);
                let variable = variable.value.clone();
                return Err(RecipeError::LoopName { at, variable }.into());
            }
        }
        for stage in &stages {
            if let Some(output) = stage.outputs.first() {
                scope.insert(
                    format!("{STAGE}{}", stage.name),
                    output.to_string_lossy().into_owned(),
                );
            }
        }
        Ok(stages)
    }

    /// Reads an entry of the list, without a look at the settings of its command.
    fn entry<'a>(
        &'a self,
        tree: &'a Spanned<Node>,
        program: &Program,
        scope: &Scope,
    ) -> Result<Entry<'a>> {
        let path = &self.path;
        let (mut name, mut stdout, mut command, mut slurm, mut loops) =
            (None, None, None, None, Vec::new());
        for (key, value) in map(path, tree, "the keys of a stage")? {
            match key.value.as_str() {
                "name" => name = Some(scalar(path, value)?),
                "stdout" => stdout = Some(scalar(path, value)?),
                "for_each" => loops = self.loops(value, scope)?,
                SLURM => slurm = Some(value),
                _ if command.is_some() => return Err(second_command(path, key, program)),
                _ => command = Some((key, value)),
            }
        }
        let Some(name) = name else {
            let at = place(path, tree.referenced);
            return Err(RecipeError::NoName { at }.into());
        };
        let Some((command, settings)) = command else {
            let error = RecipeError::NoCommand {
                at: place(path, tree.referenced),
                stage: name.value,
                known: program.stage_commands(),
            };
            return Err(error.into());
        };
        let written = Written {
            recipe: path,
            name,
            command,
            settings,
            stdout,
        };
        Ok(Entry {
            written,
            slurm,
            loops,
        })
    }

    fn loops(
        &self,
        tree: &Spanned<Node>,
        scope: &Scope,
    ) -> Result<Vec<(Spanned<String>, Vec<String>)>> {
        let path = &self.path;
        let (mut loops, mut count) = (Vec::new(), 1usize);
        for (name, values) in map(path, tree, "variables with lists of values")? {
            if scope.contains(&name.value) {
                let at = place(path, name.referenced);
                let name = name.value.clone();
                return Err(RecipeError::RepeatedVariable { at, name }.into());
            }
            let Node::List(items) = &values.value else {
                return Err(wrong_kind(path, values, "a list of values"));
            };
            let items = items.iter().map(|item| {
                let item = scalar(path, item)?;
                text(path, item.referenced, &item.value, scope)
            });
            let items: Vec<String> = items.collect::<Result<_>>()?;
            count = count.saturating_mul(items.len());
            if count > MOST_STAGES {
                let error = RecipeError::ManyCombinations {
                    at: place(path, values.referenced),
                    most: MOST_STAGES,
                    found: count,
                };
                return Err(error.into());
            }
            loops.push((name.clone(), items));
        }
        Ok(loops)
    }
}

/// An entry of the list of stages.
struct Entry<'a> {
    written: Written<'a>,
    /// What it asks of Slurm.
    slurm: Option<&'a Spanned<Node>>,
    /// Variables with their values, of which each combination is a stage.
    loops: Vec<(Spanned<String>, Vec<String>)>,
}

/// The work folder that the recipe names.
fn read_work(path: &Path, value: &Spanned<Node>) -> Result<String> {
    let work = scalar(path, value)?;
    // A line break in it would be a line of the script of a job.
    if work.value.chars().all(is_printable) {
        return Ok(work.value);
    }
    let error = RecipeError::Work {
        at: place(path, work.referenced),
        found: printable(&work.value),
    };
    Err(error.into())
}

/// The variables with their values, as they are written.
fn read_variables(
    path: &Path,
    value: &Spanned<Node>,
) -> Result<Vec<(Spanned<String>, Spanned<String>)>> {
    let variable = |(name, value): &(Spanned<String>, Spanned<Node>)| {
        if name.value == RECIPE || name.value.starts_with(STAGE) {
            let at = place(path, name.referenced);
            let name = name.value.clone();
            return Err(RecipeError::ReservedName { at, name }.into());
        }
        Ok((name.clone(), scalar(path, value)?))
    };
    let variables = map(path, value, "variables with their values")?;
    variables.iter().map(variable).collect()
}

/// The refusal of an output that `other` makes, or that holds or is inside one of its outputs.
fn made_twice(at: Location, stage: &Stage, output: &Path, other: &Stage) -> RecipeError {
    if other.outputs.iter().any(|made| made == output) {
        RecipeError::RepeatedOutput {
            at,
            stage: stage.name.clone(),
            output: output.to_path_buf(),
        }
    } else {
        RecipeError::OverlappingOutput {
            at,
            stage: stage.name.as_str().into(),
            output: output.display().to_string().into(),
            other: other.name.as_str().into(),
        }
    }
}

/// The refusal of a key after the command of a stage.
fn second_command(path: &Path, key: &Spanned<String>, program: &Program) -> Error {
    let mut known = STAGE_KEYS.to_vec();
    let commands = program.stage_commands();
    known.extend(commands.iter().map(String::as_str));
    if known.contains(&key.value.as_str()) {
        let at = place(path, key.referenced);
        RecipeError::SecondCommand { at }.into()
    } else {
        unknown_key(path, key, "a stage", &known)
    }
}

/// Every combination of values, the last variable running fastest; one empty one of no variables.
fn combinations(loops: &[(Spanned<String>, Vec<String>)]) -> Vec<Vec<String>> {
    loops.iter().fold(vec![Vec::new()], |heads, (_, values)| {
        let longer = |head: &Vec<String>| -> Vec<Vec<String>> {
            values
                .iter()
                .map(|value| head.iter().chain([value]).cloned().collect())
                .collect()
        };
        heads.iter().flat_map(longer).collect()
    })
}

fn map<'a>(
    path: &Path,
    node: &'a Spanned<Node>,
    what: &'static str,
) -> Result<&'a [(Spanned<String>, Spanned<Node>)]> {
    match &node.value {
        Node::Map(entries) => Ok(entries),
        Node::Scalar(None) => Ok(&[]),
        Node::Scalar(Some(_)) | Node::List(_) => Err(wrong_kind(path, node, what)),
    }
}

fn scalar(path: &Path, node: &Spanned<Node>) -> Result<Spanned<String>> {
    match &node.value {
        Node::Scalar(Some(value)) => Ok(at(node.referenced, value)),
        _ => Err(wrong_kind(path, node, "a single value")),
    }
}

fn at(place: serde_saphyr::Location, value: &str) -> Spanned<String> {
    Spanned::new(value.to_owned(), place, place)
}
