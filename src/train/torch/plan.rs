//! `plan.json`: what the processes of PyTorch need to know.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::module::Module;
use crate::checkpoint::{Checkpoint, Dtype};
use crate::family::{Architecture, TensorSpec};
use crate::train::error::TrainError;
use crate::train::parameters::{balances, decays, is_router};
use crate::train::request::{Request, TorchRequest};
use crate::train::resume::ResumePoint;
use crate::{Error, Result};

/// What is to be trained, and how.
#[derive(Serialize)]
pub(super) struct Plan {
    settings: Map<String, Value>,
    operation: Value,
    device: &'static str,
    /// The number of the GPU, where one was chosen.
    gpu: Option<usize>,
    model: Value,
    /// The weight files of the checkpoint that training begins with.
    files: Vec<PathBuf>,
    parameters: Vec<ParameterPlan>,
    data: Vec<DataPlan>,
    resume: Option<Value>,
    /// Where states are written.
    scratch: PathBuf,
    /// The file that asks the processes to stop.
    stop: PathBuf,
}

/// A parameter.
#[derive(Serialize)]
struct ParameterPlan {
    /// Its name in the checkpoint and in states.
    name: String,
    /// Its name in the module.
    module: String,
    shape: Vec<u64>,
    role: String,
    layer: Option<u64>,
    trained: bool,
    decay: bool,
    /// Whether it has the learning rate of routers.
    router: bool,
    /// Whether it balances the load of experts, instead of following a gradient.
    balances: bool,
    source: SourcePlan,
}

/// Where the values of a parameter are before the first step.
#[derive(Serialize)]
struct SourcePlan {
    /// Number of the file.
    file: usize,
    #[serde(serialize_with = "in_words")]
    dtype: Dtype,
    /// Offset and length of each run of bytes, in order.
    ranges: Vec<(u64, u64)>,
}

fn in_words<S: serde::Serializer>(dtype: &Dtype, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(dtype)
}

/// A domain.
#[derive(Serialize)]
struct DataPlan {
    name: String,
    path: PathBuf,
    weight: f64,
}

/// The files that the plan names.
pub(super) struct PlanFolders<'a> {
    pub(super) scratch: &'a Path,
    pub(super) stop: &'a Path,
}

impl Plan {
    /// The plan of a request. `parent` is the checkpoint that training begins with, and `trained` has the names of the
    /// parameters that train. `measured` says whether held-back text was measured where the run resumes.
    pub(super) fn of(
        request: &Request,
        torch: &TorchRequest,
        (architecture, parent): (&Architecture, &Checkpoint),
        trained: &BTreeSet<String>,
        (resume, measured): (Option<&ResumePoint>, bool),
        folders: &PlanFolders,
    ) -> Result<Self> {
        let module = Module::of(&request.checkpoint, architecture)?;
        let parameters = module.parameters.into_iter().map(|(spec, module)| {
            Ok(ParameterPlan {
                trained: trained.contains(&spec.name),
                decay: decays(&spec),
                router: is_router(&spec),
                balances: balances(&spec, architecture),
                role: spec.role.to_string(),
                layer: spec.layer,
                source: source(parent, &spec)?,
                name: spec.name,
                shape: spec.shape,
                module,
            })
        });
        let mut parameters = parameters.collect::<Result<Vec<_>>>()?;
        parameters.sort_by(|a, b| a.name.cmp(&b.name));
        let data = request.data.iter().map(|(name, path, weight)| {
            Ok(DataPlan {
                name: name.clone(),
                path: absolute(path)?,
                weight: *weight,
            })
        });
        let operation = &request.operation;
        Ok(Self {
            settings: request.settings.to_json(),
            operation: json!({
                "gradient_checkpointing": operation.gradient_checkpointing,
                "save_every": operation.save_every,
                "validate_every": operation.validate_every,
                "validate_rows": operation.validate_rows,
                "detail_every": operation.detail_every,
                "compile": torch.compile,
            }),
            device: torch.device.name(),
            gpu: torch.device.number(),
            model: json!({"kind": "bam", "config": module.config}),
            files: parent
                .files
                .iter()
                .map(|file| absolute(file.path()))
                .collect::<Result<_>>()?,
            parameters,
            data: data.collect::<Result<_>>()?,
            resume: resume.map(|point| at(point, measured)).transpose()?,
            scratch: absolute(folders.scratch)?,
            stop: absolute(folders.stop)?,
        })
    }
}

fn at(point: &ResumePoint, measured: bool) -> Result<Value> {
    let position = &point.position;
    Ok(json!({
        "folder": absolute(&point.path)?,
        "step": position.step,
        "row": position.row,
        "updates": position.updates,
        "tokens": position.tokens,
        "norm_mean": position.norm_mean,
        "norms": position.norms,
        "validated": measured,
    }))
}

fn source(parent: &Checkpoint, spec: &TensorSpec) -> Result<SourcePlan> {
    let entry = parent.tensor(&spec.name)?;
    let Some(dtype) = entry.encoding.plain() else {
        return Err(TrainError::Quantised {
            path: parent.path.clone(),
            tensor: spec.name.clone(),
        }
        .into());
    };
    Ok(SourcePlan {
        file: entry.file,
        dtype,
        ranges: entry.pieces(0, entry.length).collect(),
    })
}

pub(super) fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(|e| Error::io("resolve", path, e))
}

/// The trained parameters of a plan with their shapes, by which states are checked.
pub(super) fn trained_shapes(
    architecture: &Architecture,
    trained: &BTreeSet<String>,
) -> Result<BTreeMap<String, Vec<u64>>> {
    let specs = architecture.tensors()?.into_iter();
    let trained = specs.filter(|spec| trained.contains(&spec.name));
    Ok(trained.map(|spec| (spec.name, spec.shape)).collect())
}
