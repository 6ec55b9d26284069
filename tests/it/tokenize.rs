//! `tokenize`: every kind of input, duplicates, the split, shards, and what is refused.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::common::{
    Noise, assert_same_folder, bam, contents, copy_folder, edit_json, fixture, listing, read_json,
};
use bam_convert::data::{Mixture, Split, TokenFolder};
use bam_convert::model::tokenizer::Tokenizer;
use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use serde_json::{Value, json};
use tempfile::TempDir;

const WORDS: [&str; 24] = [
    "seller", "buyer", "court", "naïve", "the", "of", "shall", "contract", "fn", "let", "return",
    "usize", "and", "or", "proof", "lemma", "integer", "prime", "天地", "under", "clause", "{",
    "}", "12,345",
];

/// A text of so many words.
fn text(noise: &mut Noise, words: usize) -> String {
    let word = |_| WORDS[(noise.word() % WORDS.len() as u64) as usize];
    (0..words).map(word).collect::<Vec<_>>().join(" ")
}

pub fn texts(count: usize) -> Vec<String> {
    let mut noise = Noise(7);
    (0..count)
        .map(|number| text(&mut noise, 20 + number % 40))
        .collect()
}

fn seed() -> PathBuf {
    fixture("llama/seed")
}

pub fn write(path: impl AsRef<Path>, bytes: impl AsRef<[u8]>) -> PathBuf {
    std::fs::create_dir_all(path.as_ref().parent().unwrap()).unwrap();
    std::fs::write(&path, bytes).unwrap();
    path.as_ref().to_path_buf()
}

pub fn lines(texts: &[String], key: &str) -> String {
    texts
        .iter()
        .map(|text| json!({"id": 1, key: text}).to_string() + "\n")
        .collect()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).unwrap()
}

/// A table of a number and a text a row, in groups of eight rows; a `None` is null.
fn table(path: &Path, rows: &[Option<String>], compression: parquet::basic::Compression) {
    let schema =
        parse_message_type("message t { required int64 id; optional binary text (UTF8); }")
            .unwrap();
    let properties = Arc::new(
        WriterProperties::builder()
            .set_compression(compression)
            .build(),
    );
    let file = std::fs::File::create(path).unwrap();
    let mut writer = SerializedFileWriter::new(file, Arc::new(schema), properties).unwrap();
    for rows in rows.chunks(8) {
        let mut group = writer.next_row_group().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        let ids: Vec<i64> = (0..rows.len() as i64).collect();
        column
            .typed::<Int64Type>()
            .write_batch(&ids, None, None)
            .unwrap();
        column.close().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        let levels: Vec<i16> = rows.iter().map(|row| i16::from(row.is_some())).collect();
        let values: Vec<ByteArray> = rows
            .iter()
            .flatten()
            .map(|row| row.as_str().into())
            .collect();
        column
            .typed::<ByteArrayType>()
            .write_batch(&values, Some(&levels), None)
            .unwrap();
        column.close().unwrap();
        group.close().unwrap();
    }
    writer.close().unwrap();
}

/// The documents of a split as text, decoded.
fn decoded(folder: &Path, split: Split) -> Vec<String> {
    let tokenizer = Tokenizer::open(&folder.join("tokenizer.json")).unwrap();
    let folder = TokenFolder::open(folder).unwrap();
    let document = |number| {
        let mut ids = folder
            .ids(split, folder.document(split, number).unwrap())
            .unwrap();
        assert_eq!(ids.pop(), Some(folder.header().end_of_text));
        tokenizer.decode(&ids).unwrap()
    };
    (0..folder.documents(split)).map(document).collect()
}

/// The shards of a token folder, and nothing else.
pub fn shards(folder: &Path) -> Vec<(String, Vec<u8>)> {
    contents(folder)
        .into_iter()
        .filter(|(name, _)| name.ends_with(".bin") || name.ends_with(".ends"))
        .collect()
}

