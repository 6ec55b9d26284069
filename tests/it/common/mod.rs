//! What the integration tests share: running the built binary, reading and writing checkpoints with the
//! `safetensors` crate, and arithmetic that owes nothing to `src/`.

#![allow(
    dead_code,
    unused_imports,
    unused_macros,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods
)]

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use bam_convert::family::families;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use sha2::{Digest, Sha256};

/// Runs `bam-convert` with arguments of any mix of text and paths.
macro_rules! bam {
    ($($argument:expr),* $(,)?) => {
        $crate::common::run([$(std::ffi::OsStr::new(&$argument).to_owned()),*])
    };
}
pub(crate) use bam;

/// Says in the output of a test what it leaves out on this machine.
#[allow(clippy::print_stderr)]
pub fn note(text: &str) {
    eprintln!("note: {text}");
}

/// The built binary.
pub fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_bam-convert"))
}

/// A file or folder of `fixtures/`.
pub fn fixture(path: impl AsRef<Path>) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures")
        .join(path)
}

/// The formats of mixtures of other programs, by name; each has a fixture in `fixtures/mixtures`.
pub fn stock_mixtures() -> impl Iterator<Item = &'static str> {
    let mixtures = families().unwrap().iter().filter(|one| one.is_mixture());
    let names = mixtures.map(|one| one.name.as_str());
    names.filter(|name| *name != "bam")
}

/// What a run of the binary left.
#[derive(Debug)]
pub struct Run {
    pub command: String,
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// Runs the binary to its end.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> Run {
    let mut command = Command::new(binary());
    // Hashes of large files are remembered there, and not in the home of whoever runs the tests.
    command
        .args(arguments)
        .env("XDG_CACHE_HOME", env!("CARGO_TARGET_TMPDIR"));
    // Nothing that a test runs asks a Hub that it has not started.
    command.env("HF_HUB_OFFLINE", "1");
    finish(command)
}

/// `validate FOLDER --against` the sources that its manifest records, each named: fixtures are no neighbours of outputs.
pub fn against(folder: impl AsRef<Path>) -> Run {
    let folder = folder.as_ref();
    let manifest = read_json(folder.join("bam-manifest.json"));
    let sources = manifest["sources"].as_array().unwrap().iter();
    let places = sources.map(|source| folder.join(source["path"].as_str().unwrap()));
    let begin = ["validate".into(), folder.into(), "--against".into()];
    run(begin.into_iter().chain(places.map(PathBuf::into_os_string)))
}

/// A command of the binary in the folder `work`, which has the only cache and home that it knows, with a Hub at `url`. Its
/// time-outs are short, because a connection that a test stops never continues.
pub fn on_hub(work: &Path, url: &str, token: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command
        .args(arguments)
        .current_dir(work)
        .env_clear()
        .env("HF_ENDPOINT", url)
        .env("HF_TOKEN", token);
    command
        .env("HOME", work)
        .env("HF_HOME", work.join("hf"))
        .env("XDG_CACHE_HOME", work.join("cache"));
    command
        .env("HF_HUB_DOWNLOAD_TIMEOUT", "1")
        .env("HF_HUB_ETAG_TIMEOUT", "1");
    command
}

/// Runs any command to its end.
pub fn finish(mut command: Command) -> Run {
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().expect("the command starts");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Run {
        command: format!("{command:?}"),
        code: status.code(),
        stdout: text(stdout),
        stderr: text(stderr),
    }
}

impl Run {
    /// Asserts success.
    #[track_caller]
    pub fn ok(self) -> Self {
        assert_eq!(self.code, Some(0), "{self}");
        self
    }

    /// Asserts the exit code, and that stderr has an `error:`, or an error as JSON, and every one of `parts`.
    #[track_caller]
    pub fn refused(self, code: i32, parts: &[&str]) -> Self {
        assert_eq!(self.code, Some(code), "{self}");
        let has_error = ["error: ", "{\"error\":"].map(|begin| self.stderr.contains(begin));
        assert!(has_error.contains(&true), "no `error:` line\n{self}");
        for part in parts {
            assert!(self.stderr.contains(part), "stderr lacks `{part}`\n{self}");
        }
        self
    }

