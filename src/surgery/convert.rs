//! The same model in another form: dtype casts, other shards, GGUF to a Hugging Face folder.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::execute::{Content, OutputFile};
use super::export_error::ExportError;
use super::fp8::{self, Fp8};
use super::fused::as_stored;
use super::model::{companions, existing};
use super::neutral::has_neutral_shared_expert;
use super::plan::{Plan, PlannedTensor, Source, as_dtype};
use super::side_files;
use crate::card::{CardModel, CopyOf, ModelCard, SourceFacts};
use crate::checkpoint::dtype::{self, Dtype};
use crate::checkpoint::expression::Expression;
use crate::checkpoint::folder::{Checkpoint, INDEX, PYTORCH_INDEX, companion_name, is_companion};
use crate::checkpoint::manifest::model_name;
use crate::checkpoint::{Encoding, format};
use crate::family::described::{self, DescribedModel};
use crate::family::gguf::GgufTensor;
use crate::family::{Architecture, Config, PlainNeed, Quantised, say_dtype};
use crate::{Error, Result};

/// Name of the converted checkpoint in the plan.
pub(super) const SOURCE: &str = "source";

/// Plans the conversion of `path` with floating-point tensors in `dtype` (theirs where absent; bf16 from quantised).
pub fn plan(path: &Path, dtype: Option<Dtype>) -> Result<(Plan, Vec<OutputFile>)> {
    let checkpoint = Checkpoint::open(path)?;
    if let Some(dtype) = dtype
        && !dtype::is_float(dtype)
    {
        return Err(ExportError::IntegerDtype { dtype }.into());
    }
    let mut settings = Map::new();
    if let Some(dtype) = dtype {
        settings.insert("dtype".to_owned(), json!(dtype::name(dtype)));
    }
    if let Some(described) = &checkpoint.described {
        let model = described::model_of(&checkpoint).ok_or_else(|| ExportError::NoTranslation {
            path: path.to_path_buf(),
            kind: format::a(described.name),
        })?;
        let form = Form::of(model, &checkpoint, dtype)?;
        return plan_described(checkpoint, form, settings);
    }
    // A cast would round scales and leave the integers that they belong to.
    let fp8 = match (dtype, Quantised::of(&checkpoint)) {
        (Some(dtype), Some(quantised)) => {
            let fp8 = Fp8::of(&checkpoint)?.filter(|_| dtype.bitsize() >= 16);
            Some(fp8.ok_or_else(|| quantised.refusal(&checkpoint, PlainNeed::Cast))?)
        }
        _ => None,
    };
    let folder = checkpoint.folder().map(Path::to_path_buf);
    let source = Source {
        name: SOURCE.to_owned(),
        side_files: folder
            .iter()
            .flat_map(|folder| files_beside(folder))
            .collect(),
        checkpoint,
        kept: false,
    };
    let tensors = cast(&source, dtype, fp8.as_ref())?;
    let (mut files, mut notes) = (Vec::new(), Vec::new());
    let (mut architecture, mut experts) = (None, Vec::new());
    if let Some(folder) = &folder {
        let config = folder.join("config.json");
        if config.is_file() {
            let config = Config::read(&config)?;
            let (mut object, of_config) = side_files::recast(&config, &source.checkpoint, dtype)?;
            notes.extend(of_config);
            if fp8.is_some() {
                fp8::forget(&mut object);
                notes.push(format!(
                    "{}: FP8 weights become plain numbers, and activations are no longer rounded",
                    folder.display()
                ));
            }
            files.push(side_files::json_file("config.json", &object));
            (architecture, experts) = known(object);
        }
        files.extend(side_files::copies(companions(folder)?));
        files.extend(side_files::copies(python_files(folder)?));
    }
    add_card(
        &mut files,
        ConvertedModel {
            source: &source,
            settings: &settings,
            architecture: architecture.as_ref(),
            has_neutral_shared_expert: is_neutral(architecture.as_ref(), &tensors, &source)?,
            experts,
            tensors: &tensors,
            has_rounded: false,
            remark: None,
            notes: &notes,
        },
    )?;
    let plan = Plan {
        notes,
        ..converted(source, tensors, settings)
    };
    Ok((plan, files))
}

