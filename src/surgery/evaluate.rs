//! Evaluating expressions, any range of any tensor at a time.

use super::plan::{PlannedTensor, Source, source};
use super::random::Draws;
use crate::checkpoint::expression::Expression;
use crate::checkpoint::folder::Checkpoint;
use crate::checkpoint::writer::{TensorBytes, TensorLayout};
use crate::checkpoint::{Encoding, TensorEntry, dtype};
use crate::{Error, Result};

/// An expression with its sources looked up and its shapes checked.
enum Node<'a> {
    Read { checkpoint: &'a Checkpoint, entry: &'a TensorEntry, tensor: &'a str },
    Sum { parts: Vec<Node<'a>>, weights: Option<&'a [f64]>, divisor: f64 },
    Permute { of: Box<Node<'a>>, rows_per_head: u64, row: u64 },
    Normal { draws: Draws, std: f64 },
    Uniform { draws: Draws, std: f64 },
    Orthogonal { draws: Draws, gain: f64, rows: usize, columns: usize },
    Constant(f64),
    Identity { columns: u64 },
}

/// The tensors of a plan, ready to be computed.
pub struct Evaluator<'a> {
    tensors: Vec<(&'a TensorLayout, Node<'a>)>,
    carries_non_finite: bool,
}

/// Working space of one thread.
#[derive(Default)]
pub struct Scratch {
    raw: Vec<u8>,
    values: Vec<f64>,
    free: Vec<Vec<f64>>,
}

impl<'a> Evaluator<'a> {
    /// Looks up every source tensor and checks every shape and dtype; reads no data.
    pub fn new(tensors: &'a [PlannedTensor], sources: &'a [Source]) -> Result<Self> {
        let mut compiled = Vec::with_capacity(tensors.len());
        for tensor in tensors {
            let layout = &tensor.layout;
            let fault = |problem: String| Error::usage(format!("the plan of tensor `{}`: {problem}", layout.name));
            let elements = layout.shape.iter().try_fold(1u64, |product, extent| product.checked_mul(*extent));
            if elements.and_then(|elements| dtype::byte_length(layout.dtype, elements)).is_none() {
                return Err(fault(format!(
                    "shape {:?} of {} is not a whole number of bytes",
                    layout.shape, layout.dtype
                )));
            }
            let node = compile(&tensor.expression, layout, sources)?;
            let moves_bytes = moves_bytes(&node, layout);
            if !moves_bytes && !dtype::is_float(layout.dtype) {
                return Err(fault(format!("values cannot be computed in {}", layout.dtype)));
            }
            if !moves_bytes && matches!(tensor.expression, Expression::Copy { .. }) {
                return Err(fault(format!("a copy keeps its dtype, expected {}", layout.dtype)));
            }
            compiled.push((layout, node));
        }
        Ok(Self { tensors: compiled, carries_non_finite: false })
    }

    /// The same, which lets NaN and infinities of the sources through; those that a rounding would make are refused.
    #[must_use]
    pub fn carrying_non_finite(mut self, carries: bool) -> Self {
        self.carries_non_finite = carries;
        self
    }

    /// Fills `out` with the bytes of tensor number `tensor` from byte `start` on.
    pub fn bytes(&self, tensor: usize, start: u64, out: &mut [u8], scratch: &mut Scratch) -> Result<()> {
        let (layout, node) = &self.tensors[tensor];
        if let Node::Read { checkpoint, entry, .. } = node
            && entry.encoding == Encoding::Plain(layout.dtype)
        {
            return checkpoint.read_bytes(entry, start, out);
        }
        let size = layout.dtype.bitsize() / 8;
        let mut values = std::mem::take(&mut scratch.values);
        values.resize(out.len() / size, 0.0);
        node.values(start / size as u64, &mut values, scratch)?;
        // The dtype was checked to be a float when the plan was compiled.
        let _ = dtype::encode(layout.dtype, &values, out);
        scratch.values = values;
        Ok(())
    }
}

