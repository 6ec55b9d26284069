//! The tokenizer of a GGUF model as the files that transformers reads.

use serde::Serialize;
use serde_json::{Map, Value, json};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, DecoderWrapper, NormalizerWrapper, PreTokenizerWrapper};

use super::gguf::token_id;
use super::gguf_bpe::{self, Model, TokenKind, Vocabulary};
use super::gguf_error::{ARCHITECTURE, GgufModelError, TOKENS};
use crate::checkpoint::Gguf;
use crate::error::{InputError, Result};

/// Expressions that find the words of texts: in each of them a word that is followed by a space ends before it.
pub(crate) const WORD_EXPRESSIONS: [&str; 3] = gguf_bpe::WORD_EXPRESSIONS;

/// One file to write beside the weights.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextFile {
    /// Its name: `tokenizer.json`.
    pub name: &'static str,
    /// What it holds.
    pub bytes: Vec<u8>,
}

/// The tokens that have a role, by id.
struct Roles {
    bos: Option<u64>,
    eos: Option<u64>,
    /// End of a turn, where a chat model has one besides `eos`.
    eot: Option<u64>,
    pad: Option<u64>,
    unk: Option<u64>,
}

impl Roles {
    /// Names in transformers' files, and ids.
    fn named(&self) -> [(&'static str, Option<u64>); 4] {
        [
            ("bos_token", self.bos),
            ("eos_token", self.eos),
            ("pad_token", self.pad),
            ("unk_token", self.unk),
        ]
    }
}

/// The tokenizer and generation files: `generation_config.json`, and where the model has a vocabulary
/// `tokenizer.json`, `tokenizer_config.json`, `special_tokens_map.json` and perhaps `chat_template.jinja`.
///
/// # Errors
/// Where the vocabulary is of a kind, or split by rules, that cannot be rebuilt, or contradicts itself or the
/// embedding table: the error names the metadata key.
pub fn files(gguf: &Gguf) -> Result<Vec<TextFile>> {
    let id = |which| token_id(gguf, which);
    let roles = Roles {
        bos: id("bos")?,
        eos: id("eos")?,
        eot: id("eot")?,
        pad: id("padding")?,
        unk: id("unknown")?,
    };
    let mut files = vec![json_file(
        "generation_config.json",
        &generation_config(&roles),
    )?];
    let model = gguf.text("tokenizer.ggml.model")?;
    if matches!(model, None | Some("none" | "no_vocab")) {
        return Ok(files);
    }
    let vocabulary = vocabulary(gguf)?;
    let pieces = gguf_bpe::pieces(gguf, &vocabulary, roles.unk)?;
    let add_bos = gguf
        .boolean("tokenizer.ggml.add_bos_token")?
        .unwrap_or(pieces.adds_bos)
        && roles.bos.is_some();
    let add_eos = gguf
        .boolean("tokenizer.ggml.add_eos_token")?
        .unwrap_or(false)
        && roles.eos.is_some();
    let added = added_tokens(&vocabulary, &roles, pieces.marks_spaces);
    let ends = Ends {
        bos: roles
            .bos
            .filter(|_| add_bos)
            .and_then(|id| Some((id, vocabulary.token(id)?))),
        eos: roles
            .eos
            .filter(|_| add_eos)
            .and_then(|id| Some((id, vocabulary.token(id)?))),
    };
    let tokenizer = TokenizerJson {
        version: "1.0",
        truncation: (),
        padding: (),
        added_tokens: &added,
        normalizer: pieces.normalizer,
        pre_tokenizer: pieces.pre_tokenizer,
        post_processor: ends.post_processor(pieces.post_processor),
        decoder: pieces.decoder,
        model: pieces.model,
    };
    files.push(json_file("tokenizer.json", &tokenizer)?);
    let template = gguf.text("tokenizer.chat_template")?;
    let config = tokenizer_config(
        gguf,
        &vocabulary,
        &roles,
        &added,
        (add_bos, add_eos),
        template,
    )?;
    files.push(json_file("tokenizer_config.json", &Value::Object(config))?);
    files.push(json_file(
        "special_tokens_map.json",
        &Value::Object(special_tokens(&vocabulary, &roles)),
    )?);
    if let Some(template) = template {
        files.push(TextFile {
            name: "chat_template.jinja",
            bytes: template.as_bytes().to_vec(),
        });
    }
    Ok(files)
}

/// `tokenizer.json`, whose fields the `tokenizers` library names.
#[derive(Serialize)]
struct TokenizerJson<'a> {
    version: &'static str,
    truncation: (),
    padding: (),
    added_tokens: &'a [AddedTokenJson],
    normalizer: Option<NormalizerWrapper>,
    pre_tokenizer: Option<PreTokenizerWrapper>,
    post_processor: Value,
    decoder: DecoderWrapper,
    model: Model<'a>,
}

