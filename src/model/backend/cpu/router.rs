//! Routers for training. They are small, so candle's autograd differentiates them.

use candle_core::{Device, Result, Shape, Tensor, Var};

use super::steps::TrainSteps;
use crate::model::backend::gradients::Gradients;
use crate::model::backend::host::Residence;
use crate::model::backend::operations::OperationRecord;
use crate::model::backend::reference::{Subgraph, losses, route};
use crate::model::modules::Router;
use crate::model::router::{RouterLoss, RouterLosses, Routing};

/// The record of a router: its graph, and the gates that its sublayer used.
pub(super) struct RouterRecord {
    graph: Subgraph,
    /// `[tokens, experts]`.
    gates: Vec<f32>,
    shape: Shape,
}

/// A router that has run.
pub(super) struct RouterRun {
    pub(super) record: RouterRecord,
    pub(super) routing: Routing,
    pub(super) loss: Option<RouterLoss>,
}

/// The routing of `h` `[batch, seq, hidden]`, with the router's losses where they are wanted.
pub(super) fn recorded(
    router: &Router,
    h: &Tensor,
    top_k: Option<usize>,
    dropped: &[usize],
    wanted: Option<&RouterLosses>,
) -> Result<RouterRun> {
    let input = Var::from_tensor(h)?;
    let routing = route(&TrainSteps, router, &input, top_k, dropped)?;
    let (weighted, loss) = match wanted {
        Some(wanted) => {
            let (weighted, loss) = losses(&routing, wanted, Residence::Host)?;
            (Some(weighted), Some(loss))
        }
        None => (None, None),
    };
    let record = RouterRecord {
        graph: Subgraph::new(input, routing.gates.clone()).with_loss(weighted),
        gates: routing.gates.detach().flatten_all()?.to_vec1::<f32>()?,
        shape: routing.gates.shape().clone(),
    };
    Ok(RouterRun {
        record,
        routing: routing.detach(),
        loss,
    })
}

impl RouterRecord {
    pub(super) fn gates(&self) -> &[f32] {
        &self.gates
    }

    /// Adds the gradient of the router's input to `grad_input`.
    pub(super) fn backward(
        self,
        grad_gates: Vec<f32>,
        grad_input: Option<Tensor>,
        gradients: &mut Gradients,
    ) -> Result<Tensor> {
        let grad_gates = Tensor::from_vec(grad_gates, self.shape, &Device::Cpu)?;
        Box::new(self.graph).backward(&grad_gates, grad_input, gradients)
    }
}
