//! `mergekit-moe`: experts out of dense models beside the rest of a base model.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_saphyr::Spanned;

use super::error::MergekitError;
use super::model::{Fetch, float, folder, model_in};
use super::names::GATE_MODES;
use super::{IsTyped, Translation};
use crate::Result;
use crate::checkpoint::dtype;
use crate::checkpoint::manifest::model_name;
use crate::checkpoint::yaml::{self, place};
use crate::error::Location;
use crate::family::{Architecture, Config};

/// A configuration of `mergekit-moe`.
#[derive(Debug)]
pub struct MoeFile {
    path: PathBuf,
    keys: Keys,
}

/// The keys at the top of a file, the one that every file has first.
pub(super) const KEYS: [&str; 7] = [
    "base_model",
    "experts_per_token",
    "experts",
    "gate_mode",
    "dtype",
    "shared_experts",
    "architecture",
];

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Keys {
    base_model: Spanned<String>,
    experts: Spanned<Vec<Expert>>,
    gate_mode: Option<Spanned<String>>,
    dtype: Option<Spanned<String>>,
    experts_per_token: Option<Spanned<u64>>,
    shared_experts: Option<Spanned<Vec<Expert>>>,
    architecture: Option<Spanned<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Expert {
    source_model: Spanned<String>,
    #[serde(default)]
    positive_prompts: Option<Vec<String>>,
    #[serde(default)]
    negative_prompts: Option<Vec<String>>,
    noise_scale: Option<f64>,
    residual_scale: Option<f64>,
}

/// The prompts of one expert.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompted {
    /// What it is for.
    pub positive: Vec<String>,
    /// What it is not for.
    pub negative: Vec<String>,
}

impl Expert {
    fn prompts(&self) -> Prompted {
        let list = |prompts: &Option<Vec<String>>| prompts.clone().unwrap_or_default();
        Prompted {
            positive: list(&self.positive_prompts),
            negative: list(&self.negative_prompts),
        }
    }
}

/// What mergekit can write, under the names it gives them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Output {
    Mixtral,
    DeepSeek,
    Qwen2,
    Qwen3,
}

impl Output {
    /// In the order of mergekit's preference.
    const ALL: [(Self, &str); 4] = [
        (Self::Mixtral, "Mixtral"),
        (Self::DeepSeek, "DeepSeek MoE"),
        (Self::Qwen2, "Qwen MoE"),
        (Self::Qwen3, "Qwen3 MoE"),
    ];

    /// Whether it holds models of this family beside so many shared experts.
    fn holds(self, family: &str, shared: usize) -> bool {
        match self {
            Self::Mixtral => shared == 0 && matches!(family, "llama" | "mistral"),
            Self::DeepSeek => shared <= 1 && matches!(family, "llama" | "mistral"),
            // mergekit wants a shared expert here; bam-convert writes one of zeros if the file has none.
            Self::Qwen2 => matches!(
                (family, shared),
                ("qwen2", 0) | ("llama" | "mistral" | "qwen2", 1)
            ),
            Self::Qwen3 => shared == 0 && family == "qwen3",
        }
    }
}

