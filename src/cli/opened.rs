//! Checkpoints to compute with. A weight file that describes its model (GGUF) is converted once, as `convert` does, to a
//! folder in this program's cache; everything after that reads a folder like any other.

use std::path::{Path, PathBuf};

use bam_convert::checkpoint::filesystem::temporary_folder;
use bam_convert::checkpoint::hash::sha256;
use bam_convert::checkpoint::{Checkpoint, known_hashes, views};
use bam_convert::surgery::execute::{Content, OutputFile, Target, execute, outline, work_length};
use bam_convert::surgery::{Plan, convert};
use bam_convert::{Error, Result, table, threads};
use tempfile::TempDir;

use super::printer::Printer;

/// The folder in the cache with the converted checkpoints.
const CONVERTED: &str = "converted";
/// Hexadecimal digits that tell files apart.
const DIGITS: usize = 16;
/// Largest weight file of an outline, in bytes.
const MAX_SHARD: u64 = 5_000_000_000;

/// A checkpoint folder, and where its model comes from.
#[derive(Debug)]
pub struct Opened {
    folder: PathBuf,
    typed: PathBuf,
    is_converted: bool,
    /// Deleted with this value.
    _temporary: Option<TempDir>,
}

impl Opened {
    /// The checkpoint at `path`, converted if it is a file that describes its model.
    ///
    /// # Errors
    /// As `convert`, where the file must be converted.
    pub fn whole(path: &Path, printer: &Printer) -> Result<Self> {
        Self::converted(path, conversion(path)?, printer)
    }

    /// As [`whole`](Self::whole), and a base with adapters is converted, too: for programs that read its files.
    ///
    /// # Errors
    /// As [`whole`](Self::whole).
    pub fn stored(path: &Path, printer: &Printer) -> Result<Self> {
        Self::converted(path, storing(path)?, printer)
    }

    fn converted(path: &Path, conversion: Conversion, printer: &Printer) -> Result<Self> {
        let Some((plan, files)) = conversion else {
            return Ok(Self::as_typed(path));
        };
        let (folder, temporary) = match cached(path, &plan, &files)? {
            Some(folder) => (folder, None),
            None => {
                let temporary = temporary_folder("bam-convert-")?;
                (temporary.path().join(name(path)), Some(temporary))
            }
        };
        if !folder.is_dir() {
            write(path, (&plan, &files), &folder, printer)?;
        }
        Ok(Self {
            folder,
            typed: path.to_path_buf(),
            is_converted: true,
            _temporary: temporary,
        })
    }

    /// The outline of the checkpoint at `path`: for estimates, which read no weights.
    ///
    /// # Errors
    /// As [`whole`](Self::whole).
    pub fn outline(path: &Path, printer: &Printer) -> Result<Self> {
        Self::outlined(path, conversion(path)?, printer)
    }

    /// The outline of what [`stored`](Self::stored) would make.
    ///
    /// # Errors
    /// As [`whole`](Self::whole).
    pub fn stored_outline(path: &Path, printer: &Printer) -> Result<Self> {
        Self::outlined(path, storing(path)?, printer)
    }

    fn outlined(path: &Path, conversion: Conversion, printer: &Printer) -> Result<Self> {
        let Some((plan, files)) = conversion else {
            return Ok(Self::as_typed(path));
        };
        let kept = cached(path, &plan, &files)?;
        if !kept.is_some_and(|folder| folder.is_dir()) {
            printer.note(&format!(
                " note: {} will be converted once, which takes {} of disk",
                path.display(),
                table::bytes(plan.data_length())
            ));
        }
        let temporary = temporary_folder("bam-convert-")?;
        let folder = temporary.path().join(name(path));
        outline(&plan, &files, &folder, MAX_SHARD)?;
        Ok(Self {
            folder,
            typed: path.to_path_buf(),
            is_converted: true,
            _temporary: Some(temporary),
        })
    }

