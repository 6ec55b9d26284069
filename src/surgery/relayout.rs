//! A mixture in another format: of another family where that one holds it exactly, with experts one by one or all of a layer in one
//! tensor.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::{Map, json};

use super::convert::{ConvertedModel, SOURCE, add_card, converted, files_beside, is_neutral};
use super::execute::OutputFile;
use super::export_error::ExportError;
use super::fit_error::FitError;
use super::fused::put_together;
use super::init::fresh;
use super::mapping::neutral;
use super::model::companions;
use super::plan::{Plan, PlannedTensor, Source};
use super::side_files;
use crate::Result;
use crate::checkpoint::dtype::{self, Dtype};
use crate::checkpoint::expression::Expression;
use crate::checkpoint::folder::Checkpoint;
use crate::family::{self, Architecture, Config, ExpertLayout, Output, Place, Role, expert_names};

/// What to make of a mixture.
#[derive(Clone, Copy, Debug)]
pub struct Form<'a> {
    /// The family; the mixture's own where absent.
    pub to: Option<&'a str>,
    /// How its experts are stored; one by one where absent.
    pub layout: Option<ExpertLayout>,
    /// Dtype of floating-point tensors; theirs where absent.
    pub dtype: Option<Dtype>,
}

/// Plans the mixture in the folder `path` in another form.
///
/// # Errors
/// Whatever the family cannot hold, and a source that is no mixture in a folder.
pub fn plan(path: &Path, form: &Form) -> Result<(Plan, Architecture, Vec<OutputFile>)> {
    let checkpoint = Checkpoint::open(path)?;
    let Some(folder) = checkpoint
        .folder()
        .filter(|_| checkpoint.described.is_none())
        .map(Path::to_path_buf)
    else {
        let path = path.to_path_buf();
        return Err(ExportError::NotFolder { path }.into());
    };
    let config = Config::read(&folder)?;
    let architecture = Architecture::of(&config)?;
    let checkpoint = architecture.with_tied_embedding(checkpoint)?;
    let Some(mixture) = architecture.mixture.clone() else {
        let path = config.path.clone();
        return Err(FitError::DenseAsMixture { path }.into());
    };
    let target = form.to.unwrap_or(&architecture.family);
    let Output {
        architecture: wanted,
        config: mut json,
        notes,
    } = family::output(&architecture, &config, mixture, target)?;
    if let Some(dtype) = form.dtype {
        family::say_dtype(&mut json, dtype);
    }
    let wanted = Architecture {
        dtype: form.dtype.or(wanted.dtype),
        ..wanted
    };
    let stored = Stored::new(&architecture, checkpoint, form.dtype)?;
    let tensors = stored.tensors(
        &architecture,
        &wanted,
        form.layout.unwrap_or(ExpertLayout::Classic),
    )?;
    let mut files = vec![side_files::json_file("config.json", &json)];
    if wanted.is_bam() {
        files.extend(side_files::model_code());
    }
    files.extend(side_files::copies(companions(&folder)?));
    let mut settings = Map::new();
    settings.insert("to".to_owned(), json!(target));
    if let Some(layout) = form.layout {
        settings.insert("layout".to_owned(), json!(layout));
    }
    if let Some(dtype) = form.dtype {
        settings.insert("dtype".to_owned(), json!(dtype::name(dtype)));
    }
    let source = Source {
        name: SOURCE.to_owned(),
        side_files: files_beside(&folder),
        checkpoint: stored.checkpoint,
        kept: false,
    };
    let experts = expert_names(&folder, &architecture)?;
    add_card(
        &mut files,
        ConvertedModel {
            source: &source,
            settings: &settings,
            architecture: Some(&wanted),
            has_neutral_shared_expert: is_neutral(Some(&wanted), &tensors, &source)?,
            experts,
            tensors: &tensors,
            has_rounded: false,
            remark: None,
            notes: &notes,
        },
    )?;
    let mut plan = converted(source, tensors, settings);
    plan.notes.extend(notes);
    Ok((plan, wanted, files))
}

/// The tensors of the source by what they are.
struct Stored {
    checkpoint: Checkpoint,
    /// Each with the dtype of the output.
    found: BTreeMap<Place, (Dtype, Expression)>,
}

impl Stored {
    fn new(
        architecture: &Architecture,
        checkpoint: Checkpoint,
        dtype: Option<Dtype>,
    ) -> Result<Self> {
        let specs = architecture.tensors()?;
        let apart = architecture.as_read(Checkpoint::open(&checkpoint.path)?)?;
        architecture.match_tensors(&specs, &apart)?;
        let mut found = BTreeMap::new();
        for spec in &specs {
            let stored = apart
                .tensor(&spec.name)?
                .encoding
                .plain()
                .unwrap_or(Dtype::F32);
            let wanted = if dtype::is_float(stored) {
                dtype.unwrap_or(stored)
            } else {
                stored
            };
            let of = apart.expression(SOURCE, &spec.name);
            let expression = if wanted == stored {
                of
            } else {
                Expression::Cast { of: Box::new(of) }
            };
            found.insert(spec.place(), (wanted, expression));
        }
        Ok(Self { checkpoint, found })
    }

    fn tensors(
        &self,
        architecture: &Architecture,
        wanted: &Architecture,
        layout: ExpertLayout,
    ) -> Result<Vec<PlannedTensor>> {
        let specs = wanted.tensors()?;
        let mut left = self.found.clone();
        let usual = self
            .found
            .get(&(Role::Embedding, false, None, None))
            .map_or(Dtype::BF16, |(dtype, _)| *dtype);
        let mut tensors = Vec::with_capacity(specs.len());
        for spec in &specs {
            let (dtype, expression) = match left.remove(&spec.place()) {
                Some(found) => found,
                None => (
                    usual,
                    neutral(spec, false, architecture).unwrap_or_else(|| fresh(spec, wanted, 0)),
                ),
            };
            tensors.push(PlannedTensor::new(
                spec.name.clone(),
                dtype,
                spec.shape.clone(),
                expression,
            ));
        }
        if let Some((role, ..)) = left.keys().next() {
            return Err(ExportError::NoPlace {
                path: self.checkpoint.path.clone(),
                role: *role,
                family: wanted.family.clone(),
            }
            .into());
        }
        let mut fused = match layout {
            ExpertLayout::Classic => Vec::new(),
            ExpertLayout::Fused => wanted.fused_tensors(&specs)?,
        };
        if layout == ExpertLayout::Fused && fused.is_empty() {
            let family = wanted.family.clone();
            return Err(ExportError::NoFusedLayout { family }.into());
        }
        let taken: BTreeSet<String> = fused
            .iter()
            .flat_map(|fused| fused.parts.iter().map(|(part, _)| part.clone()))
            .collect();
        let mut projections = wanted.fused_projections(&specs)?;
        projections.retain(|whole| whole.parts.iter().all(|(part, _)| !taken.contains(part)));
        fused.extend(projections);
        put_together(&fused, tensors)
    }
}
