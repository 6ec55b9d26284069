//! Operations composed of steps, with candle's autograd as their backward pass.

use candle_core::{Result, Tensor, Var};

use super::attend::multiplied;
use super::norm::at_least_f32;
use super::router::losses;
use super::steps::{CandleSteps, Steps};
use super::subgraph::Subgraph;
use super::{attention, feed_forward, loss};
use crate::model::backend::gradients::Gradients;
use crate::model::backend::host::Residence;
use crate::model::backend::operations::{
    Computed, OperationRecord, Operations, Routed, TokenLosses,
};
use crate::model::cache::LayerCache;
use crate::model::modules::{Attention, FeedForward, Head, Matrix, Norm};
use crate::model::params::Mode;
use crate::model::pass::Pass;
use crate::model::router::RouterLosses;

/// Operations composed of steps.
#[derive(Debug, Clone)]
pub(in crate::model::backend) struct Composed<S>(S);

impl<S> Composed<S> {
    pub(in crate::model::backend) const fn of(steps: S) -> Self {
        Self(steps)
    }
}

/// The reference backend itself.
pub(in crate::model::backend) type Reference = Composed<CandleSteps>;

impl Reference {
    pub(in crate::model::backend) fn new(mode: Mode, residence: Residence) -> Self {
        Self(CandleSteps { mode, residence })
    }
}

impl<S: Steps> Composed<S> {
    /// `x` as the input of an operation, and the variable that cuts the operation from the graph before it, in training.
    fn input(&self, x: &Tensor, records: bool) -> Result<(Tensor, Option<Var>)> {
        if records && self.0.mode() == Mode::Train {
            let var = Var::from_tensor(x)?;
            Ok((var.as_tensor().clone(), Some(var)))
        } else {
            Ok((x.clone(), None))
        }
    }
}

fn record(
    input: Option<Var>,
    output: &Tensor,
    loss: Option<Tensor>,
) -> Option<Box<dyn OperationRecord>> {
    let graph = Subgraph::new(input?, output.clone()).with_loss(loss);
    Some(Box::new(graph))
}

impl<S: Steps> Operations for Composed<S> {
    type Buffer = Tensor;
    type Record = Box<dyn OperationRecord>;
    type Gradients = Gradients;

    fn embed(&self, table: &Matrix, ids: &Tensor) -> Result<Tensor> {
        let (batch, seq) = ids.dims2()?;
        let rows = self.0.select(table, &ids.flatten_all()?)?;
        Ok(rows.reshape((batch, seq, ()))?.detach())
    }

    fn embed_backward(
        &self,
        table: &Matrix,
        ids: &Tensor,
        grad_output: &Tensor,
        gradients: &mut Gradients,
    ) -> Result<()> {
        let table = table.tensor()?;
        // A frequent token adds up thousands of rows, which half precision would lose one after another.
        let dtype = at_least_f32(grad_output.dtype());
        let grad_rows = grad_output.flatten(0, 1)?.to_dtype(dtype)?;
        let grad_table = Tensor::zeros(table.shape(), dtype, table.device())?;
        let grad_table = grad_table.index_add(&ids.flatten_all()?, &grad_rows, 0)?;
        gradients.add(table, &grad_table)
    }

    fn norm(&self, norm: &Norm, x: &Tensor) -> Result<Computed<Tensor, Self::Record>> {
        let (x, var) = self.input(x, true)?;
        let output = self.0.norm(norm, &x)?;
        Ok(Computed {
            record: record(var, &output, None),
            output: output.detach(),
        })
    }

    fn attention(
        &self,
        attention: &Attention,
        h: &Tensor,
        pass: &Pass,
        cache: Option<&mut LayerCache>,
    ) -> Result<Routed<Tensor, Self::Record>> {
        let (h, var) = self.input(h, cache.is_none())?;
        let (output, routing) = attention::forward(&self.0, attention, &h, pass, cache)?;
        Ok(Routed {
            record: record(var, &output, None),
            output: output.detach(),
            routing: routing.map(|routing| routing.detach()),
            loss: None,
        })
    }

