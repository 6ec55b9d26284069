//! Refuses models that llama.cpp would compute otherwise, or could not open, and names each reason.

use std::path::Path;

use super::activation::Activation;
use super::architecture::Architecture;
use super::config_error::ORIGINAL;
use super::format::Family;
use super::gguf_architecture::written;
use super::gguf_error::GgufModelError;
use super::gguf_names::{default_activation, names_of, usual_cap};
use super::gguf_scaling::GgufScaling;
use super::keys::Field;
use super::layout::{Layers, QkNorm};
use super::mixture::Mixture;
use super::names::{GgufNames, GgufPart};
use super::role::Role;
use super::rope_kinds::LayerRope;
use crate::Result;

/// Relative difference below which a factor on attention scores is the same.
const SAME: f64 = 1e-9;

/// Refuses what llama.cpp would compute otherwise, or would not open; `path` is the folder of the model.
pub fn check(path: &Path, architecture: &Architecture) -> Result<()> {
    let a = architecture;
    let family = a.names()?;
    let Some(names) = &family.gguf else {
        return Err(GgufModelError::NotWritten {
            path: path.to_path_buf(),
            family: a.family.as_str().into(),
            known: written()?.map(|(family, _)| family.name.clone()).collect(),
        }
        .into());
    };
    let mut checked = Checked {
        a,
        family: &family,
        names,
        reasons: Vec::new(),
    };
    checked.tensors();
    checked.layouts();
    checked.positions();
    checked.factors();
    if let Some(mixture) = &a.mixture {
        checked.mixture(mixture);
    }
    GgufModelError::of_reasons(path, &names.architecture, a, checked.reasons)
}

/// A model on its way into a file, and the reasons against it so far.
struct Checked<'a> {
    a: &'a Architecture,
    family: &'a Family,
    names: &'a GgufNames,
    reasons: Vec<String>,
}

