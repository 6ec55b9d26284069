//! Why a plan cannot be computed: one variant per broken rule, and what to do next.

use std::borrow::Cow;
use std::path::PathBuf;

use crate::checkpoint::{Dtype, Encoding};
use crate::error::ErrorPlace;

/// A rule that a plan, or the sources that it reads, break.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// An expression that cannot be computed.
    #[error("the plan of tensor `{tensor}`: {rule}")]
    Expression {
        /// The tensor of the output.
        tensor: String,
        /// The rule that its expression breaks.
        rule: ExpressionRule,
    },
    /// An expression that reads a source which the plan does not have.
    #[error("an expression reads the source `{name}`; the sources are: {}", known.join(", "))]
    UnknownSource {
        /// The source.
        name: String,
        /// The sources of the plan.
        known: Vec<String>,
    },
    /// A tensor of a source with another shape than the output needs.
    #[error("{}: tensor `{tensor}`: has shape {found:?}, but `{reader}` takes {expected:?}", path.display())]
    SourceShape {
        /// The file that holds the tensor.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its shape.
        found: Box<[u64]>,
        /// The tensor of the output.
        reader: String,
        /// The shape that the output needs.
        expected: Box<[u64]>,
    },
    /// A tensor whose values cannot be written in another dtype.
    #[error("{}: tensor `{tensor}`: cannot be cast from {stored} to {wanted}", path.display())]
    Cast {
        /// The file that holds the tensor.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its dtype.
        stored: Dtype,
        /// The dtype of the output.
        wanted: Dtype,
    },
    /// A source tensor with NaN or an infinity.
    #[error("{}: tensor `{tensor}`: element {element} is {value}; expected finite numbers", path.display())]
    NotFiniteElement {
        /// The file that holds the tensor.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Number of the element.
        element: u64,
        /// Its value.
        value: f64,
    },
    /// A value of the output that is too large for its dtype.
    #[error(
        "tensor `{tensor}` of the output: element {element} is {value}, which {dtype} cannot hold"
    )]
    Overflow {
        /// The tensor of the output.
        tensor: String,
        /// Number of the element.
        element: u64,
        /// Its value.
        value: f64,
        /// The dtype of the tensor.
        dtype: Dtype,
    },
    /// A tensor of the output that nothing is planned for.
    #[error("the plan has nothing for `{tensor}`")]
    Nothing {
        /// The tensor of the output.
        tensor: String,
    },
    /// Router rows of a new expert that no initialiser makes.
    #[error("a new expert has no rows to start from")]
    NoNewRows,
    /// Parts of one tensor with several dtypes.
    #[error("`{part}` is {found}, others of `{tensor}` are {expected}: one tensor has one dtype")]
    MixedDtypes {
        /// The part.
        part: String,
        /// Its dtype.
        found: Dtype,
        /// The tensor of the output.
        tensor: String,
        /// The dtype of its first part.
        expected: Dtype,
    },
    /// A plan that JSON cannot hold.
    #[error("the plan cannot be written down: {error}")]
    NotJson {
        /// The answer of the JSON writer.
        error: serde_json::Error,
    },
}

