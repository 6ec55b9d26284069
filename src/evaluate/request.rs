//! Changes to the routing, as a user asks for them.

use std::path::Path;

use serde_json::Value;

use crate::checkpoint::Manifest;
use crate::error::nearest;
use crate::family::{Architecture, AttentionKv, TopK};
use crate::model::Overrides;
use crate::{Error, Result};

/// Changes to the routing of every mixture that is evaluated.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Request {
    /// Experts that no token goes to, by name or number; the gates of the others are a softmax over them alone.
    pub without: Vec<String>,
    /// Feed-forward experts a token goes to.
    pub top_k: Option<TopK>,
    /// Attention experts a token goes to.
    pub attention_top_k: Option<TopK>,
}

impl Request {
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
            return Err(Error::file(folder, "has no attention experts, so there is no top-k of them"));
        }
        let names = expert_names(folder, architecture)?;
        let mut dropped = Vec::new();
        for name in &self.without {
            let before = dropped.len();
            dropped.extend((0..names.len()).filter(|expert| names[*expert] == *name));
            if dropped.len() == before {
                match name.parse::<usize>().ok().filter(|expert| *expert < names.len()) {
                    Some(expert) => dropped.push(expert),
                    None => {
                        let problem = format!("has no expert `{name}`; its experts are {}", names.join(", "));
                        let error = Error::file(folder, problem);
                        return Err(match nearest(name, names.iter().map(String::as_str)) {
                            Some(near) => error.with_hint(format!("did you mean `{near}`?")),
                            None => error,
                        });
                    }
                }
            }
        }
        Ok(Overrides {
            top_k: self.top_k.map(|k| k.of(mixture.num_experts) as usize),
            attention_top_k: self.attention_top_k.map(|k| k.of(mixture.num_attention_experts) as usize),
            dropped,
        })
    }
}

/// Names of the experts of the checkpoint in `folder`, as its manifest records them, else their numbers; none if dense.
pub fn expert_names(folder: &Path, architecture: &Architecture) -> Result<Vec<String>> {
    let Some(mixture) = &architecture.mixture else { return Ok(Vec::new()) };
    let manifest = Manifest::read(folder)?;
    let recorded = manifest.as_ref().and_then(|manifest| manifest.settings.get("experts")?.as_array());
    let recorded = recorded.map(|names| names.iter().filter_map(Value::as_str).map(str::to_owned).collect::<Vec<_>>());
    let experts = mixture.num_experts as usize;
    Ok(recorded
        .filter(|names| names.len() == experts)
        .unwrap_or_else(|| (0..experts).map(|expert| expert.to_string()).collect()))
}