/// Every tensor of the source, floating-point numbers in this dtype.
fn cast(source: &Source, dtype: Option<Dtype>, fp8: Option<&Fp8>) -> Result<Vec<PlannedTensor>> {
    let is_scale = |name: &str| fp8.is_some_and(|fp8| fp8.is_scale(name));
    let kept = source.checkpoint.tensors.iter();
    let kept = kept.filter(|(name, _)| !is_scale(name));
    let tensors = kept.map(|(name, entry)| {
        let stored = entry.encoding.plain().unwrap_or(Dtype::F32);
        let wanted = if dtype::is_float(stored) {
            dtype.unwrap_or(stored)
        } else {
            stored
        };
        let expression = match fp8.and_then(|fp8| fp8.expression(&source.name, name)) {
            Some(scaled) => scaled,
            None => as_dtype(source, name, wanted)?,
        };
        let shape = entry.shape.clone();
        Ok(PlannedTensor::new(name, wanted, shape, expression))
    });
    tensors.collect()
}

/// Files beside the weights of a source that say what they are.
pub(super) fn files_beside(folder: &Path) -> Vec<std::path::PathBuf> {
    existing(folder, &["config.json", INDEX, PYTORCH_INDEX])
}

/// What the card of a converted model tells of.
pub(super) struct ConvertedModel<'a> {
    pub(super) source: &'a Source,
    pub(super) settings: &'a Map<String, Value>,
    /// What it is, if its family is known.
    pub(super) architecture: Option<&'a Architecture>,
    /// Names of its experts.
    pub(super) experts: Vec<String>,
    /// Whether its shared expert is there for its format alone, and adds nothing.
    pub(super) has_neutral_shared_expert: bool,
    pub(super) tensors: &'a [PlannedTensor],
    /// Whether arithmetic on weights rounds them, beside what dtypes do.
    pub(super) has_rounded: bool,
    /// What is particular about the form, in sentences.
    pub(super) remark: Option<String>,
    /// What a user should know.
    pub(super) notes: &'a [String],
}

/// Whether the model of that architecture, where its family is known, has a shared expert that adds nothing.
pub(super) fn is_neutral(
    architecture: Option<&Architecture>,
    tensors: &[PlannedTensor],
    source: &Source,
) -> Result<bool> {
    architecture.map_or(Ok(false), |architecture| {
        has_neutral_shared_expert(architecture, tensors, [source])
    })
}

/// Adds the card of a model in another form, with the text of the card that it has.
pub(super) fn add_card(files: &mut Vec<OutputFile>, converted: ConvertedModel) -> Result<()> {
    let ConvertedModel {
        source,
        settings,
        architecture,
        experts,
        has_neutral_shared_expert,
        tensors,
        has_rounded,
        remark,
        notes,
    } = converted;
    let path = source.checkpoint.path.as_path();
    let is_mixture = architecture.is_some_and(|architecture| architecture.mixture.is_some());
    let title = SourceFacts::of(path).title;
    let title = title.filter(|_| source.checkpoint.described.is_some());
    let card = ModelCard {
        title: &title.unwrap_or_else(|| model_name(path)),
        about: [Some(about(source, tensors, settings)), remark]
            .into_iter()
            .flatten()
            .collect::<Vec<_>>()
            .join(" "),
        tags: if is_mixture { &["moe"] } else { &[] },
        relation: None,
        sources: side_files::named([source]),
        settings,
        model: architecture.map(|architecture| CardModel {
            architecture,
            experts,
            has_tokenizer: side_files::has_tokenizer(files),
            has_neutral_shared_expert,
        }),
        training: None,
        copy_of: Some(CopyOf {
            path,
            same_values: !has_rounded
                && !tensors
                    .iter()
                    .any(|tensor| rounds(&tensor.expression, tensor.layout.dtype, source)),
        }),
        notes,
        prompts: &[],
    };
    side_files::add_card(files, &card)
}

