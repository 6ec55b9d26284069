//! How good a model is, as the Hub's `model-index`.

use serde_json::{Value, json};

use super::front_matter::FrontMatter;

/// The key of the front matter.
pub(super) const MODEL_INDEX: &str = "model-index";

/// The metric of held-back text that most people know.
pub const PERPLEXITY: &str = "perplexity";
/// The same, comparable between tokenizers.
pub const BITS_PER_BYTE: &str = "bits_per_byte";
/// Share of right answers.
pub const ACCURACY: &str = "accuracy";

/// The scores of a model on one domain or task.
#[derive(Clone, Debug, PartialEq)]
pub struct DataScore {
    /// Name of the domain or task.
    pub data: String,
    /// Each metric with its value.
    pub metrics: Vec<(&'static str, f64)>,
}

impl DataScore {
    /// The value of a metric, for a table; empty where it was not measured.
    pub(super) fn shown(&self, metric: &str) -> String {
        let found = self.metrics.iter().find(|(name, _)| *name == metric);
        found.map_or_else(String::new, |(_, value)| format!("{value:.3}"))
    }
}

/// Adds scores to a front matter, under the name of their model. No scores add nothing.
pub(super) fn put_results(name: &str, scores: &[DataScore], front: &mut FrontMatter) {
    let result = |score: &DataScore| {
        // JSON and YAML of the Hub have no infinity.
        let finite = score.metrics.iter().filter(|(_, value)| value.is_finite());
        let metrics: Vec<Value> = finite
            .map(|(metric, value)| json!({"type": metric, "name": metric, "value": value}))
            .collect();
        json!({
            "task": {"type": "text-generation"},
            "dataset": {"type": score.data, "name": score.data},
            "metrics": metrics,
        })
    };
    let results: Vec<Value> = scores.iter().map(result).collect();
    if !results.is_empty() {
        front.value(MODEL_INDEX, json!([{"name": name, "results": results}]));
    }
}
