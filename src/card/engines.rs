//! What runs a model, with the commands for each.

use std::path::Path;

use crate::family::{Architecture, AttentionKv, InVllm, Mixture, QWEN3_NEXT, QkNorm, gguf_bam};
use crate::markdown;

/// The line that names the model in the Python snippet; `published` puts the repository there.
const HERE: &str = "model_path = \".\"  # this folder";

/// An engine, with what a card says about it.
pub(super) struct Engine {
    /// How its text begins, in a folder and once published.
    pub(super) begins: [&'static str; 2],
    /// The language of the block that follows; without one, the text is one line.
    pub(super) language: Option<&'static str>,
    /// Whether every card names it.
    pub(super) is_always: bool,
    /// Its commands in the folder of the model, which may have a tokenizer; `None` where it does not run the model.
    commands: fn(&Architecture, bool) -> Option<String>,
    /// What names the folder in them, and what begins and ends the repository's name in its place.
    place: Option<(&'static str, [&'static str; 2])>,
}

/// Every engine, in the order of a card.
pub(super) const ENGINES: [Engine; 4] = [
    Engine {
        begins: ["In this folder, with transformers:", "With transformers:"],
        language: Some("python"),
        is_always: true,
        commands: transformers,
        place: Some((HERE, ["model_path = \"", "\""])),
    },
    Engine {
        begins: ["With bam-convert:", "In this folder, with bam-convert:"],
        language: Some("sh"),
        is_always: true,
        commands: bam_convert,
        place: None,
    },
    Engine {
        begins: ["With vLLM: `vllm serve "; 2],
        language: None,
        is_always: false,
        commands: vllm,
        place: Some((
            "With vLLM: `vllm serve . ",
            ["With vLLM: `vllm serve ", " "],
        )),
    },
    Engine {
        begins: ["In this folder, with llama.cpp:"; 2],
        language: Some("sh"),
        is_always: false,
        commands: llama_cpp,
        place: None,
    },
];

impl Engine {
    /// What a card says, where the engine runs the model.
    pub(super) fn text(&self, architecture: &Architecture, has_tokenizer: bool) -> Option<String> {
        let commands = (self.commands)(architecture, has_tokenizer)?;
        let [begin, _] = self.begins;
        Some(match self.language {
            Some(language) => format!("{begin}\n\n{}", markdown::block(language, &commands)),
            None => format!("{begin}{commands}\n"),
        })
    }

    /// The body of a card with the repository in the place of this folder.
    pub(super) fn published(&self, body: &str, repository: &str) -> String {
        let [begin, published] = self.begins;
        let body = match self.place {
            Some((here, [before, after])) => {
                body.replace(here, &format!("{before}{repository}{after}"))
            }
            None => body.to_owned(),
        };
        body.replace(&format!("\n{begin}\n"), &format!("\n{published}\n"))
    }

    /// What follows this engine's text; `None` where the card has something else there.
    pub(super) fn after<'a>(&self, card: &'a str) -> Option<&'a str> {
        let mut begins = self.begins.iter();
        let rest = begins.find_map(|words| card.strip_prefix(words))?;
        let rest = match self.language {
            Some(language) => {
                let block = rest.strip_prefix(&format!("\n\n```{language}\n"))?;
                block.split_once("\n```\n")?.1
            }
            None => rest.split_once('\n').map_or("", |(_, after)| after),
        };
        Some(rest.trim_start_matches('\n'))
    }
}

/// A snippet for transformers; without a tokenizer, the model takes token ids.
fn transformers(architecture: &Architecture, has_tokenizer: bool) -> Option<String> {
    // Only a BAM needs the code beside its weights.
    let trust = if architecture.is_bam() {
        ", trust_remote_code=True"
    } else {
        ""
    };
    let (imports, tokens, shown) = if has_tokenizer {
        (
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n",
            format!(
                "tokenizer = AutoTokenizer.from_pretrained(model_path{trust})\n\
                 inputs = tokenizer(\"Once upon a time\", return_tensors=\"pt\", return_token_type_ids=False)\n"
            ),
            "print(tokenizer.decode(model.generate(**inputs, max_new_tokens=40)[0]))\n",
        )
    } else {
        (
            "import torch\nfrom transformers import AutoModelForCausalLM\n",
            "tokens = torch.tensor([[0, 1, 2, 3]])\n".to_owned(),
            "print(model(tokens).logits)\n",
        )
    };
    Some(format!(
        "{imports}\n{HERE}\nmodel = AutoModelForCausalLM.from_pretrained(model_path{trust})\n{tokens}{shown}"
    ))
}

/// Commands of this program.
fn bam_convert(architecture: &Architecture, has_tokenizer: bool) -> Option<String> {
    // It writes models of this class, but does not compute them.
    let computes = architecture.family != QWEN3_NEXT;
    let generate = if has_tokenizer && computes {
        "bam-convert generate . --prompt \"Once upon a time\"\n"
    } else {
        ""
    };
    Some(format!(
        "bam-convert inspect .\n{generate}bam-convert validate .\n"
    ))
}

/// The line about vLLM, which reads a BAM with the code beside it, and some with a plugin.
fn vllm(architecture: &Architecture, _: bool) -> Option<String> {
    let plugin = match architecture.in_vllm() {
        _ if !architecture.is_bam() => return None,
        InVllm::Refused => return None,
        InVllm::Plugin => ", after `pip install bam-vllm`",
        InVllm::Alone => "",
    };
    Some(format!(". --trust-remote-code`{plugin}."))
}

/// Commands of llama.cpp, which needs a tokenizer.
fn llama_cpp(architecture: &Architecture, has_tokenizer: bool) -> Option<String> {
    let commands =
        "bam-convert convert . ../model.gguf --dtype f16\nllama-server -m ../model.gguf\n";
    (has_tokenizer && fits_gguf(architecture)).then(|| commands.to_owned())
}

/// Whether `convert` writes a BAM as a GGUF file. Folders of other families may have a layout that it does not take. Norms of queries and keys may differ between attention experts, which
/// the architecture does not say, so a mixture with them does not count.
fn fits_gguf(architecture: &Architecture) -> bool {
    let has_experts = |mixture: &Mixture| mixture.attention_kv != AttentionKv::Merged;
    let has_experts = architecture.mixture.as_ref().is_some_and(has_experts);
    let differs = has_experts && architecture.qk_norm != QkNorm::None;
    let fits = || gguf_bam::check(Path::new("."), architecture).is_ok();
    architecture.is_bam() && !differs && fits()
}
