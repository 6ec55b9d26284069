//! The experts of a mixture, read from a configuration in the keys of a BAM or of another family.

use serde_json::Value;

use super::architecture::Architecture;
use super::config::{Config, Found};
use super::keys::{Field, Key, Keys};
use super::layout::{AttentionKv, Layers};
use super::mixture::{Mixture, RouterBias, weight_of_sum};
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
            shared_expert_intermediate_size: None,
            shared_expert_gate: false,
            expert_adapters: false,
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
            shared_expert_intermediate_size: config.own_count("shared_expert_intermediate_size")?,
            shared_expert_gate: config.own_flag("shared_expert_gate")?.unwrap_or_default(),
            expert_adapters: config.own_flag("expert_adapters")?.unwrap_or_default(),
            router_bias: RouterBias::parse(config.json.get("router_bias").unwrap_or(&Value::Null))
                .map_err(|unexpected| unexpected.at(&config.path, "router_bias"))?,
            router_aux_loss_coef: number("router_aux_loss_coef", usual.router_aux_loss_coef)?,
            router_z_loss_coef: number("router_z_loss_coef", usual.router_z_loss_coef)?,
        })
    }

    /// The mixture of feed-forward experts that a config describes under the keys of a family.
    pub(crate) fn read_keys(config: &Config, dense: &Architecture, keys: &Keys) -> Result<Self> {
        let usual = Self::new(dense, config.required_count(&keys[Field::NumExperts])?);
        let z = Key::called("router_z_loss_coef");
        let shared = Field::SharedExpertIntermediateSize;
        let shared = if keys.has(shared) {
            Some(config.required_count(&keys[shared])?)
        } else {
            None
        };
        let moe_layers = sparse_layers(config, dense.num_layers, keys)?;
        let routers = moe_layers.count(dense.num_layers);
        let aux = config.number(&keys[Field::RouterAuxLossCoef], 0.0)?;
        Ok(Self {
            num_attention_experts: 1,
            num_attention_experts_per_tok: 1,
            attention_kv: AttentionKv::Merged,
            moe_intermediate_size: config.required_count(&keys[Field::MoeIntermediateSize])?,
            moe_layers,
            num_experts_per_tok: config.required_count(&keys[Field::NumExpertsPerTok])?,
            norm_topk_prob: config.flag(&keys[Field::NormTopkProb])?.unwrap_or_default(),
            shared_expert_intermediate_size: shared,
            shared_expert_gate: shared.is_some(),
            router_aux_loss_coef: aux.map_or(usual.router_aux_loss_coef, |aux| {
                weight_of_sum(aux, routers)
            }),
            router_z_loss_coef: config.number(&z, 0.0)?.unwrap_or(usual.router_z_loss_coef),
            ..usual
        })
    }
}

/// The layers with experts: each `step`-th one that the config does not list as dense.
fn sparse_layers(config: &Config, num_layers: u64, keys: &Keys) -> Result<Layers> {
    let step = match keys[Field::SparseStep].name() {
        Some(name) => config.own_count(name)?.unwrap_or(1),
        None => 1,
    };
    let mut sparse: Vec<bool> = (1..=num_layers)
        .map(|number| number.is_multiple_of(step))
        .collect();
    if let Some(name) = keys[Field::DenseLayers].name()
        && let Found::Value(name, value) = config.find([name])?
    {
        let wrong = || config.wrong(name, "a list of layers", value);
        for layer in value.as_array().ok_or_else(wrong)? {
            // A list may name layers beyond the last.
            if let Some(sparse) = sparse.get_mut(layer.as_u64().ok_or_else(wrong)? as usize) {
                *sparse = false;
            }
        }
    }
    if sparse.iter().all(|sparse| *sparse) {
        return Ok(Layers::All);
    }
    Ok(Layers::List(
        (0..num_layers)
            .filter(|layer| sparse[*layer as usize])
            .collect(),
    ))
}
