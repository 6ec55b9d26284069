//! Texts to a token folder: read once to find duplicates, and again to tokenize what is kept.
//!
//! Documents are read in batches, the next one while the last is processed. Memory holds two batches and some 170 bytes
//! for each document, however much text there is. Nothing depends on the number of threads.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use rayon::prelude::*;
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::batches::{Counts, ReadDocument, Reader};
use super::conversation;
use super::dedup::{Fingerprint, Fingerprints, fingerprint, fingerprint_by};
use super::documents::DocumentForm;
use super::encode::{EncodedDocument, Encoder};
use super::error::DataError;
use super::header::{Shard, TextSource, TokenHeader};
use super::input;
use super::layout::{FILE, FORMAT_VERSION, IdType, MASKED_VERSION, Split};
use super::shards::Shards;
use super::split::{Assignment, assign};
use super::vocabulary::{self, ChatLayout, MOST_TEXT, Ready, Vocabulary};
use crate::Result;
use crate::checkpoint::SourceFile;
use crate::checkpoint::hash::{hex, sha256, sha256_source};
use crate::checkpoint::output::{OutputFolder, check_target};
use crate::checkpoint::source_file::{Stamp, changed};
use crate::model::chat::RenderChat;

/// What to tokenize, and how.
#[derive(Clone, Debug)]
pub struct TokenizeSettings {
    /// Where texts are.
    pub sources: Vec<TextsPlace>,
    /// What documents are.
    pub form: DocumentForm,
    /// What lays out conversations.
    pub layout: ChatLayout,
    /// The tokenizer.
    pub vocabulary: Vocabulary,
    /// The token that ends a text, where the tokenizer's files should not say.
    pub end_of_text: Option<String>,
    /// Share of the text to hold back, from 0 to below 1.
    pub validation: f64,
    /// Bytes of ids in a shard.
    pub max_shard_size: u64,
    /// The folder to make.
    pub out: PathBuf,
    /// Whether it may replace an older token folder.
    pub force: bool,
}

/// Where texts are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TextsPlace {
    /// A file, a folder or a pattern.
    Path(PathBuf),
    /// Files that were pulled from the Hub.
    Pulled {
        /// The reference to them, with the commit.
        name: String,
        /// The files with their lengths.
        files: Vec<(PathBuf, u64)>,
    },
}

impl TextsPlace {
    /// The path or the reference.
    fn name(&self) -> PathBuf {
        match self {
            Self::Path(path) => path.clone(),
            Self::Pulled { name, .. } => PathBuf::from(name),
        }
    }

    fn files(&self) -> Result<Vec<PathBuf>> {
        match self {
            Self::Path(path) => input::files(path),
            Self::Pulled { files, .. } => Ok(files.iter().map(|(path, _)| path.clone()).collect()),
        }
    }
}

/// How far the work is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenizeProgress {
    /// A pass over the text begins: its name, and its length in bytes.
    Begin(&'static str, u64),
    /// So many bytes of it are done.
    Bytes(u64),
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TokenizeReport {
    /// What there is to say beside that.
    #[serde(skip)]
    pub notes: Vec<String>,
    /// The token folder.
    pub output: PathBuf,
    /// SHA-256 of its header, which identifies the whole folder.
    pub hash: String,
    /// SHA-256 of the tokenizer.
    pub tokenizer_sha256: String,
    /// The tokenizer's highest id plus one.
    pub vocab_size: u64,
    /// Files read.
    pub files: u64,
    /// Documents read.
    pub documents: u64,
    /// Documents without text, left out.
    pub empty: u64,
    /// Documents whose text cannot be read, left out: lines with NaN, or with half of a character.
    pub unreadable: u64,
    /// Exact duplicates, dropped.
    pub duplicates: u64,
    /// Clusters of near-duplicates, each of which is wholly in one split.
    pub near_duplicate_clusters: u64,
    /// Documents in these clusters.
    pub near_duplicates: u64,
    /// What is trained on.
    pub train: SplitReport,
    /// What is held back.
    pub validation: SplitReport,
}

/// What a split holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct SplitReport {
    /// Documents.
    pub documents: u64,
    /// Tokens, ends of text counted.
    pub tokens: u64,
    /// Bytes of text.
    pub bytes_of_text: u64,
    /// Bytes of text by tokens.
    pub bytes_per_token: f64,
    /// Of conversations, tokens of answers: those that carry loss.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answer_tokens: Option<u64>,
}