#[test]
fn every_kind_of_input_gives_the_same_tokens() {
    let work = TempDir::new().unwrap();
    let path = |name: &str| work.path().join(name);
    let texts = texts(30);
    for (number, text) in texts.iter().enumerate() {
        let (name, bytes) = match number % 3 {
            0 => (format!("{number:02}.txt"), text.clone().into_bytes()),
            1 => (format!("{number:02}.rs.gz"), gzip(text.as_bytes())),
            _ => (format!("{number:02}.md.zst"), zstd(text.as_bytes())),
        };
        write(path("folder").join(name), bytes);
    }
    write(
        path("a.jsonl"),
        "\u{feff}".to_owned() + &lines(&texts, "text").replacen('\n', "\r\n\n", 2),
    );
    // Two members in one file, as parallel compressors write them.
    let (first, rest) = texts.split_at(11);
    write(
        path("a.json.gz"),
        [
            gzip(lines(first, "text").as_bytes()),
            gzip(lines(rest, "text").as_bytes()),
        ]
        .concat(),
    );
    write(
        path("a.ndjson.zst"),
        zstd(lines(&texts, "content").as_bytes()),
    );
    let mut rows: Vec<Option<String>> = texts.iter().cloned().map(Some).collect();
    table(
        &path("a.parquet"),
        &rows,
        parquet::basic::Compression::SNAPPY,
    );
    rows.insert(5, None);
    rows.insert(9, Some("  \n".to_owned()));
    table(
        &path("zstd.parquet"),
        &rows,
        parquet::basic::Compression::ZSTD(Default::default()),
    );
    let inputs = [
        ("folder", "text", 30, 0),
        ("folder/*", "text", 30, 0),
        ("a.jsonl", "text", 30, 0),
        ("a.json.gz", "text", 30, 0),
        ("a.ndjson.zst", "content", 30, 0),
        ("a.parquet", "text", 30, 0),
        ("zstd.parquet", "text", 32, 2),
    ];
    let mut first = None;
    for (number, (input, key, documents, empty)) in inputs.into_iter().enumerate() {
        let out = path(&format!("out{number}"));
        let flags = ["--validation", "0.2", "--text-key", key, "--json"];
        let report = bam!(
            "tokenize",
            path(input),
            "--tokenizer",
            seed(),
            "--out",
            out,
            flags[0],
            flags[1],
            flags[2],
            flags[3],
            flags[4]
        );
        let report = report.ok().json();
        assert_eq!(
            (&report["documents"], &report["empty"]),
            (&json!(documents), &json!(empty)),
            "{input}"
        );
        let found = shards(&out);
        assert_eq!(found.len(), 4, "{input}");
        assert!(
            *first.get_or_insert(found.clone()) == found,
            "{input} gives other tokens than the first"
        );
        assert_eq!(
            report["train"]["tokens"].as_u64().unwrap(),
            TokenFolder::open(&out).unwrap().tokens(Split::Train)
        );
    }
    let found: BTreeSet<String> = [Split::Train, Split::Validation]
        .into_iter()
        .flat_map(|split| decoded(&path("out0"), split))
        .collect();
    assert_eq!(found, texts.iter().cloned().collect());
    let train = decoded(&path("out0"), Split::Train);
    let order: Vec<&String> = texts.iter().filter(|text| train.contains(text)).collect();
    assert!(
        order.into_iter().eq(&train),
        "documents stay in the order of the input"
    );
    assert!((22..30).contains(&train.len()), "{}", train.len());
}

