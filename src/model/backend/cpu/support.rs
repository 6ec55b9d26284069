//! Which sublayers have kernels for training.

use crate::family::Activation;
use crate::model::modules::{Attention, Mlp};

/// Why attention has no kernels for training; `None` where it has.
pub(in crate::model::backend) fn unsupported_attention(
    attention: &Attention,
) -> Option<&'static str> {
    if attention.has_adapters() {
        Some("experts have adapters")
    } else if attention.clip.is_some() {
        Some("queries, keys and values are clipped")
    } else if attention.norm_after_rotation {
        Some("queries and keys are normalised after their rotation")
    } else {
        None
    }
}

/// Why a feed-forward network has no kernels for training; `None` where it has.
pub(in crate::model::backend) fn unsupported_mlp(mlp: &Mlp) -> Option<&'static str> {
    if mlp.gate.is_none() {
        Some("networks have no gate")
    } else if mlp.activation != Activation::Silu {
        Some("the activation is not SiLU")
    } else if mlp.adapter.is_some() {
        Some("experts have adapters")
    } else {
        None
    }
}
