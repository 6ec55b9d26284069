//! Modules, passes and numbers that are the same in any dtype.

use std::cell::RefCell;

use candle_core::{DType, Device, Tensor, Var};

use crate::family::{Activation, NormType};
use crate::model::backend::gradients::Gradients;
use crate::model::backend::host::Residence;
use crate::model::modules::{
    Attention, Bias, Experts, FeedForward, Gates, Heads, KeyValue, LayerRotation, Linear, Matrix,
    Mlp, Norm, Router, SharedExpert,
};
use crate::model::pass::{AttentionMask, KeptMasks, Pass};
use crate::model::rope::{Rotation, Rotations};
use crate::model::router::{LoadBalance, Overrides};

pub(super) const HIDDEN: usize = 24;
pub(super) const HEAD_DIM: usize = 8;

/// Makes the same numbers in any dtype, as parameters or as plain tensors.
pub(super) struct Maker {
    pub(super) dtype: DType,
    /// Whether every third parameter is frozen.
    pub(super) some_frozen: bool,
    pub(super) state: RefCell<(u64, Vec<Var>)>,
}

impl Maker {
    pub(super) fn new(dtype: DType, some_frozen: bool) -> Self {
        Self {
            dtype,
            some_frozen,
            state: RefCell::new((1, Vec::new())),
        }
    }

    pub(super) fn tensor(&self, shape: &[usize], wide: f64) -> Tensor {
        let mut state = self.state.borrow_mut();
        let count = shape.iter().product();
        let values: Vec<f64> = (0..count)
            .map(|_| {
                state.0 = state
                    .0
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                wide * ((state.0 >> 33) as f64 / f64::from(1u32 << 30) - 1.0)
            })
            .collect();
        Tensor::from_vec(values, shape, &Device::Cpu)
            .unwrap()
            .to_dtype(self.dtype)
            .unwrap()
    }

    pub(super) fn parameter(&self, shape: &[usize], wide: f64) -> Tensor {
        self.trained(self.tensor(shape, wide))
    }

    /// `tensor` as a parameter, unless it is one of the frozen ones.
    pub(super) fn trained(&self, tensor: Tensor) -> Tensor {
        let mut state = self.state.borrow_mut();
        let var = Var::from_tensor(&tensor).unwrap();
        state.1.push(var.clone());
        if self.some_frozen && state.1.len() % 3 == 2 {
            return tensor;
        }
        var.as_tensor().clone()
    }

    pub(super) fn matrix(&self, rows: usize, columns: usize) -> Matrix {
        let wide = 1.5 / (columns as f64).sqrt();
        let weight = self.parameter(&[rows, columns], wide);
        if weight.is_variable() {
            Matrix::Variable(weight)
        } else {
            Matrix::Frozen(weight)
        }
    }

    pub(super) fn linear(&self, rows: usize, columns: usize, bias: bool) -> Linear {
        Linear {
            weight: self.matrix(rows, columns),
            bias: bias.then(|| self.parameter(&[rows], 0.3)),
        }
    }

    pub(super) fn norm(&self, kind: NormType, shape: &[usize]) -> Norm {
        let weight = (self.tensor(shape, 0.4) + 1.0).unwrap();
        Norm {
            kind,
            weight: self.trained(weight),
            bias: None,
            offset: false,
            eps: 1e-5,
        }
    }

    /// A norm with a bias that multiplies by one plus its weight.
    pub(super) fn norm_with_all(&self, kind: NormType, shape: &[usize]) -> Norm {
        Norm {
            weight: self.parameter(shape, 0.4),
            bias: Some(self.parameter(shape, 0.3)),
            offset: true,
            kind,
            eps: 1e-5,
        }
    }

    pub(super) fn gradients(&self) -> Gradients {
        Gradients::new(&self.state.borrow().1, Residence::Host)
    }

    pub(super) fn router(&self, experts: usize, top_k: usize, features: &Features) -> Router {
        Router {
            weight: self.matrix(experts, HIDDEN),
            bias: match features.router_bias {
                "logits" => Bias::Logits(self.parameter(&[experts], 0.3)),
                "choice" => Bias::Choice(self.parameter(&[experts], 0.1)),
                _ => Bias::None,
            },
            gates: features.gates,
            experts,
            top_k,
            normalise: features.normalise,
        }
    }

    pub(super) fn attention(&self, features: &Features) -> Attention {
        let Features {
            heads, kv_heads, ..
        } = *features;
        let qk_norm = |heads: usize| match features.qk_norm {
            "head" => Some(self.norm(NormType::Rms, &[HEAD_DIM])),
            "full" => Some(self.norm(NormType::Rms, &[heads * HEAD_DIM])),
            "per-head" => Some(self.norm(NormType::Layer, &[heads, HEAD_DIM])),
            "head, with all" => Some(self.norm_with_all(NormType::Rms, &[HEAD_DIM])),
            _ => None,
        };
        let sets = if features.shared_kv {
            1
        } else {
            features.experts
        };
        Attention {
            heads: (0..features.experts)
                .map(|_| Heads {
                    q: self.linear(heads * HEAD_DIM, HIDDEN, features.bias),
                    o: self.linear(HIDDEN, heads * HEAD_DIM, features.bias),
                    adapter: features.adapters.then(|| self.matrix(HIDDEN, HIDDEN)),
                    q_norm: qk_norm(heads),
                })
                .collect(),
            key_values: (0..sets)
                .map(|_| KeyValue {
                    k: self.linear(kv_heads * HEAD_DIM, HIDDEN, features.bias),
                    v: self.linear(kv_heads * HEAD_DIM, HIDDEN, features.bias),
                    k_norm: qk_norm(kv_heads),
                })
                .collect(),
            router: (features.experts > 1)
                .then(|| self.router(features.experts, features.top_k, features)),
            kv_heads,
            head_dim: HEAD_DIM,
            window: features.window,
            rotation: features.rotation,
            clip: features.clip,
            scale: features.scale,
            soft_cap: features.soft_cap,
            norm_after_rotation: features.norm_after_rotation,
        }
    }

