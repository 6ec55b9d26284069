//! The `config.json` of a BAM: the seed's keys, and what the checkpoint format adds.

use serde_json::{Map, Value, json};

use super::architecture::Architecture;
use super::config::{BAM_VERSION, Config};
use super::config_error::ORIGINAL;
use super::format::Family;
use super::keys::Field;
use super::known::BAM;
use super::layout::NormType;
use super::mixture::Mixture;
use super::write::{ConfigWriter, carried};
use crate::Result;

/// The key of a BAM's `config.json` that keeps the seed's `model_type`: nothing else in it tells what an expert is on its own.
pub(super) const SEED_MODEL_TYPE: &str = "seed_model_type";

/// Numbers of the architecture, in the order in which a seed that does not say them gets them.
const NUMBERS: [Field; 12] = [
    Field::HiddenSize,
    Field::IntermediateSize,
    Field::NumLayers,
    Field::NumHeads,
    Field::NumKvHeads,
    Field::HeadDim,
    Field::VocabSize,
    Field::TieWordEmbeddings,
    Field::HiddenAct,
    Field::InitializerRange,
    Field::NormEps,
    Field::MaxPositionEmbeddings,
];

/// Numbers that only some architectures have.
const OPTIONAL: [Field; 10] = [
    Field::LogitScale,
    Field::ClipQkv,
    Field::EmbeddingMultiplier,
    Field::ResidualMultiplier,
    Field::AttentionMultiplier,
    Field::LogitsDivisor,
    Field::AttnLogitSoftcapping,
    Field::FinalLogitSoftcapping,
    Field::QueryScaleBeta,
    Field::QueryScaleContext,
];

/// The `config.json` of `target`, an upcycled architecture. It has the keys of the source `dense` in their order,
/// changed only where the mixture differs. Then come the keys that a reader of a BAM checkpoint needs, each with its
/// value.
///
/// # Errors
/// A family that is not known.
pub fn bam_config(
    seed: &Config,
    dense: &Architecture,
    target: &Architecture,
) -> Result<Map<String, Value>> {
    let family = Family::named(BAM)?;
    // A reader of the mixture would take them for the mixture's, which says them where it has them.
    let other_norm = match target.norm_type {
        NormType::Rms => NormType::Layer,
        NormType::Layer => NormType::Rms,
    };
    let strays = Mixture::OPTIONAL_KEYS.into_iter().chain([
        other_norm.eps_key(),
        "num_local_experts",
        ORIGINAL,
        "partial_rotary_factor",
    ]);
    let mut config = ConfigWriter::new(carried(seed, dense)?, strays, &family, target);

    config.put(BAM_VERSION, json!(target.bam_version()));
    if let Some(model_type) = seed.json.get("model_type").filter(|found| **found != BAM) {
        config.put(SEED_MODEL_TYPE, model_type.clone());
    }
    config.identity(None);
    config.put(
        "auto_map",
        json!({
            "AutoConfig": "configuration_bam.BamConfig",
            "AutoModel": "modeling_bam.BamModel",
            "AutoModelForCausalLM": "modeling_bam.BamForCausalLM",
        }),
    );

    config.keys(&NUMBERS);
    config.optional(&OPTIONAL);
    config.dtype(seed.json.contains_key("torch_dtype"));
    // Biases stand before the norm of queries and keys in every file since the first release.
    config.layouts(|key| key != "qk_norm");
    config.biases();
    config.layouts(|_| true);
    config.mixture();
    config.windows();
    config.rope_layers();
    config.rope();
    Ok(config.finish())
}
