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
/// What the names of files end with that Python can import or run.
const CODE_ENDS: [&str; 6] = [".py", ".pyc", ".so", ".pyd", ".zip", ".pth"];
/// What the name of a state ends with that is being written.
const PART: &str = ".part";

/// Refuses a folder of the engine with code that this program has not written: Python might take it for its modules.
///
/// Other files may be there: killed runs, kernels and file systems leave some.
pub(super) fn check_content(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(|e| Error::io("list", folder, e))? {
        let entry = entry.map_err(|e| Error::io("list", folder, e))?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let kind = entry
            .file_type()
            .map_err(|e| Error::io("read", entry.path(), e))?;
        let is_ours = name == SCRATCH || code::has(&name);
        let is_code =
            kind.is_dir() || kind.is_symlink() || CODE_ENDS.iter().any(|end| name.ends_with(end));
        if is_code && !is_ours {
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
