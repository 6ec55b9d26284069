//! The shared expert of a mixture for training.

use candle_core::{Result, Tensor, Var};
use candle_nn::ops::sigmoid;

use super::mlp;
use super::steps::TrainSteps;
use super::support::unsupported_mlp;
use crate::model::backend::gradients::Gradients;
use crate::model::backend::operations::{OperationRecord, Routed};
use crate::model::backend::reference::{Steps, Subgraph, network};
use crate::model::modules::{Matrix, SharedExpert};

/// The record of routed experts and a shared one.
struct SharedRecord {
    routed: Box<dyn OperationRecord>,
    mlp: Box<dyn OperationRecord>,
    gate: Option<Gate>,
}

/// The gate of the shared expert: a graph from the output of its network and from `h`.
struct Gate {
    ungated: Var,
    graph: Subgraph,
}

/// The output of the routed experts for `h` plus the output of the shared one.
pub(super) fn add(
    routed: Routed<Tensor, Box<dyn OperationRecord>>,
    expert: &SharedExpert,
    h: &Tensor,
) -> Result<Routed<Tensor, Box<dyn OperationRecord>>> {
    let (mut out, mlp): (Tensor, Box<dyn OperationRecord>) =
        if unsupported_mlp(&expert.mlp).is_none() {
            let (out, record) = mlp::recorded(&expert.mlp, h)?;
            (out, Box::new(record))
        } else {
            let input = Var::from_tensor(h)?;
            let out = network(&TrainSteps, &expert.mlp, &input)?;
            (out.detach(), Box::new(Subgraph::new(input, out)))
        };
    let mut gate = None;
    if let Some(weight) = &expert.gate {
        let (gated, record) = Gate::new(weight, &out, h)?;
        (out, gate) = (gated, Some(record));
    }
    let record = routed
        .record
        .map(|routed| -> Box<dyn OperationRecord> { Box::new(SharedRecord { routed, mlp, gate }) });
    Ok(Routed {
        output: (routed.output + out)?,
        record,
        ..routed
    })
}

impl Gate {
    fn new(weight: &Matrix, ungated: &Tensor, h: &Tensor) -> Result<(Tensor, Self)> {
        let (ungated, input) = (Var::from_tensor(ungated)?, Var::from_tensor(h)?);
        let gated = ungated.broadcast_mul(&sigmoid(&TrainSteps.matmul(weight, &input)?)?)?;
        let graph = Subgraph::new(input, gated.clone());
        Ok((gated.detach(), Self { ungated, graph }))
    }
}

impl OperationRecord for SharedRecord {
    fn backward(
        self: Box<Self>,
        grad_output: &Tensor,
        mut grad_input: Option<Tensor>,
        gradients: &mut Gradients,
    ) -> Result<Tensor> {
        let mut grad_shared = grad_output.clone();
        if let Some(Gate { ungated, graph }) = self.gate {
            let (grad_h, grad_ungated) =
                graph.backward_to(&ungated, grad_output, grad_input, gradients)?;
            (grad_input, grad_shared) = (Some(grad_h), grad_ungated);
        }
        let grad_h = self.mlp.backward(&grad_shared, grad_input, gradients)?;
        self.routed.backward(grad_output, Some(grad_h), gradients)
    }
}