/// The files, and what is known of their documents.
struct Corpus {
    files: Vec<(PathBuf, Stamp)>,
    sources: Vec<TextSource>,
    counts: Counts,
    bytes_of_text: u64,
    assignment: Assignment,
}

/// Makes a token folder; `render` lays out conversations, and `progress` is called as the work advances.
pub fn tokenize(
    settings: &TokenizeSettings,
    render: &RenderChat,
    progress: &(dyn Fn(TokenizeProgress) + Sync),
) -> Result<TokenizeReport> {
    settings.check_share()?;
    let found: Vec<Vec<PathBuf>> = settings
        .sources
        .iter()
        .map(TextsPlace::files)
        .collect::<Result<_>>()?;
    let folder = OutputFolder::begin(&settings.out, settings.force, &inputs(settings, &found))?;
    folder.clear()?;
    // What is wrong with the tokenizer is said before all texts are read.
    let existing = settings.existing()?;
    let corpus = Corpus::read(settings, &found, progress)?;
    let ready = match (existing, &settings.vocabulary) {
        (None, Vocabulary::Train(count)) => {
            corpus.train_tokenizer(*count, settings, folder.path(), progress)?
        }
        (Some(ready), _) => ready,
        (None, Vocabulary::Existing(path)) => settings.read_vocabulary(path)?,
    };
    let encoder = Encoder::new(&ready, render);
    let splits = corpus.write(settings, (&ready, &encoder), folder.path(), progress)?;
    let mut tokenizer_sha256 = String::new();
    for (name, bytes) in &ready.files {
        let file = folder.write(name, bytes)?;
        if *name == vocabulary::TOKENIZER {
            tokenizer_sha256 = file.sha256;
        }
    }
    let report = |split: Split| SplitReport::of(&splits[split as usize]);
    let (train, validation) = (report(Split::Train), report(Split::Validation));
    let header = TokenHeader {
        format_version: match &ready.template {
            Some(_) => MASKED_VERSION,
            None => FORMAT_VERSION,
        },
        tokenizer_sha256: tokenizer_sha256.clone(),
        vocab_size: ready.vocab_size,
        dtype: id_type(&ready)?,
        end_of_text: ready.end_of_text,
        chat_template_sha256: ready.template.as_ref().map(|template| {
            let sources: Vec<&str> = template.sources().collect();
            sha256(sources.join("\0").as_bytes())
        }),
        sources: corpus.sources,
        splits: Split::ALL
            .into_iter()
            .zip(splits)
            .filter(|(_, shards)| !shards.is_empty())
            .collect(),
    };
    let text = header.to_text()? + "\n";
    folder.write(FILE, text.as_bytes())?;
    folder.commit()?;
    Ok(TokenizeReport {
        notes: ready.notes,
        output: settings.out.clone(),
        hash: sha256(text.as_bytes()),
        tokenizer_sha256,
        vocab_size: ready.vocab_size,
        files: corpus.files.len() as u64,
        documents: corpus.counts.documents,
        empty: corpus.counts.empty,
        unreadable: corpus.counts.unreadable,
        duplicates: corpus.assignment.duplicates,
        near_duplicate_clusters: corpus.assignment.clusters,
        near_duplicates: corpus.assignment.clustered,
        train,
        validation,
    })
}

impl TokenizeSettings {
    /// Refuses what is wrong with the output, the tokenizer and the other settings, whatever the texts are.
    pub fn check(&self) -> Result<()> {
        self.check_share()?;
        check_target(&self.out, self.force, &inputs(self, &[]))?;
        self.existing().map(drop)
    }

    fn check_share(&self) -> Result<()> {
        match self.validation {
            found if (0.0..1.0).contains(&found) => Ok(()),
            found => Err(DataError::ValidationShare { found }.into()),
        }
    }

    /// The tokenizer, where it is not made of the texts.
    fn existing(&self) -> Result<Option<Ready>> {
        match &self.vocabulary {
            Vocabulary::Existing(path) => self.read_vocabulary(path).map(Some),
            Vocabulary::Train(_) if self.layout != ChatLayout::None => {
                Err(DataError::NoTemplateYet.into())
            }
            Vocabulary::Train(_) => Ok(None),
        }
    }

