//! A mixture with its experts by name, and how many of them a token goes to.

use super::error::SurgeryError;
use super::fit_error::FitError;
use super::model::Model;
use super::recompose::Part;
use crate::Result;
use crate::family::{
    AttentionGate, AttentionKv, Mixture, TopK, USUAL_TOP_K, expert_names, find_experts,
};

/// How many experts a token goes to afterwards; as before where not said: all stay all.
#[derive(Clone, Copy, Debug, Default)]
pub struct Routing {
    /// Feed-forward experts.
    pub top_k: Option<TopK>,
    /// Attention experts.
    pub attention_top_k: Option<TopK>,
}

/// A mixture with its experts by name.
pub(super) struct MixtureExperts<'a> {
    model: &'a Model,
    pub(super) mixture: &'a Mixture,
    pub(super) names: Vec<String>,
}

impl<'a> MixtureExperts<'a> {
    pub(super) fn of(model: &'a Model) -> Result<Self> {
        let Some(mixture) = &model.architecture.mixture else {
            let path = model.config.path.clone();
            return Err(FitError::DenseAsMixture { path }.into());
        };
        let names = expert_names(&model.source.checkpoint.path, &model.architecture)?;
        Ok(Self {
            model,
            mixture,
            names,
        })
    }

    /// Attention experts; none where attention is merged.
    pub(super) fn attention(&self) -> u64 {
        if self.mixture.attention_kv == AttentionKv::Merged {
            0
        } else {
            self.mixture.num_attention_experts
        }
    }

    /// Every expert as it is: feed-forward and attention.
    pub(super) fn kept(&self) -> (Vec<Part>, Vec<Part>) {
        let parts = |count| {
            (0..count)
                .map(|expert| Part::Of { mixture: 0, expert })
                .collect()
        };
        (parts(self.mixture.num_experts), parts(self.attention()))
    }

    pub(super) fn find(&self, wanted: &str) -> Result<Vec<usize>> {
        find_experts(&self.model.source.checkpoint.path, &self.names, wanted)
    }

    /// The one expert of that name or number, and its name.
    pub(super) fn find_one(&self, wanted: &str) -> Result<(usize, String)> {
        match self.find(wanted)?[..] {
            [one] => Ok((one, self.names[one].clone())),
            ref several => Err(SurgeryError::SeveralExperts {
                path: self.model.source.checkpoint.path.clone(),
                name: wanted.to_owned(),
                numbers: several.iter().map(usize::to_string).collect(),
            }
            .into()),
        }
    }

    /// The attention expert that belongs to a feed-forward expert. Further copies of the seed's feed-forward share the seed's
    /// attention expert. `None` where attention is merged.
    pub(super) fn attention_of(&self, number: usize) -> Result<Option<u64>> {
        let attention = self.attention() as usize;
        match self
            .names
            .iter()
            .take(attention)
            .position(|name| *name == self.names[number])
        {
            _ if attention == 0 => Ok(None),
            _ if number < attention => Ok(Some(number as u64)),
            Some(same) => Ok(Some(same as u64)),
            None => Err(SurgeryError::NoAttentionExpert {
                path: self.model.source.checkpoint.path.clone(),
                expert: number,
            }
            .into()),
        }
    }

    /// The mixture with another number of experts.
    pub(super) fn resized(
        &self,
        experts: usize,
        attention: usize,
        routing: Routing,
    ) -> Result<Mixture> {
        let mixture = self.mixture;
        let experts = experts as u64;
        let top_k = routed(
            mixture.num_experts_per_tok,
            mixture.num_experts,
            experts,
            routing.top_k,
            "--top-k",
        );
        // Both of two experts is what a new mixture has, and is no soft routing where gates are divided by their sum.
        let is_usual = routing.top_k.is_none()
            && mixture.norm_topk_prob
            && [mixture.num_experts_per_tok, mixture.num_experts] == [USUAL_TOP_K; 2];
        let top_k = if is_usual {
            USUAL_TOP_K.min(experts)
        } else {
            top_k?
        };
        let (attention, attention_top_k) = match self.attention() {
            0 if routing.attention_top_k.is_some() => {
                return Err(SurgeryError::NoAttentionTopK.into());
            }
            0 => (
                mixture.num_attention_experts,
                mixture.num_attention_experts_per_tok,
            ),
            before => {
                let (k, asked) = (
                    mixture.num_attention_experts_per_tok,
                    routing.attention_top_k,
                );
                (
                    attention as u64,
                    routed(k, before, attention as u64, asked, "--attention-top-k")?,
                )
            }
        };
        if mixture.attention_gate == AttentionGate::Sigmoid && attention_top_k != attention {
            return Err(SurgeryError::SigmoidTopK {
                found: attention_top_k,
                experts: attention,
            }
            .into());
        }
        let gates = [
            (mixture.norm_topk_prob, top_k, experts, "--top-k"),
            (
                mixture.norm_topk_prob_attention,
                attention_top_k,
                attention,
                "--attention-top-k",
            ),
        ];
        if let Some((_, _, _, flag)) = gates
            .iter()
            .find(|(normed, k, experts, _)| *normed && *k == 1 && *experts > 1)
        {
            return Err(SurgeryError::MixtureOfOneGate { flag }.into());
        }
        Ok(Mixture {
            num_experts: experts,
            num_attention_experts: attention,
            num_experts_per_tok: top_k,
            num_attention_experts_per_tok: attention_top_k,
            attention_gate_scale: mixture.gate_scale_of(attention),
            ..mixture.clone()
        })
    }
}

/// Experts a token goes to, of `after` where it were `k` of `before`.
fn routed(k: u64, before: u64, after: u64, asked: Option<TopK>, flag: &'static str) -> Result<u64> {
    if let Some(asked) = asked {
        return super::upcycle::routed(asked, after, flag);
    }
    let soft = k == before && (before > 1 || flag == "--attention-top-k");
    match if soft { after } else { k } {
        found if found <= after => Ok(found),
        found => Err(SurgeryError::FewExpertsLeft {
            flag,
            found,
            left: after,
        }
        .into()),
    }
}
