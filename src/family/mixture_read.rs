//! The experts of a mixture, read from a configuration in the keys of a BAM or of another family.

use serde_json::Value;

use super::architecture::Architecture;
use super::config::{Config, Found};
use super::format::Family;
use super::keys::{Field, Key, Keys};
use super::layout::{AttentionGate, AttentionKv, Layers};
use super::mixture::{AVERAGE, Mixture, RouterBias, weight_of_sum};
use super::role::Role;
use super::sparse_layers::sparse_layers;
use crate::{Error, Result};

impl Mixture {
    /// The paper's mixture of `num_experts` copies of a dense model, the seed counted: experts in all layers, keys and
    /// values per expert, one feed-forward expert a token, soft attention. Loss weights are ours; the paper gives none.
    pub fn new(dense: &Architecture, num_experts: u64) -> Self {
        Self {
            num_experts,
            num_attention_experts: num_experts,
            moe_intermediate_size: dense.intermediate_size,
            moe_layers: Layers::All,
            attention_moe_layers: Layers::All,
            attention_kv: AttentionKv::Expert,
            num_experts_per_tok: 1,
            num_attention_experts_per_tok: num_experts,
            norm_topk_prob: false,
            norm_topk_prob_attention: false,
            attention_gate: AttentionGate::Softmax,
            attention_gate_scale: None,
            shared_expert_intermediate_size: None,
            shared_expert_gate: false,
            expert_adapters: false,
            moe_output_multiplier: None,
            router_bias: RouterBias::None,
            router_aux_loss_coef: 0.01,
            router_z_loss_coef: 0.001,
        }
    }

    /// The mixture that a config describes on top of `dense`; keys other than `num_experts` default to [`Self::new`].
    pub(crate) fn read(config: &Config, dense: &Architecture) -> Result<Self> {
        let layers = |name: &str| match config.find([name])? {
            Found::Value(name, value) => Layers::parse(value, dense.num_layers)
                .map_err(|unexpected| unexpected.at(&config.path, name)),
            Found::Absent | Found::Null => Ok(Layers::All),
        };
        let number = |name: &str, default: f64| match config.find([name])? {
            Found::Value(name, value) => config.as_number(name, value, 0.0),
            Found::Absent | Found::Null => Ok(default),
        };
        let num_experts = config
            .own_count("num_experts")?
            .ok_or_else(|| config.missing("num_experts", "a positive integer"))?;
        let usual = Self::new(dense, num_experts);
        let attention_kv = config.choice("attention_kv")?.unwrap_or(usual.attention_kv);
        let merged = attention_kv == AttentionKv::Merged;
        let attention_count = |name: &str, default: u64| match config.json.get(name) {
            Some(Value::Number(zero)) if merged && zero.as_u64() == Some(0) => Ok(0),
            _ => Ok::<_, Error>(config.own_count(name)?.unwrap_or(default)),
        };
        let num_attention_experts = attention_count(
            "num_attention_experts",
            if merged { 1 } else { num_experts },
        )?;
        Ok(Self {
            num_experts,
            num_attention_experts,
            moe_intermediate_size: config
                .own_count("moe_intermediate_size")?
                .unwrap_or(usual.moe_intermediate_size),
            moe_layers: layers("moe_layers")?,
            attention_moe_layers: layers("attention_moe_layers")?,
            attention_kv,
            num_experts_per_tok: config
                .own_count("num_experts_per_tok")?
                .unwrap_or(usual.num_experts_per_tok),
            num_attention_experts_per_tok: attention_count(
                "num_attention_experts_per_tok",
                num_attention_experts,
            )?,
            norm_topk_prob: config
                .own_flag("norm_topk_prob")?
                .unwrap_or(usual.norm_topk_prob),
            norm_topk_prob_attention: config
                .own_flag("norm_topk_prob_attention")?
                .unwrap_or_default(),
            attention_gate: config
                .choice("attention_gate")?
                .unwrap_or(usual.attention_gate),
            attention_gate_scale: Some(number("attention_gate_scale", 1.0)?)
                .filter(|factor| *factor != 1.0),
            shared_expert_intermediate_size: config.own_count("shared_expert_intermediate_size")?,
            shared_expert_gate: config.own_flag("shared_expert_gate")?.unwrap_or_default(),
            expert_adapters: config.own_flag("expert_adapters")?.unwrap_or_default(),
            moe_output_multiplier: Some(number("moe_output_multiplier", 1.0)?)
                .filter(|factor| *factor != 1.0),
            router_bias: RouterBias::parse(config.json.get("router_bias").unwrap_or(&Value::Null))
                .map_err(|unexpected| unexpected.at(&config.path, "router_bias"))?,
            router_aux_loss_coef: number("router_aux_loss_coef", usual.router_aux_loss_coef)?,
            router_z_loss_coef: number("router_z_loss_coef", usual.router_z_loss_coef)?,
        })
    }

