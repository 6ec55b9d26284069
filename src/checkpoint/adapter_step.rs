//! What LoRA adapters do to a tensor, as plans and manifests say it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What one adapter does to a tensor `w` with rows `i` and columns `j`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "step", rename_all = "snake_case", deny_unknown_fields)]
pub enum AdapterStep {
    /// `w + scale·(b·a)`, the sum over the rank in order. With a magnitude (DoRA), each row is then divided by its norm and
    /// multiplied by its magnitude.
    LowRank {
        /// Name of the adapter among the sources.
        source: String,
        /// The matrix `[rank, columns]`; of an embedding `[rank, rows]`.
        a: String,
        /// The matrix `[rows, rank]`; of an embedding `[columns, rank]`.
        b: String,
        /// The factor.
        scale: f64,
        /// The magnitudes of the rows.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        magnitude: Option<String>,
        /// Whether the tensor is an embedding, to which the transposed product is added.
        #[serde(default, skip_serializing_if = "is_false")]
        embedding: bool,
    },
    /// `w + scale·tensor`.
    Added {
        /// Name of the adapter among the sources.
        source: String,
        /// What is added.
        tensor: String,
        /// The factor.
        scale: f64,
    },
    /// The adapter's tensor in place of `w`.
    Replaced {
        /// Name of the adapter among the sources.
        source: String,
        /// The tensor.
        tensor: String,
    },
}

impl AdapterStep {
    /// The adapter.
    pub fn source(&self) -> &str {
        match self {
            Self::LowRank { source, .. }
            | Self::Added { source, .. }
            | Self::Replaced { source, .. } => source,
        }
    }

    /// The same of an adapter that `of` has this name of.
    pub(crate) fn of(mut self, of: &str) -> Self {
        match &mut self {
            Self::LowRank { source, .. }
            | Self::Added { source, .. }
            | Self::Replaced { source, .. } => source.insert_str(0, of),
        }
        self
    }

    /// Calls `visit` with the name of each tensor of the adapter that it reads.
    pub(super) fn for_each_tensor<'a>(&'a self, visit: &mut impl FnMut(&'a str)) {
        match self {
            Self::LowRank {
                a, b, magnitude, ..
            } => {
                visit(a);
                visit(b);
                magnitude.iter().for_each(|tensor| visit(tensor));
            }
            Self::Added { tensor, .. } | Self::Replaced { tensor, .. } => visit(tensor),
        }
    }
}

fn is_false(value: &bool) -> bool {
    !value
}