#[test]
fn the_same_bytes_on_any_number_of_threads() {
    let work = TempDir::new().unwrap();
    let path = |name: &str| work.path().join(name);
    let input = write(path("a.jsonl"), lines(&texts(400), "text"));
    for tokenizer in ["train:700".to_owned(), seed().display().to_string()] {
        let run = |out: &str, threads: &str| {
            let out = path(out);
            bam!(
                "tokenize",
                input,
                "--tokenizer",
                tokenizer,
                "--out",
                out,
                "--threads",
                threads,
                "--max-shard-size",
                "4kB",
                "--force"
            )
            .ok();
            out
        };
        let one = run("one", "1");
        assert_same_folder(&one, &run("four", "4"));
        assert_same_folder(&one, &run("again", "4"));
        let header = read_json(one.join("header.json"));
        let shards = header["splits"]["train"].as_array().unwrap();
        assert!(shards.len() > 3, "{header}");
        for shard in shards {
            let bytes = std::fs::read(one.join(shard["file"].as_str().unwrap())).unwrap();
            assert_eq!(shard["sha256"], crate::common::sha256(&bytes));
            assert!(
                bytes.len() <= 4000 && bytes.len() as u64 == 2 * shard["tokens"].as_u64().unwrap()
            );
        }
        assert_eq!(
            header["tokenizer_sha256"],
            crate::common::sha256(&std::fs::read(one.join("tokenizer.json")).unwrap())
        );
    }
}

#[test]
fn a_tokenizer_made_here_serves_other_texts() {
    let work = TempDir::new().unwrap();
    let path = |name: &str| work.path().join(name);
    let input = write(path("a.jsonl"), lines(&texts(200), "text"));
    let made = bam!(
        "tokenize",
        input,
        "--tokenizer",
        "train:300",
        "--out",
        path("made"),
        "--json"
    )
    .ok()
    .json();
    assert_eq!(made["vocab_size"], 300);
    let other = write(path("b.txt"), "Etwas ganz anderes: ±∞ \u{1f600}\n\ttab");
    let flags = ["--validation", "0", "--json"];
    let report = bam!(
        "tokenize",
        other,
        "--tokenizer",
        path("made"),
        "--out",
        path("other"),
        flags[0],
        flags[1],
        flags[2]
    );
    let report = report.ok().json();
    assert_eq!(report["tokenizer_sha256"], made["tokenizer_sha256"]);
    assert_eq!(
        decoded(&path("other"), Split::Train),
        [std::fs::read_to_string(&other).unwrap()]
    );
    // Few texts have few pairs; what there is to say is said.
    let few = bam!(
        "tokenize",
        other,
        "--tokenizer",
        "train:5000",
        "--validation",
        "0",
        "--out",
        path("few")
    )
    .ok();
    assert!(few.stderr.contains("tokens only, not 5,000"), "{few}");
    let header = read_json(path("made/tokenizer_config.json"));
    assert_eq!(header["eos_token"], "<|endoftext|>");
    let inputs = json!(["input_ids", "attention_mask"]);
    assert_eq!(header["model_input_names"], inputs);
    let domains = [("a", "made", 3.0), ("b", "other", 1.0)];
    let domains = domains.map(|(name, folder, weight)| {
        (
            name.to_owned(),
            TokenFolder::open(&path(folder)).unwrap(),
            weight,
        )
    });
    let rows = Mixture::new(domains.into(), 1, 16, Split::Train)
        .unwrap()
        .rows(0, 8)
        .unwrap();
    assert_eq!(rows.iter().filter(|row| row.domain == 1).count(), 2);
}

