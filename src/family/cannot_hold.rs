//! Why a family of another program cannot hold a mixture, and what decides the parts that it insists on.

use serde_json::json;

use super::architecture::Architecture;
use super::format::{Family, Presence};
use super::keys::{Field, Keys};
use super::layout::{AttentionKv, Layers, QkNorm, Rotation};
use super::mixture::{AVERAGE, Mixture, RouterBias};
use super::optional_bias::biases;
use super::role::Role;
use super::sparse_layers::{SparseRange, forces_rotation};

/// Width of the shared expert where a family requires one and the mixture has none. It is just large enough for the
/// blocks of quantised formats, and for a few devices to share it.
pub(super) const NEUTRAL_WIDTH: u64 = 256;

/// The reasons, none where the family holds the mixture.
pub(super) fn reasons(
    dense: &Architecture,
    mixture: &Mixture,
    family: &Family,
    keys: &Keys,
) -> Vec<String> {
    let mut reasons = Reasons(Vec::new());
    reasons.of_layouts(dense, family);
    reasons.of_layers(dense, mixture, family);
    reasons.of_numbers(dense, family);
    reasons.of_experts(dense, mixture, family, keys);
    reasons.of_gates(mixture, keys);
    reasons.of_shared_expert(mixture, family, keys);
    reasons.0
}

/// The list in the making.
struct Reasons(Vec<String>);

impl Reasons {
    fn refuse(&mut self, refused: bool, reason: impl Into<String>) {
        self.0.extend(refused.then(|| reason.into()));
    }

    /// What a block computes, and its biases.
    fn of_layouts(&mut self, dense: &Architecture, family: &Family) {
        for (held, found) in family
            .layouts
            .rows()
            .into_iter()
            .zip(dense.layouts().rows())
        {
            // The norms of queries and keys have words of their own, below. A key may say which norm.
            let is_said = held.key == "norm_type" && family.keys.has(Field::RmsNormEps);
            if held.key != "qk_norm" && !is_said {
                self.refuse(
                    held.value != found.value,
                    format!(
                        "its {} {}, the model's {}",
                        held.what, held.words, found.words
                    ),
                );
            }
        }
        let held = if family.present.qk_norm == Presence::Never {
            QkNorm::None
        } else {
            family.layouts.qk_norm
        };
        let norm = |norm: QkNorm| match norm {
            QkNorm::None => "no norm of queries and keys",
            QkNorm::HeadDim => "a norm of each head's queries and keys",
            QkNorm::PerHead => {
                "a layer norm with weights of its own for each head's queries and keys"
            }
            QkNorm::Full => "a norm over all heads' queries, and one over their keys",
        };
        self.refuse(
            dense.qk_norm != held,
            format!("it has {}, the model {}", norm(held), norm(dense.qk_norm)),
        );
        for bias in biases(family, dense) {
            self.refuse(
                bias.there && *bias.presence == Presence::Never,
                format!("it has no place for {}", bias.what),
            );
        }
    }

    /// What differs between layers: windows and rotations.
    fn of_layers(&mut self, dense: &Architecture, mixture: &Mixture, family: &Family) {
        let window = family.keys[Field::SlidingWindow].names.is_empty();
        let by_layer = !family.keys[Field::LayerTypes].names.is_empty();
        self.refuse(
            dense.sliding_window.is_some() && window,
            "it has no sliding window",
        );
        self.refuse(
            !dense.window_layers.is_all() && !window && !by_layer,
            "its sliding window is the same in all layers",
        );
        match family.rotation {
            Rotation::All => self.refuse(
                !dense.rope_layers.is_all(),
                "all its layers rotate queries and keys",
            ),
            Rotation::SlidingOnly => {
                let windows = Windows::of(dense, family);
                self.refuse(
                    windows.window.is_none(),
                    "it needs a sliding window, or a longest context that is one",
                );
                self.refuse(
                    windows.window.is_some() && !windows.rotate_alone(dense, mixture, family),
                    "its layers rotate queries and keys if they have a sliding window",
                );
            }
        }
        self.refuse(
            dense.window_rope.is_some(),
            "its layers rotate in one way, with a window and without",
        );
    }

