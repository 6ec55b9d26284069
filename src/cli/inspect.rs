//! `inspect`: what a checkpoint is, from its headers alone.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bam_convert::Error;
use bam_convert::arguments::{CheckpointPath, MaybeNamed, OutputPath};
use bam_convert::checkpoint::folder::Checkpoint;
use bam_convert::checkpoint::{Manifest, TensorEntry, views};
use bam_convert::family::described::{self, DescribedModel};
use bam_convert::family::{Architecture, Config, ExpertLayout, Quantised, cost};
use bam_convert::pipeline::{Declaration, StageUse};
use bam_convert::table::{self, Align, counted, grouped};
use clap::Args;
use serde::Serialize;

use super::printer::Printer;
use super::verb::{HubUse, Verb};
use super::{Outcome, Verdict, divergence};

/// Show what a checkpoint holds, reading headers only; or how far specialists have moved from their seed.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  bam-convert inspect bam --tensors\n  \
                        bam-convert inspect --divergence seed code law --svg divergence.svg")]
pub struct Arguments {
    /// Folder, or a .safetensors, .gguf or .npz file.
    #[arg(required_unless_present = "divergence")]
    path: Option<CheckpointPath>,
    /// List every tensor.
    #[arg(long)]
    tensors: bool,
    /// Compare dense specialists with the seed they were trained from, reading all weights. Shows by role and layer how far
    /// each has moved, which way the others went, and what averaging will change (docs/reference/experts.md).
    #[arg(long, value_names = ["SEED", "[NAME=]EXPERT"], num_args = 2.., conflicts_with_all = ["path", "tensors"])]
    divergence: Vec<MaybeNamed<CheckpointPath>>,
    /// Draw the divergence as heat maps.
    #[arg(long, value_name = "FILE.svg", requires = "divergence")]
    svg: Option<OutputPath>,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Summary {
    path: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    architecture: Option<Architecture>,
    #[serde(skip_serializing_if = "Option::is_none")]
    architecture_unknown: Option<String>,
    /// Whether all experts of a layer are in one tensor.
    fused_experts: bool,
    /// How the weights are quantised, where they are.
    #[serde(skip_serializing_if = "Option::is_none")]
    quantised: Option<String>,
    /// What a weight file says of its model, in formats whose files do.
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<BTreeMap<String, String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    method: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expert_names: Option<Vec<String>>,
    parameters: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    active_parameters: Option<u64>,
    bytes: u64,
    /// Tensors and bytes by encoding.
    encodings: BTreeMap<String, Share>,
    files: Vec<File>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tensors: Option<Vec<Tensor>>,
}

#[derive(Default, Serialize)]
struct Share {
    tensors: u64,
    bytes: u64,
}

#[derive(Serialize)]
struct File {
    path: PathBuf,
    bytes: u64,
    tensors: usize,
}

#[derive(Serialize)]
struct Tensor {
    name: String,
    encoding: String,
    shape: Vec<u64>,
    bytes: u64,
}

impl Verb for Arguments {
    fn declaration() -> Declaration {
        Declaration::new("inspect", StageUse::Makes)
    }

    fn opens_models() -> bool {
        true
    }

    fn run(&self, printer: &Printer) -> Outcome {
        let Some(path) = &self.path else {
            return divergence::run(&self.divergence, self.svg.as_deref(), self.json, printer);
        };
        let summary = self.summary(path)?;
        if self.json {
            printer.json(&summary)?;
        } else {
            printer.result(&summary.text())?;
        }
        Ok(Verdict::Yes)
    }