#[test]
fn duplicates_go_and_near_duplicates_stay_together() {
    let work = TempDir::new().unwrap();
    let path = |name: &str| work.path().join(name);
    let mut noise = Noise(3);
    let mut all = Vec::new();
    for number in 0..60 {
        let original = format!("Document {number}. {}", text(&mut noise, 200));
        let near = original.replacen("court", "tribunal", 1) + " Signed.";
        all.extend([original.clone(), near, original.replace(' ', "\n ")]);
    }
    let input = write(path("a.jsonl"), lines(&all, "text"));
    for share in ["0.02", "0.3", "0.7"] {
        let out = path(share);
        let report = bam!(
            "tokenize",
            input,
            "--tokenizer",
            seed(),
            "--out",
            out,
            "--validation",
            share,
            "--json"
        )
        .ok()
        .json();
        assert_eq!(report["duplicates"], 60);
        assert_eq!(
            (
                &report["near_duplicate_clusters"],
                &report["near_duplicates"]
            ),
            (&json!(60), &json!(120))
        );
        let numbers = |split| {
            let number = |text: &String| text.split(['.', ' ']).nth(1).unwrap().to_owned();
            decoded(&out, split).iter().map(number).collect::<Vec<_>>()
        };
        let (train, validation) = (numbers(Split::Train), numbers(Split::Validation));
        assert_eq!(train.len() + validation.len(), 120);
        assert!(
            validation.iter().all(|number| !train.contains(number)),
            "{train:?} {validation:?}"
        );
        let wanted = share.parse::<f64>().unwrap();
        assert!(
            (validation.len() as f64 / 120.0 - wanted).abs() < 0.05,
            "{} for {wanted}",
            validation.len()
        );
    }
    // What is held back depends on the texts, not on their order.
    all.reverse();
    let reversed = write(path("b.jsonl"), lines(&all, "text"));
    bam!(
        "tokenize",
        reversed,
        "--tokenizer",
        seed(),
        "--out",
        path("reversed"),
        "--validation",
        "0.3"
    )
    .ok();
    let words = |folder: &str| {
        let words = |text: String| text.split_whitespace().collect::<Vec<_>>().join(" ");
        decoded(&path(folder), Split::Validation)
            .into_iter()
            .map(words)
            .collect::<BTreeSet<_>>()
    };
    assert_eq!(words("reversed"), words("0.3"));
}

#[test]
fn a_held_back_split_can_be_evaluated() {
    let work = TempDir::new().unwrap();
    let path = |name: &str| work.path().join(name);
    let input = write(path("a.jsonl"), lines(&texts(40), "text"));
    bam!(
        "tokenize",
        input,
        "--tokenizer",
        seed(),
        "--out",
        path("tokens"),
        "--validation",
        "0.3"
    )
    .ok();
    let held = write(
        path("held.jsonl"),
        lines(&decoded(&path("tokens"), Split::Validation), "text"),
    );
    let score = |data: &Path| {
        let data = format!("law={}", data.display());
        let report = bam!("eval", seed(), "--data", data, "--context", "32", "--json")
            .ok()
            .json();
        report["models"][0]["domains"][0].clone()
    };
    let (tokens, texts) = (score(&path("tokens")), score(&held));
    for key in ["tokens", "windows", "nll", "perplexity"] {
        assert_eq!(tokens[key], texts[key], "{key}");
    }
    let ratio =
        tokens["bits_per_byte"].as_f64().unwrap() / texts["bits_per_byte"].as_f64().unwrap();
    assert!((ratio - 1.0).abs() < 0.03, "{ratio}");
    let data = format!("law={}", path("tokens").display());
    let other = copy_folder(&seed(), &path("other"));
    // Written anew, it has the same words in other bytes: enough not to be trusted.
    let tokenizer = std::fs::read(seed().join("tokenizer.json")).unwrap();
    std::fs::write(
        other.join("tokenizer.json"),
        [&tokenizer[..], b"\n\n"].concat(),
    )
    .unwrap();
    bam!("eval", other, "--data", data)
        .refused(2, &["tokens", "another tokenizer", "other/tokenizer.json"]);
    bam!(
        "tokenize",
        input,
        "--tokenizer",
        seed(),
        "--out",
        path("all"),
        "--validation",
        "0"
    )
    .ok();
    let data = format!("law={}", path("all").display());
    bam!("eval", seed(), "--data", data).refused(2, &["no validation split", "--validation"]);
}

