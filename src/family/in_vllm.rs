//! Whether vLLM computes a BAM: the rule of `check_vllm` in `modeling_bam.py`.

use super::architecture::Architecture;
use super::layout::AttentionKv;

/// What vLLM needs for a BAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InVllm {
    /// Nothing but the code in the folder.
    Alone,
    /// The plugin `bam-vllm`.
    Plugin,
    /// It cannot compute the model.
    Refused,
}

impl Architecture {
    /// What vLLM needs for this BAM.
    pub(crate) fn in_vllm(&self) -> InVllm {
        let window = self.window_rope.as_ref();
        let ropes = [
            self.rope_scaling.as_ref(),
            window.and_then(|rope| rope.scaling.as_ref()),
        ];
        // Angles that depend on the longest text of a batch.
        let depends = |rope_type: &str| ["dynamic", "longrope"].contains(&rope_type);
        let mut types = ropes
            .iter()
            .flatten()
            .map(|rope| rope["rope_type"].as_str());
        if types.any(|rope_type| rope_type.is_some_and(depends)) {
            return InVllm::Refused;
        }
        let has_attention_experts = self.mixture.as_ref().is_some_and(|mixture| {
            let layers = &mixture.attention_moe_layers;
            mixture.attention_kv != AttentionKv::Merged
                && (0..self.num_layers).any(|layer| layers.contains(layer))
        });
        let factors = &self.multipliers;
        let scales = self.logit_scale.is_some_and(|scale| scale != 1.0);
        if has_attention_experts
            || factors.logits_divisor.is_some()
            || scales && factors.final_logit_softcapping.is_some()
        {
            InVllm::Plugin
        } else {
            InVllm::Alone
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::small;
    use super::*;
    use crate::family::{LayerRope, Layers, Mixture};

    fn of(change: impl FnOnce(&mut Architecture)) -> InVllm {
        let dense = Architecture::of(&small("llama", json!({}))).unwrap();
        let mut architecture = dense.upcycled(Mixture::new(&dense, 3));
        change(&mut architecture);
        architecture.in_vllm()
    }

    fn merge(architecture: &mut Architecture) {
        architecture.mixture.as_mut().unwrap().attention_kv = AttentionKv::Merged;
    }

    #[test]
    fn what_vllm_lacks_needs_the_plugin() {
        assert_eq!(of(|_| ()), InVllm::Plugin);
        assert_eq!(of(merge), InVllm::Alone);
        let no_layer = |a: &mut Architecture| {
            a.mixture.as_mut().unwrap().attention_moe_layers = Layers::List(Vec::new());
        };
        assert_eq!(of(no_layer), InVllm::Alone);
        let divided = |a: &mut Architecture| {
            merge(a);
            a.multipliers.logits_divisor = Some(8.0);
        };
        assert_eq!(of(divided), InVllm::Plugin);
        for (scale, cap, expected) in [
            (Some(0.5), None, InVllm::Alone),
            (None, Some(30.0), InVllm::Alone),
            (Some(1.0), Some(30.0), InVllm::Alone),
            (Some(0.5), Some(30.0), InVllm::Plugin),
        ] {
            let found = of(|a| {
                merge(a);
                a.logit_scale = scale;
                a.multipliers.final_logit_softcapping = cap;
            });
            assert_eq!(found, expected, "{scale:?} {cap:?}");
        }
    }

    #[test]
    fn angles_that_depend_on_the_batch_are_refused() {
        for (kind, expected) in [
            ("dynamic", InVllm::Refused),
            ("longrope", InVllm::Refused),
            ("yarn", InVllm::Alone),
        ] {
            let scaling = Some(json!({"rope_type": kind}));
            let everywhere = of(|a| {
                merge(a);
                a.rope_scaling = scaling.clone();
            });
            let in_windows = of(|a| {
                merge(a);
                let theta = 1e4;
                a.window_rope = Some(LayerRope {
                    theta,
                    scaling: scaling.clone(),
                });
            });
            assert_eq!((everywhere, in_windows), (expected, expected), "{kind}");
        }
    }
}
