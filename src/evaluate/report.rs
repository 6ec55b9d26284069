//! Several checkpoints side by side, in tables like Tables 1 to 3 of the BAM paper.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::error::EvaluateError;
use super::perplexity::Score;
use super::routing::RouterReport;
use super::tasks::TaskScore;
use crate::Result;
use crate::checkpoint::json;
use crate::markdown;
use crate::printable::printable;
use crate::table::{self, Align};

/// Everything that was measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvaluationReport {
    /// Tokens of a window.
    pub context: usize,
    /// One for each checkpoint, in order.
    pub models: Vec<ModelReport>,
}

/// What was measured of one checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelReport {
    /// Its name in tables.
    pub name: String,
    /// Its folder.
    pub path: String,
    /// SHA-256 of its manifest, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest: Option<String>,
    /// Experts that were left out, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub without: Vec<String>,
    /// Feed-forward experts a token went to, where it is not the checkpoint's number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_k: Option<usize>,
    /// The same of attention experts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attention_top_k: Option<usize>,
    /// Names of its experts; none if dense.
    pub experts: Vec<String>,
    /// Scores by domain.
    pub domains: Vec<Score>,
    /// Their averages; none without domains.
    pub average: Option<Average>,
    /// Scores by task.
    pub tasks: Vec<TaskScore>,
    /// Mean accuracy over tasks; none without tasks.
    pub task_average: Option<f64>,
    /// What routers did, by domain; empty unless asked for, and for dense models.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routing: Vec<DomainRouting>,
}

/// Means over domains, as in the paper's Table 1.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Average {
    /// Mean of the domains' perplexities.
    pub perplexity: f64,
    /// Mean of the domains' bits per byte.
    pub bits_per_byte: f64,
}

/// What the routers of one model did with one domain.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DomainRouting {
    /// The domain.
    pub domain: String,
    /// Each router.
    pub routers: Vec<RouterReport>,
}

impl Average {
    /// Of these; none of no domain.
    pub fn of(scores: &[Score]) -> Option<Self> {
        let mean =
            |value: fn(&Score) -> f64| scores.iter().map(value).sum::<f64>() / scores.len() as f64;
        let average = || Self {
            perplexity: mean(|score| score.perplexity),
            bits_per_byte: mean(|s| s.bits_per_byte),
        };
        (!scores.is_empty()).then(average)
    }
}

/// Scores side by side.
pub(super) struct Scores<'a> {
    pub(super) title: String,
    /// Names of the columns between the model's name and the average.
    names: Vec<&'a str>,
    pub(super) rows: Vec<Vec<String>>,
}

impl Scores<'_> {
    pub(super) fn columns(&self) -> Vec<(&str, Align)> {
        let columns = std::iter::once(("model", Align::Left));
        columns
            .chain(self.names.iter().map(|name| (*name, Align::Right)))
            .chain([("average", Align::Right)])
            .collect()
    }
}

impl EvaluationReport {
    /// Reads a result of `eval --json`.
    pub fn read(path: &Path) -> Result<Self> {
        let object = json::read_object(path)?;
        let report = serde_json::from_value(Value::Object(object)).map_err(|e| {
            EvaluateError::NotAResult {
                path: path.to_path_buf(),
                problem: e.to_string(),
            }
        })?;
        Ok(report)
    }

    /// What was measured of the model called `name` whose manifest has this hash; nothing where only others were measured.
    ///
    /// Names count where the report or the model has no manifest.
    pub fn of_model(&self, name: &str, manifest: Option<&str>) -> Option<&ModelReport> {
        let is_named = |model: &&ModelReport| {
            let folder = Path::new(&model.path).file_name();
            model.name == name || folder.is_some_and(|folder| *folder.to_string_lossy() == *name)
        };
        let is_same = |model: &&ModelReport| match (&model.manifest, manifest) {
            (Some(measured), Some(manifest)) => measured == manifest,
            _ => is_named(model),
        };
        let mut all = self.models.iter().filter(is_same);
        // One whose routing was changed only where there is no other.
        let first = all.clone().find(|model| model.label() == model.name);
        first.or_else(|| all.next())
    }

    /// As text: perplexity, bits per byte, tasks, routing; whatever was measured.
    pub fn table(&self) -> String {
        let scores = self.scores();
        let scores = scores.iter().map(|part| {
            format!(
                "{}\n{}",
                part.title,
                table::render(&part.columns(), part.rows.clone())
            )
        });
        let routing = self
            .models
            .iter()
            .filter(|model| !model.routing.is_empty())
            .map(ModelReport::routing_table);
        scores.chain(routing).collect::<Vec<_>>().join("\n")
    }

    /// Perplexity, bits per byte and tasks as tables of Markdown; whatever was measured.
    pub fn markdown(&self) -> String {
        let parts = self.scores();
        let parts = parts.iter().map(|part| {
            let cells = |row: &Vec<String>| row.iter().map(|cell| markdown::text(cell)).collect();
            let rows: Vec<Vec<String>> = part.rows.iter().map(cells).collect();
            format!(
                "{}:\n\n{}",
                part.title,
                markdown::table(&part.columns(), &rows)
            )
        });
        parts.collect::<Vec<_>>().join("\n")
    }

