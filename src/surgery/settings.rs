//! What an upcycling is asked for: the method with its rule, routing, and how everything else starts.

use std::sync::Arc;

use super::methods::{ExpertRule, Method};
use super::model::Model;
use super::router::{PromptRows, RouterInit};
use super::scales::Scales;
use crate::checkpoint::Dtype;
use crate::family::{AttentionGate, AttentionKv, BAM, Layers, RouterBias, RoutingRequest};

/// Settings of an upcycling.
#[derive(Clone, Debug)]
pub struct UpcycleSettings {
    /// Which method.
    pub method: Method,
    /// How feed-forward experts are made.
    pub expert_rule: Arc<dyn ExpertRule>,
    /// Layers with feed-forward experts; in others the network is treated as everything that is no expert.
    pub layers: Layers,
    /// A model's feed-forward network beside the experts of each layer, for every token.
    pub shared_expert: Option<SharedExpert>,
    /// The family of the output.
    pub target: String,
    /// Whether keys and values are experts too (`bam`).
    pub kv: AttentionKv,
    /// How the logits of attention routers become gates (`bam`).
    pub attention_gate: AttentionGate,
    /// Shared keys and values are the seed's instead of the mean.
    pub shared_kv_of_seed: bool,
    /// How tokens are routed; defaults depend on the method and on the number of experts.
    pub routing: RoutingRequest,
    /// Whether the seed is an expert, and part of the averages.
    pub seed_expert: bool,
    /// Further copies of the seed among the feed-forward experts.
    pub seed_copies: u64,
    /// How feed-forward routers start.
    pub router: RouterInit,
    /// How attention routers start.
    pub attention_router: RouterInit,
    /// Dtype of routers; the checkpoint's where absent.
    pub router_dtype: Option<Dtype>,
    /// Biases of the routers, which start at zero.
    pub router_bias: RouterBias,
    /// Whether each expert gets an adapter on its output, which starts as the identity (BTS, Zhang et al. 2025).
    pub adapters: bool,
    /// The rows of [`RouterInit::Prompts`], where a router starts so.
    pub prompt_rows: Option<PromptRows>,
    /// What is done to single experts.
    pub scales: Scales,
    /// What is no expert is the seed's instead of the mean.
    pub rest_of_seed: bool,
    /// Dtype of all weights but the routers; the models' own where absent.
    pub dtype: Option<Dtype>,
    /// Seed of all random draws.
    pub rng_seed: u64,
}

impl UpcycleSettings {
    /// Upcycling by `method`, whose experts `expert_rule` makes, with the command line's defaults for everything else.
    /// The mixture is a BAM with the seed as expert 0 and routers drawn from N(0, 0.02²).
    pub fn new(method: Method, expert_rule: Arc<dyn ExpertRule>) -> Self {
        let router = RouterInit::Normal(0.02);
        Self {
            method,
            expert_rule,
            layers: Layers::All,
            shared_expert: None,
            target: BAM.to_owned(),
            kv: AttentionKv::Expert,
            attention_gate: AttentionGate::Softmax,
            shared_kv_of_seed: false,
            routing: RoutingRequest::default(),
            seed_expert: true,
            seed_copies: 0,
            router: router.clone(),
            attention_router: router,
            router_dtype: None,
            router_bias: RouterBias::None,
            adapters: false,
            prompt_rows: None,
            scales: Scales::default(),
            rest_of_seed: false,
            dtype: None,
            rng_seed: 0,
        }
    }
}

/// A shared expert.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedExpert {
    /// Whose network it is: the seed's or, by its name, an expert's.
    pub of: String,
    /// Whether a sigmoid gate weights it for each token.
    pub gated: bool,
}

/// An expert: its name, and its model unless it is `random`.
#[derive(Debug)]
pub struct Expert {
    /// Name in the mixture.
    pub name: String,
    /// The dense model; `None` for one that is freshly initialised.
    pub model: Option<Model>,
}
