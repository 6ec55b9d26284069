//! Which mixture to cost: what was asked for, over what the config says, over what is usual.

use crate::family::{Architecture, AttentionKv, Config, Mixture, TopK};
use crate::{Error, Result};

/// The mixture to cost on top of a dense config; a field that is `None` is read from the config, or usual.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Request {
    /// The method that makes the mixture.
    pub method: Option<CostedMethod>,
    /// What happens to keys and values.
    pub kv: Option<AttentionKv>,
    /// Feed-forward experts, the seed counted.
    pub experts: Option<u64>,
    /// Inner width of a feed-forward expert; that of the dense model where absent.
    pub expert_width: Option<u64>,
    /// Feed-forward experts a token.
    pub top_k: Option<TopK>,
    /// Attention experts a token.
    pub attention_top_k: Option<TopK>,
}

/// A surgery method, as far as it matters for costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CostedMethod {
    /// Its name, for messages.
    pub name: &'static str,
    /// Whether attention becomes experts; otherwise it stays one.
    pub attention_experts: bool,
}

impl Request {
    /// The architecture to cost: `config` as it is where it is a mixture already or where nothing asks for one,
    /// otherwise its mixture; the mixture keys of a BAM `config.json` are honoured on any config.
    pub fn architecture(&self, config: &Config) -> Result<Architecture> {
        let dense = Architecture::of(config)?;
        if dense.mixture.is_some() {
            return match *self == Self::default() {
                true => Ok(dense),
                false => Err(Error::file(&config.path, "describes a mixture already, which is costed as it is")
                    .with_hint(
                        "leave out --method, --kv, --top-k, --attention-top-k and all about experts, or give a dense config",
                    )),
            };
        }
        let described = config.json.contains_key("num_experts");
        if *self == Self::default() && !described {
            return Ok(dense);
        }
        let dense = dense.with_own_layouts(config)?;
        /// The paper's number, the seed counted.
        const EXPERTS: u64 = 4;
        let mut mixture = match described {
            true => Mixture::read(config, &dense)?,
            false => Mixture::new(&dense, self.experts.unwrap_or(EXPERTS)),
        };
        self.apply(&mut mixture)?;
        let architecture = dense.upcycled(mixture);
        architecture
            .check()
            .map_err(|fault| Error::usage(format!("{}: {}", fault.key, fault.problem)))?;
        Ok(architecture)
    }

    /// Puts what was asked for over what the config says.
    fn apply(&self, mixture: &mut Mixture) -> Result<()> {
        let attention_experts = self.method.map(|method| method.attention_experts);
        let merged = attention_experts == Some(false);
        if merged && (self.kv.is_some() || self.attention_top_k.is_some()) {
            let method = self.method.map_or("", |method| method.name);
            return Err(Error::usage(format!(
                "--kv and --attention-top-k are for attention experts, which --method {method} does not have"
            )));
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
        }
        match self.attention_top_k {
            Some(top_k) => {
                mixture.num_attention_experts_per_tok = top_k.of(mixture.num_attention_experts)
            }
            None if soft => mixture.num_attention_experts_per_tok = mixture.num_attention_experts,
            None => {}
        }
        if let Some(width) = self.expert_width {
            mixture.moe_intermediate_size = width;
        }
        if let Some(top_k) = self.top_k {
            mixture.num_experts_per_tok = top_k.of(mixture.num_experts);
        }
        Ok(())
    }
}
