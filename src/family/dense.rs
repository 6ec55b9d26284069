//! Back from a mixture: the dense model that one of its experts is on its own.

use serde_json::{Map, Value, json};

use super::architecture::Architecture;
use super::config::{BAM_VERSION, Config};
use super::format::{Family, Presence, families};
use super::mixture::Mixture;
use super::spelling::both_spellings;
use super::stock::{Output, biases};
use super::target::{DESCRIBED, put_rope};
use crate::{Error, Result};

/// The key of a BAM's `config.json` that keeps the seed's `model_type`.
pub(super) const SEED_MODEL_TYPE: &str = "seed_model_type";

/// Keys that describe a mixture, beside [`Mixture::KEYS`] and [`DESCRIBED`]; a dense model of any family does without them.
const STRAY: [&str; 10] = [
    "qkv_bias",
    "auto_map",
    BAM_VERSION,
    SEED_MODEL_TYPE,
    "expert_names",
    "num_local_experts",
    "mlp_only_layers",
    "decoder_sparse_step",
    "router_jitter_noise",
    "output_router_logits",
];

impl Architecture {
    /// What one expert of this mixture is without the others, in no family yet: its feed-forward width is the expert's.
    pub fn of_one_expert(&self) -> Self {
        let width = self
            .mixture
            .as_ref()
            .map_or(self.intermediate_size, |mixture| {
                mixture.moe_intermediate_size
            });
        Self {
            mixture: None,
            intermediate_size: width,
            ..self.clone()
        }
    }
}

/// The dense model that an expert of the mixture `architecture`, read from `config`, is on its own, in the seed's family where
/// the configuration keeps its name, else in the first whose models are exactly so.
///
/// # Errors
/// Where no known family has such models: experts as wide as no dense layer, or adapters.
pub fn dense(config: &Config, architecture: &Architecture) -> Result<Output> {
    let Some(mixture) = &architecture.mixture else {
        return Err(Error::file(
            &config.path,
            "describes a dense model, expected a mixture",
        ));
    };
    if mixture.expert_adapters {
        let problem =
            "is true: a dense model has no place for the matrix that an expert's output passes";
        return Err(Error::key(&config.path, "expert_adapters", problem));
    }
    let every = mixture
        .moe_layers
        .mask(architecture.num_layers)
        .iter()
        .all(|sparse| *sparse);
    if !every && mixture.moe_intermediate_size != architecture.intermediate_size {
        let (experts, layers) = (
            mixture.moe_intermediate_size,
            architecture.intermediate_size,
        );
        let problem = format!(
            "is {experts}, but layers without experts are {layers} wide: a dense model has one width"
        );
        return Err(Error::key(&config.path, "moe_intermediate_size", problem));
    }
    let alone = architecture.of_one_expert();
    let seed = config.json.get(SEED_MODEL_TYPE).and_then(Value::as_str);
    let mut known: Vec<_> = families()?
        .iter()
        .filter(|family| !family.is_mixture())
        .collect();
    known.sort_by_key(|family| {
        !family
            .model_types
            .iter()
            .any(|name| Some(name.as_str()) == seed)
    });
    for family in &known {
        let wanted = Architecture {
            family: family.name.clone(),
            ..alone.clone()
        };
        let model_type = family
            .model_types
            .iter()
            .find(|name| Some(name.as_str()) == seed);
        let json = restored(
            config,
            &wanted,
            family,
            model_type.or(family.model_types.first()),
        );
        let read = Architecture::of(&Config::from_json(&config.path, json.clone()));
        if read.is_ok_and(|read| read == wanted) {
            return Ok(Output {
                architecture: wanted,
                config: json,
                notes: Vec::new(),
            });
        }
    }
    let names: Vec<&str> = known.iter().map(|family| family.name.as_str()).collect();
    Err(Error::file(
        &config.path,
        format!(
            "its experts alone are models of no known family: {}",
            names.join(", ")
        ),
    ))
}

/// The keys of the mixture's configuration that a dense model of the family has.
fn restored(
    config: &Config,
    wanted: &Architecture,
    family: &Family,
    model_type: Option<&String>,
) -> Map<String, Value> {
    let mut json = config.json.clone();
    for stray in STRAY.iter().chain(&DESCRIBED).chain(&Mixture::KEYS) {
        json.shift_remove(*stray);
    }
    json.retain(|key, _| family.knows(key));
    json.shift_remove("rope_scaling");
    put_rope(&mut json, wanted);
    if let Some(name) = family.keys.sliding_window.names.first()
        && !json.contains_key(name)
    {
        json.insert(name.clone(), json!(wanted.sliding_window));
    }
    let biases = biases(family, wanted);
    for said in ["attention_bias", "mlp_bias"] {
        if !biases
            .iter()
            .any(|(presence, _)| matches!(presence, Presence::Key { name, .. } if name == said))
        {
            json.shift_remove(said);
        }
    }
    for (presence, there) in biases {
        if let Presence::Key { name, .. } = presence {
            json.insert(name.clone(), json!(there));
        }
    }
    if let Some(name) = family.keys.intermediate_size.names.first() {
        json.insert(name.clone(), json!(wanted.intermediate_size));
    }
    json.insert("model_type".to_owned(), json!(model_type));
    json.insert("architectures".to_owned(), json!(family.architectures));
    both_spellings(&mut json);
    json
}
