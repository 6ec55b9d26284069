//! The interface of a backend: the operations of layers, forward and backward.

use std::fmt::Debug;

use candle_core::{Result, Tensor};

use super::gradients::Gradients;
use crate::model::cache::LayerCache;
use crate::model::modules::{Attention, FeedForward, Head, Matrix, Norm};
use crate::model::pass::Pass;
use crate::model::router::{RouterLoss, RouterLosses, Routing};

/// The operations of layers, forward and backward.
pub(in crate::model) trait Operations: Debug + Send + Sync {
    /// The numbers of one tensor, wherever they are. Layer code knows their shapes.
    type Buffer: Clone;
    /// What the backward pass of one operation needs.
    type Record;
    /// Buffers that the gradients of parameters are added to.
    type Gradients;

    /// The rows of `table` for token ids `[batch, seq]`, as `[batch, seq, hidden]`.
    fn embed(&self, table: &Matrix, ids: &Tensor) -> Result<Self::Buffer>;

    /// Adds the gradient of `table` to its buffer, from the gradient of the output of [`embed`](Self::embed).
    fn embed_backward(
        &self,
        table: &Matrix,
        ids: &Tensor,
        grad_output: &Self::Buffer,
        gradients: &mut Self::Gradients,
    ) -> Result<()>;

    /// Normalises `x` `[.., size]` (`[.., heads, size]`).
    fn norm(&self, norm: &Norm, x: &Self::Buffer) -> Result<Computed<Self::Buffer, Self::Record>>;

    /// The attention sublayer of `h` `[batch, seq, hidden]`, with its router.
    ///
    /// `cache` holds the keys and values of earlier positions; there is no backward pass with it.
    fn attention(
        &self,
        attention: &Attention,
        h: &Self::Buffer,
        pass: &Pass,
        cache: Option<&mut LayerCache>,
    ) -> Result<Routed<Self::Buffer, Self::Record>>;

    /// The feed-forward sublayer of `h` `[batch, seq, hidden]`, with its router and, where asked for, the router's losses.
    fn feed_forward(
        &self,
        feed_forward: &FeedForward,
        h: &Self::Buffer,
        pass: &Pass,
        losses: Option<&RouterLosses>,
    ) -> Result<Routed<Self::Buffer, Self::Record>>;

    /// `a + b`, of the same shape.
    fn add(&self, a: &Self::Buffer, b: &Self::Buffer) -> Result<Self::Buffer>;

    /// `x` times a factor, where there is one.
    fn multiply(&self, x: &Self::Buffer, factor: Option<f64>) -> Result<Self::Buffer>;

    /// Logits `[.., vocab]` of `x` `[.., hidden]`, in float32 at least.
    fn logits(&self, head: &Head, x: &Self::Buffer) -> Result<Self::Buffer>;

    /// The losses in nats of the next tokens `targets`, and the gradient of `x` `[tokens, hidden]` of their weighted sum.
    ///
    /// The gradient of the head is added to its buffer. Logits exist for some tokens at a time.
    fn loss(
        &self,
        head: &Head,
        x: &Self::Buffer,
        targets: &[u32],
        weights: &[f32],
        gradients: &mut Self::Gradients,
    ) -> Result<TokenLosses<Self::Buffer>>;

    /// The losses of [`loss`](Self::loss) alone.
    fn likelihoods(&self, head: &Head, x: &Self::Buffer, targets: &[u32]) -> Result<Self::Buffer>;

    /// The backward pass of one operation: adds the gradient of its input to `grad_input`, and the gradients of its
    /// parameters to their buffers.
    ///
    /// An input of several operations, as of a residual connection, is given the sum so far. Without one, the gradient of
    /// this operation is all.
    fn backward(
        &self,
        record: Self::Record,
        grad_output: &Self::Buffer,
        grad_input: Option<Self::Buffer>,
        gradients: &mut Self::Gradients,
    ) -> Result<Self::Buffer>;
}

/// The output of an operation.
pub(in crate::model) struct Computed<B, R> {
    pub(in crate::model) output: B,
    /// Absent in inference.
    pub(in crate::model) record: Option<R>,
}

/// The output of a sublayer, and how its tokens were routed.
pub(in crate::model) struct Routed<B, R> {
    pub(in crate::model) output: B,
    /// Absent in inference, and with a cache.
    pub(in crate::model) record: Option<R>,
    /// Absent without experts.
    pub(in crate::model) routing: Option<Routing>,
    /// Where it was asked for and there is a router.
    pub(in crate::model) loss: Option<RouterLoss>,
}

/// The losses of next tokens `[tokens]`, and the gradient of the hidden states before the head.
pub(in crate::model) struct TokenLosses<B> {
    pub(in crate::model) nll: B,
    pub(in crate::model) grad_x: B,
}

/// The record of an operation on candle tensors: how its backward pass runs.
pub(in crate::model) trait OperationRecord: Send + Sync {
    /// [`Operations::backward`].
    fn backward(
        self: Box<Self>,
        grad_output: &Tensor,
        grad_input: Option<Tensor>,
        gradients: &mut Gradients,
    ) -> Result<Tensor>;
}

/// Backends whose buffers are candle tensors: the two of today.
pub(in crate::model) type TensorOperations =
    dyn Operations<Buffer = Tensor, Record = Box<dyn OperationRecord>, Gradients = Gradients>;
