//! The record of a stage, by which the next run knows whether anything changed.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::stage::Stage;
use crate::checkpoint::folder::CARD;
use crate::checkpoint::known_hashes;
use crate::checkpoint::manifest::{MANIFEST, Tool};
use crate::checkpoint::single;
use crate::checkpoint::source_file::Stamp;
use crate::checkpoint::version;
use crate::{Error, Result};

/// Version of the records.
const FORMAT_VERSION: u32 = 2;

/// How far a stage came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum State {
    /// It was started; whether it still runs, nobody knows.
    Started,
    /// It ended well.
    Done,
    /// It ended, but not well.
    Failed,
}

/// The record of a stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Record {
    format_version: u32,
    tool: Tool,
    pub(super) state: State,
    command: Vec<String>,
    inputs: BTreeMap<String, Input>,
    outputs: BTreeMap<String, Stamp>,
}

impl Record {
    /// SHA-256 of each file that was read.
    pub(super) fn input_hashes(&self) -> BTreeMap<String, String> {
        self.inputs
            .iter()
            .map(|(path, input)| (path.clone(), input.sha256.clone()))
            .collect()
    }

    /// Whether the stage ended well as it is now.
    pub(super) fn is_done(&self, stage: &Stage) -> bool {
        self.state == State::Done && self.command == line(stage)
    }

    /// Bytes of the outputs of the last run that ended well.
    pub(super) fn output_bytes(&self) -> u64 {
        self.outputs.values().map(|stamp| stamp.length).sum()
    }
}

/// A file that was read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Input {
    stamp: Stamp,
    sha256: String,
}

/// Why a stage must run; none where it need not.
pub(super) type Reason = Option<String>;

/// The records of a work folder.
pub(super) struct Records<'a> {
    work: &'a Path,
    folder: PathBuf,
    /// Whether every input is read again, whatever is known of it.
    verify: bool,
}

impl<'a> Records<'a> {
    /// The records kept in `folder` of the stages that run in `work`; `verify` reads every input, whatever is known of it.
    pub(super) fn new(work: &'a Path, folder: PathBuf, verify: bool) -> Self {
        Self {
            work,
            folder,
            verify,
        }
    }

    /// The record of a stage, if there is one that can be read.
    ///
    /// # Errors
    /// Where another version of this program wrote it.
    pub(super) fn read(&self, stage: &Stage) -> Result<Option<Record>> {
        read(&self.path(stage))
    }

    /// Records that a stage starts.
    pub(super) fn start(&self, stage: &Stage, before: Option<&Record>) -> Result<Record> {
        let record = Record {
            format_version: FORMAT_VERSION,
            tool: Tool::this(),
            state: State::Started,
            command: line(stage),
            inputs: self.inputs(stage, before)?,
            // What it made before is still its own to replace.
            outputs: before
                .map(|before| before.outputs.clone())
                .unwrap_or_default(),
        };
        self.write(stage, &record)?;
        Ok(record)
    }

    /// Records that a stage ended badly.
    pub(super) fn fail(&self, stage: &Stage, mut record: Record) -> Result<()> {
        record.state = State::Failed;
        self.write(stage, &record)
    }

    /// Records that a stage is done.
    pub(super) fn finish(&self, stage: &Stage, mut record: Record) -> Result<()> {
        record.state = State::Done;
        record.outputs = self.outputs(stage)?;
        self.write(stage, &record)
    }

    /// Why the stage must run.
    pub(super) fn reason(&self, stage: &Stage, record: Option<&Record>) -> Result<Reason> {
        let Some(record) = record else {
            return Ok(Some("no run is on record".to_owned()));
        };
        match record.state {
            State::Started => return Ok(Some("its last run did not end".to_owned())),
            State::Failed => return Ok(Some("its last run failed".to_owned())),
            State::Done => {}
        }
        if record.tool != Tool::this() {
            return Ok(Some(format!("version {} made it", record.tool.version)));
        }
        if record.command != line(stage) {
            return Ok(Some("its settings changed".to_owned()));
        }
        if let Some(missing) = stage
            .outputs
            .iter()
            .find(|output| !self.work.join(output).exists())
        {
            return Ok(Some(format!("{} is gone", missing.display())));
        }
        let outputs = self.outputs(stage)?;
        if let Some(path) = difference(&record.outputs, &outputs) {
            return Ok(Some(format!("{path} is not as it was left")));
        }
        let inputs = self.inputs(stage, Some(record))?;
        let now = Record {
            inputs,
            ..record.clone()
        };
        Ok(difference(&record.input_hashes(), &now.input_hashes())
            .map(|path| format!("{path} changed")))
    }

    /// Whether a run of this very stage that was cut short can be resumed: same command line, same inputs.
    pub(super) fn can_resume(&self, stage: &Stage, record: Option<&Record>) -> Result<bool> {
        let Some(record) = record.filter(|record| record.state != State::Done) else {
            return Ok(false);
        };
        Ok(stage.resume.is_some()
            && record.command == line(stage)
            && difference(&record.inputs, &self.inputs(stage, Some(record))?).is_none())
    }

    fn path(&self, stage: &Stage) -> PathBuf {
        place(&self.folder, &stage.name)
    }

