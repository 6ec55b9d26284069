//! Biases that some families have and others lack.

use super::architecture::Architecture;
use super::format::{Family, Presence};

/// A kind of biases.
pub(super) struct OptionalBias<'a> {
    /// What they are, in the words of a message.
    pub(super) what: &'static str,
    /// When the family has them.
    pub(super) presence: &'a Presence,
    /// Whether the architecture has them.
    pub(super) there: bool,
    /// Whether configurations say that they are absent, too.
    pub(super) always_said: bool,
}

/// The optional biases of a family, and which of them the architecture has.
pub(super) fn biases<'a>(family: &'a Family, of: &Architecture) -> [OptionalBias<'a>; 5] {
    let present = &family.present;
    let bias = |what, presence, there, always_said| OptionalBias {
        what,
        presence,
        there,
        always_said,
    };
    [
        bias(
            "biases of q, k and v",
            &present.attention_bias,
            of.attention_bias,
            true,
        ),
        bias(
            "a bias of the output projection",
            &present.attention_output_bias,
            of.attention_output_bias,
            true,
        ),
        bias(
            "biases of the feed-forward network",
            &present.mlp_bias,
            of.mlp_bias,
            true,
        ),
        bias("biases of norms", &present.norm_bias, of.norm_bias, false),
        bias(
            "a bias of the head",
            &present.head_bias,
            of.head_bias,
            false,
        ),
    ]
}