    /// Sizes, factors and bounds.
    fn of_numbers(&mut self, dense: &Architecture, family: &Family) {
        self.refuse(
            family.keys[Field::HeadDim].names.is_empty()
                && dense.query_width() != dense.hidden_size,
            format!(
                "its heads fill the hidden size {}, the model's are {} wide",
                dense.hidden_size,
                dense.query_width()
            ),
        );
        self.refuse(
            dense.logit_scale.is_some_and(|scale| scale != 1.0)
                && family.keys[Field::LogitScale].names.is_empty(),
            "it does not scale logits",
        );
        self.refuse(
            dense.clip_qkv.is_some() && family.keys[Field::ClipQkv].names.is_empty(),
            "it does not clip queries, keys and values",
        );
        for what in dense.multipliers.not_done(|field| family.keys.has(field)) {
            self.refuse(true, format!("it does not {what}"));
        }
    }

    /// Which layers have experts, and of what kind.
    fn of_experts(
        &mut self,
        dense: &Architecture,
        mixture: &Mixture,
        family: &Family,
        keys: &Keys,
    ) {
        self.refuse(
            mixture.attention_kv != AttentionKv::Merged,
            "it has no attention experts (--method btx has none)",
        );
        let sparse = mixture.moe_layers.mask(dense.num_layers);
        let some_are_dense = sparse.contains(&false);
        if keys.has(Field::FirstSparseLayer) {
            self.refuse(
                SparseRange::of(&sparse).is_none(),
                "its layers with experts are one range, or each n-th layer of it",
            );
        } else {
            let is_listed = keys.has(Field::DenseLayers) || keys.has(Field::SparseLayerTypes);
            self.refuse(
                !is_listed && some_are_dense,
                "it has experts in every layer",
            );
        }
        self.refuse(mixture.expert_adapters, "it has no adapters");
        match router_bias(keys) {
            RouterBias::Choice => self.refuse(
                mixture.router_bias == RouterBias::Logits,
                "the biases of its routers count in the choice alone",
            ),
            _ => self.refuse(
                mixture.router_bias != RouterBias::None,
                "its routers have no bias",
            ),
        }
        self.refuse(
            width_is_dense(family, keys)
                && mixture.moe_intermediate_size != dense.intermediate_size
                && some_are_dense,
            "its experts are as wide as its ordinary feed-forward networks",
        );
    }

    fn of_gates(&mut self, mixture: &Mixture, keys: &Keys) {
        // Gates that sum to 1 are the same renormalised.
        let soft = mixture.num_experts_per_tok == mixture.num_experts;
        if let (true, Some(fixed)) = (
            keys[Field::NormTopkProb].names.is_empty(),
            &keys[Field::NormTopkProb].default,
        ) {
            let reason = match (fixed == true, mixture.num_experts_per_tok) {
                (false, _) => "it never renormalises gates",
                (true, 1) => {
                    "it always renormalises gates, and with one expert a token no gradient reaches its router"
                }
                (true, _) => "it always renormalises gates (--norm-topk-prob true)",
            };
            self.refuse(!soft && *fixed != json!(mixture.norm_topk_prob), reason);
        }
    }

    fn of_shared_expert(&mut self, mixture: &Mixture, family: &Family, keys: &Keys) {
        let held = Shared::of(family, keys);
        let is_average = mixture.moe_output_multiplier == Some(AVERAGE);
        let Some(width) = mixture.shared_expert_intermediate_size else {
            return self.refuse(
                mixture.moe_output_multiplier.is_some(),
                "it adds up the outputs of experts",
            );
        };
        self.refuse(
            mixture.moe_output_multiplier.is_some() && !(is_average && held.averages),
            "it adds up the outputs of experts",
        );
        self.refuse(!held.there, "it has no shared expert");
        self.refuse(
            held.there && held.is_gated && !mixture.shared_expert_gate,
            "it weights its shared expert by a gate",
        );
        self.refuse(
            held.there && !held.is_gated && mixture.shared_expert_gate,
            "it does not weight its shared expert by a gate",
        );
        let one = mixture.moe_intermediate_size;
        match held.number {
            Some(SharedNumber::Fixed(number)) => self.refuse(
                Some(width) != number.checked_mul(one),
                format!(
                    "its shared expert is as wide as {number} expert{}",
                    if number == 1 { "" } else { "s" }
                ),
            ),
            Some(SharedNumber::Any) => self.refuse(
                !width.is_multiple_of(one),
                "its shared expert is as wide as a whole number of experts",
            ),
            None => {}
        }
    }
}

