//! `convert --to npz`: every tensor as an array that a reader of zip files and of numpy's headers finds again; and archives
//! of numpy as sources.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use crate::common::{bam, copy_folder, edit_json, fixture, listing, read_folder};
use bam_convert::checkpoint::Checkpoint;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use tempfile::TempDir;
use zip::ZipArchive;

/// dtype as numpy writes it, shape, values.
type Array = (String, Vec<u64>, Vec<u8>);

/// Every array of an archive, and that its entries are as they should be.
fn read(path: &Path) -> BTreeMap<String, Array> {
    let mut archive = ZipArchive::new(std::fs::File::open(path).unwrap()).unwrap();
    let mut arrays = BTreeMap::new();
    for number in 0..archive.len() {
        let mut entry = archive.by_index(number).unwrap();
        assert_eq!(entry.compression(), zip::CompressionMethod::Stored);
        assert_eq!(
            entry.last_modified().unwrap().to_string(),
            "1980-01-01 00:00:00"
        );
        let name = entry
            .name()
            .unwrap()
            .strip_suffix(".npy")
            .unwrap()
            .to_owned();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes[..8], *b"\x93NUMPY\x01\x00");
        let end = 10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
        assert!(end.is_multiple_of(64), "{name}");
        let header = std::str::from_utf8(&bytes[10..end])
            .unwrap()
            .trim_end()
            .to_owned();
        let descr = header.split('\'').nth(3).unwrap().to_owned();
        let extents = header.split(['(', ')']).nth(1).unwrap();
        let shape: Vec<u64> = extents
            .split(',')
            .filter_map(|extent| extent.trim().parse().ok())
            .collect();
        assert!(header.contains("'fortran_order': False"), "{header}");
        arrays.insert(name, (descr, shape, bytes[end..].to_vec()));
    }
    arrays
}

#[test]
fn dense_models_and_mixtures_are_all_there() {
    let work = TempDir::new().unwrap();
    let at = |name: &str| work.path().join(name);
    for (number, source) in [
        "llama/seed",
        "llama_sharded/seed",
        "mixtures/mixtral",
        "cohere/seed",
    ]
    .iter()
    .enumerate()
    {
        let (source, file, again) = (
            fixture(source),
            at(&format!("{number}.npz")),
            at(&format!("{number}.again.npz")),
        );
        let run = bam!("convert", &source, &file, "--to", "npz").ok();
        assert!(
            run.stderr.contains("configuration and tokenizer stay"),
            "{run}"
        );
        let arrays = read(&file);
        let tensors = read_folder(&source);
        assert!(arrays.keys().eq(tensors.keys()), "{source:?}");
        for (name, (descr, shape, bytes)) in &arrays {
            let tensor = &tensors[name];
            assert_eq!(
                shape
                    .iter()
                    .map(|extent| *extent as usize)
                    .collect::<Vec<_>>(),
                tensor.shape,
                "{name}"
            );
            if tensor.dtype == Dtype::BF16 {
                assert_eq!(descr, "<f4");
                let halves: Vec<u8> = bytes
                    .chunks(4)
                    .flat_map(|word| [word[2], word[3]])
                    .collect();
                assert!(
                    halves == tensor.bytes && bytes.chunks(4).all(|word| word[..2] == [0, 0]),
                    "{name}"
                );
                assert!(run.stderr.contains("numpy has no bf16"), "{run}");
            } else {
                assert_eq!((descr.as_str(), bytes), ("<f4", &tensor.bytes), "{name}");
            }
        }
        bam!("convert", &source, &again, "--to", "npz", "--threads", "1").ok();
        assert_eq!(
            std::fs::read(&file).unwrap(),
            std::fs::read(&again).unwrap(),
            "the same bytes on any threads"
        );
    }
}