    fn feed_forward(
        &self,
        feed_forward: &FeedForward,
        h: &Tensor,
        pass: &Pass,
        wanted: Option<&RouterLosses>,
    ) -> Result<Routed<Tensor, Self::Record>> {
        let (h, var) = self.input(h, true)?;
        let (output, routing) = feed_forward::forward(&self.0, feed_forward, &h, pass)?;
        let (weighted, loss) = match (&routing, wanted) {
            (Some(routing), Some(wanted)) => {
                let (weighted, loss) = losses(routing, wanted, self.0.residence())?;
                (Some(weighted), Some(loss))
            }
            _ => (None, None),
        };
        Ok(Routed {
            record: record(var, &output, weighted),
            output: output.detach(),
            routing: routing.map(|routing| routing.detach()),
            loss,
        })
    }

    fn add(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        a + b
    }

    fn multiply(&self, x: &Tensor, factor: Option<f64>) -> Result<Tensor> {
        factor.map_or_else(|| Ok(x.clone()), |factor| multiplied(x, factor))
    }

    fn logits(&self, head: &Head, x: &Tensor) -> Result<Tensor> {
        Ok(loss::logits(&self.0, head, x)?.detach())
    }

    fn loss(
        &self,
        head: &Head,
        x: &Tensor,
        targets: &[u32],
        weights: &[f32],
        gradients: &mut Gradients,
    ) -> Result<TokenLosses<Tensor>> {
        loss::next_token(&self.0, head, x, targets, weights, gradients)
    }

    fn likelihoods(&self, head: &Head, x: &Tensor, targets: &[u32]) -> Result<Tensor> {
        loss::likelihoods(&self.0, head, x, targets)
    }

    fn backward(
        &self,
        record: Self::Record,
        grad_output: &Tensor,
        grad_input: Option<Tensor>,
        gradients: &mut Gradients,
    ) -> Result<Tensor> {
        record.backward(grad_output, grad_input, gradients)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};
    use half::bf16;

    use super::*;

    /// A thousand rows of one token: half precision would stop counting at 256.
    #[test]
    fn the_gradient_of_a_frequent_token_is_the_sum_of_its_rows() {
        let (tokens, hidden, frequent) = (1010, 3, 2u32);
        let value = |token: usize, column: usize| {
            bf16::from_f64(1.0 + ((token * 37 + column * 11) % 128) as f64 / 128.0)
        };
        let token = |i: usize| if i.is_multiple_of(101) { 0 } else { frequent };
        let ids: Vec<u32> = (0..tokens).map(token).collect();
        assert_eq!(ids.iter().filter(|id| **id == frequent).count(), 1000);
        let rows: Vec<bf16> = (0..tokens)
            .flat_map(|i| (0..hidden).map(move |column| value(i, column)))
            .collect();
        let exact = |id: u32, column: usize| -> f64 {
            let own = (0..tokens).filter(|i| ids[*i] == id);
            own.map(|i| value(i, column).to_f64()).sum()
        };

        let table = Var::zeros((4, hidden), DType::BF16, &Device::Cpu).unwrap();
        let ids_tensor = Tensor::new(&ids[..], &Device::Cpu).unwrap();
        let ids_tensor = ids_tensor.reshape((2, tokens / 2)).unwrap();
        let grad_output = Tensor::from_vec(rows, (2, tokens / 2, hidden), &Device::Cpu).unwrap();
        for residence in [Residence::Host, Residence::Device] {
            let mut gradients = Gradients::new([&table], residence);
            let matrix = Matrix::Variable(table.as_tensor().clone());
            Reference::new(Mode::Train, residence)
                .embed_backward(&matrix, &ids_tensor, &grad_output, &mut gradients)
                .unwrap();
            let found = gradients.get(0).unwrap().to_vec2::<f32>().unwrap();
            for (id, row) in found.iter().enumerate() {
                for (column, found) in row.iter().enumerate() {
                    assert_eq!(*found, exact(id as u32, column) as f32, "{id} {column}");
                }
            }
        }
    }
}