    fn write(&self, stage: &Stage, record: &Record) -> Result<()> {
        fs::create_dir_all(&self.folder).map_err(|e| Error::io("create", &self.folder, e))?;
        // Maps with string keys and finite numbers always serialise.
        let text = serde_json::to_string_pretty(record).unwrap_or_default();
        single::write(&self.path(stage), &[text.as_bytes(), b"\n"])
    }

    fn outputs(&self, stage: &Stage) -> Result<BTreeMap<String, Stamp>> {
        let mut found = BTreeMap::new();
        for output in &stage.outputs {
            for path in self.files(output)? {
                found.insert(path.to_string_lossy().into_owned(), self.stamp(&path)?);
            }
        }
        Ok(found)
    }

    /// SHA-256 of each file that a stage has made; those that one of the `readers` has by their stamp are not read again.
    pub(super) fn output_hashes(
        &self,
        stage: &Stage,
        readers: &[Record],
    ) -> Result<BTreeMap<String, String>> {
        let outputs = self.outputs(stage)?.into_iter();
        let hashed = outputs.map(|(path, stamp)| {
            let read = readers.iter().filter_map(|reader| reader.inputs.get(&path));
            let known = read
                .filter(|input| input.stamp == stamp)
                .map(|input| input.sha256.clone())
                .next();
            let sha256 = known.map_or_else(
                || known_hashes::sha256_of(&self.work.join(&path), self.verify),
                Ok,
            )?;
            Ok((path, sha256))
        });
        hashed.collect()
    }

    /// The files that the stage's settings name, with their hashes. A file that `known` has with the same stamp is read
    /// again only to verify it.
    fn inputs(&self, stage: &Stage, known: Option<&Record>) -> Result<BTreeMap<String, Input>> {
        let mut found = BTreeMap::new();
        for input in stage.reads().filter(|place| self.work.join(place).exists()) {
            for path in self.files(Path::new(input))? {
                let name = path.to_string_lossy().into_owned();
                if found.contains_key(&name) {
                    continue;
                }
                let stamp = self.stamp(&path)?;
                let before = known.and_then(|record| record.inputs.get(&name));
                let sha256 = match before.filter(|before| before.stamp == stamp && !self.verify) {
                    Some(before) => before.sha256.clone(),
                    // Another work folder, or a surgery, may have taken it before.
                    None => known_hashes::sha256_of(&self.work.join(&path), self.verify)?,
                };
                found.insert(name, Input { stamp, sha256 });
            }
        }
        Ok(found)
    }

    fn stamp(&self, path: &Path) -> Result<Stamp> {
        let path = self.work.join(path);
        fs::metadata(&path)
            .map(|metadata| Stamp::of(&metadata))
            .map_err(|e| Error::io("read", &path, e))
    }

    /// The file itself, or the files below a folder but hidden ones.
    pub(super) fn files(&self, path: &Path) -> Result<Vec<PathBuf>> {
        let full = self.work.join(path);
        if !full.is_dir() {
            return Ok(if full.is_file() {
                vec![path.to_path_buf()]
            } else {
                Vec::new()
            });
        }
        let failed = |e| Error::io("list", &full, e);
        let mut found = Vec::new();
        for entry in fs::read_dir(&full).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let is_loop = entry.file_type().map_err(failed)?.is_symlink() && entry.path().is_dir();
            if !entry.file_name().to_string_lossy().starts_with('.') && !is_loop {
                found.extend(self.files(&path.join(entry.file_name()))?);
            }
        }
        found.sort();
        Ok(found)
    }
}

/// How far the stage of this name came, by the records in `folder`.
pub(super) fn state(folder: &Path, stage: &str) -> Result<Option<State>> {
    Ok(read(&place(folder, stage))?.map(|record| record.state))
}

fn place(folder: &Path, stage: &str) -> PathBuf {
    folder.join(format!("{stage}.json"))
}

/// A record that is broken is as good as none; one of an unknown version may say what this program must not undo.
fn read(path: &Path) -> Result<Option<Record>> {
    let Some(value) = fs::read(path)
        .ok()
        .and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok())
    else {
        return Ok(None);
    };
    let key = "format_version";
    if let Some(found) = value.get(key) {
        version::check(path, key, Some(found), u64::from(FORMAT_VERSION))?;
    }
    Ok(serde_json::from_value(value).ok())
}

/// The command line, and where its result goes.
fn line(stage: &Stage) -> Vec<String> {
    let stdout = stage
        .stdout
        .iter()
        .map(|file| format!("> {}", file.display()));
    stage.command.iter().cloned().chain(stdout).collect()
}

/// The first path by which two lists differ. People edit the cards of checkpoints, and no stage runs again for that.
fn difference<T: PartialEq>(a: &BTreeMap<String, T>, b: &BTreeMap<String, T>) -> Option<String> {
    let is_card = |path: &str| {
        let folder = path.strip_suffix(CARD);
        folder.is_some_and(|folder| a.contains_key(&format!("{folder}{MANIFEST}")))
    };
    let other = |path: &&String| a.get(*path) != b.get(*path) && !is_card(path);
    a.keys().chain(b.keys()).find(other).cloned()
}