    /// Perplexity, bits per byte and tasks; whatever was measured.
    pub(super) fn scores(&self) -> Vec<Scores<'_>> {
        let mut parts = Vec::new();
        if self.models.iter().any(|model| !model.domains.is_empty()) {
            let title = format!(
                "perplexity (windows of {} tokens; lower is better)",
                self.context
            );
            parts.push(self.domains(
                title,
                |score| score.perplexity,
                |average| average.perplexity,
            ));
            let title = "bits per byte (lower is better)".to_owned();
            parts.push(self.domains(
                title,
                |score| score.bits_per_byte,
                |average| average.bits_per_byte,
            ));
        }
        if self.models.iter().any(|model| !model.tasks.is_empty()) {
            parts.push(self.tasks());
        }
        parts
    }

    fn domains(
        &self,
        title: String,
        value: fn(&Score) -> f64,
        average: fn(&Average) -> f64,
    ) -> Scores<'_> {
        let names = self
            .models
            .first()
            .map(|model| model.domains.iter().map(|score| score.domain.as_str()));
        let rows = self.models.iter().map(|model| {
            let values = model
                .domains
                .iter()
                .map(value)
                .chain(model.average.as_ref().map(average));
            std::iter::once(model.label())
                .chain(values.map(number))
                .collect()
        });
        Scores {
            title,
            names: names.into_iter().flatten().collect(),
            rows: rows.collect(),
        }
    }

    fn tasks(&self) -> Scores<'_> {
        let names = self
            .models
            .first()
            .map(|model| model.tasks.iter().map(|score| score.task.as_str()));
        let rows = self.models.iter().map(|model| {
            let values = model
                .tasks
                .iter()
                .map(|score| score.accuracy)
                .chain(model.task_average);
            std::iter::once(model.label())
                .chain(values.map(|share| format!("{:.2}", 100.0 * share)))
                .collect()
        });
        let title = "accuracy in % (higher is better)".to_owned();
        Scores {
            title,
            names: names.into_iter().flatten().collect(),
            rows: rows.collect(),
        }
    }
}

/// With three decimals, as long as they mean something; an untrained model's perplexity has no bound.
fn number(value: f64) -> String {
    match value {
        ..100.0 => format!("{value:.3}"),
        ..100_000.0 => format!("{value:.1}"),
        _ => table::number(value),
    }
}

impl ModelReport {
    /// Its name, and how its routing was changed: “bam without law”.
    pub fn label(&self) -> String {
        let mut label = self.name.clone();
        if !self.without.is_empty() {
            label += &format!(" without {}", self.without.join(", "));
        }
        for (what, k) in [
            ("top-k", self.top_k),
            ("attention top-k", self.attention_top_k),
        ] {
            if let Some(k) = k {
                label += &format!(", {what} {k}");
            }
        }
        label
    }

    /// The name of an expert, counted from 0.
    pub(crate) fn expert_name(&self, expert: usize) -> String {
        let name = self.experts.get(expert).cloned();
        name.unwrap_or_else(|| format!("expert {expert}"))
    }

    fn routing_table(&self) -> String {
        let names: Vec<&str> = self.experts.iter().map(String::as_str).collect();
        let heads: Vec<String> = ["load", "gate"]
            .iter()
            .flat_map(|what| names.iter().map(move |name| format!("{what} {name}")))
            .collect();
        let mut columns = vec![
            ("domain", Align::Left),
            ("layer", Align::Right),
            ("router", Align::Left),
        ];
        columns.extend(heads.iter().map(|head| (head.as_str(), Align::Right)));
        columns.extend([
            ("load entropy", Align::Right),
            ("token entropy", Align::Right),
            ("dead", Align::Left),
        ]);
        let rows = self.routing.iter().flat_map(|domain| {
            domain.routers.iter().map(|router| {
                // Attention may have fewer experts.
                let cells = |values: &[f64], unit: fn(f64) -> String| {
                    (0..names.len())
                        .map(|e| values.get(e).map_or("-".to_owned(), |v| unit(*v)))
                        .collect::<Vec<_>>()
                };
                let dead: Vec<&str> = router
                    .dead
                    .iter()
                    .filter_map(|expert| names.get(*expert).copied())
                    .collect();
                let mut row = vec![
                    domain.domain.clone(),
                    router.layer.to_string(),
                    router.router.name().to_owned(),
                ];
                row.extend(cells(&router.load, |share| {
                    format!("{:.1} %", 100.0 * share)
                }));
                row.extend(cells(&router.mean_gate, |gate| format!("{gate:.3}")));
                row.push(format!("{:.3}", router.load_entropy));
                row.push(format!("{:.3}", router.token_entropy));
                row.push(if dead.is_empty() {
                    "none".to_owned()
                } else {
                    dead.join(", ")
                });
                row
            })
        });
        format!(
            "routing of {}\n{}",
            printable(&self.label()),
            table::render(&columns, rows)
        )
    }
}
