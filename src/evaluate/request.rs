//! Changes to the routing, as a user asks for them.

use std::path::Path;

use super::error::EvaluateError;
use crate::Result;
use crate::family::{Architecture, AttentionGate, AttentionKv, TopK, expert_names, find_experts};
use crate::model::Overrides;

/// Changes to the routing of every mixture that is evaluated.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RoutingRequest {
    /// Experts that no token goes to, by name or number; the gates of the others are a softmax over them alone, or sigmoids
    /// that grow by one factor.
    pub without: Vec<String>,
    /// Feed-forward experts a token goes to.
    pub top_k: Option<TopK>,
    /// Attention experts a token goes to.
    pub attention_top_k: Option<TopK>,
}

impl RoutingRequest {
    /// Whether nothing is asked for.
    pub fn is_empty(&self) -> bool {
        self == &Self::default()
    }

    /// What it means for the checkpoint in `folder`: nothing for a dense model.
    pub fn overrides(&self, folder: &Path, architecture: &Architecture) -> Result<Overrides> {
        let Some(mixture) = architecture.mixture.as_ref().filter(|_| !self.is_empty()) else {
            return Ok(Overrides::default());
        };
        if self.attention_top_k.is_some() && mixture.attention_kv == AttentionKv::Merged {
            let path = folder.to_path_buf();
            return Err(EvaluateError::NoAttentionExperts { path }.into());
        }
        let chooses =
            |k: TopK| k.of(mixture.num_attention_experts) != mixture.num_attention_experts;
        if mixture.attention_gate == AttentionGate::Sigmoid
            && self.attention_top_k.is_some_and(chooses)
        {
            let path = folder.to_path_buf();
            return Err(EvaluateError::SigmoidTopK { path }.into());
        }
        let names = expert_names(folder, architecture)?;
        let mut dropped = Vec::new();
        for name in &self.without {
            dropped.extend(find_experts(folder, &names, name)?);
        }
        Ok(Overrides {
            top_k: self.top_k.map(|k| k.of(mixture.num_experts) as usize),
            attention_top_k: self
                .attention_top_k
                .map(|k| k.of(mixture.num_attention_experts) as usize),
            dropped,
        })
    }
}