#[test]
fn dtypes_are_those_of_a_folder_in_that_dtype() {
    let work = TempDir::new().unwrap();
    let at = |name: &str| work.path().join(name);
    for (source, dtype, descr) in [
        ("llama/seed", "f16", "<f2"),
        ("gguf/llama-q4_0.gguf", "f64", "<f8"),
        ("gguf/llama-q8_0.gguf", "f32", "<f4"),
    ] {
        let (file, folder) = (at("x.npz"), at("x"));
        bam!(
            "convert",
            fixture(source),
            &file,
            "--to",
            "npz",
            "--dtype",
            dtype,
            "--force"
        )
        .ok();
        bam!(
            "convert",
            fixture(source),
            &folder,
            "--dtype",
            dtype,
            "--force"
        )
        .ok();
        let expected = read_folder(&folder).into_iter().map(|(name, tensor)| {
            (
                name,
                (
                    descr.to_owned(),
                    tensor.shape.iter().map(|extent| *extent as u64).collect(),
                    tensor.bytes,
                ),
            )
        });
        assert!(read(&file) == expected.collect(), "{source} in {dtype}");
    }
    // What is quantised is not rounded to the dtype that numpy lacks first.
    bam!(
        "convert",
        fixture("gguf/llama-q8_0.gguf"),
        at("y.npz"),
        "--to",
        "npz"
    )
    .ok();
    assert!(read(&at("y.npz")) == read(&at("x.npz")));
    let plan = bam!(
        "convert",
        fixture("llama/seed"),
        at("z.npz"),
        "--to",
        "npz",
        "--dry-run",
        "--json"
    )
    .ok()
    .json();
    assert_eq!(plan["settings"]["to"], "npz");
    assert!(
        !at("z.npz").exists() && plan["groups"].to_string().contains("\"F32\""),
        "{plan}"
    );
}

#[test]
fn every_dtype_of_numpy_keeps_its_bytes() {
    let work = TempDir::new().unwrap();
    let (source, file) = (work.path().join("a.safetensors"), work.path().join("a.npz"));
    let all = [
        (Dtype::BOOL, "|b1"),
        (Dtype::U8, "|u1"),
        (Dtype::I8, "|i1"),
        (Dtype::U16, "<u2"),
        (Dtype::I16, "<i2"),
        (Dtype::U32, "<u4"),
        (Dtype::I32, "<i4"),
        (Dtype::U64, "<u8"),
        (Dtype::I64, "<i8"),
        (Dtype::F16, "<f2"),
        (Dtype::F32, "<f4"),
        (Dtype::F64, "<f8"),
        (Dtype::C64, "<c8"),
    ];
    let bytes: Vec<u8> = (0..48).map(|byte| byte % 2).collect();
    let tensors = all.map(|(dtype, descr)| {
        let shape = vec![2, 3];
        let length = 6 * dtype.bitsize() / 8;
        (
            format!("part/{}", &descr[1..]),
            TensorView::new(dtype, shape, &bytes[..length]).unwrap(),
        )
    });
    let scalar = TensorView::new(Dtype::F32, vec![], &bytes[..4]).unwrap();
    let none = TensorView::new(Dtype::F32, vec![0, 4], &[]).unwrap();
    let tensors = tensors
        .into_iter()
        .chain([("scalar".to_owned(), scalar), ("none".to_owned(), none)]);
    std::fs::write(&source, safetensors::serialize(tensors, None).unwrap()).unwrap();
    bam!("convert", &source, &file, "--to", "npz").ok();
    let arrays = read(&file);
    for (dtype, descr) in all {
        let found = &arrays[&format!("part/{}", &descr[1..])];
        assert_eq!(
            *found,
            (
                descr.to_owned(),
                vec![2, 3],
                bytes[..6 * dtype.bitsize() / 8].to_vec()
            )
        );
    }
    assert_eq!((arrays["scalar"].1.len(), arrays["scalar"].2.len()), (0, 4));
    assert_eq!(
        (&arrays["none"].1[..], arrays["none"].2.len()),
        (&[0, 4][..], 0)
    );
}

