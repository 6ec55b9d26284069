//! What a mixture becomes in the format of another program: a stock family of transformers, or this program's own.
//!
//! A family holds a mixture exactly or not at all. What it cannot hold is refused with the reason; nothing is dropped.

use serde_json::{Map, Value, json};

use super::architecture::Architecture;
use super::config::{BAM_VERSION, Config};
use super::format::{Family, Presence};
use super::keys::{Key, MixtureKeys};
use super::layout::{AttentionKv, Layers, QkNorm};
use super::mixture::{Mixture, RouterBias, weight_of_mean};
use super::spelling::{both_spellings, same_value};
use super::target::{DESCRIBED, bam_config, carried, notes, put_rope};
use crate::checkpoint::dtype::torch_name;
use crate::error::{nearest, one_of};
use crate::{Error, Result};

/// Width of the shared expert that a family insists on and a mixture does not have: no larger than needed for the blocks of
/// quantised formats and for a few devices to share it.
const NEUTRAL_WIDTH: u64 = 256;

/// A mixture as a checkpoint of a family.
#[derive(Debug, Clone, PartialEq)]
pub struct Output {
    /// Its architecture, with all that the family insists on.
    pub architecture: Architecture,
    /// Its `config.json`.
    pub config: Map<String, Value>,
    /// What a user should know: keys of the source that its family does not have.
    pub notes: Vec<String>,
}

/// The names of the families that can hold a mixture.
pub fn targets() -> Result<Vec<&'static str>> {
    let mixtures = super::families()?
        .iter()
        .filter(|family| family.is_mixture());
    Ok(mixtures.map(|family| family.name.as_str()).collect())
}

/// `dense` with the experts of `mixture` as a checkpoint of the family called `target`; `source` is the configuration that
/// `dense` was read from, whose other keys are kept.
///
/// Parameters that only the family has are neutral: a bias is zero, and so is the down projection of a shared expert.
///
/// # Errors
/// An unknown family, and whatever about the model the family has no place for, each reason named.
pub fn output(
    dense: &Architecture,
    source: &Config,
    mixture: Mixture,
    target: &str,
) -> Result<Output> {
    let known = targets()?;
    if !known.contains(&target) {
        let error = Error::usage(format!(
            "expected a target: {}; found `{target}`",
            one_of(known.iter().copied())
        ));
        return Err(match nearest(target, known) {
            Some(name) => error.with_hint(format!("the nearest known one is `{name}`")),
            None => error,
        });
    }
    let family = Family::named(target)?;
    dense.check_computable(source)?;
    let notes = notes(source, dense)?;
    let Some(keys) = &family.mixture else {
        let architecture = dense.upcycled(mixture);
        let config = bam_config(source, dense, &architecture)?;
        return Ok(Output {
            architecture,
            config,
            notes,
        });
    };
    let reasons = reasons(dense, &mixture, &family, keys);
    if !reasons.is_empty() {
        return Err(Error::usage(format!(
            "{target} cannot hold this mixture: {}",
            reasons.join("; ")
        ))
        .with_hint("the family `bam` holds it"));
    }
    let wanted = fitted(dense, mixture, &family, keys);
    let config = config(carried(source, dense)?, &wanted, &family, keys);
    let mut read = Architecture::of(&Config::from_json(&source.path, config.clone()))?;
    // A default of the family may stand where the source says nothing.
    read.max_position_embeddings = wanted.max_position_embeddings;
    read.dtype = wanted.dtype;
    if let (Some(read), Some(wanted)) = (&mut read.mixture, &wanted.mixture) {
        let weight = wanted.router_aux_loss_coef;
        // Of more digits than a product with the number of layers leads back to.
        if (read.router_aux_loss_coef - weight).abs() <= 1e-12 * weight {
            read.router_aux_loss_coef = weight;
        }
    }
    if let Some(field) = first_difference(&wanted, &read) {
        let problem =
            format!("{target} cannot hold this mixture: its config.json does not say {field}");
        return Err(Error::usage(problem).with_hint("the family `bam` holds it"));
    }
    Ok(Output {
        architecture: wanted,
        config,
        notes,
    })
}