/// A token that is found in the text before it is split.
#[derive(Serialize)]
struct AddedTokenJson {
    id: u64,
    #[serde(flatten)]
    token: AddedToken,
}

fn json_file(name: &'static str, value: &impl Serialize) -> Result<TextFile> {
    let mut bytes =
        serde_json::to_vec_pretty(value).map_err(|error| GgufModelError::TokenizerFile {
            name,
            problem: error.to_string(),
        })?;
    bytes.push(b'\n');
    Ok(TextFile { name, bytes })
}

fn generation_config(roles: &Roles) -> Value {
    let mut config = Map::new();
    config.insert("_from_model_config".to_owned(), json!(true));
    let eos = match (roles.eos, roles.eot) {
        (Some(eos), Some(eot)) if eos != eot => Some(json!([eos, eot])),
        (eos, eot) => eos.or(eot).map(|id| json!(id)),
    };
    let ids = [
        ("bos_token_id", roles.bos.map(|id| json!(id))),
        ("eos_token_id", eos),
    ];
    for (key, id) in ids
        .into_iter()
        .chain([("pad_token_id", roles.pad.map(|id| json!(id)))])
    {
        if let Some(id) = id {
            config.insert(key.to_owned(), id);
        }
    }
    Value::Object(config)
}

/// The tokens and their kinds, checked against each other and the embedding table.
fn vocabulary(gguf: &Gguf) -> Result<Vocabulary<'_>> {
    let tokens = gguf.texts(TOKENS)?.unwrap_or_default();
    if tokens.is_empty() {
        return Err(GgufModelError::NoVocabulary {
            path: gguf.path.clone(),
        }
        .into());
    }
    if let Some(rows) = gguf
        .tensors
        .get("token_embd.weight")
        .and_then(|entry| entry.shape.first().copied())
        && tokens.len() as u64 > rows
    {
        let expected = format!("at most {rows} tokens, the rows of `token_embd.weight`");
        let found = tokens.len();
        return Err(InputError::wrong_value(&gguf.path, TOKENS, expected, found));
    }
    let kinds = kinds(gguf, tokens.len())?;
    Vocabulary::new(&gguf.path, tokens, kinds)
}

/// The kinds of the tokens, of which there are `tokens`.
fn kinds(gguf: &Gguf, tokens: usize) -> Result<Vec<TokenKind>> {
    const KEY: &str = "tokenizer.ggml.token_type";
    let kinds = match gguf.integers(KEY)? {
        None => vec![TokenKind::Normal; tokens],
        Some(numbers) => {
            let kinds: Option<Vec<_>> = numbers
                .iter()
                .map(|number| TokenKind::of(*number))
                .collect();
            kinds.ok_or_else(|| {
                InputError::wrong_value(&gguf.path, KEY, "types from 1 to 6", "another")
            })?
        }
    };
    if kinds.len() != tokens {
        let expected = format!("one type for each of {tokens} tokens");
        return Err(InputError::wrong_value(
            &gguf.path,
            KEY,
            expected,
            kinds.len(),
        ));
    }
    Ok(kinds)
}