#[test]
fn what_numpy_or_an_archive_cannot_hold_is_refused_by_name() {
    let work = TempDir::new().unwrap();
    let out = work.path().join("x.npz");
    let refused = |source: &Path, more: &[&str], reasons: &[&str]| {
        let line = [
            "convert".as_ref(),
            source.as_os_str(),
            out.as_os_str(),
            "--to".as_ref(),
            "npz".as_ref(),
        ];
        let line = line
            .into_iter()
            .map(|word: &std::ffi::OsStr| word.to_owned());
        crate::common::run(line.chain(more.iter().map(Into::into))).refused(2, reasons);
        assert!(!out.exists());
    };
    let one = |name: &str, dtype| {
        let file = work.path().join("one.safetensors");
        let tensor = TensorView::new(dtype, vec![4], &[0; 16][..4 * dtype.bitsize() / 8]).unwrap();
        std::fs::write(
            &file,
            safetensors::serialize([(name, tensor)], None).unwrap(),
        )
        .unwrap();
        file
    };
    refused(
        &one("w.weight", Dtype::F8_E4M3),
        &[],
        &["w.weight", "F8_E4M3", "numpy lacks", "--dtype f32"],
    );
    refused(
        &one("../../w", Dtype::F32),
        &[],
        &["../../w", "cannot hold safely"],
    );
    refused(
        &one("w.npy", Dtype::F32),
        &[],
        &["w.npy", "cannot hold safely"],
    );
    let llama = fixture("llama/seed");
    refused(&llama, &["--dtype", "bf16"], &["numpy has no BF16"]);
    refused(
        &llama,
        &["--layout", "fused"],
        &["--layout has no effect with --to npz"],
    );
    refused(
        &llama,
        &["--quantize", "q8_0"],
        &["--quantize is for GGUF files"],
    );
    bam!(
        "convert",
        one("w", Dtype::F8_E4M3),
        &out,
        "--to",
        "npz",
        "--dtype",
        "f16"
    )
    .ok();
    assert_eq!(read(&out)["w"].0, "<f2");
    bam!("convert", &llama, &out, "--to", "npz").refused(2, &["exists already", "--force"]);
    bam!("convert", &llama, &out, "--to", "npz", "--force").ok();
    // Another kind of file is not replaced, be it a zip file or not.
    let other = work.path().join("other.npz");
    for (name, bytes) in [("model.pt/data.pkl", &b"x"[..]), ("", b"")] {
        let mut archive = zip::ZipWriter::new(std::fs::File::create(&other).unwrap());
        if !name.is_empty() {
            archive
                .start_file(name, zip::write::SimpleFileOptions::default())
                .unwrap();
            std::io::Write::write_all(&mut archive, bytes).unwrap();
        }
        archive.finish().unwrap();
        let run = bam!("convert", &llama, &other, "--to", "npz", "--force");
        assert_eq!(run.code == Some(2), !name.is_empty(), "{run}");
    }
    std::fs::write(&other, "text").unwrap();
    bam!("convert", &llama, &other, "--to", "npz", "--force")
        .refused(2, &["no archive of numpy arrays"]);
    assert_eq!(std::fs::read(&other).unwrap(), b"text");
    bam!("convert", &llama, llama.join("x.npz"), "--to", "npz").refused(2, &["inside the source"]);
}

#[test]
fn values_that_a_rounding_would_make_infinite_are_refused() {
    let work = TempDir::new().unwrap();
    let (source, out) = (work.path().join("a.safetensors"), work.path().join("a.npz"));
    let values: Vec<u8> = [1.0f32, f32::NAN, 1e6]
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    let tensor = TensorView::new(Dtype::F32, vec![3], &values).unwrap();
    std::fs::write(
        &source,
        safetensors::serialize([("w", tensor)], None).unwrap(),
    )
    .unwrap();
    bam!("convert", &source, &out, "--to", "npz", "--dtype", "f16").refused(2, &["`w`"]);
    assert_eq!(
        listing(work.path()).into_keys().collect::<Vec<_>>(),
        ["a.safetensors"],
        "nothing else is left"
    );
    bam!("convert", &source, &out, "--to", "npz").ok();
    assert_eq!(read(&out)["w"].2, values, "what the source has is carried");
}

#[test]
fn a_family_that_is_not_known_is_written_too() {
    let work = TempDir::new().unwrap();
    let folder = copy_folder(&fixture("llama/seed"), &work.path().join("other"));
    edit_json(&folder.join("config.json"), |config| {
        config["model_type"] = "other".into()
    });
    bam!("convert", &folder, work.path().join("x.npz"), "--to", "npz").ok();
}

// ---------------------------------------------------------------- archives as sources

