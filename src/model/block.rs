//! One layer: attention and feed-forward with their norms, one after the other or side by side.

use candle_core::{Result, Tensor};

use super::attention::Attention;
use super::cache::LayerCache;
use super::feed_forward::FeedForward;
use super::norm::Norm;
use super::pass::Pass;
use super::rope::Rope;
use super::router::LayerRouting;
use crate::family::Block as Layout;

/// A layer. Norms that its family has not are absent.
#[derive(Debug, Clone)]
pub(super) struct Block {
    pub(super) layout: Layout,
    pub(super) before_attention: Option<Norm>,
    pub(super) after_attention: Option<Norm>,
    pub(super) before_feed_forward: Option<Norm>,
    pub(super) after_feed_forward: Option<Norm>,
    pub(super) attention: Attention,
    pub(super) feed_forward: FeedForward,
}

impl Block {
    /// `x` `[batch, seq, hidden]` with both sublayers added.
    pub(super) fn forward(
        &self,
        x: &Tensor,
        rope: &Rope,
        pass: &Pass,
        cache: Option<&mut LayerCache>,
    ) -> Result<(Tensor, LayerRouting)> {
        let h = apply(&self.before_attention, x)?;
        let (attended, attention) = self.attention.forward(&h, rope, pass, cache)?;
        let attended = apply(&self.after_attention, &attended)?;
        let (out, feed_forward) = match self.layout {
            Layout::Sequential => {
                let x = (x + attended)?;
                let (fed, routing) = self
                    .feed_forward
                    .forward(&apply(&self.before_feed_forward, &x)?, pass)?;
                ((x + apply(&self.after_feed_forward, &fed)?)?, routing)
            }
            Layout::Parallel => {
                let (fed, routing) = self.feed_forward.forward(&h, pass)?;
                (
                    ((x + attended)? + apply(&self.after_feed_forward, &fed)?)?,
                    routing,
                )
            }
        };
        Ok((
            out,
            LayerRouting {
                feed_forward,
                attention,
            },
        ))
    }
}

fn apply(norm: &Option<Norm>, x: &Tensor) -> Result<Tensor> {
    norm.as_ref()
        .map_or_else(|| Ok(x.clone()), |norm| norm.forward(x))
}