#[test]
fn an_output_is_whole_or_absent() {
    let work = TempDir::new().unwrap();
    let path = |name: &str| work.path().join(name);
    let input = write(path("in/a.jsonl"), lines(&texts(20), "text"));
    let out = path("out");
    // What a killed run would leave.
    write(path(".out.partial/train-00000.bin"), "junk");
    write(path(".out.partial/train-00007.bin"), "junk");
    bam!("tokenize", input, "--tokenizer", seed(), "--out", out).ok();
    let before = listing(&out);
    assert!(!before.contains_key("train-00007.bin") && !path(".out.partial").exists());
    bam!("tokenize", input, "--tokenizer", seed(), "--out", out)
        .refused(2, &["exists already", "--force"]);
    write(path("in/b.jsonl"), "{\"text\": \"one\"}\n{\"text\": 2}\n");
    bam!(
        "tokenize",
        path("in"),
        "--tokenizer",
        seed(),
        "--out",
        out,
        "--force"
    )
    .refused(2, &["b.jsonl", "line 2", "`text`"]);
    assert_eq!(listing(&out), before);
    std::fs::remove_file(path("in/b.jsonl")).unwrap();
    bam!(
        "tokenize",
        path("in"),
        "--tokenizer",
        seed(),
        "--out",
        out,
        "--force"
    )
    .ok();
    bam!(
        "tokenize",
        input,
        "--tokenizer",
        seed(),
        "--out",
        path("in"),
        "--force"
    )
    .refused(2, &["overlap"]);
    write(path("keep/letter.txt"), "mine");
    bam!(
        "tokenize",
        input,
        "--tokenizer",
        seed(),
        "--out",
        path("keep"),
        "--force"
    )
    .refused(2, &["neither"]);
    let names: BTreeSet<String> = listing(work.path())
        .into_keys()
        .filter(|name| !name.contains('/'))
        .collect();
    assert_eq!(names, ["in", "keep", "out"].map(str::to_owned).into());
}

#[test]
fn bad_input_is_named() {
    let work = TempDir::new().unwrap();
    let path = |name: &str| work.path().join(name);
    let good = lines(&texts(5), "text");
    let refused = |name: &str, bytes: &[u8], flags: &[&str], code: i32, parts: &[&str]| {
        let input = write(path(name), bytes);
        let mut arguments: Vec<std::ffi::OsString> = vec!["tokenize".into(), input.into()];
        arguments.extend([
            "--tokenizer".into(),
            seed().into(),
            "--out".into(),
            path("out").into(),
        ]);
        arguments.extend(flags.iter().map(Into::into));
        let run = crate::common::run(arguments).refused(code, parts);
        assert!(
            !path("out").exists() && !path(".out.partial").exists(),
            "{run}"
        );
    };
    let whole = gzip(good.as_bytes());
    refused(
        "empty.txt",
        b"",
        &[],
        2,
        &["empty.txt", "expected text, found none"],
    );
    refused(
        "one.txt",
        b"One document.",
        &[],
        2,
        &["one.txt", "none can be held back", "--validation 0"],
    );
    refused(
        "latin.txt",
        b"caf\xe9",
        &[],
        2,
        &["latin.txt", "UTF-8", "byte 3"],
    );
    refused("binary", b"a\0b", &[], 2, &["binary", "NUL at byte 1"]);
    refused(
        "a.jsonl",
        b"{\"text\": \"a\"}\n{\"text\": \"caf\xe9\"}\n",
        &[],
        2,
        &["a.jsonl", "line 2", "UTF-8"],
    );
    refused(
        "a.jsonl",
        b"{\"text\": \"a\"}\n\n[1]\n",
        &[],
        2,
        &["a.jsonl", "line 3", "JSON object"],
    );
    refused(
        "a.jsonl",
        b"{\"content\": \"a\"}\n",
        &[],
        2,
        &["a.jsonl", "`text`", "line 1", "content"],
    );
    refused(
        "a.jsonl",
        b"{\"text\": \"a\"}\n",
        &["--text-key", "txt"],
        2,
        &["`txt`", "--text-key text"],
    );
    refused(
        "a.jsonl.gz",
        &whole[..whole.len() / 2],
        &[],
        2,
        &["a.jsonl.gz", "cannot be unpacked"],
    );
    refused(
        "plain.jsonl.gz",
        good.as_bytes(),
        &[],
        2,
        &["plain.jsonl.gz", "cannot be unpacked"],
    );
    refused(
        "plain.jsonl.zst",
        good.as_bytes(),
        &[],
        2,
        &["plain.jsonl.zst", "cannot be unpacked"],
    );
    refused("a.csv", b"a,b\n", &[], 2, &["a.csv", "`.csv`", ".jsonl"]);
    refused("a.tar.gz", &whole, &[], 2, &["a.tar.gz", "`.tar`"]);
    refused(
        "a.parquet",
        b"PAR1 and no more",
        &[],
        2,
        &["a.parquet", "parquet table"],
    );
    table(
        &path("good.parquet"),
        &[Some("a".to_owned())],
        parquet::basic::Compression::UNCOMPRESSED,
    );
    let bytes = std::fs::read(path("good.parquet")).unwrap();
    refused(
        "b.parquet",
        &bytes,
        &["--text-key", "texts"],
        2,
        &["`texts`", "does not have this column", "--text-key text"],
    );
    refused(
        "b.parquet",
        &bytes,
        &["--text-key", "id"],
        2,
        &["`id`", "column of strings"],
    );
    refused("b.parquet.gz", &gzip(&bytes), &[], 2, &["packed once more"]);
    refused(
        "good.jsonl",
        good.as_bytes(),
        &["--validation", "1"],
        2,
        &["0 to below 1", "found 1"],
    );
    refused(
        "good.jsonl",
        good.as_bytes(),
        &["--end-of-text", "</S>"],
        2,
        &["tokenizer.json", "`</S>`"],
    );
}

