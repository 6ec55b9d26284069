//! How many experts a token goes to, and what becomes of their gates: the one place that decides the defaults.
//!
//! The paper weights the chosen expert by its raw gate, which is about 1/E while routers are fresh. Each feed-forward
//! layer then adds a fraction of what it learned, and the mixture predicts nothing before it is trained. So a new mixture
//! takes two experts a token and divides their gates by their sum; `--preset paper` gives the paper's own routing.

use clap::ValueEnum;

use super::mixture::TopK;

/// Experts a token of a BAM, of a BTX and of other families' mixtures, where nothing says so. It is the least number whose
/// gates can be divided by their sum and still train a router.
pub const USUAL_TOP_K: u64 = 2;

/// A named set of routing settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RoutingPreset {
    /// As the BAM paper has it: one feed-forward expert a token with its raw gate, and soft attention routing.
    Paper,
}

/// The routing that was asked for; a field that is `None` takes the preset's value, else the default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RoutingRequest {
    /// What the other fields default to.
    pub preset: Option<RoutingPreset>,
    /// Routing of the feed-forward experts.
    pub top_k: Option<TopK>,
    /// Routing of the attention experts.
    pub attention_top_k: Option<TopK>,
    /// Whether the gates of the chosen feed-forward experts are divided by their sum.
    pub norm_topk_prob: Option<bool>,
}

/// The routing of a new mixture, every default resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoutingChoice {
    /// Routing of the feed-forward experts.
    pub top_k: TopK,
    /// Routing of the attention experts.
    pub attention_top_k: TopK,
    /// Whether the gates of the chosen feed-forward experts are divided by their sum.
    pub norm_topk_prob: bool,
}

impl RoutingRequest {
    /// Whether something was asked for that sets the number of feed-forward experts a token.
    pub fn sets_top_k(&self) -> bool {
        self.preset.is_some() || self.top_k.is_some()
    }

    /// The routing of a mixture of `experts` feed-forward experts. `usual` is the number of experts that a token goes to
    /// where nothing says so; it is cut to the number of experts.
    pub fn resolve(&self, usual: u64, experts: u64) -> RoutingChoice {
        let is_paper = self.preset == Some(RoutingPreset::Paper);
        let usual = if is_paper { 1 } else { usual.min(experts) };
        let top_k = self.top_k.unwrap_or(TopK::Of(usual));
        RoutingChoice {
            top_k,
            attention_top_k: self.attention_top_k.unwrap_or(TopK::Soft),
            // One gate divided by itself is 1, and its router then has no gradient.
            norm_topk_prob: self
                .norm_topk_prob
                .unwrap_or(!is_paper && top_k.of(experts) > 1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paper() -> RoutingRequest {
        RoutingRequest {
            preset: Some(RoutingPreset::Paper),
            ..RoutingRequest::default()
        }
    }

    #[test]
    fn gates_sum_to_one_unless_a_token_has_one_expert() {
        let default = |usual, experts| {
            let choice = RoutingRequest::default().resolve(usual, experts);
            (choice.top_k, choice.norm_topk_prob)
        };
        assert_eq!(default(2, 4), (TopK::Of(2), true));
        assert_eq!(default(2, 2), (TopK::Of(2), true));
        assert_eq!(default(2, 1), (TopK::Of(1), false));
        assert_eq!(default(1, 4), (TopK::Of(1), false));
        assert_eq!(default(8, 32), (TopK::Of(8), true));
    }

    #[test]
    fn a_flag_wins_over_the_preset() {
        let raw = RoutingChoice {
            top_k: TopK::Of(1),
            attention_top_k: TopK::Soft,
            norm_topk_prob: false,
        };
        assert_eq!(paper().resolve(2, 4), raw);
        let two = RoutingRequest {
            top_k: Some(TopK::Of(2)),
            ..paper()
        };
        let top_k = TopK::Of(2);
        assert_eq!(two.resolve(2, 4), RoutingChoice { top_k, ..raw });
        let even = RoutingRequest {
            norm_topk_prob: Some(true),
            ..two
        };
        assert!(even.resolve(2, 4).norm_topk_prob);
    }
}
