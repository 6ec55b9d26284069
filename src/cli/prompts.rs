//! `--router prompts:FILE`: rows computed by the seed, before the surgery, into a file that goes along with the output.

use std::path::Path;

use bam_convert::card::PromptsOfExpert;
use bam_convert::checkpoint::filesystem::temporary_folder;
use bam_convert::checkpoint::{Dtype, header};
use bam_convert::evaluate::prompts::{ALIKE, Prompts, Rows};
use bam_convert::family::{Architecture, Role, TensorSpec};
use bam_convert::model::{CausalLm, LoadOptions};
use bam_convert::surgery::router::{PROMPT_ROWS, PromptRows};
use bam_convert::{Error, Result};
use tempfile::TempDir;

use super::printer::Printer;

/// Rows of routers in a temporary folder, which goes when this does.
#[derive(Debug)]
pub struct ComputedRows {
    /// Held, not read: the folder goes with it.
    _folder: TempDir,
    /// What surgery takes.
    pub rows: PromptRows,
}

impl ComputedRows {
    /// Computes the rows of the experts `names` by the model in the folder `model`; `output` is what has the routers, of so many
    /// experts.
    pub fn new(
        file: &Path,
        model: &Path,
        output: &Architecture,
        names: &[String],
        printer: &Printer,
    ) -> Result<Self> {
        let prompts = Prompts::read(file, names)?;
        let model = CausalLm::load(model, &LoadOptions::default())?;
        let bar = printer.tokens_bar(prompts.count(), "reading prompts");
        let rows = prompts.rows(&model, &|read| bar.inc(read))?;
        bar.finish_and_clear();
        let mut notes: Vec<String> = rows.note.iter().cloned().collect();
        if let Some((a, b, layer, cosine)) = rows
            .most_alike()
            .filter(|(_, _, _, cosine)| *cosine > ALIKE)
        {
            let (a, b) = (&names[a], &names[b]);
            notes.push(format!(
                "the rows of `{a}` and `{b}` are much alike (cosine {cosine:.3} in layer {layer}), so one of them may \
                 get few tokens; negative_prompts tell experts apart"
            ));
        }
        let folder = temporary_folder("bam-convert-rows-")?;
        let path = folder.path().join(PROMPT_ROWS);
        let mode = prompts.mode.name().to_owned();
        let found = Self {
            _folder: folder,
            rows: PromptRows {
                path: path.clone(),
                mode,
                prompts: of_card(&prompts),
                prompts_sha256: prompts.sha256,
                notes,
            },
        };
        std::fs::write(&path, encode(&rows, output)?).map_err(|e| Error::io("write", &path, e))?;
        Ok(found)
    }
}

/// The prompts as a card shows them.
fn of_card(prompts: &Prompts) -> Vec<PromptsOfExpert> {
    let experts = prompts.of_experts().into_iter();
    let of_card = experts.map(|(name, prompted)| PromptsOfExpert {
        name,
        positive: prompted.positive,
        negative: prompted.negative,
    });
    of_card.collect()
}

/// The rows as safetensors: a float32 tensor for each router of the output.
fn encode(rows: &Rows, output: &Architecture) -> Result<Vec<u8>> {
    let mut routers = output.tensors()?;
    let rows_of = |spec: &TensorSpec| match spec.role {
        Role::SharedExpertGate => rows.of_shared(spec.layer.unwrap_or_default() as usize),
        role if role.is_router() && !spec.bias => {
            Some(rows.of_layer(spec.layer.unwrap_or_default() as usize))
        }
        _ => None,
    };
    routers.retain(|spec| rows_of(spec).is_some());
    let mut bytes = header::write(
        routers
            .iter()
            .map(|spec| (spec.name.as_str(), Dtype::F32, &spec.shape[..])),
    );
    bytes.extend(
        routers
            .iter()
            .filter_map(rows_of)
            .flatten()
            .flat_map(f32::to_le_bytes),
    );
    Ok(bytes)
}