impl Checked<'_> {
    fn refuse(&mut self, refused: bool, reason: impl Into<String>) {
        self.reasons.extend(refused.then(|| reason.into()));
    }

    fn has_key(&self, field: Field) -> bool {
        self.names.keys.contains_key(&field)
    }

    /// Biases, heads, and the output embedding.
    fn tensors(&mut self) {
        let (a, names) = (self.a, self.names);
        let has_bias = |part: &GgufPart| match part {
            GgufPart::Attention => a.attention_bias || a.attention_output_bias,
            GgufPart::AttentionOutput => a.attention_output_bias,
            GgufPart::FeedForward => a.mlp_bias,
        };
        let has_all = |part: &GgufPart| match part {
            GgufPart::Attention => a.attention_bias && a.attention_output_bias,
            other => has_bias(other),
        };
        self.refuse(
            names.without_bias.iter().any(has_bias),
            "it has fewer biases",
        );
        self.refuse(
            !names.with_bias.iter().all(has_all),
            "it needs a bias beside each projection",
        );
        self.refuse(
            names.heads_fill && a.query_width() != a.hidden_size,
            "its heads together are as wide as the hidden states (hidden_size)",
        );
        self.refuse(
            names.kv_heads_fill && a.num_kv_heads != a.num_heads,
            "it has as many heads of keys as of queries (num_key_value_heads)",
        );
        self.refuse(
            !a.tie_word_embeddings && names.tensors.get(Role::Head).is_none(),
            "its head is its input embedding",
        );
        self.refuse(
            a.tie_word_embeddings && names.untied_head,
            "its head is a tensor of its own (tie_word_embeddings)",
        );
    }

    /// Blocks, norms and activations. The section belongs to a family, so llama.cpp computes its layouts.
    fn layouts(&mut self) {
        let (a, family, names) = (self.a, self.family, self.names);
        self.refuse(
            a.block != family.layouts.block && !family.keys.has(Field::ParallelBlock),
            "attention and feed-forward network are joined otherwise",
        );
        self.refuse(
            a.qk_norm != QkNorm::None && names.tensors.get(Role::QNorm).is_none(),
            "it has no norms of queries and keys",
        );
        self.refuse(
            names.rope_interleaved != a.rope_interleaved && a.qk_norm == QkNorm::PerHead,
            "its rotary pairs are other numbers of a head, whose norms have weights of their own",
        );
        let usual = default_activation(family);
        let there = names.activation.as_deref();
        let is_there = |name: &str| Activation::named(&a.hidden_act) == Activation::named(name);
        self.refuse(
            !is_there(usual) && !there.is_some_and(is_there),
            format!("its activation is {}", there.unwrap_or(usual)),
        );
    }

    /// Windows and rotations.
    fn positions(&mut self) {
        let (a, names) = (self.a, self.names);
        let limit = names.layers_below.unwrap_or(u64::MAX);
        self.refuse(
            a.num_layers >= limit,
            format!("its models of {limit} layers or more have other layers"),
        );
        let context = a.max_position_embeddings.unwrap_or(u64::MAX);
        let has_window = self.has_key(Field::SlidingWindow);
        self.refuse(
            a.sliding_window.is_some_and(|window| window < context) && !has_window,
            "it has no sliding window",
        );
        let same = |a: &Layers, b: &Layers, layers| a.mask(layers) == b.mask(layers);
        let window_layers = names.window_layers(a.sliding_window, a.num_layers);
        self.refuse(
            has_window && !same(&a.window_layers, &window_layers, a.num_layers),
            "other layers have its sliding window",
        );
        let rope_layers = names.rope_layers(self.family.rotation, &window_layers, a.num_layers);
        self.refuse(
            !same(&a.rope_layers, &rope_layers, a.num_layers),
            "other layers rotate queries and keys",
        );
        let has_local = self.has_key(Field::RopeLocalTheta);
        self.refuse(
            a.window_rope.is_some() && !has_local,
            "its layers rotate in one way",
        );
        let scales = |rope: &LayerRope| rope.scaling.is_some();
        let window_scales = a
            .window_rope
            .as_ref()
            .map_or(a.rope_scaling.is_some(), scales);
        self.refuse(
            has_local && window_scales,
            "its layers with a window do not scale rotary positions",
        );
        let has_part = self.has_key(Field::PartialRotaryFactor);
        self.refuse(
            a.partial_rotary_factor.is_some() && !has_part,
            "it rotates whole heads (`partial_rotary_factor`)",
        );
        self.refuse(
            !a.head_dim.is_multiple_of(2),
            "its heads have an even width",
        );
        self.reasons
            .extend(GgufScaling::of(a, names.scalings()).err());
    }

    /// Factors and soft caps.
    fn factors(&mut self) {
        let (a, family, names) = (self.a, self.family, self.names);
        let scales =
            a.logit_scale.is_some_and(|scale| scale != 1.0) && !self.has_key(Field::LogitScale);
        self.refuse(
            a.clip_qkv.is_some() || scales,
            "it neither clips nor scales",
        );
        let scales_by_hidden = names.hidden_scale_layers.is_some();
        let holds = |field| {
            let is_checked = scales_by_hidden && field == Field::AttentionMultiplier;
            is_checked || names.keys.contains_key(&field) || family.fixed(field).is_some()
        };
        for what in a.multipliers.not_done(holds) {
            self.refuse(true, format!("it does not {what}"));
        }
        let there = names
            .hidden_scale([a.num_layers, a.hidden_size, a.num_heads, a.head_dim])
            .unwrap_or((a.head_dim as f64).powf(-0.5));
        let found = a.attention_scale();
        self.refuse(
            scales_by_hidden && (found - there).abs() > SAME * there,
            "it scales attention scores otherwise (query_pre_attn_scalar)",
        );
        let caps = &a.multipliers;
        for (field, cap, what) in [
            (
                Field::AttnLogitSoftcapping,
                caps.attn_logit_softcapping,
                "it caps attention scores",
            ),
            (
                Field::FinalLogitSoftcapping,
                caps.final_logit_softcapping,
                "it caps logits",
            ),
        ] {
            let is_usual = self.has_key(field) && usual_cap(family, field).is_some();
            self.refuse(is_usual && cap.is_none(), what);
        }
        if self.has_key(Field::QueryScaleContext) {
            self.reasons.extend(query_scale_fault(a));
        }
    }

    fn mixture(&mut self, mixture: &Mixture) {
        let (a, names) = (self.a, self.names);
        let divides = names.norm_topk_prob.unwrap_or(mixture.norm_topk_prob);
        let does = if divides {
            "divides"
        } else {
            "does not divide"
        };
        self.refuse(
            mixture.norm_topk_prob != divides,
            format!("it {does} gates by their sum (norm_topk_prob)"),
        );
        self.refuse(
            mixture.moe_layers.count(a.num_layers) < a.num_layers,
            "all its layers have experts",
        );
        let there = names.tensors.get(Role::SharedUp).is_some();
        let has = if there { "has a" } else { "has no" };
        self.refuse(
            mixture.shared_expert_intermediate_size.is_some() != there,
            format!("it {has} shared expert"),
        );
    }
}

/// Why llama.cpp scales queries otherwise: its factor grows with the original context of YaRN.
fn query_scale_fault(a: &Architecture) -> Option<String> {
    let context = a.multipliers.query_scale_context?;
    let scaling = a.rope_scaling.as_ref();
    let original = scaling.and_then(|scaling| scaling.get(ORIGINAL)?.as_u64());
    (original != Some(context)).then(|| {
        format!("its queries grow with the original context of YaRN, the model's with {context} positions")
    })
}

/// What a user should know of a file of the model: where llama.cpp computes something that is only almost the same.
pub fn notes(architecture: &Architecture) -> Result<Vec<String>> {
    let (family, names) = (architecture.names()?, names_of(architecture)?);
    let own = &architecture.hidden_act;
    let there = names.activation.as_deref().unwrap_or(own);
    let mut notes = Vec::new();
    if Activation::named(own) != Activation::named(there) {
        notes.push(format!(
            "llama.cpp computes {there} where {} models have {own}: its logits differ slightly",
            family.name
        ));
    }
    if let Ok(Some(GgufScaling::Longrope { original, .. })) =
        GgufScaling::of(architecture, names.scalings())
    {
        notes.push(format!(
            "llama.cpp takes the long factors of rotary positions for every text where its context (-c) is longer than {original} \
             tokens; transformers takes them for texts that are"
        ));
    }
    Ok(notes)
}