    fn as_typed(path: &Path) -> Self {
        Self {
            folder: path.to_path_buf(),
            typed: path.to_path_buf(),
            is_converted: false,
            _temporary: None,
        }
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The path as it was typed.
    pub fn typed(&self) -> &Path {
        &self.typed
    }

    /// The file that the folder was converted from.
    pub fn origin(&self) -> Option<&Path> {
        self.is_converted.then_some(self.typed.as_path())
    }
}

/// Makes the outline of what [`Opened::stored`] converts at `folder`; false for every other checkpoint.
///
/// # Errors
/// As [`Opened::whole`].
pub fn outline_at(path: &Path, folder: &Path) -> Result<bool> {
    match storing(path)? {
        Some((plan, files)) => outline(&plan, &files, folder, MAX_SHARD).map(|_| true),
        None => Ok(false),
    }
}

/// The plan of a conversion, where one is needed.
type Conversion = Option<(Plan, Vec<OutputFile>)>;

/// The plan that makes a folder of a file that describes its model, or of a base with adapters; none for every other
/// checkpoint.
fn storing(path: &Path) -> Result<Conversion> {
    if views::of(path).is_some() {
        return convert::plan(path, None).map(Some);
    }
    conversion(path)
}

/// The plan that makes a folder of a file that describes its model; none for every other checkpoint.
fn conversion(path: &Path) -> Result<Conversion> {
    if path.join("config.json").exists() {
        return Ok(None);
    }
    // Whoever reads the checkpoint says better what is wrong with it.
    let describes = Checkpoint::open(path).is_ok_and(|checkpoint| checkpoint.described.is_some());
    describes.then(|| convert::plan(path, None)).transpose()
}

/// Where a converted checkpoint is kept: another place for each state of the file, each version of this program, and each
/// meaning that a format file gives it. None where there is no cache.
fn cached(path: &Path, plan: &Plan, files: &[OutputFile]) -> Result<Option<PathBuf>> {
    let Some(cache) = known_hashes::cache_folder() else {
        return Ok(None);
    };
    let real = |path: &PathBuf| path.canonicalize().map_err(|e| Error::io("find", path, e));
    let places = views::places(path);
    let place: Vec<PathBuf> = places.iter().map(real).collect::<Result<_>>()?;
    let sources = plan.sources.iter();
    let sources = sources.flat_map(|source| source.checkpoint.all_files());
    let stamps: Vec<_> = sources.map(|file| file.stamp()).collect();
    let tensors = plan.tensors.iter();
    let tensors: Vec<_> = tensors
        .map(|tensor| (&tensor.layout.name, &tensor.expression))
        .collect();
    let texts: Vec<String> = files.iter().filter_map(text).map(sha256).collect();
    let version = env!("CARGO_PKG_VERSION");
    let identity = format!("{version} {place:?} {stamps:?} {tensors:?} {texts:?}");
    let key = sha256(identity.as_bytes());
    let folder = cache.join(CONVERTED).join(&key[..DIGITS]);
    Ok(Some(folder.join(name(path))))
}

/// What a file of the output holds, if this program makes it up.
fn text(file: &OutputFile) -> Option<&[u8]> {
    match &file.content {
        Content::Bytes(bytes) | Content::Editable(bytes) => Some(bytes),
        Content::CopyOf(_) => None,
    }
}

/// The name of the model, as its file or folder has it.
fn name(path: &Path) -> PathBuf {
    let name = if path.is_dir() {
        path.file_name()
    } else {
        path.file_stem()
    };
    name.map_or_else(|| "model".into(), PathBuf::from)
}

fn write(
    path: &Path,
    (plan, files): (&Plan, &[OutputFile]),
    folder: &Path,
    printer: &Printer,
) -> Result<()> {
    if let Some(parent) = folder.parent() {
        std::fs::create_dir_all(parent).map_err(|e| {
            Error::io("create", parent, e)
                .with_hint("let XDG_CACHE_HOME name a folder that you can write to")
        })?;
    }
    printer.note(&format!(
        " note: {} is converted once, to {}: {}",
        path.display(),
        folder.display(),
        table::bytes(plan.data_length())
    ));
    let bar = printer.bytes_bar(work_length(plan), "converting");
    let target = Target {
        threads: threads::count(),
        progress: &|bytes| bar.inc(bytes),
        ..Target::new(folder)
    };
    let written = execute(plan, files, &target);
    bar.finish_and_clear();
    match written {
        Ok(_) => Ok(()),
        // Another process may have been faster.
        Err(_) if folder.is_dir() => Ok(()),
        Err(error) => Err(error),
    }
}