/// Biases of q, k and v, of the output projection, and of the feed-forward network: when the family has them, and whether the
/// architecture does.
pub(super) fn biases<'a>(family: &'a Family, of: &Architecture) -> [(&'a Presence, bool); 3] {
    let present = &family.present;
    [
        (&present.attention_bias, of.attention_bias),
        (&present.attention_output_bias, of.attention_output_bias),
        (&present.mlp_bias, of.mlp_bias),
    ]
}

/// Why a family cannot hold a mixture.
fn reasons(
    dense: &Architecture,
    mixture: &Mixture,
    family: &Family,
    keys: &MixtureKeys,
) -> Vec<String> {
    let mut reasons = Vec::new();
    let mut refuse = |refused: bool, reason: String| reasons.extend(refused.then_some(reason));
    let layouts = [
        ("block", dense.block.to_string(), family.block.to_string()),
        (
            "norm",
            dense.norm_type.to_string(),
            family.norm_type.to_string(),
        ),
        (
            "place of norms",
            dense.norm_position.to_string(),
            family.norm_position.to_string(),
        ),
        (
            "feed-forward network",
            dense.mlp_type.to_string(),
            family.mlp_type.to_string(),
        ),
    ];
    for (what, found, held) in layouts {
        refuse(
            found != held,
            format!("its {what} is {held}, the model's {found}"),
        );
    }
    let rotary = |interleaved| {
        if interleaved {
            "neighbours"
        } else {
            "half a head apart"
        }
    };
    refuse(
        dense.rope_interleaved != family.rope_interleaved,
        format!(
            "its rotary pairs are {}, the model's {}",
            rotary(family.rope_interleaved),
            rotary(dense.rope_interleaved)
        ),
    );
    let held = if family.present.qk_norm == Presence::Never {
        QkNorm::None
    } else {
        family.qk_norm
    };
    let norm = |norm: QkNorm| match norm {
        QkNorm::None => "no norm of queries and keys",
        QkNorm::HeadDim => "a norm of each head's queries and keys",
        QkNorm::PerHead => "a layer norm with weights of its own for each head's queries and keys",
        QkNorm::Full => "a norm over all heads' queries, and one over their keys",
    };
    refuse(
        dense.qk_norm != held,
        format!("it has {}, the model {}", norm(held), norm(dense.qk_norm)),
    );
    let what = [
        "biases of q, k and v",
        "a bias of the output projection",
        "biases of the feed-forward network",
    ];
    for (what, (presence, there)) in what.into_iter().zip(biases(family, dense)) {
        refuse(
            there && *presence == Presence::Never,
            format!("it has no place for {what}"),
        );
    }
    refuse(
        family.keys.head_dim.names.is_empty() && dense.query_width() != dense.hidden_size,
        format!(
            "its heads fill the hidden size {}, the model's are {} wide",
            dense.hidden_size,
            dense.query_width()
        ),
    );
    let window = family.keys.sliding_window.names.is_empty();
    refuse(
        dense.sliding_window.is_some() && window,
        "it has no sliding window".to_owned(),
    );
    refuse(
        !dense.window_layers.is_all() && !window,
        "its sliding window is the same in all layers".to_owned(),
    );
    refuse(
        dense.logit_scale.is_some_and(|scale| scale != 1.0)
            && family.keys.logit_scale.names.is_empty(),
        "it does not scale logits".to_owned(),
    );
    refuse(
        dense.clip_qkv.is_some() && family.keys.clip_qkv.names.is_empty(),
        "it does not clip queries, keys and values".to_owned(),
    );
    refuse(
        mixture.attention_kv != AttentionKv::Merged,
        "it has no attention experts (--method btx has none)".to_owned(),
    );
    refuse(
        keys.dense_layers.is_none() && mixture.moe_layers.mask(dense.num_layers).contains(&false),
        "it has experts in every layer".to_owned(),
    );
    refuse(mixture.expert_adapters, "it has no adapters".to_owned());
    refuse(
        mixture.router_bias != RouterBias::None,
        "its routers have no bias".to_owned(),
    );
    // Gates that sum to 1 are the same renormalised.
    let soft = mixture.num_experts_per_tok == mixture.num_experts;
    if let (true, Some(fixed)) = (
        keys.norm_topk_prob.names.is_empty(),
        &keys.norm_topk_prob.default,
    ) {
        let reason = match (fixed == true, mixture.num_experts_per_tok) {
            (false, _) => "it never renormalises gates",
            (true, 1) => {
                "it always renormalises gates, and with one expert a token no gradient reaches its router"
            }
            (true, _) => "it always renormalises gates (--norm-topk-prob true)",
        };
        refuse(
            !soft && *fixed != json!(mixture.norm_topk_prob),
            reason.to_owned(),
        );
    }
    let shared = mixture.shared_expert_intermediate_size.is_some();
    match keys.shared_expert_intermediate_size {
        None => refuse(shared, "it has no shared expert".to_owned()),
        Some(_) => refuse(
            shared && !mixture.shared_expert_gate,
            "it weights its shared expert by a gate".to_owned(),
        ),
    }
    let width_is_dense = keys.moe_intermediate_size.names == family.keys.intermediate_size.names;
    refuse(
        width_is_dense
            && mixture.moe_intermediate_size != dense.intermediate_size
            && mixture.moe_layers.mask(dense.num_layers).contains(&false),
        "its experts are as wide as its ordinary feed-forward networks".to_owned(),
    );
    reasons
}

/// The architecture in the family, with what it insists on.
fn fitted(
    dense: &Architecture,
    mut mixture: Mixture,
    family: &Family,
    keys: &MixtureKeys,
) -> Architecture {
    // One key may switch two kinds of biases on.
    let flags = biases(family, dense);
    let there = |presence: &Presence| match presence {
        Presence::Never => false,
        Presence::Always => true,
        Presence::Key { default, .. } => {
            *default
                || flags
                    .iter()
                    .any(|(other, there)| *there && *other == presence)
        }
    };
    let soft = mixture.num_experts_per_tok == mixture.num_experts;
    if let (true, true, Some(fixed)) = (
        soft,
        keys.norm_topk_prob.names.is_empty(),
        &keys.norm_topk_prob.default,
    ) {
        mixture.norm_topk_prob = fixed == true;
    }
    if keys.shared_expert_intermediate_size.is_some()
        && mixture.shared_expert_intermediate_size.is_none()
    {
        mixture.shared_expert_intermediate_size =
            Some(mixture.moe_intermediate_size.min(NEUTRAL_WIDTH));
        mixture.shared_expert_gate = true;
    }
    mixture.num_attention_experts = 1;
    mixture.num_attention_experts_per_tok = 1;
    mixture.attention_moe_layers = Layers::All;
    mixture.norm_topk_prob_attention = false;
    let width_is_dense = keys.moe_intermediate_size.names == family.keys.intermediate_size.names;
    if mixture
        .moe_layers
        .mask(dense.num_layers)
        .iter()
        .all(|sparse| *sparse)
    {
        mixture.moe_layers = Layers::All;
    }
    Architecture {
        family: family.name.clone(),
        attention_bias: there(&family.present.attention_bias),
        attention_output_bias: there(&family.present.attention_output_bias),
        mlp_bias: there(&family.present.mlp_bias),
        intermediate_size: if width_is_dense {
            mixture.moe_intermediate_size
        } else {
            dense.intermediate_size
        },
        logit_scale: dense
            .logit_scale
            .filter(|_| !family.keys.logit_scale.names.is_empty()),
        mixture: Some(mixture),
        format: None,
        ..dense.clone()
    }
}

/// Keys of other families that a reader of the target would misunderstand, and keys of code that is not copied.
const STRAY: [&str; 12] = [
    "auto_map",
    BAM_VERSION,
    "original_max_position_embeddings",
    "partial_rotary_factor",
    "qk_norm",
    "layer_types",
    "max_window_layers",
    "mlp_only_layers",
    "decoder_sparse_step",
    "sliding_window",
    "use_sliding_window",
    "qkv_bias",
];

/// The `config.json` of `wanted`: the keys of the source, `config`, in their order, changed where the family differs.
fn config(
    mut config: Map<String, Value>,
    wanted: &Architecture,
    family: &Family,
    keys: &MixtureKeys,
) -> Map<String, Value> {
    let torch_dtype = config.contains_key("torch_dtype");
    for stray in STRAY.iter().chain(&Mixture::KEYS).chain(&DESCRIBED) {
        config.shift_remove(*stray);
    }
    // Said again below, with every value, in both spellings.
    config.shift_remove("rope_scaling");
    put_rope(&mut config, wanted);
    let mut put = |name: &str, value: Value| {
        if !config
            .get(name)
            .is_some_and(|present| same_value(present, &value))
        {
            config.insert(name.to_owned(), value);
        }
    };
    put("model_type", json!(family.model_types.first()));
    put("architectures", json!(family.architectures));
    let of = &family.keys;
    let dtype = wanted.dtype.and_then(torch_name);
    let sizes: [(&Key, Value); 16] = [
        (&of.hidden_size, json!(wanted.hidden_size)),
        (&of.intermediate_size, json!(wanted.intermediate_size)),
        (&of.num_layers, json!(wanted.num_layers)),
        (&of.num_heads, json!(wanted.num_heads)),
        (&of.num_kv_heads, json!(wanted.num_kv_heads)),
        (&of.vocab_size, json!(wanted.vocab_size)),
        (&of.tie_word_embeddings, json!(wanted.tie_word_embeddings)),
        (&of.hidden_act, json!(wanted.hidden_act)),
        (&of.norm_eps, json!(wanted.norm_eps)),
        (&of.initializer_range, json!(wanted.initializer_range)),
        (&of.sliding_window, json!(wanted.sliding_window)),
        (
            &of.use_sliding_window,
            json!(wanted.sliding_window.is_some()),
        ),
        (&of.clip_qkv, json!(wanted.clip_qkv)),
        (&of.logit_scale, json!(wanted.logit_scale)),
        (
            &of.max_position_embeddings,
            json!(wanted.max_position_embeddings),
        ),
        (&of.dtype, json!(dtype)),
    ];
    for (key, value) in sizes {
        if let Some(name) = key.names.first()
            && (!value.is_null() || key == &of.sliding_window)
        {
            put(name, value);
        }
    }
    // Some readers compute it only where the key is absent rather than null.
    put("head_dim", json!(wanted.head_dim));
    if let (Some(name), true) = (dtype, torch_dtype) {
        put("torch_dtype", json!(name));
    }
    for (presence, there) in biases(family, wanted) {
        if let Presence::Key { name, .. } = presence {
            put(name, json!(there));
        }
    }
    if let Some(mixture) = &wanted.mixture {
        let mut put_all =
            |key: &Key, value: Value| key.names.iter().for_each(|name| put(name, value.clone()));
        put_all(&keys.num_experts, json!(mixture.num_experts));
        put_all(
            &keys.num_experts_per_tok,
            json!(mixture.num_experts_per_tok),
        );
        put_all(
            &keys.moe_intermediate_size,
            json!(mixture.moe_intermediate_size),
        );
        put_all(&keys.norm_topk_prob, json!(mixture.norm_topk_prob));
        put_all(
            &keys.router_aux_loss_coef,
            json!(weight_of_mean(
                mixture.router_aux_loss_coef,
                mixture.moe_layers.count(wanted.num_layers)
            )),
        );
        if let Some(key) = &keys.shared_expert_intermediate_size {
            put_all(key, json!(mixture.shared_expert_intermediate_size));
        }
        if let Some(name) = &keys.dense_layers {
            let sparse = mixture.moe_layers.mask(wanted.num_layers);
            let dense = (0..wanted.num_layers).filter(|layer| !sparse[*layer as usize]);
            put(name, json!(dense.collect::<Vec<_>>()));
        }
        if let Some(name) = &keys.sparse_step {
            put(name, json!(1));
        }
        put("router_z_loss_coef", json!(mixture.router_z_loss_coef));
    }
    both_spellings(&mut config);
    config
}

/// The first field in which two architectures differ, with what it should be.
fn first_difference(wanted: &Architecture, found: &Architecture) -> Option<String> {
    let fields = |architecture: &Architecture| match json!(architecture) {
        Value::Object(mut fields) => {
            let mixture = fields.remove("mixture");
            fields.extend(
                mixture
                    .as_ref()
                    .and_then(Value::as_object)
                    .cloned()
                    .unwrap_or_default(),
            );
            fields
        }
        _ => Map::new(),
    };
    let found = fields(found);
    fields(wanted)
        .into_iter()
        .find(|(name, value)| !same_value(found.get(name).unwrap_or(&Value::Null), value))
        .map(|(name, value)| format!("that {name} is {value}"))
}