    /// The mixture of feed-forward experts that a config describes under `keys`, the keys of mixtures of `family`.
    pub(crate) fn read_keys(
        config: &Config,
        dense: &Architecture,
        family: &Family,
        keys: &Keys,
    ) -> Result<Self> {
        let usual = Self::new(dense, config.required_count(&keys[Field::NumExperts])?);
        let z = Key::called("router_z_loss_coef");
        let moe_layers = Layers::of(&sparse_layers(config, dense.num_layers, keys)?);
        let routers = moe_layers.count(dense.num_layers);
        let aux = config.number(&keys[Field::RouterAuxLossCoef], 0.0)?;
        let width = config.required_count(&keys[Field::MoeIntermediateSize])?;
        let is_gated = family.tensors.get(Role::SharedExpertGate).is_some();
        let shared = shared_width(config, keys, width, is_gated)?;
        Ok(Self {
            num_attention_experts: 1,
            num_attention_experts_per_tok: 1,
            attention_kv: AttentionKv::Merged,
            moe_intermediate_size: width,
            moe_layers,
            num_experts_per_tok: experts_per_token(config, keys, dense.num_layers)?,
            norm_topk_prob: config.flag(&keys[Field::NormTopkProb])?.unwrap_or_default(),
            shared_expert_intermediate_size: shared,
            shared_expert_gate: shared.is_some() && is_gated,
            moe_output_multiplier: match shared {
                Some(_) => combination(config, keys)?,
                None => None,
            },
            router_bias: match config.lookup(&keys[Field::RouterBias])? {
                Found::Value(name, value) => RouterBias::parse(value)
                    .map_err(|unexpected| unexpected.at(&config.path, name))?,
                Found::Absent | Found::Null => RouterBias::None,
            },
            router_aux_loss_coef: aux.map_or(usual.router_aux_loss_coef, |aux| {
                weight_of_sum(aux, routers)
            }),
            router_z_loss_coef: config.number(&z, 0.0)?.unwrap_or(usual.router_z_loss_coef),
            ..usual
        })
    }
}

/// How many experts a token goes to: a number, or a list with the same number for each layer.
fn experts_per_token(config: &Config, keys: &Keys, num_layers: u64) -> Result<u64> {
    let key = &keys[Field::NumExpertsPerTok];
    let Found::Value(name, Value::Array(numbers)) = config.lookup(key)? else {
        return config.required_count(key);
    };
    let of_layers = numbers.get(..num_layers as usize).unwrap_or_default();
    match of_layers {
        [first, others @ ..] if others.iter().all(|other| other == first) => {
            config.as_count(name, first)
        }
        _ => {
            let expected = format!("the same number for each of {num_layers} layers");
            Err(config.unexpected(name, expected, "a list of others"))
        }
    }
}

/// The inner width of the shared expert, beside experts of that `width`.
fn shared_width(config: &Config, keys: &Keys, width: u64, is_gated: bool) -> Result<Option<u64>> {
    let own = &keys[Field::SharedExpertIntermediateSize];
    if is_gated {
        return config.required_count(own).map(Some);
    }
    let number = &keys[Field::NumSharedExperts];
    for key in [own, number] {
        config.not_null(key, "an integer of at least 0")?;
    }
    let number = config.index(number)?.map(|number| number * width);
    let width = config.index(own)?.or(number);
    Ok(width.filter(|width| *width > 0))
}

/// The factor on the outputs of experts, the shared one among them, where it is not 1.
fn combination(config: &Config, keys: &Keys) -> Result<Option<f64>> {
    let key = &keys[Field::SharedCombination];
    match config.lookup(key)? {
        Found::Absent => Ok(None),
        Found::Value(_, text) if text == "sum" => Ok(None),
        Found::Value(_, text) if text == "average" => Ok(Some(AVERAGE)),
        Found::Null => Err(config.wrong(
            key.name().unwrap_or_default(),
            "`average` or `sum`",
            &Value::Null,
        )),
        Found::Value(name, other) => Err(config.wrong(name, "`average` or `sum`", other)),
    }
}
