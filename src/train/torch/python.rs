//! The Python that runs PyTorch: which one, and what it has.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::code;
use super::error::TorchError;
use super::events::{MARK, Probe, TorchEvent};
use super::process::last_lines;
use crate::checkpoint::filesystem::temporary_folder;
use crate::{Error, Result};

/// Longest time that Python may take to say what it has. Importing torch takes a minute on a slow network file system.
const PATIENCE: Duration = Duration::from_secs(180);
/// The Python that the search path has.
const PYTHON: &str = "python3";

/// The Python that is meant where none is named: the active virtual environment's, else `python3`.
pub fn default_python() -> PathBuf {
    let environment = std::env::var_os("VIRTUAL_ENV").filter(|folder| !folder.is_empty());
    match environment {
        Some(folder) => Path::new(&folder).join("bin/python"),
        None => PYTHON.into(),
    }
}

/// What the libraries of a Python are, and which GPUs they find.
///
/// # Errors
/// A Python that cannot be started, and one whose libraries are missing or too old for the engine.
pub fn probe(python: &Path) -> Result<Probe> {
    let folder = temporary_folder("bam-convert-")?;
    code::write(folder.path())?;
    let (printed, said) = (folder.path().join("stdout"), folder.path().join("stderr"));
    let create =
        |path: &Path| std::fs::File::create(path).map_err(|e| Error::io("create", path, e));
    let mut command = Command::new(python);
    command
        .arg(folder.path().join(code::ENTRY))
        .arg("--probe")
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .stdin(Stdio::null())
        .stdout(create(&printed)?)
        .stderr(create(&said)?);
    let mut child = command.spawn().map_err(|source| TorchError::NoPython {
        python: python.to_path_buf(),
        source,
    })?;
    let began = Instant::now();
    while matches!(child.try_wait(), Ok(None)) {
        if began.elapsed() > PATIENCE {
            // It may have ended just now, which is as good.
            let _ = child.kill();
            let _ = child.wait();
            break;
        }
        sleep(Duration::from_millis(10));
    }
    let text = std::fs::read(&printed).map_err(|e| Error::io("read", &printed, e))?;
    let lines = text.split(|byte| *byte == b'\n');
    let mut events = lines.filter_map(|line| line.strip_prefix(&[MARK]));
    match events.find_map(|event| serde_json::from_slice(event).ok()) {
        Some(TorchEvent::Probe(probe)) => Ok(probe),
        Some(TorchEvent::Failed(failure)) => Err(TorchError::Unfit {
            python: python.to_path_buf(),
            message: failure.message,
            install: failure.install,
        }
        .into()),
        _ => Err(TorchError::NoAnswer {
            python: python.to_path_buf(),
            said: last_lines(&said),
        }
        .into()),
    }
}
