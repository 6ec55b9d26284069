//! `validate`: is this checkpoint what its files say it is?

use std::path::{Path, PathBuf};

use super::report::{FindingPlace, ValidationReport};
use super::subject::{Subject, ValidateOptions};
use super::{manifest, mixture, numbers, replay, tensors, tokenizer};
use crate::checkpoint::folder::{Checkpoint, INDEX, SINGLE};
use crate::checkpoint::header;
use crate::checkpoint::manifest::Manifest;
use crate::checkpoint::source_file::SourceFile;
use crate::family::{Architecture, Config, ExpertLayout, Family, leftover_quantisation};
use crate::table;
use crate::{Error, Result};

/// Checks a checkpoint folder, or a weight file of any format.
///
/// Whatever is wrong with it is a finding, and the checks after it still run where they can.
///
/// # Errors
/// The machine fails (a path that does not exist, an unreadable disk), or a file changes while it is read. Or
/// `options.against` names more folders than the manifest has sources.
///
/// ```
/// use bam_convert::verify::{ValidateOptions, validate};
///
/// let options = ValidateOptions::default();
/// let report = validate("fixtures/llama/seed".as_ref(), &options)?;
/// assert_eq!(report.faults(), 0);
/// # Ok::<(), bam_convert::Error>(())
/// ```
pub fn validate(path: &Path, options: &ValidateOptions) -> Result<ValidationReport> {
    std::fs::metadata(path).map_err(|e| Error::io("open", path, e))?;
    let mut report = ValidationReport::new(path);
    let mut subject = Subject {
        path,
        checkpoint: None,
        config: None,
        architecture: None,
        manifest: None,
        has_other_layout: false,
    };
    headers(&mut report, &mut subject)?;
    index(&mut report, &subject)?;
    config(&mut report, &mut subject)?;
    let stored = layout(&mut report, &mut subject)?;
    tensors::check(&mut report, &subject)?;
    numbers::check(&mut report, &subject, options)?;
    tokenizer::check(&mut report, &subject)?;
    mixture::check(&mut report, &subject)?;
    if stored.is_some() {
        // The manifest speaks of the tensors as they are stored.
        subject.checkpoint = stored;
    }
    manifest::check(&mut report, &mut subject, options)?;
    if let Some(given) = options.against {
        replay::check(&mut report, &subject, given, options)?;
    }
    if let Some(checkpoint) = &subject.checkpoint {
        checkpoint.check_unchanged()?;
    }
    Ok(report)
}

/// Bytes that [`validate`] will check, as far as they are known beforehand.
pub fn work_length(path: &Path, options: &ValidateOptions) -> u64 {
    let data = Checkpoint::open(path).map_or(0, |checkpoint| checkpoint.data_length());
    let Ok(Some(manifest)) = Manifest::read(path) else {
        return data;
    };
    let files: u64 = manifest
        .files
        .iter()
        .fold(0, |sum, file| sum.saturating_add(file.size));
    let replayed = match options.against {
        Some(_) => manifest
            .sources
            .iter()
            .flat_map(|source| &source.files)
            .fold(data, |sum, f| sum.saturating_add(f.size)),
        None => 0,
    };
    data.saturating_add(files).saturating_add(replayed)
}

/// Opens the weights; where that fails, looks at each weight file alone, so that every broken one is named.
fn headers(report: &mut ValidationReport, subject: &mut Subject) -> Result<()> {
    let mut check = report.check("headers");
    match Checkpoint::open(subject.path) {
        Ok(checkpoint) => {
            let [files, tensors] =
                [checkpoint.files.len(), checkpoint.tensors.len()].map(|count| count as u64);
            let size = table::bytes(checkpoint.data_length());
            if tensors == 0 {
                check.fault(FindingPlace::default(), "no tensors");
            }
            subject.checkpoint = Some(checkpoint);
            check.done(format!(
                "{}, {}, {size}",
                table::counted(files, "file"),
                table::counted(tensors, "tensor")
            ));
        }
        Err(error) => {
            let mut alone = 0;
            if subject.is_folder() {
                for path in safetensors_in(subject.path)? {
                    alone += 1;
                    if let Err(error) =
                        SourceFile::open(&path).and_then(|file| header::read(&file, 0))
                    {
                        check.fault_of(error)?;
                    }
                }
            }
            // The files are sound one by one: what is wrong is how they go together.
            if !check.has_faults() {
                check.fault_of(error)?;
            }
            check.done(format!(
                "{}; the tensors are not checked further",
                table::counted(alone as u64, "file")
            ));
        }
    }
    Ok(())
}