    /// The result as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}\n{self}"))
    }
}

impl std::fmt::Display for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(
            f,
            "{}\nexit code {:?}\n--- stdout\n{}\n--- stderr\n{}",
            self.command, self.code, self.stdout, self.stderr
        )
    }
}

// ---------------------------------------------------------------- files

/// SHA-256 in hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// Every file below `folder` by relative path, with its bytes' hash; folders with an empty hash.
pub fn listing(folder: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut open = vec![folder.to_path_buf()];
    while let Some(current) = open.pop() {
        for entry in std::fs::read_dir(&current).unwrap() {
            let path = entry.unwrap().path();
            let name = path
                .strip_prefix(folder)
                .unwrap()
                .to_string_lossy()
                .into_owned();
            if path.is_dir() && !path.is_symlink() {
                found.insert(name, String::new());
                open.push(path);
            } else {
                found.insert(name, sha256(&std::fs::read(&path).unwrap_or_default()));
            }
        }
    }
    found
}

/// The bytes of each file of a flat folder.
pub fn contents(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let files = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap());
    files
        .map(|entry| {
            (
                entry.file_name().into_string().unwrap(),
                std::fs::read(entry.path()).unwrap(),
            )
        })
        .collect()
}

/// Asserts that two checkpoint folders hold the same files with the same bytes.
#[track_caller]
pub fn assert_same_folder(a: &Path, b: &Path) {
    let (left, right) = (contents(a), contents(b));
    assert_eq!(
        left.keys().collect::<Vec<_>>(),
        right.keys().collect::<Vec<_>>(),
        "{} and {}",
        a.display(),
        b.display()
    );
    for (name, bytes) in &left {
        assert!(
            *bytes == right[name],
            "{name} differs between {} and {}",
            a.display(),
            b.display()
        );
    }
}

/// Copies a flat folder.
pub fn copy_folder(from: &Path, to: &Path) -> PathBuf {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
    to.to_path_buf()
}

/// Reads a JSON file.
#[track_caller]
pub fn read_json(path: impl AsRef<Path>) -> Value {
    let path = path.as_ref();
    let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&bytes).unwrap()
}

/// Rewrites a JSON file.
pub fn edit_json(path: &Path, edit: impl FnOnce(&mut Value)) {
    let mut value = read_json(path);
    edit(&mut value);
    std::fs::write(path, serde_json::to_vec_pretty(&value).unwrap()).unwrap();
}

/// Permission bits, inode and modification time in nanoseconds.
pub fn identity(path: &Path) -> (u32, u64, i128) {
    let metadata = std::fs::symlink_metadata(path).unwrap();
    let modified = i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec());
    (metadata.mode() & 0o7777, metadata.ino(), modified)
}

// ---------------------------------------------------------------- tensors

/// One tensor in memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

impl Tensor {
    pub fn new(dtype: Dtype, shape: &[usize], values: &[f64]) -> Self {
        Self {
            dtype,
            shape: shape.to_vec(),
            bytes: values
                .iter()
                .flat_map(|value| round(dtype, *value))
                .collect(),
        }
    }

    /// Its values.
    pub fn values(&self) -> Vec<f64> {
        decode(self.dtype, &self.bytes)
    }
}

pub type Tensors = BTreeMap<String, Tensor>;

/// The tensors of a file, as the `safetensors` crate reads it.
#[track_caller]
pub fn read_file(path: &Path) -> Tensors {
    let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let file = SafeTensors::deserialize(&bytes)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let tensors = file.tensors().into_iter().map(|(name, view)| {
        (
            name,
            Tensor {
                dtype: view.dtype(),
                shape: view.shape().to_vec(),
                bytes: view.data().to_vec(),
            },
        )
    });
    tensors.collect()
}