impl MoeFile {
    /// Whether a file with these keys at its top is a configuration of `mergekit-moe`.
    pub fn has_keys<'a>(mut keys: impl Iterator<Item = &'a str>) -> bool {
        keys.any(|key| KEYS[..2].contains(&key))
    }

    /// Reads a file.
    ///
    /// # Errors
    /// Unknown keys, with the nearest known one and the line.
    pub fn read(path: &Path) -> Result<Self> {
        Ok(Self {
            path: path.to_path_buf(),
            keys: yaml::read(path)?,
        })
    }

    /// How prompts become router rows.
    pub fn gate_mode(&self) -> &str {
        self.keys
            .gate_mode
            .as_ref()
            .map_or(GATE_MODES[0], |mode| &mode.value)
    }

    /// The prompts of the experts, in order.
    pub fn prompts(&self) -> Vec<Prompted> {
        self.keys
            .experts
            .value
            .iter()
            .map(Expert::prompts)
            .collect()
    }

    /// The prompts of the shared expert, if it has some.
    pub fn shared_prompts(&self) -> Option<Prompted> {
        self.shared()
            .first()
            .map(Expert::prompts)
            .filter(|prompts| !prompts.positive.is_empty())
    }

    fn shared(&self) -> &[Expert] {
        self.keys
            .shared_experts
            .as_ref()
            .map_or(&[], |shared| &shared.value)
    }

    fn at(&self, location: serde_saphyr::Location) -> Location {
        place(&self.path, location)
    }

    /// The same mixture in settings of `upcycle`.
    ///
    /// # Errors
    /// What mergekit would refuse too, what it does and ours does not (adapters, DeepSeek-MoE), and models that are not
    /// here; each with its line.
    pub fn translate(&self, fetch: Fetch, is_typed: IsTyped) -> Result<Translation> {
        let keys = &self.keys;
        let mut to = Translation::new();
        self.check_gate_mode()?;
        let base = folder(&self.path, "base_model", &keys.base_model, fetch)?;
        let architecture = Architecture::of(&Config::read(&model_in(&base))?)?;
        to.set("method", "btx");
        to.set("seed", base.display());
        to.switch("no-seed-expert");
        to.set("rest", "seed");
        self.experts(&base, &mut to, fetch)?;
        // Another target may hold what no output of mergekit does.
        if !is_typed("target") {
            let target = self.target(&architecture.family, &mut to.notes)?;
            to.set("target", target);
        }
        self.routing(&mut to)?;
        self.gates(&architecture, &mut to)?;
        let dtype = match &keys.dtype {
            Some(name) => Some(float(&self.path, "dtype", name)?),
            None => architecture.dtype,
        };
        if let Some(dtype) = dtype {
            to.set("dtype", dtype::name(dtype));
        }
        Ok(to)
    }

    fn experts(&self, base: &Path, to: &mut Translation, fetch: Fetch) -> Result<()> {
        let experts = &self.keys.experts;
        if experts.value.is_empty() {
            return Err(MergekitError::EmptyList {
                at: self.at(experts.referenced),
                key: "experts",
                item: "expert",
            }
            .into());
        }

        // `seed` names the base model itself.
        let mut taken = BTreeSet::from(["seed".to_owned(), "shared".to_owned()]);
        let mut folders: BTreeMap<PathBuf, String> = BTreeMap::new();
        for expert in &experts.value {
            let source = folder(&self.path, "source_model", &expert.source_model, fetch)?;
            let name = name(&source, &mut taken);
            to.set("expert", format!("{name}={}", source.display()));
            self.scales(&name, expert, to);
            folders.entry(source).or_insert(name);
        }
        if folders.len() == 1 && experts.value.len() > 1 {
            to.notes.push(
                "every expert is a copy of one model: until it is trained, the mixture says what that model says"
                    .to_owned(),
            );
        }
        self.shared_expert(base, &folders, to, fetch)
    }

    /// The shared expert, which must be a model that the mixture has anyway.
    fn shared_expert(
        &self,
        base: &Path,
        folders: &BTreeMap<PathBuf, String>,
        to: &mut Translation,
        fetch: Fetch,
    ) -> Result<()> {
        let Some(list) = &self.keys.shared_experts else {
            return Ok(());
        };
        let shared = match &list.value[..] {
            [] => return Ok(()),
            [shared] => shared,
            more => {
                return Err(MergekitError::SharedExperts {
                    at: self.at(list.referenced),
                    found: more.len(),
                }
                .into());
            }
        };
        let source = folder(&self.path, "source_model", &shared.source_model, fetch)?;
        let name = match folders.get(&source) {
            _ if source == base => "seed",
            Some(name) => name,
            None => {
                let at = self.at(shared.source_model.referenced);
                return Err(MergekitError::SharedExpert { at }.into());
            }
        };
        to.set("shared-expert", format!("{name}:gated"));
        self.scales("shared", shared, to);
        Ok(())
    }

    fn scales(&self, name: &str, expert: &Expert, to: &mut Translation) {
        if let Some(std) = expert.noise_scale {
            to.set("noise-scale", format!("{name}={std}"));
        }
        if let Some(factor) = expert.residual_scale {
            to.set("residual-scale", format!("{name}={factor}"));
        }
    }

    /// The target that mergekit would choose for a family, by our name.
    fn target(&self, family: &str, notes: &mut Vec<String>) -> Result<&'static str> {
        let shared = self.shared().len();
        let wanted = self.keys.architecture.as_ref();
        let named = |name: &str| match wanted {
            Some(wanted) => name
                .to_lowercase()
                .starts_with(&wanted.value.to_lowercase()),
            None => true,
        };
        let named: Vec<Output> = Output::ALL
            .iter()
            .filter(|(_, name)| named(name))
            .map(|(output, _)| *output)
            .collect();
        if let (Some(wanted), true) = (wanted, named.is_empty()) {
            return Err(MergekitError::UnknownArchitecture {
                at: self.at(wanted.referenced),
                known: Output::ALL.map(|(_, name)| name).to_vec(),
                found: wanted.value.clone(),
            }
            .into());
        }
        let (at, key) = match (wanted, &self.keys.shared_experts) {
            (Some(wanted), _) => (wanted.referenced, "architecture"),
            (None, Some(list)) if shared > 0 => (list.referenced, "shared_experts"),
            (None, _) => (self.keys.base_model.referenced, "base_model"),
        };
        match named
            .into_iter()
            .find(|output| output.holds(family, shared))
        {
            Some(Output::Mixtral) => Ok("mixtral"),
            Some(Output::Qwen3) => Ok("qwen3_moe"),
            Some(Output::Qwen2) => {
                if shared == 0 {
                    notes.push(
                        "Qwen2-MoE wants a shared expert, without which mergekit refuses; here it is of zeros"
                            .to_owned(),
                    );
                }
                Ok("qwen2_moe")
            }
            Some(Output::DeepSeek) => Err(MergekitError::DeepSeek {
                at: self.at(at),
                key,
                instead: if shared == 0 { "mixtral" } else { "qwen" },
            }
            .into()),
            None => Err(MergekitError::NoOutput {
                at: self.at(at),
                key,
                family: family.to_owned(),
                shared,
            }
            .into()),
        }
    }

    /// Refuses a gate mode that mergekit does not have.
    fn check_gate_mode(&self) -> Result<()> {
        match &self.keys.gate_mode {
            Some(mode) if !GATE_MODES.contains(&mode.value.as_str()) => {
                Err(MergekitError::GateMode {
                    at: self.at(mode.referenced),
                    found: mode.value.clone(),
                }
                .into())
            }
            _ => Ok(()),
        }
    }

    fn routing(&self, to: &mut Translation) -> Result<()> {
        let experts = self.keys.experts.value.len() as u64;
        let (top_k, at) = match &self.keys.experts_per_token {
            Some(top_k) => (top_k.value, top_k.referenced),
            None => (2, self.keys.experts.referenced),
        };
        if top_k == 0 || top_k > experts {
            return Err(MergekitError::ExpertsPerToken {
                at: self.at(at),
                experts,
                found: top_k,
            }
            .into());
        }
        to.set("top-k", top_k);
        // With one expert a token it would be a router without gradient, which targets that always renormalise refuse.
        if top_k > 1 {
            to.set("norm-topk-prob", true);
        }
        Ok(())
    }

    /// The routers: rows from prompts, or draws. The mode is one of mergekit's.
    fn gates(&self, architecture: &Architecture, to: &mut Translation) -> Result<()> {
        let mode = self.gate_mode();
        let prompted = |expert: &&Expert| {
            expert
                .positive_prompts
                .as_ref()
                .is_some_and(|prompts| !prompts.is_empty())
        };
        match mode {
            "random" => {
                to.set("router", "normal:0.02");
                to.notes.push(format!(
                    "gate_mode random: routers are drawn from N(0, 0.02²), not from mergekit's N(0, 1). \
                     Its logits at width {} have a standard deviation of {:.0}, so that one expert gets everything. \
                     --router normal:1 draws like mergekit",
                    architecture.hidden_size,
                    (architecture.hidden_size as f64).sqrt(),
                ));
            }
            "uniform_random" => {
                // Uniform in ±1/√d.
                to.set(
                    "router",
                    format!(
                        "uniform:{}",
                        1.0 / (3.0 * architecture.hidden_size as f64).sqrt()
                    ),
                );
            }
            mode => {
                let missing = self
                    .keys
                    .experts
                    .value
                    .iter()
                    .find(|expert| !prompted(expert));
                if let Some(expert) = missing {
                    return Err(MergekitError::NoPrompts {
                        at: self.at(expert.source_model.referenced),
                        mode: mode.to_owned(),
                    }
                    .into());
                }
                to.set("router", format!("prompts:{}", self.path.display()));
                return Ok(());
            }
        }
        if self
            .keys
            .experts
            .value
            .iter()
            .chain(self.shared())
            .any(|expert| prompted(&expert))
        {
            to.notes.push(format!(
                "gate_mode {mode} draws routers at random; the prompts are not used"
            ));
        }
        Ok(())
    }
}

/// A name for the expert of a folder that no other has.
fn name(folder: &Path, taken: &mut BTreeSet<String>) -> String {
    let whole = std::fs::canonicalize(folder).unwrap_or_else(|_| folder.to_path_buf());
    let name = model_name(&whole).replace('=', "-");
    let numbered = (2..).map(|number| format!("{name}-{number}"));
    let free = std::iter::once(name.clone())
        .chain(numbered)
        .find(|name| !taken.contains(name));
    let free = free.unwrap_or(name);
    taken.insert(free.clone());
    free
}