impl TensorBytes for Evaluator<'_> {
    type Scratch = Scratch;

    /// As [`Evaluator::bytes`], and refuses NaN and infinities, naming the source tensor that holds one.
    fn fill(&self, tensor: usize, start: u64, out: &mut [u8], scratch: &mut Scratch) -> Result<()> {
        self.bytes(tensor, start, out, scratch)?;
        let (layout, node) = &self.tensors[tensor];
        let Some(mut position) = dtype::first_non_finite(layout.dtype, out) else { return Ok(()) };
        let size = layout.dtype.bitsize() / 8;
        if self.carries_non_finite {
            if moves_bytes(node, layout) {
                return Ok(());
            }
            // `bytes` has left the values before their rounding.
            let overflows = |at: &usize| {
                let stored = &out[at * size..(at + 1) * size];
                scratch.values[*at].is_finite() && dtype::first_non_finite(layout.dtype, stored).is_some()
            };
            match (position..scratch.values.len()).find(overflows) {
                Some(at) => position = at,
                None => return Ok(()),
            }
        }
        Err(node.blame(start / size as u64 + position as u64, layout, scratch)?)
    }
}

/// Whether the tensor is the bytes of a source, never decoded.
fn moves_bytes(node: &Node, layout: &TensorLayout) -> bool {
    matches!(node, Node::Read { entry, .. } if entry.encoding == Encoding::Plain(layout.dtype))
}

impl Node<'_> {
    /// Values of elements `first..` in `f64`.
    fn values(&self, first: u64, out: &mut [f64], scratch: &mut Scratch) -> Result<()> {
        match self {
            Self::Read { checkpoint, entry, .. } => {
                let mut raw = std::mem::take(&mut scratch.raw);
                let done = checkpoint.read_values(entry, first, out, &mut raw);
                scratch.raw = raw;
                done
            }
            Self::Sum { parts, weights, divisor } => {
                let mut term = scratch.free.pop().unwrap_or_default();
                term.resize(out.len(), 0.0);
                for (number, part) in parts.iter().enumerate() {
                    part.values(first, &mut term, scratch)?;
                    let weight = weights.map_or(1.0, |weights| weights[number]);
                    if number == 0 {
                        out.iter_mut().zip(&term).for_each(|(sum, value)| *sum = weight * value);
                    } else {
                        out.iter_mut().zip(&term).for_each(|(sum, value)| *sum += weight * value);
                    }
                }
                out.iter_mut().for_each(|sum| *sum /= divisor);
                scratch.free.push(term);
                Ok(())
            }
            Self::Permute { of, rows_per_head, row } => {
                let (mut position, mut rest) = (first, out);
                while !rest.is_empty() {
                    let (index, column) = (position / row, position % row);
                    let length = (row - column).min(rest.len() as u64);
                    let (head, within) = (index / rows_per_head, index % rows_per_head);
                    let half = rows_per_head / 2;
                    let from = head * rows_per_head + 2 * (within % half) + within / half;
                    let (piece, others) = rest.split_at_mut(length as usize);
                    of.values(from * row + column, piece, scratch)?;
                    (position, rest) = (position + length, others);
                }
                Ok(())
            }
            Self::Normal { draws, std } => {
                draws.normal(first, out);
                out.iter_mut().for_each(|value| *value *= std);
                Ok(())
            }
            Self::Uniform { draws, std } => {
                draws.uniform(first, out);
                let reach = libm::sqrt(3.0) * std;
                out.iter_mut().for_each(|value| *value = (2.0 * *value - 1.0) * reach);
                Ok(())
            }
            Self::Orthogonal { draws, gain, rows, columns } => {
                let matrix = draws.orthonormal(*rows, *columns);
                out.iter_mut().zip(&matrix[first as usize..]).for_each(|(value, drawn)| *value = gain * drawn);
                Ok(())
            }
            Self::Constant(value) => {
                out.fill(*value);
                Ok(())
            }
            Self::Identity { columns } => {
                for (element, value) in (first..).zip(out) {
                    *value = if element / columns == element % columns { 1.0 } else { 0.0 };
                }
                Ok(())
            }
        }
    }

    /// The error for a value that is not finite: which source tensor holds it, or that it overflows.
    fn blame(&self, element: u64, layout: &TensorLayout, scratch: &mut Scratch) -> Result<Error> {
        let mut value = [0.0];
        self.values(element, &mut value, scratch)?;
        match self {
            Self::Sum { parts, .. } => {
                for part in parts {
                    part.values(element, &mut value, scratch)?;
                    if !value[0].is_finite() {
                        return part.blame(element, layout, scratch);
                    }
                }
            }
            Self::Read { checkpoint, entry, tensor } if !value[0].is_finite() => {
                let problem = format!("element {element} is {}; expected finite numbers", value[0]);
                return Ok(Error::tensor(checkpoint.files[entry.file].path(), tensor, problem)
                    .with_hint("`bam-convert validate` lists every tensor with NaN or infinities"));
            }
            Self::Permute { of, .. } if !value[0].is_finite() => {
                // The element sits elsewhere in the source, but it is the only tensor to name.
                if let Node::Read { checkpoint, entry, tensor } = &**of {
                    let problem = format!("holds {}; expected finite numbers", value[0]);
                    return Ok(Error::tensor(checkpoint.files[entry.file].path(), tensor, problem));
                }
            }
            _ => {}
        }
        let (name, dtype) = (&layout.name, layout.dtype);
        let problem =
            format!("tensor `{name}` of the output: element {element} is {}, which {dtype} cannot hold", value[0]);
        Ok(Error::usage(problem).with_hint("choose a dtype of wider range, such as bf16 or f32"))
    }
}