fn safetensors_in(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(|e| Error::io("list", folder, e))? {
        let path = entry.map_err(|e| Error::io("list", folder, e))?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "safetensors")
        {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

/// What an index says beyond what opening has compared: the total, the names of the shards.
fn index(report: &mut ValidationReport, subject: &Subject) -> Result<()> {
    let Some(checkpoint) = &subject.checkpoint else {
        report.skip("index", "the weights could not be opened");
        return Ok(());
    };
    let Some(folder) = checkpoint.folder() else {
        report.skip("index", "a single file");
        return Ok(());
    };
    let names: Vec<&str> = checkpoint
        .files
        .iter()
        .filter_map(|file| file.path().file_name().and_then(|name| name.to_str()))
        .collect();
    if !folder.join(INDEX).is_file() {
        if names.len() < 2 {
            report.skip("index", "one weight file needs none");
        } else {
            let mut check = report.check("index");
            check.warn(
                FindingPlace::file(INDEX),
                "is missing: most programs do not find shards without it",
            );
            check.done(format!("{} shards without an index", names.len()));
        }
        return Ok(());
    }
    let mut check = report.check("index");
    let held = checkpoint.data_length();
    match checkpoint.index_total_size {
        Some(total) if total != held => {
            let problem = format!("expected the size of the tensors, {held} bytes, found {total}");
            check.warn(FindingPlace::key(INDEX, "metadata.total_size"), problem);
        }
        None => check.warn(
            FindingPlace::key(INDEX, "metadata.total_size"),
            format!("expected {held}, found no number"),
        ),
        Some(_) => {}
    }
    let count = names.len();
    let usual = |number: usize| format!("model-{number:05}-of-{count:05}.safetensors");
    for (number, name) in names.iter().enumerate() {
        if *name != usual(number + 1) && !(count == 1 && *name == SINGLE) {
            check.warn(
                FindingPlace::file(name),
                format!("expected the name {}", usual(number + 1)),
            );
        }
    }
    let tensors = checkpoint.tensors.len() as u64;
    check.done(format!(
        "{} in {}, both ways",
        table::counted(tensors, "tensor"),
        table::counted(count as u64, "shard")
    ));
    Ok(())
}

/// Reads the configuration and what it says.
fn config(report: &mut ValidationReport, subject: &mut Subject) -> Result<()> {
    if !subject.is_folder() {
        report.skip("config", "a single file");
        return Ok(());
    }
    if let Some(described) = subject.described()
        && !subject.path.join("config.json").exists()
    {
        report.skip("config", format!("the {} describes itself", described.name));
        return Ok(());
    }
    let mut check = report.check("config");
    let config = match Config::read(subject.path) {
        Ok(config) => config,
        Err(error) => {
            check.fault_of(error)?;
            check.done("config.json");
            return Ok(());
        }
    };
    let family = config
        .language_model()
        .and_then(|config| Family::of(&config));
    let family = family.map(|family| family.name.clone());
    let detail = match (family, Architecture::of(&config)) {
        (Ok(family), Ok(a)) => {
            if let Err(error) = a.check_computable(&config) {
                check.fault_of(error)?;
            }
            let detail = format!(
                "{family}, {}, hidden size {}, {} heads, {} key-value heads, vocabulary {}",
                table::counted(a.num_layers, "layer"),
                a.hidden_size,
                a.num_heads,
                a.num_kv_heads,
                a.vocab_size
            );
            subject.architecture = Some(a);
            detail
        }
        (Ok(family), Err(error)) => {
            check.fault_of(error)?;
            family
        }
        // Another program may know it: the checks that need no names still count.
        (Err(error), _) if config.model_type().is_ok() => {
            check.warning_of(error)?;
            format!(
                "model_type \"{}\", a family that is not known here",
                config.model_type().unwrap_or_default()
            )
        }
        (Err(error), _) => {
            check.fault_of(error)?;
            "config.json".to_owned()
        }
    };
    let leftover = subject
        .checkpoint
        .as_ref()
        .and_then(|checkpoint| leftover_quantisation(&config, checkpoint));
    if let Some(key) = leftover {
        check.warn(
            FindingPlace::key("config.json", key),
            "describes quantised weights, but the weights are plain numbers",
        );
    }
    subject.config = Some(config);
    check.done(detail);
    Ok(())
}

/// Warns of tensors that are not stored under their usual names: all experts of a layer in one, or the one matrix of a
/// tied model as its head. The checks after this one see the usual names, and each projection under a name of its own. Returns
/// the checkpoint as it is stored.
fn layout(report: &mut ValidationReport, subject: &mut Subject) -> Result<Option<Checkpoint>> {
    let (Some(architecture), Some(checkpoint)) = (&subject.architecture, &subject.checkpoint)
    else {
        return Ok(None);
    };
    if tensors::specs_of(checkpoint, architecture)
        .ok()
        .flatten()
        .is_none()
    {
        return Ok(None);
    }
    let fused = architecture.expert_layout(checkpoint)? == ExpertLayout::Fused;
    let head = architecture.only_head(checkpoint)?;
    let is_usual = !fused && head.is_none();
    if is_usual && !architecture.has_other_names()? {
        return Ok(None);
    }
    let read = architecture.as_read(Checkpoint::open(subject.path)?);
    if let (true, Ok(_)) = (is_usual, &read) {
        return Ok(read
            .ok()
            .and_then(|apart| subject.checkpoint.replace(apart)));
    }
    let mut check = report.check("layout");
    if fused {
        let problem = "all experts of a layer are in one tensor: transformers 4 and most other programs find none; \
                       `convert --layout classic` takes them apart";
        check.warn(FindingPlace::default(), problem);
    }
    if let Some(head) = head {
        let problem = "is the one matrix of a tied model, which transformers 4 and most other programs look for under the \
                       name of the input embedding; `merge --model` stores it there";
        check.warn(FindingPlace::tensor(&head), problem);
    }
    let stored = match read {
        Ok(apart) => subject.checkpoint.replace(apart),
        Err(error) => {
            check.fault_of(error)?;
            subject.has_other_layout = true;
            None
        }
    };
    check.done("as transformers 5 reads it");
    Ok(stored)
}