#[test]
fn tokenizers_that_do_not_serve_are_named() {
    let work = TempDir::new().unwrap();
    let path = |name: &str| work.path().join(name);
    let input = write(path("a.jsonl"), lines(&texts(20), "text"));
    let with = |tokenizer: &Path| {
        bam!(
            "tokenize",
            input,
            "--tokenizer",
            tokenizer,
            "--out",
            path("out")
        )
    };
    with(&path("nowhere")).refused(2, &["nowhere", "No such file", "train:N"]);
    with(Path::new("train:100")).refused(2, &["from 257 to 1048576", "train:100"]);
    let bare = path("bare");
    std::fs::create_dir(&bare).unwrap();
    std::fs::copy(seed().join("tokenizer.json"), bare.join("tokenizer.json")).unwrap();
    with(&bare.join("tokenizer.json")).refused(
        2,
        &[
            "bare/tokenizer.json",
            "which token ends a text",
            "--end-of-text",
        ],
    );
    let special = read_json(bare.join("tokenizer.json"))["added_tokens"][0]["content"]
        .as_str()
        .unwrap()
        .to_owned();
    bam!(
        "tokenize",
        input,
        "--tokenizer",
        bare,
        "--out",
        path("out"),
        "--end-of-text",
        special
    )
    .ok();
    // A tokenizer without that file says it in other ones; an older token folder says it too.
    std::fs::write(bare.join("config.json"), "{\"eos_token_id\": [2, 1]}").unwrap();
    bam!(
        "tokenize",
        input,
        "--tokenizer",
        bare,
        "--out",
        path("out2")
    )
    .ok();
    assert_eq!(read_json(path("out2/header.json"))["end_of_text"], 2);
    bam!(
        "tokenize",
        input,
        "--tokenizer",
        path("out2"),
        "--out",
        path("out3")
    )
    .ok();
    assert_eq!(read_json(path("out3/header.json"))["end_of_text"], 2);
    edit_json(&bare.join("config.json"), |config| {
        config["eos_token_id"] = Value::from(100_000)
    });
    bam!(
        "tokenize",
        input,
        "--tokenizer",
        bare,
        "--out",
        path("out4")
    )
    .refused(2, &["100000", "--end-of-text"]);
}

/// The folder of the fixture, its tokenizer changed.
pub fn changed_tokenizer(work: &TempDir, edit: impl FnOnce(&mut Value)) -> PathBuf {
    let folder = copy_folder(&seed(), &work.path().join("changed"));
    edit_json(&folder.join("tokenizer.json"), edit);
    folder
}

