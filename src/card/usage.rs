//! How a reader of the card runs the model.

use crate::family::Architecture;
use crate::markdown;

/// The line that names the model in the Python snippet; `push` puts the repository there.
const HERE: &str = "model_path = \".\"  # this folder";

/// Snippets for transformers and for this program. Without a tokenizer, the model takes token ids.
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
    format!(
        "## Use\n\nIn this folder, with transformers:\n\n{}\nWith bam-convert:\n\n{}",
        markdown::block("python", &python),
        markdown::block("sh", &shell)
    )
}

/// The body of a card with the repository in the place of this folder.
pub(super) fn published(body: &str, repository: &str) -> String {
    body.replace(HERE, &format!("model_path = \"{repository}\""))
        .replace("In this folder, with transformers:", "With transformers:")
        .replace(
            "\nWith bam-convert:\n",
            "\nIn this folder, with bam-convert:\n",
        )
}
