//! The models compute what transformers computes (`fixtures/golden/`, by `fixtures/make.py`), and what the papers say
//! (`naive.rs`, float64).

mod arithmetic;
mod cache;
mod configurations;
mod dense;
pub mod families;
mod fused;
mod gradients;
mod layouts;
mod mixture;
mod naive;
mod parts;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bam_convert::family::{AttentionGate, AttentionKv, RouterBias, RoutingRequest, TopK};
use bam_convert::model::{CausalLm, Forward, InputGradient, LoadOptions, Mode, Weights};
use bam_convert::surgery::execute::{Target, execute};
use bam_convert::surgery::methods::{Method, NetworkRule};
use bam_convert::surgery::upcycle::{Expert, SEED, UpcycleSettings, plan};
use bam_convert::surgery::{Model, router::RouterInit};
use candle_core::{DType, Device, Tensor};

pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures")
        .join(name)
}

/// The tokens of the golden logits.
pub fn golden_tokens() -> Vec<u32> {
    serde_json::from_slice(&std::fs::read(fixture("golden/tokens.json")).unwrap()).unwrap()
}

pub fn ids(tokens: &[u32]) -> Tensor {
    Tensor::new(tokens, &Device::Cpu)
        .unwrap()
        .unsqueeze(0)
        .unwrap()
}