#[test]
fn lines_that_hold_no_readable_text_are_counted() {
    let work = TempDir::new().unwrap();
    let path = |name: &str| work.path().join(name);
    let bad = [
        r#"{"text": null}"#,
        r#"{"text": "half \ud83d of a smile"}"#,
        r#"{"score": NaN, "text": "a"}"#,
        r#"{"score": [-Infinity, 1.5], "text": "a \"NaN\" {"}"#,
    ];
    // What is wrong elsewhere than in the text is no reason to leave it out, as long as it is JSON.
    let good = [
        r#"{"text": "one court", "other": "\udc00", "far": 1e999}"#.to_owned(),
        json!({"text": "two 'NaN' \\ \" Infinity", "none": null}).to_string(),
    ];
    let input = path("a.jsonl");
    write(
        &input,
        bad.iter()
            .map(|line| (*line).to_owned())
            .chain(good)
            .collect::<Vec<_>>()
            .join("\n"),
    );
    let tokenize = |flags: &[&str]| {
        let mut arguments: Vec<std::ffi::OsString> = vec!["tokenize".into(), input.clone().into()];
        arguments.extend(["--validation", "0", "--force", "--tokenizer"].map(Into::into));
        arguments.extend([seed().into(), "--out".into(), path("out").into()]);
        arguments.extend(flags.iter().map(Into::into));
        crate::common::run(arguments)
    };
    let report = tokenize(&["--json"]).ok().json();
    assert_eq!(
        (
            &report["documents"],
            &report["empty"],
            &report["unreadable"]
        ),
        (&json!(6), &json!(1), &json!(3))
    );
    assert_eq!(
        decoded(&path("out"), Split::Train),
        ["one court", "two 'NaN' \\ \" Infinity"]
    );
    let text = tokenize(&[]).ok().stdout;
    assert!(
        text.lines()
            .any(|line| line.starts_with("unreadable") && line.ends_with('3')),
        "{text}"
    );
    // A line that is cut, or no object, is an error still; so is one without the key.
    for line in [
        r#"{"text": "a", "score": NaN"#,
        r#"[NaN]"#,
        r#"{"texd": "a", "score": NaN}"#,
    ] {
        write(&input, format!("{}\n{line}\n", json!({"text": "a"})));
        tokenize(&[]).refused(2, &["a.jsonl", "line 2"]);
    }
    // An evaluation has no place to count what it leaves out.
    let data = format!("x={}", input.display());
    for line in [bad[1], bad[2]] {
        write(&input, line);
        bam!("eval", seed(), "--data", &data).refused(
            2,
            &["a.jsonl: line 1:", "found NaN", "lone surrogate", "hint: "],
        );
    }
}

#[test]
fn a_long_document_has_the_tokens_of_the_whole() {
    let work = TempDir::new().unwrap();
    let path = |name: &str| work.path().join(name);
    let mut noise = Noise(11);
    let line = |noise: &mut Noise| {
        text(noise, 12)
            + if noise.word().is_multiple_of(3) {
                ".\n"
            } else {
                "\n\n"
            }
    };
    let mut long = String::new();
    while long.len() < 300_000 {
        long += &line(&mut noise);
    }
    let input = write(path("a.txt"), &long);
    let ending = changed_tokenizer(&work, |tokenizer| {
        let processor = &mut tokenizer["post_processor"];
        let token = |name: &str, id: u32| json!({"id": name, "ids": [id], "tokens": [name]});
        processor["special_tokens"] = json!({"<a>": token("<a>", 1), "<b>": token("<b>", 1)});
        let piece = |name: &str| json!({"SpecialToken": {"id": name, "type_id": 0}});
        let single = processor["single"].as_array_mut().unwrap();
        single.insert(0, piece("<a>"));
        single.push(piece("<b>"));
    });
    for tokenizer in [seed(), ending] {
        let out = path("out");
        bam!(
            "tokenize",
            input,
            "--tokenizer",
            tokenizer,
            "--validation",
            "0",
            "--force",
            "--out",
            out
        )
        .ok();
        let folder = TokenFolder::open(&out).unwrap();
        let ids = folder
            .ids(Split::Train, 0..folder.tokens(Split::Train))
            .unwrap();
        // The library itself, on the whole text.
        let whole = tokenizers::Tokenizer::from_file(tokenizer.join("tokenizer.json")).unwrap();
        let whole = whole.encode(long.as_str(), true).unwrap();
        let differs = ids.iter().zip(whole.get_ids()).position(|(a, b)| a != b);
        assert_eq!((differs, ids.len()), (None, whole.len() + 1));
    }
}

