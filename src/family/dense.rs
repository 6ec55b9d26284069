//! Back from a mixture: the dense model that one of its experts is on its own.

use serde_json::{Map, Value};

use super::architecture::Architecture;
use super::config::{BAM_VERSION, Config};
use super::config_error::ConfigError;
use super::format::{Family, Presence};
use super::keys::Field;
use super::known::{brought, families};
use super::layout::Layouts;
use super::mixture::Mixture;
use super::optional_bias::biases;
use super::stock::Output;
use super::target::SEED_MODEL_TYPE;
use super::write::ConfigWriter;
use crate::Result;

/// Keys of mixtures beside [`Mixture::KEYS`] and the keys of layouts. A dense model of any family does without them.
const STRAY: [&str; 12] = [
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
    "attention_output_bias",
    // Said again, with every value, in both spellings.
    "rope_scaling",
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

/// The dense model that one expert of the mixture `architecture` is without the others; `config` is the mixture's
/// configuration. It is of the seed's family where the configuration keeps that name, else of the first family whose
/// models are the same.
///
/// # Errors
/// Where no known family has models like it: its experts have another width than its dense layers, or adapters.
pub fn dense(config: &Config, architecture: &Architecture) -> Result<Output> {
    let Some(mixture) = &architecture.mixture else {
        return Err(ConfigError::Dense {
            path: config.path.clone(),
        }
        .into());
    };
    if mixture.expert_adapters {
        return Err(ConfigError::ExpertAdapters {
            path: config.path.clone(),
        }
        .into());
    }
    let every = mixture
        .moe_layers
        .mask(architecture.num_layers)
        .iter()
        .all(|sparse| *sparse);
    if !every && mixture.moe_intermediate_size != architecture.intermediate_size {
        return Err(ConfigError::TwoWidths {
            path: config.path.clone(),
            experts: mixture.moe_intermediate_size,
            layers: architecture.intermediate_size,
        }
        .into());
    }
    let alone = architecture.of_one_expert();
    let seed = config.json.get(SEED_MODEL_TYPE).and_then(Value::as_str);
    let mut known: Vec<_> = brought()
        .into_iter()
        .chain(families()?)
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
        let read = Architecture::read(&Config::from_json(&config.path, json.clone()), family);
        if read.is_ok_and(|read| read == wanted) {
            return Ok(Output {
                architecture: Architecture {
                    format: brought().filter(|brought| *brought == *family).cloned(),
                    ..wanted
                },
                config: json,
                notes: Vec::new(),
            });
        }
    }
    Err(ConfigError::NoDenseFamily {
        path: config.path.clone(),
        known: known.iter().map(|family| family.name.clone()).collect(),
    }
    .into())
}

/// The keys of the mixture's configuration that a dense model of the family has.
fn restored(
    config: &Config,
    wanted: &Architecture,
    family: &Family,
    model_type: Option<&String>,
) -> Map<String, Value> {
    let mut base = config.json.clone();
    base.retain(|key, _| family.knows(key));
    // Dense models of some families have norms of queries and keys by a key of that name.
    let layouts = Layouts::NAMES.into_iter().filter(|key| *key != "qk_norm");
    let strays = STRAY.into_iter().chain(Mixture::KEYS).chain(layouts);
    let mut json = ConfigWriter::new(base, strays, family, wanted);
    json.rope();

    json.keys(&[
        Field::NoRopeLayers,
        Field::RopeLocalTheta,
        Field::PartialRotaryFactor,
    ]);
    let window = family.keys[Field::SlidingWindow].name();
    if window.is_some_and(|name| !json.contains(name)) {
        json.keys(&[Field::SlidingWindow]);
    }
    let biases = biases(family, wanted);
    for said in ["attention_bias", "mlp_bias"] {
        if !biases
            .iter()
            .any(|bias| matches!(bias.presence, Presence::Key { names, .. } if names.iter().any(|name| name == said)))
        {
            json.remove(said);
        }
    }
    json.biases();
    json.keys(&[Field::IntermediateSize, Field::ParallelBlock]);
    json.keys(&Field::MULTIPLIERS);
    // What must be said, and can be said in one way.
    for rule in family.refused.iter().filter(|rule| rule.except.len() == 1) {
        if !json.contains(&rule.key) {
            json.put(&rule.key, rule.except[0].clone());
        }
    }
    json.identity(model_type.map(String::as_str));
    json.finish()
}