/// Whether one key says the width of experts and of layers without them.
pub(super) fn width_is_dense(family: &Family, keys: &Keys) -> bool {
    keys[Field::MoeIntermediateSize].names == family.keys[Field::IntermediateSize].names
        && !family.keys.has(Field::DenseIntermediateSize)
}

/// What biases of routers the family has, in each checkpoint.
pub(super) fn router_bias(keys: &Keys) -> RouterBias {
    let fixed = keys[Field::RouterBias].default.as_ref();
    let fixed = fixed.and_then(|value| RouterBias::parse(value).ok());
    fixed.unwrap_or(RouterBias::None)
}

/// The window of a model as the family has it.
pub(super) struct Windows {
    pub(super) window: Option<u64>,
    pub(super) layers: Layers,
}

impl Windows {
    /// Where only layers with a window rotate, layers of a model without one get the longest context as theirs.
    pub(super) fn of(dense: &Architecture, family: &Family) -> Self {
        let (window, layers) = match (family.rotation, dense.sliding_window) {
            (Rotation::SlidingOnly, None) => {
                (dense.max_position_embeddings, dense.rope_layers.clone())
            }
            (_, window) => (window, dense.window_layers.clone()),
        };
        Self { window, layers }
    }

    /// Whether the layers with the window are those that rotate, but for those that the family lets rotate in any case.
    fn rotate_alone(&self, dense: &Architecture, mixture: &Mixture, family: &Family) -> bool {
        let with_window = Architecture {
            sliding_window: self.window,
            window_layers: self.layers.clone(),
            mixture: Some(mixture.clone()),
            ..dense.clone()
        };
        let is_forced =
            family.keys.has(Field::PrefixWindowPattern) && forces_rotation(&with_window);
        (0..dense.num_layers).all(|layer| {
            let is_dense = !mixture.moe_layers.contains(layer);
            let rotates = self.layers.contains(layer) || is_forced && is_dense;
            rotates == dense.rope_layers.contains(layer)
        })
    }
}

/// How a family says how wide its shared expert is, where it counts in experts.
#[derive(Clone, Copy)]
enum SharedNumber {
    /// In every checkpoint as many.
    Fixed(u64),
    /// Any number of experts, none among them.
    Any,
}

/// The shared expert of a family.
pub(super) struct Shared {
    there: bool,
    is_gated: bool,
    /// Whether the family can average its output and the output of the others.
    averages: bool,
    number: Option<SharedNumber>,
}

/// A shared expert that a family insists on.
pub(super) struct RequiredShared {
    pub(super) width: u64,
    pub(super) is_gated: bool,
}

impl Shared {
    pub(super) fn of(family: &Family, keys: &Keys) -> Self {
        let number = &keys[Field::NumSharedExperts];
        let number = match &number.default {
            Some(fixed) if number.names.is_empty() => fixed.as_u64().map(SharedNumber::Fixed),
            _ => keys
                .has(Field::NumSharedExperts)
                .then_some(SharedNumber::Any),
        };
        Self {
            there: number.is_some() || keys.has(Field::SharedExpertIntermediateSize),
            is_gated: family.tensors.get(Role::SharedExpertGate).is_some(),
            averages: keys.has(Field::SharedCombination),
            number,
        }
    }

    /// What the family has in every checkpoint, beside experts of that width.
    pub(super) fn required(&self, width: u64) -> Option<RequiredShared> {
        let width = match self.number {
            Some(SharedNumber::Fixed(number)) => number.saturating_mul(width),
            None if self.there && self.is_gated => width.min(NEUTRAL_WIDTH),
            _ => return None,
        };
        Some(RequiredShared {
            width,
            is_gated: self.is_gated,
        })
    }
}