/// The tensors of a folder: one file, or the shards of its index, which must agree with them.
#[track_caller]
pub fn read_folder(folder: &Path) -> Tensors {
    let index = folder.join("model.safetensors.index.json");
    if !index.exists() {
        return read_file(&folder.join("model.safetensors"));
    }
    let index = read_json(index);
    let map = index["weight_map"].as_object().unwrap();
    let mut shards: Vec<&str> = map.values().map(|file| file.as_str().unwrap()).collect();
    shards.sort_unstable();
    shards.dedup();
    let mut all = Tensors::new();
    for shard in shards {
        for (name, tensor) in read_file(&folder.join(shard)) {
            assert_eq!(map[&name], *shard, "{name}");
            assert!(all.insert(name, tensor).is_none());
        }
    }
    assert_eq!(all.keys().collect::<Vec<_>>(), {
        let mut names: Vec<_> = map.keys().collect();
        names.sort();
        names
    });
    let total: usize = all.values().map(|tensor| tensor.bytes.len()).sum();
    assert_eq!(index["metadata"]["total_size"], total);
    all
}

/// Writes a file with the `safetensors` crate.
pub fn write_file(path: &Path, tensors: &Tensors) {
    let views: BTreeMap<&str, _> = tensors
        .iter()
        .map(|(name, tensor)| {
            (
                name.as_str(),
                safetensors::tensor::TensorView::new(
                    tensor.dtype,
                    tensor.shape.clone(),
                    &tensor.bytes,
                )
                .unwrap(),
            )
        })
        .collect();
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// Rewrites the tensors of a folder's `model.safetensors`.
pub fn edit_tensors(folder: &Path, edit: impl FnOnce(&mut Tensors)) {
    let path = folder.join("model.safetensors");
    let mut tensors = read_file(&path);
    edit(&mut tensors);
    write_file(&path, &tensors);
}

// ---------------------------------------------------------------- numbers

/// Exponent and mantissa bits.
fn format(dtype: Dtype) -> (u32, u32) {
    match dtype {
        Dtype::BF16 => (8, 7),
        Dtype::F16 => (5, 10),
        Dtype::F32 => (8, 23),
        Dtype::F64 => (11, 52),
        Dtype::F8_E4M3 => (4, 3),
        Dtype::F8_E5M2 => (5, 2),
        other => panic!("{other} is no float"),
    }
}

/// `value` rounded once to nearest, ties to even, in integers: the little-endian bytes of `dtype`.
///
/// Beyond the largest finite value is infinity, or NaN where the format (E4M3) has no infinity.
pub fn round(dtype: Dtype, value: f64) -> Vec<u8> {
    let (exponent_bits, mantissa_bits) = format(dtype);
    let size = dtype.bitsize() / 8;
    let (sign, magnitude) = (value.to_bits() >> 63, value.to_bits() & !(1 << 63));
    let no_infinity = dtype == Dtype::F8_E4M3;
    let infinity = ((1u64 << exponent_bits) - 1) << mantissa_bits;
    let (overflow, largest) = if no_infinity {
        (infinity | 7, infinity | 6)
    } else {
        (infinity, infinity - 1)
    };
    let code = if value.is_nan() {
        if no_infinity {
            infinity | 7
        } else {
            infinity | 1 << (mantissa_bits - 1)
        }
    } else if value.is_infinite() {
        overflow
    } else {
        let fraction = magnitude & ((1 << 52) - 1);
        let (significand, exponent) = match (magnitude >> 52) as i64 {
            0 => (fraction, -1022),
            stored => (fraction | 1 << 52, stored - 1023),
        };
        let smallest = 2 - (1 << (exponent_bits - 1));
        let shift = u64::from(52 - mantissa_bits) + (smallest - exponent).max(0) as u64;
        let nearest = if shift > 60 {
            0
        } else if shift == 0 {
            significand
        } else {
            let (kept, rest, half) = (
                significand >> shift,
                significand & ((1 << shift) - 1),
                1 << (shift - 1),
            );
            kept + u64::from(rest > half || (rest == half && kept & 1 == 1))
        };
        let code = (((exponent.max(smallest) - smallest) as u64) << mantissa_bits) + nearest;
        if code > largest { overflow } else { code }
    };
    (code | sign << (exponent_bits + mantissa_bits)).to_le_bytes()[..size].to_vec()
}

/// The values that little-endian bytes of a float, integer or boolean dtype hold.
pub fn decode(dtype: Dtype, bytes: &[u8]) -> Vec<f64> {
    let size = dtype.bitsize() / 8;
    let word = |bytes: &[u8]| {
        bytes
            .iter()
            .rev()
            .fold(0u64, |word, byte| word << 8 | u64::from(*byte))
    };
    let integer = |bytes: &[u8]| (word(bytes) << (64 - 8 * size)) as i64 >> (64 - 8 * size);
    let real = |bytes: &[u8]| {
        let (exponent_bits, mantissa_bits) = format(dtype);
        let code = word(bytes);
        let sign = if code >> (exponent_bits + mantissa_bits) & 1 == 1 {
            -1.0
        } else {
            1.0
        };
        let mantissa = code & ((1 << mantissa_bits) - 1);
        let exponent = code >> mantissa_bits & ((1 << exponent_bits) - 1);
        let bias = (1 << (exponent_bits - 1)) - 1;
        if exponent == (1 << exponent_bits) - 1 && dtype != Dtype::F8_E4M3 {
            return if mantissa == 0 {
                sign * f64::INFINITY
            } else {
                f64::NAN
            };
        }
        if dtype == Dtype::F8_E4M3 && code & 0x7f == 0x7f {
            return f64::NAN;
        }
        let (significand, power) = match exponent {
            0 => (mantissa, 1 - bias - mantissa_bits as i32),
            _ => (
                mantissa | 1 << mantissa_bits,
                exponent as i32 - bias - mantissa_bits as i32,
            ),
        };
        // Two exact steps, because 2^-1074 as one power would be no normal number.
        sign * significand as f64 * 2f64.powi(power / 2) * 2f64.powi(power - power / 2)
    };
    let value = |bytes: &[u8]| match dtype {
        Dtype::I8 | Dtype::I16 | Dtype::I32 | Dtype::I64 => integer(bytes) as f64,
        Dtype::U8 | Dtype::U16 | Dtype::U32 | Dtype::U64 | Dtype::BOOL => word(bytes) as f64,
        _ => real(bytes),
    };
    bytes.chunks(size).map(value).collect()
}

/// The bytes of the average: the sum in order in `f64`, one division, one rounding.
pub fn mean(of: &[&Tensor]) -> Tensor {
    let parts: Vec<Vec<f64>> = of.iter().map(|tensor| tensor.values()).collect();
    let values: Vec<f64> = (0..parts[0].len())
        .map(|element| {
            let sum = parts[1..]
                .iter()
                .fold(parts[0][element], |sum, part| sum + part[element]);
            sum / parts.len() as f64
        })
        .collect();
    Tensor::new(of[0].dtype, &of[0].shape, &values)
}

#[track_caller]
pub fn assert_same_tensor(name: &str, found: &Tensor, expected: &Tensor) {
    assert_eq!(
        (found.dtype, &found.shape),
        (expected.dtype, &expected.shape),
        "{name}"
    );
    if let Some(byte) = found
        .bytes
        .iter()
        .zip(&expected.bytes)
        .position(|(a, b)| a != b)
    {
        let element = byte / (found.dtype.bitsize() / 8);
        panic!(
            "{name}: element {element} is {}, expected {}",
            found.values()[element],
            expected.values()[element]
        );
    }
    assert_eq!(found.bytes.len(), expected.bytes.len(), "{name}");
}

/// A small generator for test data (xorshift64*).
pub struct Noise(pub u64);

impl Noise {
    pub fn word(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// In [-1, 1).
    pub fn value(&mut self) -> f64 {
        (self.word() >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }
}