    pub(super) fn mlp(&self, features: &Features, adapter: bool) -> Mlp {
        Mlp {
            gate: features
                .gated
                .then(|| self.linear(20, HIDDEN, features.bias)),
            up: self.linear(20, HIDDEN, features.bias),
            down: self.linear(HIDDEN, 20, features.bias),
            adapter: adapter.then(|| self.matrix(HIDDEN, HIDDEN)),
            activation: features.activation,
        }
    }

    pub(super) fn feed_forward(&self, features: &Features) -> FeedForward {
        if features.experts == 1 {
            return FeedForward::Dense(self.mlp(features, false));
        }
        FeedForward::Experts(Experts {
            router: self.router(features.experts, features.top_k, features),
            experts: (0..features.experts)
                .map(|_| self.mlp(features, features.adapters))
                .collect(),
            shared: (features.shared != "none").then(|| SharedExpert {
                mlp: self.mlp(features, false),
                gate: (features.shared == "gated").then(|| self.matrix(1, HIDDEN)),
            }),
        })
    }

    /// A pass over `batch` rows of `seq` tokens.
    pub(super) fn pass(&self, features: &Features, batch: usize, seq: usize) -> Pass {
        let pairs = HEAD_DIM / if features.partial_rotary { 4 } else { 2 };
        let rows = if features.mask == "padding" { batch } else { 1 };
        let turned = |f: fn(f64) -> f64| {
            let values: Vec<f64> = (0..rows * seq * pairs).map(|i| f(i as f64 * 0.7)).collect();
            Tensor::from_vec(values, (rows, seq, 1, pairs), &Device::Cpu)
                .unwrap()
                .to_dtype(self.dtype)
                .unwrap()
        };
        let starts = |_| {
            (0..seq)
                .map(|i| if i >= seq / 2 { seq / 2 } else { 0 })
                .collect()
        };
        Pass {
            tokens: Tensor::zeros((batch, seq), DType::U32, &Device::Cpu).unwrap(),
            attention_mask: AttentionMask {
                offset: 0,
                left_padding: (features.mask == "padding").then(|| (0..batch).collect()),
                document_starts: (features.mask == "documents")
                    .then(|| (0..batch).map(starts).collect()),
            },
            rotations: Rotations {
                full: Rotation {
                    cos: turned(f64::cos),
                    sin: turned(f64::sin),
                    interleaved: features.interleaved,
                },
                window: None,
            },
            query_scales: features.query_scales.then(|| {
                let factors: Vec<f64> = (0..rows * seq).map(|i| 1.0 + 0.3 * i as f64).collect();
                let factors = Tensor::from_vec(factors, (rows, seq, 1, 1, 1), &Device::Cpu);
                factors.unwrap().to_dtype(self.dtype).unwrap()
            }),
            overrides: Overrides {
                dropped: features.dropped.clone(),
                ..Overrides::default()
            },
            dtype: self.dtype,
            device: Device::Cpu,
            masks: KeptMasks::default(),
        }
    }
}

/// What varies between rows of the table.
#[derive(Debug, Clone)]
pub(super) struct Features {
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) experts: usize,
    pub(super) shared_kv: bool,
    pub(super) top_k: usize,
    pub(super) normalise: bool,
    pub(super) router_bias: &'static str,
    pub(super) gates: Gates,
    pub(super) qk_norm: &'static str,
    pub(super) norm_after_rotation: bool,
    pub(super) bias: bool,
    pub(super) window: Option<usize>,
    pub(super) clip: Option<f64>,
    pub(super) scale: Option<f64>,
    pub(super) soft_cap: Option<f64>,
    pub(super) mask: &'static str,
    pub(super) interleaved: bool,
    pub(super) partial_rotary: bool,
    pub(super) rotation: LayerRotation,
    pub(super) query_scales: bool,
    pub(super) adapters: bool,
    pub(super) gated: bool,
    pub(super) activation: Activation,
    pub(super) shared: &'static str,
    pub(super) dropped: Vec<usize>,
    pub(super) balance: LoadBalance,
    pub(super) some_frozen: bool,
}

pub(super) const PLAIN: Features = Features {
    heads: 4,
    kv_heads: 2,
    experts: 1,
    shared_kv: false,
    top_k: 1,
    normalise: false,
    router_bias: "none",
    gates: Gates::Softmax,
    qk_norm: "none",
    norm_after_rotation: false,
    bias: false,
    window: None,
    clip: None,
    scale: None,
    soft_cap: None,
    mask: "causal",
    interleaved: false,
    partial_rotary: false,
    rotation: LayerRotation::Full,
    query_scales: false,
    adapters: false,
    gated: true,
    activation: Activation::Silu,
    shared: "none",
    dropped: Vec::new(),
    balance: LoadBalance::Hard,
    some_frozen: false,
};

/// Batches and lengths of rows: one token, and more than the queries that kernels handle together.
pub(super) const SHAPES: [(usize, usize); 4] = [(1, 1), (2, 5), (1, 33), (2, 70)];
