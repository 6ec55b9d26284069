//! The folder of the engine within the folder of a run: what is in it, and what may be.

use std::fs;
use std::path::Path;

use super::code;
use super::error::TorchError;
use crate::train::state::is_state_file;
use crate::{Error, Result};

/// Names within the folder of the engine.
pub(super) const PLAN: &str = "plan.json";
pub(super) const STOP: &str = "stop";
pub(super) const OUTPUT: &str = "output.log";
pub(super) const SCRATCH: &str = "state";
/// Everything in the folder of the engine but programs and logs.
const OWN: [&str; 3] = [PLAN, STOP, SCRATCH];
/// What the name of a state ends with that is being written.
const PART: &str = ".part";

/// Refuses a folder of the engine with files that this program has not written: Python might take them for its modules.
pub(super) fn check_content(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(|e| Error::io("list", folder, e))? {
        let entry = entry.map_err(|e| Error::io("list", folder, e))?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let is_log = name.starts_with("output") && name.ends_with(".log");
        if !is_log && !OWN.contains(&&*name) && !code::has(&name) {
            return Err(TorchError::Foreign { path: entry.path() }.into());
        }
    }
    Ok(())
}

/// Removes the states that processes have left in `scratch`, whole or not.
pub(super) fn remove_states(scratch: &Path) -> Result<()> {
    for entry in fs::read_dir(scratch).map_err(|e| Error::io("list", scratch, e))? {
        let entry = entry.map_err(|e| Error::io("list", scratch, e))?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if is_state_file(&name) || is_state_file(name.trim_end_matches(PART)) {
            remove_file(&entry.path())?;
        }
    }
    Ok(())
}

/// Removes a file, if it is there.
pub(super) fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", path, e)),
        _ => Ok(()),
    }
}
