//! What a run refuses before its first step: settings, data, a folder that holds something else.

use std::collections::BTreeSet;

use super::error::TrainError;
use super::event::{Event, Watcher};
use super::folder::{begun_at, check_idle, checkpoints_in};
use super::machine::Memory;
use super::measure::HeldBack;
use super::output_state::OutputState;
use super::parent::parent_files;
use super::request::{EngineRequest, Request, TorchDevice};
use super::resume::{Candidates, SameRun};
use super::select::trained_names;
use super::session::ROWS;
use super::torch::{Module, TorchError};
use crate::Result;
use crate::checkpoint::hash::sha256_file;
use crate::checkpoint::manifest::DataRecord;
use crate::checkpoint::output::check_target;
use crate::checkpoint::single::check_kind;
use crate::data::{Mixture, Split, TokenFolder};
use crate::family::{Architecture, Config};
use crate::model::{WorkLimits, has_kernels};

/// Refuses what a run would refuse before its first step, and touches nothing; returns the steps that it would not take
/// again. Reads weights only where a run would resume, for their hashes.
pub fn check(request: &mut Request) -> Result<u64> {
    let architecture = Architecture::of(&Config::read(&request.checkpoint)?)?;
    architecture.match_checkpoint(&request.checkpoint)?;
    check_settings(request, &architecture)?;
    open_data(request, &architecture, &mut |_: &Event| {})?;
    let (out, operation) = (&request.out, &request.operation);
    let sources = [request.checkpoint.as_path()];
    if !operation.resume {
        check_target(out, operation.force, &sources)?;
        let (folder, _) = begun_at(out, false, operation.force)?;
        return check_idle(&folder).map(|()| 0);
    }
    let same_run = SameRun {
        settings: &request.settings,
        json: &request.settings.to_json(),
        checkpoint: &request.checkpoint,
        parent: &parent_files(
            &request.checkpoint,
            request.origin.as_deref(),
            &architecture,
        )?,
    };
    let found = OutputState::of(out, &same_run)?;
    if found == OutputState::Complete {
        return Ok(request.settings.steps);
    }
    check_target(out, found == OutputState::Shorter, &sources)?;
    let (folder, _) = begun_at(out, true, false)?;
    check_idle(&folder)?;
    let candidates = Candidates::of(&folder, checkpoints_in(&folder)?, &same_run)?;
    Ok(candidates.newest.map_or(0, |newest| newest.position.step))
}

/// Refuses settings out of their ranges, and a run that cannot fit into memory; returns what trains and what the run takes.
pub(super) fn check_settings(
    request: &Request,
    architecture: &Architecture,
) -> Result<(BTreeSet<String>, Memory)> {
    let settings = &request.settings;
    settings.check()?;
    if let Some(path) = &request.operation.dump_rows {
        // Rows are added to what an earlier run has left.
        check_kind(path, "file of rows", &|beginning: &[u8]| {
            beginning.is_empty() || beginning.starts_with(ROWS)
        })?;
    }
    if let Some(longest) = architecture
        .max_position_embeddings
        .filter(|longest| settings.seq as u64 > *longest)
    {
        let seq = settings.seq;
        return Err(TrainError::LongRows { seq, longest }.into());
    }
    let names = trained_names(&request.checkpoint, architecture, settings)?;
    let checkpointing = request.operation.gradient_checkpointing;
    // What a GPU has left only its driver knows.
    let memory = match &request.engine {
        EngineRequest::Native(device) => {
            let has_kernels = has_kernels(device, settings.dtype.stored());
            let limits = (!has_kernels).then(|| WorkLimits::of(!device.is_cpu()));
            let memory = Memory::predict(architecture, &names, settings, limits, checkpointing)?;
            if device.is_cpu() {
                memory.check(1)?;
            }
            memory
        }
        EngineRequest::Torch(torch) => {
            let (ranks, batch) = (torch.ranks(), settings.batch);
            if (batch as u64) < ranks {
                return Err(TorchError::FewRows { ranks, batch }.into());
            }
            Module::of(&request.checkpoint, architecture)?;
            let memory = Memory::per_rank(architecture, &names, settings, ranks, checkpointing)?;
            if torch.device == TorchDevice::Cpu {
                memory.check(torch.processes)?;
            }
            memory
        }
    };
    Ok((names, memory))
}

/// Opens the token folders, and checks that they are for this model.
pub(super) fn open_data(
    request: &mut Request,
    architecture: &Architecture,
    watch: Watcher,
) -> Result<(Mixture, Vec<HeldBack>)> {
    let settings = &mut request.settings;
    let tokenizer = request.checkpoint.join("tokenizer.json");
    let tokenizer = tokenizer
        .exists()
        .then(|| sha256_file(&tokenizer))
        .transpose()?;
    let (mut domains, mut held_back) = (Vec::new(), Vec::new());
    settings.data.clear();
    for (name, path, weight) in &request.data {
        let folder = TokenFolder::open(path)?;
        if let Some((sha256, _)) = &tokenizer {
            folder.check_tokenizer(sha256, &request.checkpoint)?;
        }
        if folder.vocab_size() > architecture.vocab_size {
            return Err(TrainError::LargeVocabulary {
                path: path.clone(),
                expected: architecture.vocab_size,
                found: folder.vocab_size(),
            }
            .into());
        }
        folder.check_answers(Split::Train)?;
        Split::ALL
            .iter()
            .try_for_each(|split| folder.check_content(*split))?;
        settings.data.push(DataRecord {
            name: name.clone(),
            weight: *weight,
            sha256: folder.hash().to_owned(),
        });
        domains.push((name.clone(), folder, *weight));
    }
    let mixture = Mixture::new(domains, settings.rng_seed, settings.seq, Split::Train)?;
    if request.operation.validate_every > 0 {
        for (name, path, _) in &request.data {
            let most = request.operation.validate_rows;
            match HeldBack::of(name, TokenFolder::open(path)?, settings, most)? {
                Some(domain) => held_back.push(domain),
                None => watch(&Event::Note(format!(
                    "{}: no row of {} tokens with one to predict is held back, so `{name}` is not validated",
                    path.display(),
                    settings.seq
                ))),
            }
        }
    }
    Ok((mixture, held_back))
}
