//! The experts of a mixture, as its `config.json` describes them.

use std::str::FromStr;

use serde::{Serialize, Serializer};
use serde_json::Value;

use super::architecture_fault::ArchitectureFault;
use super::layout::{AttentionGate, AttentionKv, Layers, Unexpected};
use crate::checkpoint::json::kind;

/// The weight in a stock `config.json` of the load-balancing loss whose weight is `of_sum` here.
///
/// We add up the losses of all layers; transformers' `load_balancing_loss_func` takes one loss of their mean routing, so
/// that its weight counts once for all `routers`.
pub(crate) fn weight_of_mean(of_sum: f64, routers: u64) -> f64 {
    let weight = product(of_sum, routers);
    if weight_of_sum(weight, routers) == of_sum {
        weight
    } else {
        of_sum * routers as f64
    }
}

/// The weight here of a loss whose weight in a stock `config.json` is `of_mean`: the shortest number that leads back to it.
pub(crate) fn weight_of_sum(of_mean: f64, routers: u64) -> f64 {
    let weight = of_mean / routers.max(1) as f64;
    (1..=16)
        .map(|digits| rounded(weight, digits))
        .find(|weight| product(*weight, routers) == of_mean)
        .unwrap_or(weight)
}

/// Fifteen digits are those that a float64 always holds as written: 0.1 three times is 0.3.
fn product(weight: f64, routers: u64) -> f64 {
    rounded(weight * routers as f64, 15)
}

/// A number rounded to significant decimal digits.
fn rounded(number: f64, digits: usize) -> f64 {
    // The text of a finite number is one.
    format!("{number:.*e}", digits - 1)
        .parse()
        .unwrap_or(number)
}

/// The factor that makes an average of the sum of the shared expert and the others.
pub(super) const AVERAGE: f64 = 0.5;

/// How many experts a token goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TopK {
    /// All of them, weighted: soft routing.
    Soft,
    /// The so many with the largest gates.
    Of(u64),
}

impl FromStr for TopK {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.parse()) {
            ("soft", _) => Ok(Self::Soft),
            (_, Ok(count)) if count > 0 => Ok(Self::Of(count)),
            _ => Err(format!(
                "expected `soft` or a positive number, found `{text}`"
            )),
        }
    }
}

impl TopK {
    /// The number of experts out of `experts`.
    pub fn of(self, experts: u64) -> u64 {
        match self {
            Self::Soft => experts,
            Self::Of(count) => count,
        }
    }
}

/// The bias of routers, key `router_bias` of `config.json`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouterBias {
    /// Routers have no bias (`false`).
    None,
    /// Added to the logits of either kind of router, before the softmax (`true`; FlexOlmo).
    Logits,
    /// Added to the gates of feed-forward routers where the `top_k` largest are chosen, and nowhere else (`"choice"`):
    /// what balances the load without a loss, and has no gradient.
    Choice,
}

impl RouterBias {
    /// Reads the key's value; the error says what was expected and found.
    pub(super) fn parse(value: &Value) -> Result<Self, Unexpected> {
        match value {
            Value::Null | Value::Bool(false) => Ok(Self::None),
            Value::Bool(true) => Ok(Self::Logits),
            Value::String(text) if text == "choice" => Ok(Self::Choice),
            other => Err(Unexpected {
                expected: "true, false or \"choice\"".to_owned(),
                found: kind(other),
            }),
        }
    }

    fn is_none(&self) -> bool {
        *self == Self::None
    }
}

impl Serialize for RouterBias {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::None => serializer.serialize_bool(false),
            Self::Logits => serializer.serialize_bool(true),
            Self::Choice => serializer.serialize_str("choice"),
        }
    }
}

/// The experts of a mixture; every field is the key of the same name in the `config.json` of a BAM.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Mixture {
    /// Feed-forward experts of a layer in [`Self::moe_layers`].
    pub num_experts: u64,
    /// Attention experts of a layer in [`Self::attention_moe_layers`]; 1 where attention is merged.
    pub num_attention_experts: u64,
    /// Inner width of one feed-forward expert.
    pub moe_intermediate_size: u64,
    /// Layers with feed-forward experts.
    pub moe_layers: Layers,
    /// Layers with attention experts.
    pub attention_moe_layers: Layers,
    /// What happens to keys and values.
    pub attention_kv: AttentionKv,
    /// Feed-forward experts that a token goes to; equal to [`Self::num_experts`] is soft routing.
    pub num_experts_per_tok: u64,
    /// Attention experts that a token goes to; equal to [`Self::num_attention_experts`] is soft routing.
    pub num_attention_experts_per_tok: u64,
    /// Whether the gates of the selected feed-forward experts are divided by their sum.
    pub norm_topk_prob: bool,
    /// The same for attention experts.
    pub norm_topk_prob_attention: bool,
    /// How the logits of attention routers become gates.
    #[serde(skip_serializing_if = "AttentionGate::is_softmax")]
    pub attention_gate: AttentionGate,
    /// Factor on the gates of attention experts where they are sigmoids; `None` where it is 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attention_gate_scale: Option<f64>,
    /// Inner width of the shared expert, which every token goes to beside its own; `None` without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shared_expert_intermediate_size: Option<u64>,
    /// Whether a sigmoid gate weights the shared expert.
    #[serde(skip_serializing_if = "is_false")]
    pub shared_expert_gate: bool,
    /// Whether the output of each expert passes a matrix `[hidden, hidden]` of its own ("BAM with adapters", BTS 2025).
    #[serde(skip_serializing_if = "is_false")]
    pub expert_adapters: bool,
    /// Factor on the sum of a layer's experts, the shared one among them; `None` where it is 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub moe_output_multiplier: Option<f64>,
    /// Biases of the routers.
    #[serde(skip_serializing_if = "RouterBias::is_none")]
    pub router_bias: RouterBias,
    /// Weight of the load-balancing losses of all layers, added up.
    pub router_aux_loss_coef: f64,
    /// Weight of the router z-loss.
    pub router_z_loss_coef: f64,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // as serde wants it