fn compile<'a>(expression: &'a Expression, layout: &TensorLayout, sources: &'a [Source]) -> Result<Node<'a>> {
    let fault = |problem: String| Error::usage(format!("the plan of tensor `{}`: {problem}", layout.name));
    let all = |of: &'a [Expression]| of.iter().map(|part| compile(part, layout, sources)).collect::<Result<Vec<_>>>();
    Ok(match expression {
        Expression::Copy { source: from, tensor } => {
            let checkpoint = &source(sources, from)?.checkpoint;
            let entry = checkpoint.tensor(tensor)?;
            if entry.shape != layout.shape {
                let problem = format!("has shape {:?}, but `{}` takes {:?}", entry.shape, layout.name, layout.shape);
                return Err(Error::tensor(checkpoint.files[entry.file].path(), tensor, problem));
            }
            Node::Read { checkpoint, entry, tensor }
        }
        Expression::Mean { of } => match of.len() {
            0 => return Err(fault("a mean of nothing".to_owned())),
            count => Node::Sum { parts: all(of)?, weights: None, divisor: count as f64 },
        },
        Expression::Weighted { of, weights } => {
            let divisor: f64 = weights.iter().sum();
            if of.len() != weights.len() || !divisor.is_finite() || divisor == 0.0 {
                return Err(fault(format!(
                    "expected one weight for each of {} parts and a sum that is not 0",
                    of.len()
                )));
            }
            Node::Sum { parts: all(of)?, weights: Some(weights), divisor }
        }
        Expression::Sum { of, weights } => match of.len() {
            count if count == weights.len() && count > 0 => {
                Node::Sum { parts: all(of)?, weights: Some(weights), divisor: 1.0 }
            }
            count => return Err(fault(format!("expected one weight for each of {count} parts"))),
        },
        Expression::Cast { of } | Expression::Dequantise { of } => compile(of, layout, sources)?,
        Expression::Permute { of, heads } => {
            let rows = layout.shape.first().copied().unwrap_or(0);
            if *heads == 0 || rows % heads != 0 || !(rows / heads).is_multiple_of(2) || rows == 0 {
                return Err(fault(format!("{rows} rows do not fall into {heads} heads of an even size")));
            }
            let row = layout.shape[1..].iter().product();
            Node::Permute { of: Box::new(compile(of, layout, sources)?), rows_per_head: rows / heads, row }
        }
        Expression::Normal { std, seed } => Node::Normal { draws: Draws::new(*seed, &layout.name), std: *std },
        Expression::Uniform { std, seed } => Node::Uniform { draws: Draws::new(*seed, &layout.name), std: *std },
        Expression::Orthogonal { gain, seed } => match layout.shape[..] {
            [rows, columns] if rows <= columns && rows * columns <= 1 << 26 => Node::Orthogonal {
                draws: Draws::new(*seed, &layout.name),
                gain: *gain,
                rows: rows as usize,
                columns: columns as usize,
            },
            _ => {
                return Err(fault(format!(
                    "orthogonal rows need a matrix with no more rows than columns, found {:?}",
                    layout.shape
                )));
            }
        },
        Expression::Trained { of } => return Err(fault(format!("training {of} cannot be computed again"))),
        Expression::Constant { value } => Node::Constant(*value),
        Expression::Identity => match layout.shape[..] {
            [rows, columns] if rows == columns && rows > 0 => Node::Identity { columns },
            _ => return Err(fault(format!("the identity is a square matrix, found {:?}", layout.shape))),
        },
    })
}