/// Tokens that are found in the text before it is split, as `tokenizer.json` lists them.
///
/// Where the model marks spaces in its tokens, user-defined tokens with a mark are left to the merges. As added
/// tokens, the tokenizer would look for them in text that has no marks yet.
fn added_tokens(
    vocabulary: &Vocabulary<'_>,
    roles: &Roles,
    marks_spaces: bool,
) -> Vec<AddedTokenJson> {
    let named: Vec<_> = roles
        .named()
        .into_iter()
        .filter_map(|(_, id)| id)
        .chain(roles.eot)
        .collect();
    let mut added = Vec::new();
    for (id, (token, kind)) in (0_u64..).zip(vocabulary.tokens.iter().zip(&vocabulary.kinds)) {
        let special =
            matches!(kind, TokenKind::Control | TokenKind::Unknown) || named.contains(&id);
        let user = *kind == TokenKind::UserDefined && !(marks_spaces && token.contains('▁'));
        if (special || user) && !token.is_empty() {
            let token = AddedToken::from(token, special).normalized(false);
            added.push(AddedTokenJson { id, token });
        }
    }
    added
}

fn special_tokens(vocabulary: &Vocabulary<'_>, roles: &Roles) -> Map<String, Value> {
    let tokens = roles
        .named()
        .into_iter()
        .filter_map(|(name, id)| Some((name.to_owned(), json!(vocabulary.token(id?)?))));
    tokens.collect()
}

fn tokenizer_config(
    gguf: &Gguf,
    vocabulary: &Vocabulary<'_>,
    roles: &Roles,
    added: &[AddedTokenJson],
    (add_bos, add_eos): (bool, bool),
    template: Option<&str>,
) -> Result<Map<String, Value>> {
    let mut config = Map::new();
    config.insert("add_bos_token".to_owned(), json!(add_bos));
    config.insert("add_eos_token".to_owned(), json!(add_eos));
    let decoder = added.iter();
    let decoder = decoder.map(|added| (added.id.to_string(), json!(added.token)));
    config.insert("added_tokens_decoder".to_owned(), decoder.collect());
    config.append(&mut special_tokens(vocabulary, roles));
    config.insert("clean_up_tokenization_spaces".to_owned(), json!(false));
    if let Some(context) = context_length(gguf)? {
        config.insert("model_max_length".to_owned(), json!(context));
    }
    // transformers 4 would add `token_type_ids`, which `generate` of these models refuses.
    config.insert(
        "model_input_names".to_owned(),
        json!(["input_ids", "attention_mask"]),
    );
    config.insert(
        "tokenizer_class".to_owned(),
        json!("PreTrainedTokenizerFast"),
    );
    if let Some(template) = template {
        config.insert("chat_template".to_owned(), json!(template));
    }
    Ok(config)
}

/// The longest context of the model, whose key begins with the name of the architecture.
fn context_length(gguf: &Gguf) -> Result<Option<u64>> {
    match gguf.text(ARCHITECTURE)? {
        Some(architecture) => gguf.unsigned(&format!("{architecture}.context_length")),
        None => Ok(None),
    }
}

/// The tokens put before and after each text.
struct Ends<'a> {
    bos: Option<(u64, &'a str)>,
    eos: Option<(u64, &'a str)>,
}

impl Ends<'_> {
    /// `first` and, where tokens are put around the text, the template that says so.
    ///
    /// The template is written here: the library would sort its tokens by name, and change files that earlier versions wrote.
    fn post_processor(&self, first: Option<ByteLevel>) -> Value {
        if self.bos.is_none() && self.eos.is_none() {
            return json!(first);
        }
        let special = |token: &Option<(u64, &str)>, kind: u64| {
            token.map(|(_, token)| json!({"SpecialToken": {"id": token, "type_id": kind}}))
        };
        let side = |name: &str, kind: u64| {
            let text = json!({"Sequence": {"id": name, "type_id": kind}});
            special(&self.bos, kind)
                .into_iter()
                .chain([text])
                .chain(special(&self.eos, kind))
                .collect::<Vec<_>>()
        };
        let pair = [side("A", 0), side("B", 1)].concat();
        let tokens: Map<_, _> = [self.bos, self.eos]
            .into_iter()
            .flatten()
            .map(|(id, token)| {
                (
                    token.to_owned(),
                    json!({"id": token, "ids": [id], "tokens": [token]}),
                )
            })
            .collect();
        let template = json!({
            "type": "TemplateProcessing",
            "single": side("A", 0),
            "pair": pair,
            "special_tokens": tokens,
        });
        match first {
            None => template,
            Some(first) => json!({"type": "Sequence", "processors": [first, template]}),
        }
    }
}

#[cfg(test)]
#[path = "gguf_tokenizer_tests.rs"]
mod tests;