/// Every way of loading that must compute the same in float32.
pub fn ways() -> [(&'static str, LoadOptions); 3] {
    let options = |mode, weights| LoadOptions {
        mode,
        weights,
        ..LoadOptions::default()
    };
    [
        ("train", options(Mode::Train, Weights::Widened)),
        ("infer", options(Mode::Infer, Weights::Widened)),
        ("stored", options(Mode::Infer, Weights::Stored)),
    ]
}

pub fn in_f64() -> LoadOptions {
    LoadOptions {
        dtype: DType::F64,
        mode: Mode::Train,
        weights: Weights::Widened,
        ..LoadOptions::default()
    }
}

/// Logits `[seq][vocab]` of one sequence.
pub fn run(model: &CausalLm, tokens: &[u32], forward: &Forward) -> Vec<Vec<f64>> {
    let logits = model.forward(&ids(tokens), None, forward).unwrap().logits;
    assert_eq!(
        logits.dims(),
        [1, tokens.len(), model.architecture().vocab_size as usize]
    );
    rows(&logits.squeeze(0).unwrap())
}

pub fn rows(logits: &Tensor) -> Vec<Vec<f64>> {
    logits.to_dtype(DType::F64).unwrap().to_vec2().unwrap()
}

/// The largest difference; both must have the same shape and be finite.
pub fn difference(a: &[Vec<f64>], b: &[Vec<f64>]) -> f64 {
    assert_eq!(a.len(), b.len());
    let mut most = 0f64;
    for (a, b) in a.iter().zip(b) {
        assert_eq!(a.len(), b.len());
        for (a, b) in a.iter().zip(b) {
            assert!(a.is_finite() && b.is_finite());
            most = most.max((a - b).abs());
        }
    }
    most
}

/// The gradients of trainable parameters by name; those without one are absent.
pub type Gradients = BTreeMap<String, Vec<f64>>;

/// The sum of the next tokens' losses times their weights, and its gradients, layer by layer as the trainer takes them.
pub fn loss_and_gradients(
    model: &CausalLm,
    ids: &Tensor,
    targets: &[u32],
    weights: &[f32],
    forward: &Forward,
) -> (f64, Gradients) {
    let mut gradients = model.gradients();
    let (mut x, pass) = model.begin(ids, None, forward).unwrap();
    let mut records = Vec::new();
    for layer in 0..model.layers() {
        let run = model.layer_recorded(layer, &x, &pass, None).unwrap();
        x = run.output;
        records.push(run.record);
    }
    let (nll, mut gradient) = model.loss(&x, targets, weights, &mut gradients).unwrap();
    for record in records.into_iter().rev() {
        gradient = model
            .layer_backward(record, &gradient, InputGradient::Needed, &mut gradients)
            .unwrap()
            .unwrap();
    }
    model
        .embed_backward(&pass, &gradient, &mut gradients)
        .unwrap();

    let loss = nll
        .to_vec1::<f32>()
        .unwrap()
        .iter()
        .zip(weights)
        .map(|(nll, weight)| f64::from(*nll) * f64::from(*weight))
        .sum();
    let gradients = model
        .params()
        .vars()
        .enumerate()
        .filter_map(|(number, (name, _))| {
            let gradient = gradients.get(number)?.to_dtype(DType::F64).unwrap();
            Some((
                name.to_owned(),
                gradient.flatten_all().unwrap().to_vec1().unwrap(),
            ))
        })
        .collect();
    (loss, gradients)
}

/// What varies between the mixtures that are tested.
#[derive(Clone, Debug)]
pub struct Kind {
    pub name: &'static str,
    pub method: Method,
    pub kv: AttentionKv,
    pub top_k: TopK,
    pub attention_top_k: TopK,
    pub attention_gate: AttentionGate,
    pub norm: bool,
    pub router_bias: RouterBias,
    pub adapters: bool,
    /// Width of a shared expert, and whether it has a gate.
    pub shared_expert: Option<(u64, bool)>,
    pub copies: bool,
}

impl Kind {
    pub const BAM: Self = Self {
        name: "bam, expert kv",
        method: Method::BAM,
        kv: AttentionKv::Expert,
        top_k: TopK::Of(1),
        attention_top_k: TopK::Soft,
        attention_gate: AttentionGate::Softmax,
        norm: false,
        copies: false,
        router_bias: RouterBias::None,
        adapters: false,
        shared_expert: None,
    };

    /// Adapters, biases of routers, and a gated shared expert.
    pub const PARTS: Self = Self {
        name: "bam, adapters, router biases, gated shared expert, top-2",
        top_k: TopK::Of(2),
        router_bias: RouterBias::Logits,
        adapters: true,
        shared_expert: Some((20, true)),
        ..Self::BAM
    };

    pub fn all() -> Vec<Self> {
        let shared = Self {
            name: "bam, shared kv",
            kv: AttentionKv::Shared,
            ..Self::BAM
        };
        vec![
            Self::BAM,
            shared.clone(),
            Self {
                name: "bam, sigmoid gates",
                attention_gate: AttentionGate::Sigmoid,
                ..Self::BAM
            },
            Self {
                name: "bam, shared kv, sigmoid gates, adapters, router biases",
                kv: AttentionKv::Shared,
                attention_gate: AttentionGate::Sigmoid,
                ..Self::PARTS
            },
            Self {
                name: "bam, soft",
                top_k: TopK::Soft,
                ..Self::BAM
            },
            Self {
                name: "bam, top-2 normalised, attention top-1",
                top_k: TopK::Of(2),
                attention_top_k: TopK::Of(1),
                norm: true,
                ..Self::BAM
            },
            Self {
                name: "bam, shared kv, top-2, attention top-2",
                top_k: TopK::Of(2),
                attention_top_k: TopK::Of(2),
                ..shared
            },
            Self::PARTS,
            Self {
                name: "bam, shared kv, adapters, biased choice",
                kv: AttentionKv::Shared,
                router_bias: RouterBias::Choice,
                shared_expert: None,
                ..Self::PARTS
            },
            Self {
                name: "btx, adapters, shared expert, soft",
                method: Method::BTX,
                top_k: TopK::Soft,
                router_bias: RouterBias::None,
                shared_expert: Some((24, false)),
                ..Self::PARTS
            },
            Self {
                name: "btx",
                method: Method::BTX,
                ..Self::BAM
            },
            Self {
                name: "btx, top-2 normalised",
                method: Method::BTX,
                top_k: TopK::Of(2),
                norm: true,
                ..Self::BAM
            },
        ]
    }

    /// Makes the mixture of a family's fixtures in `folder`, with routers wide enough that tokens differ.
    pub fn make(&self, family: &str, folder: &Path) {
        self.make_from(&fixture(family), folder);
    }

    /// As [`Self::make`], from the checkpoints `seed`, `code` and `law` in another folder.
    pub fn make_from(&self, models: &Path, folder: &Path) {
        let open = |name: &str, path: &str| Model::open(name, &models.join(path)).unwrap();
        let experts = ["code", "law"].map(|name| Expert {
            name: name.to_owned(),
            model: Some(open(name, if self.copies { "seed" } else { name })),
        });
        let router = RouterInit::Normal(0.5);
        let rule = std::sync::Arc::new(NetworkRule::Whole);
        let settings = UpcycleSettings {
            kv: self.kv,
            routing: RoutingRequest {
                preset: None,
                top_k: Some(self.top_k),
                attention_top_k: Some(self.attention_top_k),
                norm_topk_prob: Some(self.norm),
            },
            attention_gate: self.attention_gate,
            router: router.clone(),
            attention_router: router,
            router_bias: self.router_bias,
            adapters: self.adapters,
            rng_seed: 1,
            ..UpcycleSettings::new(self.method, rule)
        };
        let upcycling = plan(open(SEED, "seed"), experts.into(), &settings).unwrap();
        let target = Target {
            rehash: true,
            ..Target::new(folder)
        };
        execute(&upcycling.plan, &upcycling.files, &target).unwrap();
        if self.adapters || self.shared_expert.is_some() || self.router_bias != RouterBias::None {
            parts::draw(self, folder);
        }
    }
}

/// The families of which there are three dense fixtures.
pub const FAMILIES: [&str; 5] = ["llama", "mistral", "qwen2", "qwen3", "cohere"];
