//! How a model was trained, for its card.

use super::front_matter::FrontMatter;
use super::scores::{BITS_PER_BYTE, DataScore, PERPLEXITY, put_results};
use crate::markdown;
use crate::table::{Align, counted, grouped, number};

/// How a model was trained.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainingSummary {
    /// Steps taken.
    pub steps: u64,
    /// Tokens predicted.
    pub tokens: u64,
    /// The domains.
    pub data: Vec<TrainedOn>,
    /// Peak of the learning rate.
    pub learning_rate: f64,
    /// Its peak for routers.
    pub router_learning_rate: f64,
    /// Losses of the last step.
    pub last: Option<LastLosses>,
    /// Scores on held-back text.
    pub held_back: Vec<DataScore>,
    /// The step after which held-back text was scored.
    pub held_back_step: u64,
}

/// A domain of the training data.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainedOn {
    /// Its name.
    pub name: String,
    /// Its weight in the mixture of domains.
    pub weight: f64,
}

/// Losses of one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LastLosses {
    /// Everything that is minimised.
    pub loss: f64,
    /// Mean negative log-likelihood of a token, in nats.
    pub nll: f64,
}

impl TrainingSummary {
    /// The section of the card.
    pub(super) fn section(&self) -> String {
        let weighted = self.data.iter().any(|data| data.weight != 1.0);
        let data = self.data.iter().map(|data| {
            let name = markdown::text(&data.name);
            if weighted {
                format!("{name} (weight {})", data.weight)
            } else {
                name
            }
        });
        let data: Vec<String> = data.collect();
        let routers = if self.router_learning_rate == self.learning_rate {
            String::new()
        } else {
            format!(" ({} for routers)", self.router_learning_rate)
        };
        let mut text = format!(
            "## Training\n\nTrained for {} on {} tokens of {}. The peak learning rate was {}{routers}.\n",
            counted(self.steps, "step"),
            grouped(self.tokens),
            data.join(", "),
            self.learning_rate
        );
        if let Some(last) = self.last {
            text.push_str(&format!(
                "The last step had a loss of {}, and a negative log-likelihood of {} nats per token.\n",
                number(last.loss),
                number(last.nll)
            ));
        }
        if !self.held_back.is_empty() {
            let columns = [
                ("domain", Align::Left),
                ("perplexity", Align::Right),
                ("bits per byte", Align::Right),
            ];
            let row = |score: &DataScore| {
                let metrics = [PERPLEXITY, BITS_PER_BYTE].map(|metric| score.shown(metric));
                std::iter::once(markdown::text(&score.data))
                    .chain(metrics)
                    .collect()
            };
            let rows: Vec<Vec<String>> = self.held_back.iter().map(row).collect();
            text.push_str(&format!(
                "Held-back text after step {}:\n\n{}",
                self.held_back_step,
                markdown::table(&columns, &rows)
            ));
        }
        text
    }

    /// Adds the scores to the front matter, where they are scores of this very checkpoint.
    pub(super) fn put_results(&self, name: &str, front: &mut FrontMatter) {
        if self.held_back_step != self.steps {
            return;
        }
        put_results(name, &self.held_back, front);
    }
}
