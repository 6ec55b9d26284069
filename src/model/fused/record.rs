//! Operations of any number of tensors with a gradient written by hand, in candle's graph.
//!
//! candle's own custom operations take three tensors at most. Here the inputs are strung on a chain of empty
//! operations, whose end is the one input of the operation proper. Its backward step comes first: it computes the gradients of all
//! inputs and puts them down, and the links of the chain hand them on.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp1, CustomOp2, DType, Device, Layout, Result, Shape, Tensor};

use crate::model::stored::floats;

/// Gradients of the inputs, between the operation and the links; `None` where an input gets none.
type Gradients = Arc<Mutex<Vec<Option<Tensor>>>>;

/// The gradients of the inputs, in their order, from that of the output, which is contiguous.
type Backward = Box<dyn Fn(&Tensor) -> Result<Vec<Option<Tensor>>> + Send + Sync>;

/// The tensor `values` of `shape`, computed from `inputs`; `backward` gives their gradients from its own.
///
/// `backward` may be called once for each backward pass; it must not refer to `inputs` themselves but to detached copies,
/// or the graph would hold itself.
pub(in super::super) fn record(
    inputs: &[&Tensor],
    values: Vec<f32>,
    shape: impl Into<Shape>,
    backward: impl Fn(&Tensor) -> Result<Vec<Option<Tensor>>> + Send + Sync + 'static,
) -> Result<Tensor> {
    let shape = shape.into();
    let tracked: Vec<(usize, &Tensor)> = inputs
        .iter()
        .enumerate()
        .filter(|(_, input)| input.track_op())
        .map(|(place, input)| (place, *input))
        .collect();
    let Some((first, rest)) = tracked.split_first() else {
        return Tensor::from_vec(values, shape, &Device::Cpu);
    };
    let gradients = Gradients::default();
    let link = |place| Link {
        gradients: Arc::clone(&gradients),
        place,
    };
    let mut chain = first.1.apply_op1(link(first.0))?;
    for (place, input) in rest {
        chain = chain.apply_op2(input, link(*place))?;
    }
    let output = Mutex::new(Some(CpuStorage::F32(values)));
    chain.apply_op1(Operation {
        output,
        shape,
        gradients,
        backward: Box::new(backward),
    })
}

/// The gradients of a sublayer's inputs.
pub(super) struct OfInputs {
    pub(super) h: Vec<f32>,
    /// Empty where there are no gates.
    pub(super) gates: Vec<f32>,
    /// In the order of the weights, absent ones included.
    pub(super) weights: Vec<Option<Tensor>>,
}

/// [`record`] for a sublayer: `input` is `h` out of the graph; `backward` is given its values and the gradient of the output, which has its shape.
pub(super) fn record_sublayer(
    (h, input): (&Tensor, Tensor),
    gates: Option<&Tensor>,
    weights: &[Option<&Tensor>],
    values: Vec<f32>,
    backward: impl Fn(&[f32], &[f32]) -> Result<OfInputs> + Send + Sync + 'static,
) -> Result<Tensor> {
    let inputs: Vec<Option<&Tensor>> = [Some(h), gates]
        .into_iter()
        .chain(weights.iter().copied())
        .collect();
    let there: Vec<bool> = inputs.iter().map(Option::is_some).collect();
    let inputs: Vec<&Tensor> = inputs.into_iter().flatten().collect();
    let gate_shape = gates.map(|gates| gates.shape().clone());
    record(&inputs, values, h.shape(), move |gradient| {
        let (values, gradient) = (input.storage_and_layout(), gradient.storage_and_layout());
        let found = backward(floats(&values)?, floats(&gradient)?)?;
        let of_h = Tensor::from_vec(found.h, input.shape(), &Device::Cpu)?;
        let of_gates = gate_shape
            .as_ref()
            .map(|shape| Tensor::from_vec(found.gates, shape, &Device::Cpu));
        let all = [Some(of_h), of_gates.transpose()?]
            .into_iter()
            .chain(found.weights);
        Ok(all
            .zip(&there)
            .filter(|(_, there)| **there)
            .map(|(gradient, _)| gradient)
            .collect())
    })
}

/// One input on the chain.
struct Link {
    gradients: Gradients,
    place: usize,
}

impl Link {
    fn take(&self) -> Option<Tensor> {
        let mut gradients = self
            .gradients
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        gradients.get_mut(self.place).and_then(Option::take)
    }
}

/// What travels along the chain: one value, which means nothing.
fn nothing() -> (CpuStorage, Shape) {
    (CpuStorage::F32(vec![0.0]), Shape::from(1))
}

impl CustomOp1 for Link {
    fn name(&self) -> &'static str {
        "fused-input"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok(nothing())
    }

    fn bwd(&self, input: &Tensor, _: &Tensor, _: &Tensor) -> Result<Option<Tensor>> {
        match self.take() {
            // An input that is itself computed must be given some gradient: candle asks for it.
            None if !input.is_variable() => input.zeros_like().map(Some),
            gradient => Ok(gradient),
        }
    }
}

impl CustomOp2 for Link {
    fn name(&self) -> &'static str {
        "fused-input"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        Ok(nothing())
    }

    fn bwd(
        &self,
        chain: &Tensor,
        input: &Tensor,
        _: &Tensor,
        _: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        Ok((
            Some(chain.zeros_like()?),
            CustomOp1::bwd(self, input, input, input)?,
        ))
    }
}

/// The operation proper.
struct Operation {
    /// Computed before it is recorded, and taken when it is.
    output: Mutex<Option<CpuStorage>>,
    shape: Shape,
    gradients: Gradients,
    backward: Backward,
}

impl CustomOp1 for Operation {
    fn name(&self) -> &'static str {
        "fused"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        let output = self
            .output
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        match output {
            Some(output) => Ok((output, self.shape.clone())),
            None => candle_core::bail!("a fused operation ran twice"),
        }
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let found = (self.backward)(&gradient.contiguous()?)?;
        *self
            .gradients
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = found;
        Tensor::zeros(1, DType::F32, &Device::Cpu).map(Some)
    }
}
