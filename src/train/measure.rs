//! How well the model predicts held-back text during training.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use super::backward::{Batch, forward_options, predicted};
use super::metrics::Validation;
use super::settings::Settings;
use crate::data::{Mixture, Row, Split, TokenFolder};
use crate::model::CausalLm;
use crate::{Error, Result};

/// The rows of one domain to measure on: the same at every measurement.
pub(super) struct HeldBack {
    name: String,
    rows: Vec<Row>,
    /// Bytes of text per token, on average.
    bytes_per_token: f64,
}

impl HeldBack {
    /// Up to `most` rows of the validation split; `None` where it has none, or none with a token that carries loss.
    pub(super) fn of(
        name: &str,
        folder: TokenFolder,
        settings: &Settings,
        most: usize,
    ) -> Result<Option<Self>> {
        if folder.tokens(Split::Validation) < settings.seq as u64 + 1 {
            return Ok(None);
        }
        let bytes_per_token = folder.bytes_per_scored_token(Split::Validation, true);
        let domain = (name.to_owned(), folder, 1.0);
        let mixture = Mixture::new(
            vec![domain],
            settings.rng_seed,
            settings.seq,
            Split::Validation,
        )?;
        let rows = mixture.rows(0, most.min(mixture.rows_in_epoch(0) as usize))?;
        let is_scored = |row: &Row| {
            (0..settings.seq).any(|position| predicted(row, position, settings.documents))
        };
        Ok(rows.iter().any(is_scored).then(|| Self {
            name: name.to_owned(),
            rows,
            bytes_per_token,
        }))
    }

    /// Its name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// What a mean negative log-likelihood of so many tokens of it says.
    pub(super) fn scores(&self, nll: f64, tokens: u64) -> Validation {
        Validation {
            nll,
            perplexity: nll.exp(),
            bits_per_byte: nll / std::f64::consts::LN_2 / self.bytes_per_token,
            tokens,
        }
    }
}

/// Measures all domains; `None` where `stop` became true before the end.
pub(super) fn measure(
    model: &CausalLm,
    domains: &[HeldBack],
    settings: &Settings,
    stop: &AtomicBool,
) -> Result<Option<BTreeMap<String, Validation>>> {
    let mut found = BTreeMap::new();
    for domain in domains {
        let (mut sum, mut tokens) = (0.0, 0);
        for rows in domain.rows.chunks(settings.batch) {
            if stop.load(Ordering::SeqCst) {
                return Ok(None);
            }
            let batch = Batch::new(rows, settings.documents, 1.0, 1.0)?;
            let (mut x, pass) = model.begin(
                &batch.tokens,
                None,
                &forward_options(rows, settings.documents),
            )?;
            for layer in 0..model.layers() {
                x = model.layer(layer, &x, &pass)?.0;
            }
            let nll = model
                .likelihoods(&x, &batch.targets)?
                .to_vec1::<f32>()
                .map_err(|e| Error::compute("measure on held-back text", e))?;
            for (nll, weight) in nll.iter().zip(&batch.weights) {
                if *weight > 0.0 {
                    sum += f64::from(*nll);
                    tokens += 1;
                }
            }
        }
        let nll = sum / tokens.max(1) as f64;
        found.insert(domain.name.clone(), domain.scores(nll, tokens));
    }
    Ok(Some(found))
}
