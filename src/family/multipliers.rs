//! Factors and soft caps on a model's values, where it has some.

use serde::Serialize;
use serde_json::Value;

use super::config::{Config, Found};
use super::format::Family;
use super::keys::Field;
use crate::Result;

/// The text in a format file that means the root of the hidden size.
const SQRT_HIDDEN_SIZE: &str = "sqrt_hidden_size";

/// What a model with a factor on queries does.
const SCALES_QUERIES: &str = "scale queries by their position";

/// Relative difference below which a factor is the usual one.
const SAME: f64 = 1e-12;

/// Factors and soft caps. One that changes nothing is `None`, however the configuration says so.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Multipliers {
    /// Factor on the input embeddings; the head has none, also where it is tied.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub embedding_multiplier: Option<f64>,
    /// Factor on the output of each sublayer, before it is added to the residual stream.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub residual_multiplier: Option<f64>,
    /// Factor on attention scores, where it is not one divided by the root of the width of a head.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attention_multiplier: Option<f64>,
    /// Divisor of logits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logits_divisor: Option<f64>,
    /// Bound `c` of attention scores: `c · tanh(score / c)`, before the mask.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attn_logit_softcapping: Option<f64>,
    /// Bound of logits, alike.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub final_logit_softcapping: Option<f64>,
    /// Weight `β` of a factor on queries that grows with their position: `1 + β · ln(1 + ⌊position / context⌋)`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub query_scale_beta: Option<f64>,
    /// The positions after which that factor grows; there is one where there is a weight.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub query_scale_context: Option<u64>,
}

/// One factor or soft cap.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MultiplierRow {
    /// Its key in format files, which is also its key in the configuration of a BAM.
    pub(crate) field: Field,
    /// Its value, unless it changes nothing.
    pub(crate) value: Option<f64>,
    /// What a family without it does not do.
    pub(crate) what: &'static str,
}

/// A factor on queries that grows with their position, in steps of a context (Ministral 3).
#[derive(Debug, Clone, Copy)]
pub(crate) struct QueryScale {
    beta: f64,
    context: u64,
}

impl QueryScale {
    /// The factor at a position.
    pub(crate) fn at(self, position: usize) -> f64 {
        let steps = position as u64 / self.context;
        1.0 + self.beta * (1.0 + steps as f64).ln()
    }
}

impl Multipliers {
    /// What `config` says in that family, for a model of these sizes.
    pub(super) fn read(
        config: &Config,
        family: &Family,
        hidden_size: u64,
        head_dim: u64,
    ) -> Result<Self> {
        let number = |field, least| {
            let key = &family.keys[field];
            config.not_null(key, "a number")?;
            config.number(key, least)
        };
        let other_than = |neutral: f64, value: Option<f64>| {
            value.filter(|value| (value - neutral).abs() > SAME * neutral)
        };
        let scalar = number(Field::QueryPreAttnScalar, f64::MIN_POSITIVE)?;
        let attention = number(Field::AttentionMultiplier, f64::MIN_POSITIVE)?
            .or(scalar.map(|scalar| scalar.powf(-0.5)));
        let embedding = match embedding_default(config, family)? {
            Some(SQRT_HIDDEN_SIZE) => Some((hidden_size as f64).sqrt()),
            _ => number(Field::EmbeddingMultiplier, f64::MIN)?,
        };
        let soft_cap = |field| config.number(&family.keys[field], f64::MIN_POSITIVE);
        let beta = config.number(&family.keys[Field::QueryScaleBeta], f64::MIN)?;
        let beta = beta.filter(|beta| *beta != 0.0);
        Ok(Self {
            embedding_multiplier: other_than(1.0, embedding),
            residual_multiplier: other_than(1.0, number(Field::ResidualMultiplier, f64::MIN)?),
            attention_multiplier: other_than(usual_scale(head_dim), attention),
            logits_divisor: other_than(1.0, number(Field::LogitsDivisor, f64::MIN_POSITIVE)?),
            attn_logit_softcapping: soft_cap(Field::AttnLogitSoftcapping)?,
            final_logit_softcapping: soft_cap(Field::FinalLogitSoftcapping)?,
            query_scale_beta: beta,
            query_scale_context: match beta {
                Some(_) => Some(config.required_count(&family.keys[Field::QueryScaleContext])?),
                None => None,
            },
        })
    }

    /// A factor of which no key of the family says another value, for hidden states of this size.
    pub(super) fn fixed(family: &Family, field: Field, hidden_size: u64) -> Option<f64> {
        let default = family.fixed(field)?;
        match default.as_str() {
            Some(SQRT_HIDDEN_SIZE) => Some((hidden_size as f64).sqrt()),
            _ => default.as_f64(),
        }
    }

    /// Each of them.
    pub(crate) fn rows(&self) -> [MultiplierRow; 8] {
        let row = |field, value, what| MultiplierRow { field, value, what };
        [
            row(
                Field::EmbeddingMultiplier,
                self.embedding_multiplier,
                "multiply embeddings",
            ),
            row(
                Field::ResidualMultiplier,
                self.residual_multiplier,
                "multiply the outputs of attention and feed-forward network",
            ),
            row(
                Field::AttentionMultiplier,
                self.attention_multiplier,
                "scale attention scores otherwise than by the width of a head",
            ),
            row(Field::LogitsDivisor, self.logits_divisor, "divide logits"),
            row(
                Field::AttnLogitSoftcapping,
                self.attn_logit_softcapping,
                "cap attention scores",
            ),
            row(
                Field::FinalLogitSoftcapping,
                self.final_logit_softcapping,
                "cap logits",
            ),
            row(Field::QueryScaleBeta, self.query_scale_beta, SCALES_QUERIES),
            row(
                Field::QueryScaleContext,
                self.query_scale_context.map(|context| context as f64),
                SCALES_QUERIES,
            ),
        ]
    }

    /// What a family does not do that holds only some of them: each reason once, though one may have several numbers.
    pub(crate) fn not_done(&self, holds: impl Fn(Field) -> bool) -> Vec<&'static str> {
        let rows = self.rows().into_iter();
        let lacking = rows.filter(|row| row.value.is_some() && !holds(row.field));
        let mut reasons: Vec<_> = lacking.map(|row| row.what).collect();
        reasons.dedup();
        reasons
    }

    /// The factor on queries by their position, where there is one.
    pub(crate) fn query_scale(&self) -> Option<QueryScale> {
        let (beta, context) = self.query_scale_beta.zip(self.query_scale_context)?;
        Some(QueryScale { beta, context })
    }

    /// The factor on attention scores.
    pub(crate) fn attention_scale(&self, head_dim: u64) -> f64 {
        self.attention_multiplier.unwrap_or(usual_scale(head_dim))
    }
}

/// The usual factor on attention scores.
fn usual_scale(head_dim: u64) -> f64 {
    (head_dim as f64).powf(-0.5)
}

/// The text that a family has as the default of the factor on embeddings, where `config` has none of its names.
fn embedding_default<'a>(config: &Config, family: &'a Family) -> Result<Option<&'a str>> {
    let key = &family.keys[Field::EmbeddingMultiplier];
    let names = key.names.iter().map(String::as_str);
    Ok(match config.find(names)? {
        Found::Absent => key.default.as_ref().and_then(Value::as_str),
        Found::Null | Found::Value(..) => None,
    })
}