#[test]
fn an_archive_is_read_back_as_it_was_written() {
    let work = TempDir::new().unwrap();
    let at = |name: &str| work.path().join(name);
    for source in ["llama/seed", "llama_sharded/seed", "mixtures/mixtral"] {
        let (npz, back, wide) = (at("x.npz"), at("back"), at("wide"));
        bam!("convert", fixture(source), &npz, "--to", "npz", "--force").ok();
        bam!(
            "convert",
            fixture(source),
            &wide,
            "--dtype",
            "f32",
            "--force"
        )
        .ok();
        bam!("convert", &npz, &back, "--force").ok();

        assert!(read_folder(&back) == read_folder(&wide), "{source}");
        bam!("diff", &npz, &wide).ok();
        bam!("diff", &npz, &back).ok();
        bam!("validate", &npz).ok();
        // The archive has no config.json, so the folder has none, but each tensor is replayed.
        let replayed = crate::common::against(&back);
        assert!(replayed.stdout.contains("bit for bit"), "{replayed}");

        let shown = bam!("inspect", &npz, "--json", "--tensors").ok().json();
        let tensors = read_folder(&wide);
        assert_eq!(shown["tensors"].as_array().unwrap().len(), tensors.len());
        let bytes: usize = tensors.values().map(|tensor| tensor.bytes.len()).sum();
        assert_eq!(shown["bytes"], bytes);

        let again = at("again.npz");
        bam!("convert", &npz, &again, "--to", "npz", "--force").ok();
        assert!(std::fs::read(&npz).unwrap() == std::fs::read(&again).unwrap());
    }
}

#[test]
fn an_archive_of_numpy_itself_is_read() {
    let work = TempDir::new().unwrap();
    let out = work.path().join("out");
    bam!("convert", fixture("npz/savez.npz"), &out).ok();
    let found = read_folder(&out);

    let shapes: Vec<(&str, Dtype, &[usize])> = found
        .iter()
        .map(|(name, tensor)| (name.as_str(), tensor.dtype, &tensor.shape[..]))
        .collect();
    let expected: [(&str, Dtype, &[usize]); 5] = [
        ("count", Dtype::I64, &[]),
        ("flags", Dtype::BOOL, &[2]),
        ("half", Dtype::F16, &[5]),
        ("model.embed_tokens.weight", Dtype::F32, &[3, 4]),
        ("none", Dtype::F64, &[0, 3]),
    ];
    assert_eq!(shapes, expected);
    let eighths: Vec<f64> = (0..12).map(|number| f64::from(number) / 8.0).collect();
    assert_eq!(found["model.embed_tokens.weight"].values(), eighths);
    assert_eq!(found["half"].values(), [0.0, 1.0, 2.0, 3.0, 4.0]);
    assert_eq!(found["count"].bytes, 7_i64.to_le_bytes());
    assert_eq!(found["flags"].bytes, [1, 0]);

    bam!("inspect", fixture("npz/compressed.npz")).refused(
        2,
        &["compressed.npz", "is compressed", "numpy.savez in place of"],
    );
}

#[test]
fn an_archive_is_no_checkpoint_folder() {
    let work = TempDir::new().unwrap();
    let npz = work.path().join("x.npz");
    bam!("convert", fixture("llama/seed"), &npz, "--to", "npz").ok();
    for line in [["branch", "--into", "a"], ["generate", "--prompt", "a"]] {
        let out = work.path().join("out");
        let mut arguments = vec![line[0].into(), npz.clone().into()];
        arguments.extend(line[1..].iter().map(Into::into));
        if line[0] == "branch" {
            arguments.extend(["--out".into(), out.clone().into()]);
        }
        crate::common::run(arguments).refused(
            2,
            &[
                "is an archive of numpy (.npz), expected",
                "bam-convert convert",
            ],
        );
        assert!(!out.exists());
    }
}

/// A change of any one byte leads to an error or to an archive, never to a panic.
#[test]
fn any_byte_may_be_wrong() {
    let work = TempDir::new().unwrap();
    let path = work.path().join("x.npz");
    for name in ["good", "zip64"] {
        let good = std::fs::read(fixture(format!("hostile/npz-{name}.npz"))).unwrap();
        for at in 0..good.len() {
            for wrong in [0, 0xFF, good[at] ^ 1, good[at] ^ 0x80] {
                let mut bytes = good.clone();
                bytes[at] = wrong;
                std::fs::write(&path, bytes).unwrap();
                let _ = Checkpoint::open(&path);
            }
            std::fs::write(&path, &good[..at]).unwrap();
            assert!(Checkpoint::open(&path).is_err(), "{name} cut at {at}");
        }
    }
}