    fn hub_use(&self) -> HubUse {
        if self.divergence.is_empty() {
            HubUse::Headers
        } else {
            HubUse::Whole
        }
    }
}

impl Arguments {
    fn summary(&self, path: &Path) -> Result<Summary, Error> {
        let checkpoint = Checkpoint::open(path)?;
        let described = described::model_of(&checkpoint);
        let unknown = described
            .map(DescribedModel::unknown)
            .transpose()?
            .flatten();
        let config = match described {
            // A file of another architecture is shown all the same.
            Some(_) if unknown.is_some() => None,
            Some(model) => Some(Config::from_json(path, model.config()?)),
            None => checkpoint
                .folder()
                .filter(|folder| folder.join("config.json").exists())
                .map(Config::read)
                .transpose()?,
        };
        let (architecture, architecture_unknown) = match config.as_ref().map(Architecture::of) {
            Some(Ok(architecture)) => (Some(architecture), None),
            Some(Err(error)) => (None, Some(error.to_string())),
            None => (None, unknown.map(|error| error.to_string())),
        };
        let layout = architecture
            .as_ref()
            .map(|architecture| architecture.expert_layout(&checkpoint))
            .transpose()?;
        let manifest = checkpoint
            .folder()
            .map(Manifest::read)
            .transpose()?
            .flatten();
        let report = architecture
            .as_ref()
            .map(|architecture| cost::Report::new(architecture, cost::PAPER_CONTEXT))
            .transpose()?;
        let names = config
            .as_ref()
            .and_then(|config| config.json.get("expert_names"));
        Ok(Summary {
            path: views::shown(path),
            architecture,
            architecture_unknown,
            fused_experts: layout == Some(ExpertLayout::Fused),
            quantised: Quantised::of(&checkpoint).map(|quantised| quantised.scheme),
            metadata: checkpoint
                .described
                .as_ref()
                .map(|described| described.model.metadata()),
            method: manifest.map(|manifest| manifest.method),
            expert_names: names.and_then(|names| serde_json::from_value(names.clone()).ok()),
            parameters: checkpoint.tensors.values().map(TensorEntry::elements).sum(),
            active_parameters: report.map(|report| report.active_parameters),
            bytes: checkpoint.data_length(),
            encodings: encodings(&checkpoint),
            files: files(&checkpoint),
            tensors: self.tensors.then(|| tensors(&checkpoint)),
        })
    }
}

/// Tensors and bytes by encoding.
fn encodings(checkpoint: &Checkpoint) -> BTreeMap<String, Share> {
    let mut encodings: BTreeMap<String, Share> = BTreeMap::new();
    for entry in checkpoint.tensors.values() {
        let share = encodings.entry(entry.encoding.to_string()).or_default();
        share.tensors += 1;
        share.bytes += entry.length;
    }
    encodings
}

fn files(checkpoint: &Checkpoint) -> Vec<File> {
    let tensors_of = |number: usize| {
        let entries = checkpoint.tensors.values();
        entries.filter(|entry| entry.file == number).count()
    };
    let files = checkpoint.files.iter().enumerate();
    let files = files.map(|(number, file)| File {
        path: file.path().to_path_buf(),
        bytes: file.len(),
        tensors: tensors_of(number),
    });
    files.collect()
}

fn tensors(checkpoint: &Checkpoint) -> Vec<Tensor> {
    let tensors = checkpoint.tensors.iter();
    let tensors = tensors.map(|(name, entry)| Tensor {
        name: name.clone(),
        encoding: entry.encoding.to_string(),
        shape: entry.shape.clone(),
        bytes: entry.length,
    });
    tensors.collect()
}

impl Summary {
    fn text(&self) -> String {
        let mut text = table::facts([self.model_facts(), self.weight_facts()].concat());
        if let Some(tensors) = &self.tensors {
            let columns = [
                ("tensor", Align::Left),
                ("dtype", Align::Left),
                ("shape", Align::Left),
                ("bytes", Align::Right),
            ];
            let rows = tensors.iter().map(|tensor| {
                let shape = format!("{:?}", tensor.shape);
                vec![
                    tensor.name.clone(),
                    tensor.encoding.clone(),
                    shape,
                    grouped(tensor.bytes),
                ]
            });
            text.push('\n');
            text += &table::render(&columns, rows);
        }
        text
    }

    /// What the model is.
    fn model_facts(&self) -> Vec<(String, String)> {
        let mut facts = vec![("path".to_owned(), self.path.display().to_string())];
        let mut fact = |name: &str, value: String| facts.push((name.to_owned(), value));
        if let Some(architecture) = &self.architecture {
            for (number, line) in cost::summary(architecture).lines().enumerate() {
                fact(if number == 0 { "model" } else { "" }, line.to_owned());
            }
        }
        if let Some(unknown) = &self.architecture_unknown {
            fact("model", format!("unknown: {unknown}"));
        }
        if let Some(scheme) = &self.quantised {
            fact(
                "quantised",
                format!("{scheme} (`convert` copies it; other commands need plain weights)"),
            );
        }
        if self.fused_experts {
            fact(
                "layout",
                "fused: all experts of a layer in one tensor (`convert --layout classic`)"
                    .to_owned(),
            );
        }
        if let Some(names) = &self.expert_names {
            fact("experts", names.join(", "));
        }
        if let Some(method) = &self.method {
            fact("made by", method.clone());
        }
        let parameters = match self.active_parameters {
            Some(active) if active != self.parameters => {
                format!("{}, {} active", grouped(self.parameters), grouped(active))
            }
            _ => grouped(self.parameters),
        };
        fact("parameters", parameters);
        facts
    }

    /// What its files hold.
    fn weight_facts(&self) -> Vec<(String, String)> {
        let held = |tensors: u64, bytes: u64| {
            format!("{}, {}", counted(tensors, "tensor"), table::bytes(bytes))
        };
        let bytes = grouped(self.bytes);
        let data = format!("{} ({bytes} bytes)", table::bytes(self.bytes));
        let encodings = self.encodings.iter();
        let encodings =
            encodings.map(|(encoding, share)| (encoding.clone(), held(share.tensors, share.bytes)));
        let files = self.files.iter().map(|file| {
            let name = file.path.file_name().unwrap_or(file.path.as_os_str());
            let name = name.to_string_lossy().into_owned();
            (name, held(file.tensors as u64, file.bytes))
        });
        // An architecture says in better words what the metadata say.
        let metadata = self.metadata.iter().flatten();
        let metadata = metadata.filter(|_| self.architecture.is_none());
        let metadata = metadata.map(|(key, value)| (key.clone(), value.clone()));
        std::iter::once(("tensor data".to_owned(), data))
            .chain(encodings)
            .chain(files)
            .chain(metadata)
            .collect()
    }
}