/// What was changed, in sentences.
fn about(source: &Source, tensors: &[PlannedTensor], settings: &Map<String, Value>) -> String {
    let mut sentences = vec![match &source.checkpoint.described {
        Some(described) => format!(
            "The same model, converted from {}.",
            format::a(described.name)
        ),
        None => "The same model in another form.".to_owned(),
    }];
    let said = |key: &str| settings.get(key).and_then(Value::as_str);
    if let Some(to) = said("to") {
        sentences.push(format!("It has the names and the layout of `{to}`."));
    }
    let stored = quantised_as(&source.checkpoint);
    let largest = tensors.iter().max_by_key(|tensor| tensor.layout.length());
    let dtype = largest.map(|tensor| dtype::name(tensor.layout.dtype).to_lowercase());
    match (stored, said("dtype"), dtype) {
        (Some(stored), _, Some(dtype)) => sentences.push(format!(
            "Matrices were quantised ({stored}); their values are rounded to {dtype} here."
        )),
        (_, Some(dtype), _) => {
            sentences.push(format!("Weights are in {}.", dtype.to_lowercase()));
        }
        _ => {}
    }
    sentences.join(" ")
}

/// The kinds of blocks in which the tensors of a checkpoint are quantised, if any are.
fn quantised_as(checkpoint: &Checkpoint) -> Option<String> {
    let kinds = checkpoint
        .tensors
        .values()
        .filter_map(|entry| match entry.encoding {
            Encoding::Ggml(ggml) if ggml.plain().is_none() => Some(ggml.name()),
            _ => None,
        });
    let kinds: BTreeSet<&str> = kinds.collect();
    let kinds: Vec<&str> = kinds.into_iter().collect();
    (!kinds.is_empty()).then(|| kinds.join(", "))
}

/// Whether an expression rounds values of the source to a `wanted` dtype that does not hold them.
fn rounds(expression: &Expression, wanted: Dtype, source: &Source) -> bool {
    match expression {
        Expression::Cast { of } => {
            let mut narrower = false;
            of.for_each_copy(&mut |_, name| {
                let stored = source.checkpoint.tensors.get(name);
                let stored = stored.and_then(|entry| entry.encoding.plain());
                narrower |= stored.is_none_or(|stored| !dtype::holds(wanted, stored));
            });
            narrower
        }
        Expression::Dequantise { .. }
        | Expression::Adapted { .. }
        | Expression::BlockScaled { .. } => true,
        other => {
            let parts = other.parts();
            parts.iter().any(|part| rounds(part, wanted, source))
        }
    }
}

/// The architecture that a converted folder has, if its family is known, and the names of its experts.
fn known(config: Map<String, Value>) -> (Option<Architecture>, Vec<String>) {
    let config = Config {
        path: "config.json".into(),
        json: config,
    };
    let Ok(architecture) = Architecture::of(&config) else {
        return (None, Vec::new());
    };
    let names = architecture
        .mixture
        .as_ref()
        .and(config.json.get("expert_names"));
    let names = names.and_then(Value::as_array).into_iter().flatten();
    let names = names.filter_map(Value::as_str).map(str::to_owned).collect();
    (Some(architecture), names)
}

pub(super) fn converted(
    source: Source,
    tensors: Vec<PlannedTensor>,
    settings: Map<String, Value>,
) -> Plan {
    let sources = vec![source];
    Plan {
        method: "convert".to_owned(),
        settings,
        sources,
        tensors,
        notes: Vec::new(),
        carries_non_finite: true,
    }
}