/// Runs the binary with so many bytes of data. Its code is not counted, which grows with each feature.
fn within(bytes: u64, arguments: &[&std::ffi::OsStr]) -> crate::common::Run {
    let mut command = std::process::Command::new("bash");
    let limit = format!("ulimit -d {}; exec timeout 120 \"$@\"", bytes >> 10);
    command
        .args(["-c", &limit, "bash"])
        .arg(crate::common::binary())
        .args(arguments);
    // Each arena of the C library reserves address space that nothing uses.
    command.env("MALLOC_ARENA_MAX", "1");
    crate::common::finish(command)
}

#[test]
fn memory_is_bounded_whatever_a_document_is_like() {
    let work = TempDir::new().unwrap();
    let path = |name: &str| work.path().join(name);
    let (seed, out) = (seed(), path("out"));
    let tokenize = |input: &Path| {
        let mut arguments = vec!["tokenize".as_ref(), input.as_os_str()];
        arguments.extend(
            [
                "--threads",
                "2",
                "--validation",
                "0",
                "--force",
                "--tokenizer",
            ]
            .map(std::ffi::OsStr::new),
        );
        arguments.extend([seed.as_os_str(), "--out".as_ref(), out.as_os_str()]);
        within(40 << 20, &arguments)
    };
    // Whole, it would take more.
    let words = "the court of law shall ".repeat(45_000);
    let words = write(path("words.txt.zst"), zstd(words.as_bytes()));
    tokenize(&words).ok();
    let letters = write(path("letters.txt.zst"), zstd(&[b'a'; 4_300_000]));
    tokenize(&letters).refused(
        2,
        &[
            "letters.txt.zst",
            "tokenizer.json",
            "4300000",
            "\"aaaa",
            "hint: split",
        ],
    );
    // Nothing is kept of documents that are empty, or like an earlier one.
    let lines = "{\"text\":\"\"}\n{\"text\":\"a\"}\n".repeat(30_000);
    let lines = write(path("lines.jsonl.zst"), zstd(lines.as_bytes()));
    let report = tokenize(&lines).ok();
    assert!(report.stdout.contains("29,999"), "{report}");
}

#[test]
fn a_vocabulary_that_no_text_justifies() {
    let work = TempDir::new().unwrap();
    let path = |name: &str| work.path().join(name);
    let input = write(path("a.txt"), "the court of law ".repeat(50));
    let out = path("out");
    let train = |wanted: &str| {
        let arguments = [
            "tokenize",
            "--validation",
            "0",
            "--force",
            "--tokenizer",
            wanted,
        ]
        .map(std::ffi::OsStr::new);
        let rest = ["--out".as_ref(), out.as_os_str(), input.as_os_str()];
        within(1 << 30, &[&arguments[..], &rest].concat())
    };
    for wanted in [
        "train:1000000000",
        "train:1048577",
        "train:4294967295",
        "train:256",
        "train:x",
    ] {
        train(wanted).refused(2, &[wanted, "from 257 to 1048576"]);
    }
    assert!(!out.exists());
    let run = train("train:1048576").ok();
    assert!(run.stderr.contains("tokens only, not 1,048,576"), "{run}");
}
