//! Which mixture to cost: what was asked for, over what the config says, over what is usual.

use crate::Result;
use crate::family::{
    Architecture, AttentionGate, AttentionKv, Config, ConfigError, FamilyError, Mixture,
    RoutingRequest, TopK, USUAL_TOP_K,
};

/// The mixture to cost on top of a dense config; a field that is `None` is read from the config, or usual.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Request {
    /// The method that makes the mixture.
    pub method: Option<CostedMethod>,
    /// What happens to keys and values.
    pub kv: Option<AttentionKv>,
    /// Feed-forward experts, the seed counted.
    pub experts: Option<u64>,
    /// Inner width of a feed-forward expert; by default the inner width of the dense model.
    pub expert_width: Option<u64>,
    /// Experts a token.
    pub routing: RoutingRequest,
}

/// A surgery method, as far as it matters for costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CostedMethod {
    /// Its name, for messages.
    pub name: &'static str,
    /// Whether attention becomes experts; otherwise it stays one.
    pub attention_experts: bool,
    /// Feed-forward experts a token where nothing says so.
    pub usual_top_k: u64,
}

impl Request {
    /// The architecture to cost: `config` as it is where it is a mixture already or where nothing asks for one,
    /// otherwise its mixture. The mixture keys of a BAM `config.json` count in any config.
    pub fn architecture(&self, config: &Config) -> Result<Architecture> {
        let dense = Architecture::of(config)?;
        if dense.mixture.is_some() {
            return if *self == Self::default() {
                Ok(dense)
            } else {
                Err(ConfigError::Mixture {
                    path: config.path.clone(),
                }
                .into())
            };
        }
        let described = config.json.contains_key("num_experts");
        if *self == Self::default() && !described {
            return Ok(dense);
        }
        let dense = dense.with_own_layouts(config)?;
        /// The paper's number, the seed counted.
        const EXPERTS: u64 = 4;
        let mut mixture = if described {
            Mixture::read(config, &dense)?
        } else {
            Mixture::new(&dense, self.experts.unwrap_or(EXPERTS))
        };
        self.apply(&mut mixture)?;
        let usual = self.method.map_or(USUAL_TOP_K, |method| method.usual_top_k);
        let routing = self.routing.resolve(usual, mixture.num_experts);
        // A config says how tokens are routed, or means the paper's routing; only what was asked for replaces that.
        if !described || self.expert_width.is_some() || self.routing.sets_top_k() {
            mixture.num_experts_per_tok = routing.top_k.of(mixture.num_experts);
        }
        if !described {
            mixture.norm_topk_prob = routing.norm_topk_prob;
        }
        let architecture = dense.upcycled(mixture);
        architecture
            .check()
            .map_err(|fault| FamilyError::Architecture { fault })?;
        Ok(architecture)
    }

    /// Puts what was asked for over what the config says.
    fn apply(&self, mixture: &mut Mixture) -> Result<()> {
        let attention_experts = self.method.map(|method| method.attention_experts);
        let merged = attention_experts == Some(false);
        if merged && (self.kv.is_some() || self.routing.attention_top_k.is_some()) {
            let method = self.method.map_or("", |method| method.name);
            return Err(FamilyError::NoAttentionExperts { method }.into());
        }
        let soft = mixture.num_attention_experts_per_tok == mixture.num_attention_experts;
        if let Some(experts) = self.experts {
            mixture.num_experts = experts;
            mixture.num_attention_experts = experts;
        }
        match (attention_experts, self.kv) {
            _ if merged => mixture.attention_kv = AttentionKv::Merged,
            (_, Some(kv)) => mixture.attention_kv = kv,
            (Some(true), None) if mixture.attention_kv == AttentionKv::Merged => {
                mixture.attention_kv = AttentionKv::Expert;
                mixture.num_attention_experts = mixture.num_experts;
            }
            _ => {}
        }
        if mixture.attention_kv == AttentionKv::Merged {
            mixture.num_attention_experts = 1;
            mixture.attention_gate = AttentionGate::Softmax;
            mixture.attention_gate_scale = None;
        }
        let asked = self.routing.attention_top_k;
        match asked.or_else(|| self.routing.preset.map(|_| TopK::Soft)) {
            Some(top_k) => {
                mixture.num_attention_experts_per_tok = top_k.of(mixture.num_attention_experts)
            }
            None if soft => mixture.num_attention_experts_per_tok = mixture.num_attention_experts,
            None => {}
        }
        if let Some(width) = self.expert_width {
            mixture.moe_intermediate_size = width;
        }
        Ok(())
    }
}