fn is_false(value: &bool) -> bool {
    !value
}

/// The factor on the sigmoid gates of so many fresh attention experts: their sum is 1 where every sigmoid is a half.
pub fn usual_gate_scale(experts: u64) -> f64 {
    2.0 / experts.max(1) as f64
}

impl Mixture {
    /// Keys that [`Serialize`] leaves out where they say that there is nothing.
    pub(crate) const OPTIONAL_KEYS: [&str; 7] = [
        "attention_gate",
        "attention_gate_scale",
        "shared_expert_intermediate_size",
        "shared_expert_gate",
        "expert_adapters",
        "moe_output_multiplier",
        "router_bias",
    ];

    /// Every key of a BAM's `config.json` that is about its experts.
    pub(crate) const KEYS: [&str; 20] = [
        "num_experts",
        "num_local_experts",
        "num_attention_experts",
        "moe_intermediate_size",
        "moe_layers",
        "attention_moe_layers",
        "attention_kv",
        "num_experts_per_tok",
        "num_attention_experts_per_tok",
        "norm_topk_prob",
        "norm_topk_prob_attention",
        "attention_gate",
        "attention_gate_scale",
        "router_aux_loss_coef",
        "router_z_loss_coef",
        "shared_expert_intermediate_size",
        "shared_expert_gate",
        "expert_adapters",
        "moe_output_multiplier",
        "router_bias",
    ];

    /// Refuses a mixture that cannot be.
    pub(crate) fn check(&self, num_layers: u64) -> Result<(), ArchitectureFault> {
        const LARGEST: u64 = 1 << 31;
        let merged = self.attention_kv == AttentionKv::Merged;
        let least = u64::from(!merged);
        let attention_experts = self.num_attention_experts;
        for (key, count, least, most) in [
            ("num_experts", self.num_experts, 1, LARGEST),
            (
                "num_experts_per_tok",
                self.num_experts_per_tok,
                1,
                self.num_experts,
            ),
            ("num_attention_experts", attention_experts, least, LARGEST),
            (
                "num_attention_experts_per_tok",
                self.num_attention_experts_per_tok,
                least,
                attention_experts,
            ),
            (
                "moe_intermediate_size",
                self.moe_intermediate_size,
                1,
                LARGEST,
            ),
            (
                "shared_expert_intermediate_size",
                self.shared_expert_intermediate_size.unwrap_or(1),
                1,
                LARGEST,
            ),
        ] {
            if count < least || count > most {
                return Err(ArchitectureFault::OutOfRange {
                    key,
                    least,
                    most,
                    found: count,
                });
            }
        }
        self.check_attention_gate()?;
        if self.shared_expert_gate && self.shared_expert_intermediate_size.is_none() {
            return Err(ArchitectureFault::NoSharedExpert);
        }
        let lists = [
            ("moe_layers", &self.moe_layers),
            ("attention_moe_layers", &self.attention_moe_layers),
        ];
        for (key, layers) in lists {
            if let Layers::List(layers) = layers
                && let Some(layer) = layers.iter().find(|layer| **layer >= num_layers)
            {
                return Err(ArchitectureFault::NoLayer {
                    key,
                    layers: num_layers,
                    found: *layer,
                });
            }
        }
        Ok(())
    }

    /// Refuses sigmoid gates whose meaning is not fixed, and a scale on other gates.
    fn check_attention_gate(&self) -> Result<(), ArchitectureFault> {
        let scale = self.attention_gate_scale;
        if self.attention_gate == AttentionGate::Softmax {
            return match scale {
                None => Ok(()),
                Some(_) => Err(ArchitectureFault::ScaledSoftmax),
            };
        }
        if self.attention_kv == AttentionKv::Merged {
            return Err(ArchitectureFault::GateWithoutExperts);
        }
        if self.num_attention_experts_per_tok != self.num_attention_experts {
            return Err(ArchitectureFault::SigmoidTopK {
                experts: self.num_attention_experts,
                found: self.num_attention_experts_per_tok,
            });
        }
        if self.norm_topk_prob_attention {
            return Err(ArchitectureFault::NormalisedSigmoid);
        }
        match scale {
            Some(scale) if !(scale > 0.0 && scale.is_finite()) => Err(ArchitectureFault::GateScale),
            _ => Ok(()),
        }
    }

    /// The factor on the gates of attention experts after a change of their number from [`Self::num_attention_experts`] to
    /// `experts`: the sum of equal gates stays.
    pub(crate) fn gate_scale_of(&self, experts: u64) -> Option<f64> {
        let before = self.num_attention_experts;
        let scale = self.attention_gate_scale.unwrap_or(1.0);
        let changed = if scale == usual_gate_scale(before) {
            usual_gate_scale(experts)
        } else {
            scale * before as f64 / experts.max(1) as f64
        };
        (self.attention_gate == AttentionGate::Sigmoid && changed != 1.0).then_some(changed)
    }
}