/// The modelling code that a checkpoint carries.
fn python_files(folder: &Path) -> Result<Vec<std::path::PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(|e| Error::io("list", folder, e))? {
        let path = entry.map_err(|e| Error::io("list", folder, e))?.path();
        let is_code = path.extension().is_some_and(|extension| extension == "py");
        if is_code && path.is_file() && !is_companion(&companion_name(&path)) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// The Hugging Face folder that a described model becomes.
struct Form {
    dtype: Dtype,
    config: Map<String, Value>,
    files: Vec<OutputFile>,
    tensors: Vec<GgufTensor>,
}

impl Form {
    /// The folder of `model`, its tensors in `dtype`: where absent, in the dtype of its largest tensor, bf16 from quantised.
    fn of(
        model: &dyn DescribedModel,
        checkpoint: &Checkpoint,
        dtype: Option<Dtype>,
    ) -> Result<Self> {
        let tensors = model.tensors()?;
        let mut config = model.config()?;

        let dtype = dtype
            .or_else(|| plain_dtype(checkpoint))
            .unwrap_or(Dtype::BF16);
        say_dtype(&mut config, dtype);

        let tokenizer = model.tokenizer_files()?.into_iter();
        let tokenizer = tokenizer.map(|file| OutputFile {
            name: file.name.to_owned(),
            content: Content::Bytes(file.bytes),
        });
        let mut files = vec![side_files::json_file("config.json", &config)];
        files.extend(tokenizer);
        Ok(Self {
            dtype,
            config,
            files,
            tensors,
        })
    }
}

/// The values plus one, which is added `times` over.
pub(super) fn plus_one(of: Expression, times: f64) -> Expression {
    Expression::Sum {
        of: vec![of, Expression::Constant { value: 1.0 }],
        weights: vec![1.0, times],
    }
}

/// The dtype of the largest tensor; `None` where any tensor is quantised.
fn plain_dtype(checkpoint: &Checkpoint) -> Option<Dtype> {
    let plain = |encoding: Encoding| match encoding {
        Encoding::Ggml(ggml) => ggml.plain(),
        Encoding::Plain(dtype) => Some(dtype),
    };
    let entries = || checkpoint.tensors.values();
    if entries().any(|entry| plain(entry.encoding).is_none()) {
        return None;
    }
    let largest = entries().max_by_key(|entry| entry.elements());
    largest.and_then(|entry| plain(entry.encoding))
}

fn plan_described(
    checkpoint: Checkpoint,
    form: Form,
    settings: Map<String, Value>,
) -> Result<(Plan, Vec<OutputFile>)> {
    let source = Source {
        name: SOURCE.to_owned(),
        checkpoint,
        side_files: Vec::new(),
        kept: false,
    };
    let mut files = form.files;
    let (architecture, experts) = known(form.config);
    let tensors = form.tensors.into_iter().map(|tensor| {
        let whole = Expression::copy(SOURCE, &tensor.source);
        let leaf = match (tensor.expert, tensor.first_row) {
            (Some(index), _) => Expression::Entry {
                of: Box::new(whole),
                index,
            },
            (None, Some(start)) => Expression::Slice {
                of: Box::new(whole),
                axis: 0,
                start,
                length: tensor.shape.first().copied().unwrap_or_default(),
                blocks: 1,
            },
            (None, None) if tensor.flat => Expression::Stack { of: vec![whole] },
            (None, None) => whole,
        };
        let ordered = match tensor.unpermute_heads {
            Some(heads) => Expression::Permute {
                of: Box::new(leaf),
                heads,
            },
            None => leaf,
        };
        let mut expression = Expression::Dequantise {
            of: Box::new(ordered),
        };
        if tensor.plus_one {
            expression = plus_one(expression, -1.0);
        }
        PlannedTensor::new(tensor.name, form.dtype, tensor.shape, expression)
    });
    let mut tensors: Vec<PlannedTensor> = tensors.collect();
    if let Some(architecture) = &architecture {
        tensors = as_stored(architecture, tensors)?;
    }
    add_card(
        &mut files,
        ConvertedModel {
            source: &source,
            settings: &settings,
            architecture: architecture.as_ref(),
            has_neutral_shared_expert: is_neutral(architecture.as_ref(), &tensors, &source)?,
            experts,
            tensors: &tensors,
            has_rounded: false,
            remark: None,
            notes: &[],
        },
    )?;
    Ok((converted(source, tensors, settings), files))
}
