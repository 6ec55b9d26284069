//! How a reader of the card runs the model.

use super::engines;
use crate::family::{Architecture, AttentionKv};
use crate::markdown;

/// The line that names the model in the Python snippet; `push` puts the repository there.
const HERE: &str = "model_path = \".\"  # this folder";

/// The heading of the section.
const HEADING: &str = "## Use\n\n";
/// What comes before the two snippets, in a folder and once published.
const BEFORE_PYTHON: [&str; 2] = ["In this folder, with transformers:", "With transformers:"];
const BEFORE_SHELL: [&str; 2] = ["With bam-convert:", "In this folder, with bam-convert:"];

/// How the line about vLLM begins.
const VLLM: &str = "With vLLM: `vllm serve ";

/// The line about vLLM, which reads a BAM with the code beside it, and attention experts with a plugin.
fn vllm(architecture: &Architecture) -> String {
    if !architecture.is_bam() {
        return String::new();
    }
    let mixture = architecture.mixture.as_ref();
    let plugin = if mixture.is_some_and(|mixture| mixture.attention_kv != AttentionKv::Merged) {
        ", after `pip install bam-vllm`"
    } else {
        ""
    };
    format!("\n{VLLM}. --trust-remote-code --enforce-eager`{plugin}.\n")
}

/// What comes before the commands of another engine.
fn before_engine(name: &str) -> String {
    format!("In this folder, with {name}:")
}

/// Snippets for transformers, for this program, and for other engines that run the model.
///
/// Without a tokenizer, the model takes token ids.
pub(super) fn section(architecture: &Architecture, has_tokenizer: bool) -> String {
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
    let python = format!(
        "{imports}\n{HERE}\nmodel = AutoModelForCausalLM.from_pretrained(model_path{trust})\n{tokens}{shown}"
    );
    let generate = if has_tokenizer {
        "bam-convert generate . --prompt \"Once upon a time\"\n"
    } else {
        ""
    };
    let shell = format!("bam-convert inspect .\n{generate}bam-convert validate .\n");
    let ([before_python, _], [before_shell, _]) = (BEFORE_PYTHON, BEFORE_SHELL);
    // Engines of text need a tokenizer.
    let engines = engines::of(architecture).filter(|_| has_tokenizer);
    let further: Vec<String> = engines
        .map(|engine| {
            let block = markdown::block("sh", engine.commands);
            format!("\n{}\n\n{block}", before_engine(engine.name))
        })
        .collect();
    let further = further.concat();
    format!(
        "{HEADING}{before_python}\n\n{}\n{before_shell}\n\n{}{}{further}",
        markdown::block("python", &python),
        markdown::block("sh", &shell),
        vllm(architecture)
    )
}

/// The body of a card with the repository in the place of this folder.
pub(super) fn published(body: &str, repository: &str) -> String {
    let ([python, python_published], [shell, shell_published]) = (BEFORE_PYTHON, BEFORE_SHELL);
    body.replace(HERE, &format!("model_path = \"{repository}\""))
        .replace(&format!("{VLLM}. "), &format!("{VLLM}{repository} "))
        .replace(python, python_published)
        .replace(&format!("\n{shell}\n"), &format!("\n{shell_published}\n"))
}

/// The body of a card without its first section on use, which is about its own folder; `None` where it has none that this
/// program wrote.
pub(super) fn without_section(body: &str) -> Option<String> {
    let mut places = body.match_indices(HEADING).map(|(at, _)| at);
    let begin = places.find(|at| *at == 0 || body[..*at].ends_with('\n'))?;
    let mut rest = &body[begin + HEADING.len()..];
    for (before, language) in [(BEFORE_PYTHON, "python"), (BEFORE_SHELL, "sh")] {
        rest = before.iter().find_map(|words| rest.strip_prefix(words))?;
        rest = rest.strip_prefix("\n\n")?;
        rest = rest.strip_prefix(&format!("```{language}\n"))?;
        let end = "\n```\n";
        rest = rest[rest.find(end)? + end.len()..].trim_start_matches('\n');
    }
    if rest.starts_with(VLLM) {
        rest = rest
            .split_once('\n')
            .map_or("", |(_, after)| after.trim_start_matches('\n'));
    }
    for engine in &engines::ENGINES {
        let begin = format!("{}\n\n```sh\n", before_engine(engine.name));
        if let Some(block) = rest.strip_prefix(&begin) {
            let end = "\n```\n";
            rest = block[block.find(end)? + end.len()..].trim_start_matches('\n');
        }
    }
    let before = body[..begin].trim_end();
    let gap = if before.is_empty() || rest.is_empty() {
        ""
    } else {
        "\n\n"
    };
    Some(format!("{before}{gap}{rest}"))
}
