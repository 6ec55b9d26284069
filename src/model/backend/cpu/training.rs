//! Training: which operation runs with which kernels.

use candle_core::{Result, Tensor, Var};

use super::steps::TrainSteps;
use super::support::{unsupported_attention, unsupported_mlp};
use super::{attention, loss, mlp, norm, router, shared};
use crate::model::backend::gradients::Gradients;
use crate::model::backend::host::Residence;
use crate::model::backend::operations::{
    Computed, OperationRecord, Operations, Routed, TokenLosses,
};
use crate::model::backend::reference::{Composed, Subgraph, experts, losses};
use crate::model::cache::LayerCache;
use crate::model::modules::{Attention, Experts, FeedForward, Head, Matrix, Norm};
use crate::model::pass::Pass;
use crate::model::router::RouterLosses;

/// The backend for training.
#[derive(Debug, Clone)]
pub(in crate::model::backend) struct Training;

/// Sublayers without kernels.
const COMPOSED: Composed<TrainSteps> = Composed::of(TrainSteps);

type Record = Box<dyn OperationRecord>;

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

    fn multiply(&self, x: &Tensor, factor: Option<f64>) -> Result<Tensor> {
        COMPOSED.multiply(x, factor)
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
        let input = Var::from_tensor(h)?;
        let (output, routing) = experts(&TrainSteps, layer, &input, pass)?;
        let (weighted, loss) = match wanted {
            Some(wanted) => {
                let (weighted, loss) = losses(&routing, wanted, Residence::Host)?;
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
