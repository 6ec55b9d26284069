//! How good a model is, as the Hub's `model-index`.

use serde_json::{Map, Value, json};

use super::front_matter::{self, FrontMatter};

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
    let results: Vec<Value> = scores.iter().map(result).collect();
    if !results.is_empty() {
        front.value(MODEL_INDEX, json!([{"name": name, "results": results}]));
    }
}

/// As [`put_results`], beside the results on other data that the card `known` has; takes its key out of the card's `lines`.
/// `is_ours` if no person has written the card, and so the name under which earlier results are.
pub(super) fn replace_results(
    name: &str,
    scores: &[DataScore],
    (known, is_ours): (&Map<String, Value>, bool),
    lines: &mut Vec<&str>,
    front: &mut FrontMatter,
) {
    if scores.is_empty() {
        return;
    }
    let mut models = match known.get(MODEL_INDEX) {
        Some(Value::Array(models)) => models.clone(),
        _ => Vec::new(),
    };
    if models.is_empty() {
        models.push(json!({"name": name, "results": []}));
    }
    let mut results: Vec<Value> = scores.iter().map(result).collect();
    let measured: Vec<Value> = results.iter().map(|one| one["dataset"].clone()).collect();
    let earlier = models[0].get("results").and_then(Value::as_array);
    let others = earlier.into_iter().flatten();
    let others = others.filter(|one| !one.get("dataset").is_some_and(|of| measured.contains(of)));
    results.extend(others.cloned());
    if let Some(model) = models[0].as_object_mut() {
        model.insert("results".to_owned(), results.into());
        if is_ours {
            model.insert("name".to_owned(), name.into());
        }
    }
    front_matter::remove(lines, MODEL_INDEX);
    front.value(MODEL_INDEX, models.into());
}

fn result(score: &DataScore) -> Value {
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
}
