//! One layer: attention and feed-forward with their norms, one after the other or side by side.

use candle_core::Result;

use super::backend::{Computed, Operations};
use super::cache::LayerCache;
use super::modules::{Attention, FeedForward, Norm};
use super::pass::Pass;
use super::router::{LayerRouting, RouterLoss, RouterLosses};
use crate::family::Block as Layout;

/// A layer. Norms that its family lacks are absent.
#[derive(Debug, Clone)]
pub(super) struct Block {
    pub(super) layout: Layout,
    /// Factor on the outputs of attention and feed-forward network, before they are added to the residual stream.
    pub(super) residual_multiplier: Option<f64>,
    /// Factor on the output of experts, where the layer has some and it is not 1.
    pub(super) experts_multiplier: Option<f64>,
    pub(super) before_attention: Option<Norm>,
    pub(super) after_attention: Option<Norm>,
    pub(super) before_feed_forward: Option<Norm>,
    pub(super) after_feed_forward: Option<Norm>,
    pub(super) attention: Attention,
    pub(super) feed_forward: FeedForward,
}

/// The output of a layer.
pub(super) struct BlockOutput<B, R> {
    pub(super) x: B,
    pub(super) routing: LayerRouting,
    /// The losses of the feed-forward router, where they were asked for.
    pub(super) loss: Option<RouterLoss>,
    /// Absent in inference, and with a cache.
    pub(super) record: Option<BlockRecord<R>>,
}

/// The records of a layer's operations. An absent norm has no record.
pub(super) struct BlockRecord<R> {
    before_attention: Option<R>,
    attention: R,
    after_attention: Option<R>,
    before_feed_forward: Option<R>,
    feed_forward: R,
    after_feed_forward: Option<R>,
}

impl Block {
    /// `x` `[batch, seq, hidden]` with both sublayers added.
    pub(super) fn forward<O: Operations + ?Sized>(
        &self,
        operations: &O,
        x: &O::Buffer,
        pass: &Pass,
        cache: Option<&mut LayerCache>,
        losses: Option<&RouterLosses>,
    ) -> Result<BlockOutput<O::Buffer, O::Record>> {
        let norm = |norm: &Option<Norm>, x: &O::Buffer| match norm {
            Some(norm) => operations.norm(norm, x),
            None => Ok(Computed {
                output: x.clone(),
                record: None,
            }),
        };

        let h = norm(&self.before_attention, x)?;
        let attended = operations.attention(&self.attention, &h.output, pass, cache)?;
        let after_attention = norm(&self.after_attention, &attended.output)?;
        let input = x;
        let attended_part = self.multiplied(operations, &after_attention.output)?;
        let x = operations.add(input, &attended_part)?;

        let fed_input = match self.layout {
            Layout::Sequential => norm(&self.before_feed_forward, &x)?,
            Layout::ParallelTwoNorms => norm(&self.before_feed_forward, input)?,
            Layout::Parallel => Computed {
                output: h.output,
                record: None,
            },
        };
        let fed = operations.feed_forward(&self.feed_forward, &fed_input.output, pass, losses)?;
        let fed_output = operations.multiply(&fed.output, self.experts_multiplier)?;
        let after_feed_forward = norm(&self.after_feed_forward, &fed_output)?;
        let fed_part = self.multiplied(operations, &after_feed_forward.output)?;
        let x = operations.add(&x, &fed_part)?;

        let record = match (attended.record, fed.record) {
            (Some(attention), Some(feed_forward)) => Some(BlockRecord {
                before_attention: h.record,
                attention,
                after_attention: after_attention.record,
                before_feed_forward: fed_input.record,
                feed_forward,
                after_feed_forward: after_feed_forward.record,
            }),
            _ => None,
        };
        Ok(BlockOutput {
            x,
            routing: LayerRouting {
                feed_forward: fed.routing,
                attention: attended.routing,
            },
            loss: fed.loss,
            record,
        })
    }

    /// The gradient of the layer's input from the gradient of its output. Gradients of parameters are added to their buffers.
    ///
    /// If the input's gradient is not needed and the attention side is frozen, the backward pass ends before it. Each operation adds
    /// to the sum so far, so that the order of the sums is the order of this code.
    pub(super) fn backward<O: Operations + ?Sized>(
        &self,
        operations: &O,
        record: BlockRecord<O::Record>,
        grad_output: &O::Buffer,
        input_gradient: InputGradient,
        gradients: &mut O::Gradients,
    ) -> Result<Option<O::Buffer>> {
        let mut backward = |record: Option<O::Record>, grad_output: &O::Buffer, sum| match record {
            Some(record) => operations.backward(record, grad_output, sum, gradients),
            // No norm.
            None => Ok(grad_output.clone()),
        };

        let grad_fed_part = self.multiplied(operations, grad_output)?;
        let grad_fed = backward(record.after_feed_forward, &grad_fed_part, None)?;
        let grad_fed = operations.multiply(&grad_fed, self.experts_multiplier)?;
        let feed_forward = Some(record.feed_forward);
        let (grad_x, grad_h) = match (self.layout, record.before_feed_forward) {
            (Layout::Sequential | Layout::ParallelTwoNorms, Some(norm)) => {
                let grad_normed = backward(feed_forward, &grad_fed, None)?;
                let grad_x = backward(Some(norm), &grad_normed, Some(grad_output.clone()))?;
                (grad_x, None)
            }
            (Layout::Sequential | Layout::ParallelTwoNorms, None) => {
                let grad_x = backward(feed_forward, &grad_fed, Some(grad_output.clone()))?;
                (grad_x, None)
            }
            (Layout::Parallel, _) => {
                let grad_h = backward(feed_forward, &grad_fed, None)?;
                (grad_output.clone(), Some(grad_h))
            }
        };
        // Side by side, attention's output goes straight to the layer's.
        let grad_attended = match self.layout {
            Layout::Sequential => &grad_x,
            Layout::Parallel | Layout::ParallelTwoNorms => grad_output,
        };

        if input_gradient == InputGradient::NotNeeded && !self.trains_attention() {
            return Ok(None);
        }
        let grad_attended_part = self.multiplied(operations, grad_attended)?;
        let grad_attended = backward(record.after_attention, &grad_attended_part, None)?;
        let attention = Some(record.attention);
        let grad_x = match record.before_attention {
            Some(norm) => {
                let grad_h = backward(attention, &grad_attended, grad_h)?;
                backward(Some(norm), &grad_h, Some(grad_x))?
            }
            None => {
                let sum = match grad_h {
                    Some(grad_h) => operations.add(&grad_h, &grad_x)?,
                    None => grad_x,
                };
                backward(attention, &grad_attended, Some(sum))?
            }
        };
        Ok(Some(grad_x))
    }

    /// The output of a sublayer, or the gradient of what is added to the residual stream, times the factor on it.
    fn multiplied<O: Operations + ?Sized>(
        &self,
        operations: &O,
        x: &O::Buffer,
    ) -> Result<O::Buffer> {
        operations.multiply(x, self.residual_multiplier)
    }

    /// Whether attention or one of its norms is trained.
    fn trains_attention(&self) -> bool {
        let norms = [&self.before_attention, &self.after_attention];
        let mut norms = norms.into_iter().flatten();
        self.attention.is_trained() || norms.any(Norm::is_trained)
    }
}

/// Whether the backward pass continues in the layer before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InputGradient {
    /// It does.
    Needed,
    /// Nothing before this layer is trained.
    NotNeeded,
}