    fn read_vocabulary(&self, path: &Path) -> Result<Ready> {
        vocabulary::read(path, self.end_of_text.as_deref(), &self.layout)
    }

    /// By what duplicates of a document are found.
    fn fingerprint(&self, text: &str) -> Result<Option<Fingerprint>> {
        if let DocumentForm::Texts(_) = self.form {
            return Ok(fingerprint(text));
        }
        let conversation = conversation::read(text)?;
        let words = conversation::words(&conversation);
        let found = fingerprint_by(&words, &conversation::said(&conversation));
        let bytes = text.len() as u64;
        Ok(found.map(|found| Fingerprint { bytes, ..found }))
    }
}

/// What the output must not replace: the texts, the tokenizer and the template. `found` are the files of each path.
fn inputs<'a>(settings: &'a TokenizeSettings, found: &'a [Vec<PathBuf>]) -> Vec<&'a Path> {
    let mut inputs: Vec<&Path> = Vec::new();
    for (place, files) in settings.sources.iter().zip(found) {
        match place {
            TextsPlace::Path(path) if path.exists() => inputs.push(path),
            _ => inputs.extend(files.iter().map(PathBuf::as_path)),
        }
    }
    if let Vocabulary::Existing(path) = &settings.vocabulary {
        inputs.push(path);
    }
    if let ChatLayout::File(path) = &settings.layout {
        inputs.push(path);
    }
    inputs
}

fn id_type(ready: &Ready) -> Result<IdType> {
    let vocab_size = ready.vocab_size;
    Ok(
        IdType::of(vocab_size).ok_or_else(|| DataError::LargeVocabulary {
            path: ready.tokenizer.path().to_path_buf(),
            vocab_size,
        })?,
    )
}

impl SplitReport {
    fn of(shards: &[Shard]) -> Self {
        let sum = |value: fn(&Shard) -> u64| shards.iter().map(value).sum::<u64>();
        let (tokens, bytes_of_text) = (sum(|shard| shard.tokens), sum(|shard| shard.bytes_of_text));
        let bytes_per_token = bytes_of_text as f64 / tokens.max(1) as f64;
        let answers = shards.iter().filter_map(|shard| shard.mask.as_ref());
        let answer_tokens = answers.map(|mask| mask.tokens).reduce(|a, b| a + b);
        Self {
            answer_tokens,
            documents: sum(|shard| shard.documents),
            tokens,
            bytes_of_text,
            bytes_per_token,
        }
    }
}

impl Corpus {
    /// The first pass: hashes of files, fingerprints of documents, and which split each goes to.
    fn read(
        settings: &TokenizeSettings,
        found: &[Vec<PathBuf>],
        progress: &(dyn Fn(TokenizeProgress) + Sync),
    ) -> Result<Self> {
        let opened: Vec<Vec<(SourceFile, String)>> = found
            .iter()
            .map(|files| {
                let open = |path: &PathBuf| {
                    settings.form.kind(path)?;
                    let source = SourceFile::open(path)?;
                    let hash = sha256_source(&source)?;
                    Ok((source, hash))
                };
                files.par_iter().map(open).collect::<Result<_>>()
            })
            .collect::<Result<_>>()?;
        let mut sources = Vec::new();
        for (place, files) in settings.sources.iter().zip(&opened) {
            let mut hash = Sha256::new();
            files.iter().for_each(|(_, sha256)| hash.update(sha256));
            sources.push(TextSource {
                path: place.name().to_string_lossy().into_owned(),
                files: files.len() as u64,
                bytes: files.iter().map(|(source, _)| source.len()).sum(),
                sha256: hex(&hash.finalize()),
            });
        }
        let files: Vec<(PathBuf, Stamp)> = opened
            .iter()
            .flatten()
            .map(|(source, _)| (source.path().to_path_buf(), source.stamp()))
            .collect();
        drop(opened);
        progress(TokenizeProgress::Begin(
            "reading",
            sources.iter().map(|source| source.bytes).sum(),
        ));
        let mut bytes_of_text = 0;
        let mut fingerprints = Fingerprints::default();
        let report = |length| progress(TokenizeProgress::Bytes(length));
        let reader = Reader::new(&files, &settings.form, &report);
        let counts = reader.batches(&mut |batch| {
            let found: Vec<Result<Option<Fingerprint>>> = batch
                .par_iter()
                .map(|document| settings.fingerprint(&document.text))
                .collect();
            for document in found.into_iter().filter_map(Result::transpose) {
                let document = document?;
                bytes_of_text += document.bytes;
                fingerprints.add(document);
            }
            Ok(())
        })?;

        let path = || {
            let first = settings.sources.first();
            first.map(TextsPlace::name).unwrap_or_default()
        };
        if fingerprints.distinct.is_empty() {
            return Err(DataError::NoText {
                path: path(),
                empty: counts.empty,
                unreadable: counts.unreadable,
            }
            .into());
        }
        if fingerprints.distinct.len() > u32::MAX as usize {
            return Err(DataError::ManyDocuments { path: path() }.into());
        }
        let assignment = assign(&fingerprints, settings.validation);
        if settings.validation > 0.0 && !assignment.splits.contains(&Some(Split::Validation)) {
            return Err(DataError::OneCluster { path: path() }.into());
        }
        Ok(Self {
            files,
            sources,
            counts,
            bytes_of_text,
            assignment,
        })
    }

