//! The programs that PyTorch runs, in this binary: they go into the folder of the run, and their hashes into manifests.

use std::collections::BTreeMap;
use std::path::Path;

use crate::checkpoint::hash::sha256;
use crate::{Error, Result};

/// The program that each process runs.
pub(super) const ENTRY: &str = "train_bam.py";

/// Every file with its name.
const CODE: [(&str, &str); 11] = [
    (ENTRY, include_str!("train_bam.py")),
    ("events.py", include_str!("events.py")),
    ("losses.py", include_str!("losses.py")),
    ("model.py", include_str!("model.py")),
    ("optimiser.py", include_str!("optimiser.py")),
    ("rows.py", include_str!("rows.py")),
    ("schedule.py", include_str!("schedule.py")),
    ("state.py", include_str!("state.py")),
    ("trainer.py", include_str!("trainer.py")),
    (
        "configuration_bam.py",
        include_str!("../../surgery/transformers/configuration_bam.py"),
    ),
    (
        "modeling_bam.py",
        include_str!("../../surgery/transformers/modeling_bam.py"),
    ),
];

/// Writes the files to `folder`.
pub(super) fn write(folder: &Path) -> Result<()> {
    CODE.iter().try_for_each(|(name, text)| {
        let path = folder.join(name);
        std::fs::write(&path, text).map_err(|e| Error::io("write", &path, e))
    })
}

/// Whether one of the files has this name.
pub(super) fn has(name: &str) -> bool {
    CODE.iter().any(|(known, _)| *known == name)
}

/// SHA-256 of each file.
pub(super) fn hashes() -> BTreeMap<String, String> {
    let hash = |(name, text): &(&str, &str)| ((*name).to_owned(), sha256(text.as_bytes()));
    CODE.iter().map(hash).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_of_the_engine_is_embedded() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/train/torch");
        let files = std::fs::read_dir(folder).unwrap();
        let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
        for name in names.filter(|name| name.ends_with(".py")) {
            assert!(CODE.iter().any(|(known, _)| *known == name), "{name}");
        }
    }
}
