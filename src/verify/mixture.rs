//! Checks of mixtures: routers, gates, and the model code that the configuration names.

use serde_json::{Map, Value};

use super::report::{FindingPlace, Running, ValidationReport};
use super::subject::Subject;
use super::tensors;
use crate::Result;
use crate::checkpoint::folder::Checkpoint;
use crate::checkpoint::{TensorEntry, dtype};
use crate::family::{Architecture, AttentionGate, Mixture, Role};
use crate::table;

/// Largest part of a router row compared in one go, in bytes.
const PIECE: u64 = 1 << 20;

/// Adds the rows `routers` and `model code`, for a mixture.
pub(super) fn check(report: &mut ValidationReport, subject: &Subject) -> Result<()> {
    let Some(config) = &subject.config else {
        return Ok(());
    };
    if let Some(architecture) = &subject.architecture
        && let Some(mixture) = &architecture.mixture
    {
        let mut check = report.check("routers");
        gates(&mut check, architecture, mixture)?;
        let seen = match &subject.checkpoint {
            Some(checkpoint) => routers(&mut check, checkpoint, architecture, mixture)?,
            None => 0,
        };
        check.done(summary(mixture, seen));
    }
    if let Some(Value::Object(map)) = config.json.get("auto_map") {
        let mut check = report.check("model code");
        let files = model_code(&mut check, map);
        for file in &files {
            if !subject.path.join(file).is_file() {
                check.fault(
                    FindingPlace::file(file),
                    "is missing, but auto_map of config.json names it",
                );
            }
        }
        check.done(files.join(", "));
    }
    Ok(())
}

/// Gates of one expert that are divided by their sum are always 1.
fn gates(check: &mut Running, architecture: &Architecture, mixture: &Mixture) -> Result<()> {
    let gates = [
        (
            "norm_topk_prob",
            mixture.norm_topk_prob,
            mixture.num_experts_per_tok,
        ),
        (
            "norm_topk_prob_attention",
            mixture.norm_topk_prob_attention,
            mixture.num_attention_experts_per_tok,
        ),
    ];
    // Mixtral has no key for it: gates of one expert are 1 in every Mixtral model.
    let fixed = architecture.always_renormalises()?;
    for (key, normed, k) in gates {
        if !normed || k != 1 {
            continue;
        }
        if fixed {
            let problem = "is 1, and this family divides gates by their sum: the gate is always 1 and the router has no gradient";
            check.warn(
                FindingPlace::key("config.json", "num_experts_per_tok"),
                problem,
            );
        } else {
            let problem = "is true with one expert a token: the gate is always 1 and the router has no gradient";
            check.fault(FindingPlace::key("config.json", key), problem);
        }
    }
    Ok(())
}

/// Looks for routers that send every token to the same experts; returns the number of routers.
fn routers(
    check: &mut Running,
    checkpoint: &Checkpoint,
    architecture: &Architecture,
    mixture: &Mixture,
) -> Result<u64> {
    let mut seen = 0;
    for spec in tensors::routers(checkpoint, architecture)? {
        seen += 1;
        let (experts, k) = match spec.role {
            Role::FfnRouter => (mixture.num_experts, mixture.num_experts_per_tok),
            _ => (
                mixture.num_attention_experts,
                mixture.num_attention_experts_per_tok,
            ),
        };
        let chooses = k < experts;
        let place = FindingPlace::tensor(&spec.name);
        match Rows::of(checkpoint, checkpoint.tensor(&spec.name)?)? {
            Rows::Zero if chooses => check.fault(
                place,
                format!("is all zeros: every token goes to the first {k} of {experts} experts"),
            ),
            Rows::Equal if chooses => check.warn(
                place,
                format!("has {experts} equal rows: every token goes to the same experts"),
            ),
            _ => {}
        }
    }
    Ok(seen)
}

/// What the row `routers` says of a mixture.
fn summary(mixture: &Mixture, routers: u64) -> String {
    let shown = |k: u64, experts: u64| {
        if k == experts {
            format!("all {experts}")
        } else {
            format!("top {k} of {experts}")
        }
    };
    let ffn = shown(mixture.num_experts_per_tok, mixture.num_experts);
    let attention = shown(
        mixture.num_attention_experts_per_tok,
        mixture.num_attention_experts,
    );
    let gates = match mixture.attention_gate {
        AttentionGate::Softmax => "",
        AttentionGate::Sigmoid => " (sigmoid gates)",
    };
    let kv = mixture.attention_kv;
    let count = table::counted(routers, "router");
    format!("{count}, feed-forward {ffn}, attention {attention}{gates}, keys and values {kv}")
}

/// The files of the folder that `auto_map` names, in order and each once.
fn model_code(check: &mut Running, map: &Map<String, Value>) -> Vec<String> {
    let mut files: Vec<String> = Vec::new();
    for (class, target) in map {
        let targets = match target {
            Value::Array(targets) => targets.as_slice(),
            one => std::slice::from_ref(one),
        };
        let place = || FindingPlace::key("config.json", &format!("auto_map.{class}"));
        for target in targets.iter().filter(|target| !target.is_null()) {
            let module = target
                .as_str()
                .and_then(|text| text.rsplit_once('.'))
                .map(|(module, _)| module);
            match module {
                // `ORG/NAME--module.Class` is code of another repository.
                Some(module) if module.contains("--") => {
                    let problem = format!("runs code of another repository: {module}");
                    check.warn(place(), problem);
                }
                Some(module) if is_module(module) => files.push(format!("{module}.py")),
                _ => {
                    let problem = "expected `module.Class` with a module of this folder";
                    check.fault(place(), problem);
                }
            }
        }
    }
    files.sort();
    files.dedup();
    files
}

fn is_module(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || c == '_')
}

/// How the rows of a router compare.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rows {
    Zero,
    Equal,
    Different,
}

impl Rows {
    fn of(checkpoint: &Checkpoint, entry: &TensorEntry) -> Result<Self> {
        let rows = entry.shape.first().copied().unwrap_or(0);
        if rows < 2 || entry.length == 0 {
            return Ok(Self::Different);
        }
        let row = entry.length / rows;
        let size = entry
            .encoding
            .plain()
            .map_or(1, |dtype| (dtype.bitsize() / 8).max(1));
        let (mut first, mut other) = (
            vec![0; row.min(PIECE) as usize],
            vec![0; row.min(PIECE) as usize],
        );
        let mut values = vec![0.0; first.len() / size];
        let mut zero = true;
        for start in (0..row).step_by(PIECE as usize) {
            let length = (row - start).min(PIECE) as usize;
            checkpoint.read_bytes(entry, start, &mut first[..length])?;
            for number in 1..rows {
                checkpoint.read_bytes(entry, number * row + start, &mut other[..length])?;
                if first[..length] != other[..length] {
                    return Ok(Self::Different);
                }
            }
            let values = &mut values[..length / size];
            zero &= entry
                .encoding
                .plain()
                .is_some_and(|dtype| dtype::decode(dtype, &first[..length], values))
                && values.iter().all(|value| *value == 0.0);
        }
        Ok(if zero { Self::Zero } else { Self::Equal })
    }
}