    /// A tokenizer of the documents that are trained on.
    fn train_tokenizer(
        &self,
        count: u64,
        settings: &TokenizeSettings,
        scratch: &Path,
        progress: &(dyn Fn(TokenizeProgress) + Sync),
    ) -> Result<Ready> {
        progress(TokenizeProgress::Begin(
            "making the tokenizer",
            self.bytes_of_text.min(MOST_TEXT),
        ));
        let failure = Mutex::new(None);
        let nothing = |_| {};
        let mut reader = Reader::new(&self.files, &settings.form, &nothing);
        let mut splits = self.assignment.splits.iter();
        let mut left = MOST_TEXT;
        let texts = std::iter::from_fn(|| {
            loop {
                let text = match reader.next_document() {
                    Ok(document) => document?.text,
                    Err(error) => {
                        // A poisoned lock would mean that another thread had panicked here.
                        failure
                            .lock()
                            .map(|mut failure| *failure = Some(error))
                            .ok();
                        return None;
                    }
                };
                let split = splits.next()?;
                left = left.checked_sub(text.len() as u64)?;
                progress(TokenizeProgress::Bytes(text.len() as u64));
                if *split == Some(Split::Train) {
                    return Some(text);
                }
            }
        });
        let bytes = self.bytes_of_text;
        let ready = vocabulary::train(
            count,
            bytes,
            texts,
            settings.end_of_text.as_deref(),
            scratch,
        );
        match failure.into_inner() {
            Ok(Some(error)) => Err(error),
            _ => ready,
        }
    }

    /// The last pass: tokens of the documents that are kept, in the order in which they were read.
    fn write(
        &self,
        settings: &TokenizeSettings,
        (ready, encoder): (&Ready, &Encoder),
        folder: &Path,
        progress: &(dyn Fn(TokenizeProgress) + Sync),
    ) -> Result<[Vec<Shard>; 2]> {
        let dtype = id_type(ready)?;
        let mut shards =
            Split::ALL.map(|split| Shards::new(folder, split, dtype, settings.max_shard_size));
        progress(TokenizeProgress::Begin("tokenizing", self.bytes_of_text));
        let mut splits = self.assignment.splits.iter();
        let nothing = |_| {};
        let reader = Reader::new(&self.files, &settings.form, &nothing);
        reader.batches(&mut |batch| {
            // As many as the first pass has seen, unless a file has changed in a way that its stamp does not show.
            let batch: Vec<(ReadDocument, Option<Split>)> = batch
                .into_iter()
                .map(|document| {
                    let split = splits.next().ok_or_else(|| changed(document.path))?;
                    Ok((document, *split))
                })
                .collect::<Result<_>>()?;
            // Each result by itself: of several errors, the first of the file is shown on any number of threads.
            let encoded: Vec<Result<EncodedDocument>> = batch
                .par_iter()
                .map(|(document, split)| match split {
                    None => Ok(EncodedDocument::default()),
                    Some(_) => encoder.encode(document.path, document.place, &document.text),
                })
                .collect();
            for ((document, split), encoded) in batch.iter().zip(encoded) {
                let encoded = encoded?;
                if let Some(split) = split {
                    shards[*split as usize].add(&encoded)?;
                }
                progress(TokenizeProgress::Bytes(document.text.len() as u64));
            }
            Ok(())
        })?;
        let [train, validation] = shards;
        Ok([train.finish()?, validation.finish()?])
    }
}
