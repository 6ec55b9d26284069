//! The backend for float32 on the CPU: kernels and backward passes written by hand, over all cores.
//!
//! candle's graph makes a tensor for each operation and two more for each of its gradients, on one thread. Here a sublayer is
//! one operation: everything but matmuls runs in one pass over memory, attention keeps no scores, and each weight's gradient
//! comes from one matmul. Sublayers without kernels ([`unsupported_attention`], [`unsupported_mlp`]) are composed by the
//! reference.

mod adamw;
mod attend;
mod attend_cached;
mod attention;
mod kernels;
mod loss;
mod matmul;
mod mlp;
mod norm;
mod product;
mod rotate;
mod router;
mod rows;
mod shared;
mod steps;
mod weight;

use candle_core::{Device, Result, Shape, Tensor};

use super::gradients::Gradients;
use super::reference::{Composed, Subgraph, experts, losses};
use super::{Computed, Operations, Routed, TensorRecord, TokenLosses};
use crate::family::Activation;
use crate::model::cache::LayerCache;
use crate::model::modules::{Attention, Experts, FeedForward, Head, Matrix, Mlp, Norm};
use crate::model::pass::Pass;
use crate::model::router::RouterLosses;

pub(super) use adamw::HostState;
use steps::{InferSteps, TrainSteps};

/// Inference.
pub(super) const INFERENCE: Composed<InferSteps> = Composed::of(InferSteps);

/// Training.
#[derive(Debug, Clone)]
pub(super) struct Training;

/// Why attention has no kernels for training; `None` where it has.
pub(super) fn unsupported_attention(attention: &Attention) -> Option<&'static str> {
    if attention.has_adapters() {
        Some("experts have adapters")
    } else if attention.clip.is_some() {
        Some("queries, keys and values are clipped")
    } else {
        None
    }
}

/// Why a feed-forward network has no kernels for training; `None` where it has.
pub(super) fn unsupported_mlp(mlp: &Mlp) -> Option<&'static str> {
    if mlp.gate.is_none() {
        Some("networks have no gate")
    } else if mlp.activation != Activation::Silu {
        Some("the activation is not SiLU")
    } else if mlp.adapter.is_some() {
        Some("experts have adapters")
    } else {
        None
    }
}

const COMPOSED: Composed<TrainSteps> = Composed::of(TrainSteps);

type Record = Box<dyn TensorRecord>;

impl Operations for Training {
    type Buffer = Tensor;
    type Record = Record;
    type Gradients = Gradients;

    fn embed(&self, table: &Matrix, ids: &Tensor) -> Result<Tensor> {
        COMPOSED.embed(table, ids)
    }

    fn embed_backward(
        &self,
        table: &Matrix,
        ids: &Tensor,
        grad_output: &Tensor,
        gradients: &mut Gradients,
    ) -> Result<()> {
        COMPOSED.embed_backward(table, ids, grad_output, gradients)
    }

    fn norm(&self, norm: &Norm, x: &Tensor) -> Result<Computed<Tensor, Record>> {
        let (output, record) = norm::recorded(norm, x)?;
        Ok(Computed {
            output,
            record: Some(Box::new(record)),
        })
    }

    fn attention(
        &self,
        attention: &Attention,
        h: &Tensor,
        pass: &Pass,
        cache: Option<&mut LayerCache>,
    ) -> Result<Routed<Tensor, Record>> {
        if cache.is_some() || unsupported_attention(attention).is_some() {
            return COMPOSED.attention(attention, h, pass, cache);
        }
        let overrides = &pass.overrides;
        let (top_k, dropped) = (overrides.attention_top_k, &overrides.dropped);
        let (router, routing) = match &attention.router {
            Some(router) => {
                let run = router::recorded(router, h, top_k, dropped, None)?;
                (Some(run.record), Some(run.routing))
            }
            None => (None, None),
        };
        let (output, record) = attention::recorded(attention, h, pass, router)?;
        Ok(Routed {
            output,
            record: Some(Box::new(record)),
            routing,
            loss: None,
        })
    }

    fn feed_forward(
        &self,
        feed_forward: &FeedForward,
        h: &Tensor,
        pass: &Pass,
        wanted: Option<&RouterLosses>,
    ) -> Result<Routed<Tensor, Record>> {
        match feed_forward {
            FeedForward::Dense(mlp) if unsupported_mlp(mlp).is_none() => {
                let (output, record) = mlp::recorded(mlp, h)?;
                Ok(Routed {
                    output,
                    record: Some(Box::new(record)),
                    routing: None,
                    loss: None,
                })
            }
            FeedForward::Experts(layer) => {
                let routed = routed_experts(layer, h, pass, wanted)?;
                match &layer.shared {
                    Some(expert) => shared::add(routed, expert, h),
                    None => Ok(routed),
                }
            }
            FeedForward::Dense(_) => COMPOSED.feed_forward(feed_forward, h, pass, wanted),
        }
    }

    fn add(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        a + b
    }

    fn logits(&self, head: &Head, x: &Tensor) -> Result<Tensor> {
        COMPOSED.logits(head, x)
    }

    fn loss(
        &self,
        head: &Head,
        x: &Tensor,
        targets: &[u32],
        weights: &[f32],
        gradients: &mut Gradients,
    ) -> Result<TokenLosses<Tensor>> {
        loss::next_token(head, x, targets, weights, gradients)
    }

    fn likelihoods(&self, head: &Head, x: &Tensor, targets: &[u32]) -> Result<Tensor> {
        loss::likelihoods(head, x, targets)
    }

    fn backward(
        &self,
        record: Record,
        grad_output: &Tensor,
        grad_input: Option<Tensor>,
        gradients: &mut Gradients,
    ) -> Result<Tensor> {
        record.backward(grad_output, grad_input, gradients)
    }
}

/// The routed experts of a layer, without its shared one.
fn routed_experts(
    layer: &Experts,
    h: &Tensor,
    pass: &Pass,
    wanted: Option<&RouterLosses>,
) -> Result<Routed<Tensor, Record>> {
    if layer
        .experts
        .iter()
        .any(|mlp| unsupported_mlp(mlp).is_some())
    {
        let input = candle_core::Var::from_tensor(h)?;
        let (output, routing) = experts(&TrainSteps, layer, &input, pass)?;
        let (weighted, loss) = match wanted {
            Some(wanted) => {
                let (weighted, loss) = losses(&routing, wanted)?;
                (Some(weighted), Some(loss))
            }
            None => (None, None),
        };
        let graph = Subgraph::new(input, output.clone()).with_loss(weighted);
        return Ok(Routed {
            output: output.detach(),
            record: Some(Box::new(graph)),
            routing: Some(routing.detach()),
            loss,
        });
    }
    let overrides = &pass.overrides;
    let run = router::recorded(
        &layer.router,
        h,
        overrides.top_k,
        &overrides.dropped,
        wanted,
    )?;
    let chosen = &run.routing.chosen;
    let (output, record) = mlp::experts_recorded(&layer.experts, h, run.record, chosen)?;
    Ok(Routed {
        output,
        record: Some(Box::new(record)),
        routing: Some(run.routing),
        loss: run.loss,
    })
}

/// `values` of `shape`, added to `grad_input` where there is a sum already.
fn add_to(grad_input: Option<Tensor>, values: Vec<f32>, shape: &Shape) -> Result<Tensor> {
    let gradient = Tensor::from_vec(values, shape, &Device::Cpu)?;
    match grad_input {
        Some(sum) => sum + gradient,
        None => Ok(gradient),
    }
}