/// A rule that an expression breaks.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExpressionRule {
    /// A mean without parts.
    #[error("a mean of nothing")]
    EmptyMean,
    /// Weights of an average that do not fit its parts.
    #[error("expected one weight for each of {parts} parts and a sum that is not 0")]
    MeanWeights {
        /// Number of parts.
        parts: usize,
    },
    /// Weights of a sum that do not fit its parts.
    #[error("expected one weight for each of {parts} parts of a sum")]
    SumWeights {
        /// Number of parts.
        parts: usize,
    },
    /// An interpolation of another number of tensors than two.
    #[error("an interpolation is between 2 tensors, found {parts}")]
    TwoParts {
        /// Number of tensors.
        parts: usize,
    },
    /// A point between fewer than a base and two models.
    #[error("expected a base and 2 models or more, found {parts} tensors")]
    FewModels {
        /// Number of tensors.
        parts: usize,
    },
    /// A part of a tensor's values that is below 0 or above 1.
    #[error("expected a density from 0 to 1, found {found}")]
    Density {
        /// The density.
        found: f64,
    },
    /// A factor that is NaN or infinite.
    #[error("expected a finite factor, found {found}")]
    Factor {
        /// The factor.
        found: f64,
    },
    /// Orthogonal rows in a shape that has none.
    #[error("orthogonal rows need a matrix with no more rows than columns, found {shape:?}")]
    OrthogonalShape {
        /// The shape.
        shape: Vec<u64>,
    },
    /// Weights that a training run made.
    #[error("training {of} cannot be computed again")]
    Trained {
        /// The expression that the training began with.
        of: String,
    },
    /// An identity in another shape.
    #[error("the identity is a square matrix, found {shape:?}")]
    IdentityShape {
        /// The shape.
        shape: Vec<u64>,
    },
    /// An expression of another shape than its place has.
    #[error("{expression} has shape {found:?}, expected {expected:?}")]
    Shape {
        /// The expression.
        expression: String,
        /// Its shape.
        found: Vec<u64>,
        /// The shape of its place.
        expected: Vec<u64>,
    },
    /// Values smaller than a byte.
    #[error("values of {bits} bits cannot be moved one by one")]
    PartsOfBytes {
        /// Bits of a value.
        bits: usize,
    },
    /// Stacked parts in another shape.
    #[error("{parts} stacked parts do not have shape {shape:?}")]
    StackedShape {
        /// Number of parts.
        parts: usize,
        /// The shape.
        shape: Vec<u64>,
    },
    /// Repeated rows in a shape that they do not fill.
    #[error("{expression} cannot have shape {shape:?}")]
    RepeatedShape {
        /// The expression.
        expression: String,
        /// The shape.
        shape: Vec<u64>,
    },
    /// Rows that cannot be reordered by heads.
    #[error("{rows} rows do not fall into {heads} heads of an even size")]
    UnevenHeads {
        /// Number of rows.
        rows: u64,
        /// Number of heads.
        heads: u64,
    },
    /// An expression that computes where one that moves is needed.
    #[error("{expression} moves nothing")]
    MovesNothing {
        /// The expression.
        expression: String,
    },
    /// A part that takes any shape where its own is needed.
    #[error("{expression} has no shape of its own, so it cannot be cut or joined")]
    NoShape {
        /// The expression.
        expression: String,
    },
    /// Repeated rows that cannot be counted.
    #[error("{expression} has too many rows")]
    ManyRows {
        /// The expression.
        expression: String,
    },
    /// An axis that a shape does not have.
    #[error("there is no axis {axis} in shape {shape:?}")]
    NoAxis {
        /// The axis.
        axis: u64,
        /// The shape.
        shape: Vec<u64>,
    },
    /// A range that is empty or passes the end of its axis.
    #[error("expected some of {extent} entries, found {length} from {start} on")]
    Range {
        /// Entries of the axis.
        extent: u64,
        /// First entry.
        start: u64,
        /// Number of entries.
        length: u64,
    },
    /// An axis that does not fall into equal blocks.
    #[error("{extent} entries do not fall into {blocks} equal blocks")]
    UnevenBlocks {
        /// Entries of the axis.
        extent: u64,
        /// The blocks.
        blocks: u64,
    },
    /// Scales that are no numbers to multiply by.
    #[error("the scales `{scale}` are {found}, expected floats")]
    NoScale {
        /// The tensor of scales.
        scale: String,
        /// How it is stored.
        found: Encoding,
    },
    /// Blocks of a size of which there are no scales.
    #[error("there is not one scale for each block of {}×{}", block[0], block[1])]
    Blocks {
        /// Rows and columns of a block.
        block: [u64; 2],
    },
    /// A concatenation without parts.
    #[error("a concatenation of nothing")]
    EmptyConcatenation,
    /// Parts whose other axes differ.
    #[error("{part:?} and {first:?} cannot be joined along axis {axis}")]
    NotJoined {
        /// The shape of a part.
        part: Vec<u64>,
        /// The shape of the first part.
        first: Vec<u64>,
        /// The axis.
        axis: u64,
    },
    /// A concatenation whose entries cannot be counted.
    #[error("a concatenation of too many entries")]
    ManyEntries,
    /// An axis too long to draw from.
    #[error("expected at most {most} entries of an axis to draw from, found {found}")]
    LongAxis {
        /// The most entries.
        most: u64,
        /// The entries.
        found: u64,
    },
    /// A standard deviation that is negative, NaN or infinite.
    #[error("expected a standard deviation of 0 or more, found {found}")]
    StandardDeviation {
        /// The standard deviation.
        found: f64,
    },
    /// A tensor whose last byte would be partly filled, or whose bytes cannot be counted.
    #[error("shape {shape:?} of {dtype} is not a whole number of bytes")]
    WholeBytes {
        /// The shape.
        shape: Vec<u64>,
        /// The dtype.
        dtype: Dtype,
    },
    /// A dtype that no values are computed in.
    #[error("values cannot be computed in {dtype}")]
    NotComputed {
        /// The dtype.
        dtype: Dtype,
    },
    /// A copy to another dtype.
    #[error("a copy keeps its dtype, expected {dtype}")]
    KeepsDtype {
        /// The dtype of the output.
        dtype: Dtype,
    },
}

impl PlanError {
    /// What to do next.
    pub fn hint(&self) -> Option<Cow<'_, str>> {
        Some(Cow::Borrowed(match self {
            Self::NotFiniteElement { .. } => {
                "`bam-convert validate` lists every tensor with NaN or infinities"
            }
            Self::Overflow { .. } => "choose a dtype of wider range, such as bf16 or f32",
            Self::MixedDtypes { .. } => "pass --dtype",
            _ => return None,
        }))
    }

    /// The file and the tensor of a source.
    pub fn place(&self) -> ErrorPlace<'_> {
        match self {
            Self::SourceShape { path, tensor, .. }
            | Self::Cast { path, tensor, .. }
            | Self::NotFiniteElement { path, tensor, .. } => {
                ErrorPlace::of(path).with_tensor(tensor)
            }
            _ => ErrorPlace::default(),
        }
    }
}
