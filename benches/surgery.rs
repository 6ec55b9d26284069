//! How long surgery, checks and start-up take, against `cp` and `cat` of the same bytes in the same run.
//!
//!     cargo bench --bench surgery -- FOLDER [--rounds N]
//!
//! The benchmark makes FOLDER, and the next run uses it again. It holds three llamas of 602 M parameters in bfloat16 (3.6 GB),
//! whose mixture takes 2.7 GB. Two to three times as much must be free. Rounds go over all commands in turn, so that a disturbance meets every one.
//! Files are in the page cache. Before each command that writes, everything written before is on the disk (`sync`).

#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

mod common;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use common::Times;

const CONFIG: &str = r#"{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 1536,
 "intermediate_size": 4096, "num_hidden_layers": 20, "num_attention_heads": 24, "num_key_value_heads": 8, "head_dim": 64,
 "vocab_size": 32000, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": false, "hidden_act": "silu",
 "max_position_embeddings": 2048, "torch_dtype": "bfloat16"}"#;

/// Something that is timed: what it is called, what it is compared with, and its command line.
struct Timed {
    name: &'static str,
    against: Option<&'static str>,
    line: String,
    times: Times,
    /// Largest anonymous memory in MiB.
    memory: f64,
}

fn main() {
    let (mut folder, mut rounds) = (None, 5);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--rounds" => rounds = arguments.next().unwrap().parse().unwrap(),
            "--bench" => {}
            _ => folder = Some(PathBuf::from(argument)),
        }
    }
    let folder = folder.unwrap();
    let bam = env!("CARGO_BIN_EXE_bam-convert");
    prepare(&folder, bam);
    let upcycle =
        format!("{bam} upcycle --method btx --seed m0 --expert a=m1 --expert b=m2 --quiet");
    let big = "big/0 --expert b=big/1 --expert c=big/2 --expert d=big/3 --expert e=big/4 --expert f=big/5 --expert g=big/6 \
               --expert h=big/7";
    let lines = [
        (
            "cp and sync",
            None,
            "mkdir out && cp btx/* out && sync out/*".to_owned(),
        ),
        (
            "upcycle, inputs hashed",
            Some("cp and sync"),
            format!("{upcycle} --out out --rehash"),
        ),
        (
            "upcycle, hashes known",
            Some("cp and sync"),
            format!("{upcycle} --out out"),
        ),
        (
            "cat btx",
            None,
            "cat btx/*.safetensors > /dev/null".to_owned(),
        ),
        (
            "sha256sum btx",
            None,
            "sha256sum btx/*.safetensors".to_owned(),
        ),
        (
            "validate btx, hashes too",
            Some("sha256sum btx"),
            format!("{bam} validate btx"),
        ),
        (
            "validate m0-plain, no hashes",
            Some("cat m0"),
            format!("{bam} validate m0-plain"),
        ),
        (
            "cat m0",
            None,
            "cat m0/*.safetensors > /dev/null".to_owned(),
        ),
        (
            "cat m0 m1",
            None,
            "cat m0/*.safetensors m1/*.safetensors > /dev/null".to_owned(),
        ),
        (
            "diff m0 m1, all differs",
            Some("cat m0 m1"),
            format!("{bam} diff m0 m1"),
        ),
        (
            "diff m0 m0-plain, same",
            Some("cat m0 m1"),
            format!("{bam} diff m0 m0-plain"),
        ),
        ("--help", None, format!("{bam} --help")),
        ("inspect btx", None, format!("{bam} inspect btx")),
        (
            "a refused command",
            None,
            format!("{bam} upcycle --method btx --seed m0 --expert a=config.json --out x"),
        ),
        (
            "dry run, 70B x 8",
            None,
            format!("{bam} upcycle --method bam --seed {big} --out x --dry-run"),
        ),
        (
            "validate, one 70B of it",
            None,
            format!("{bam} validate big/0"),
        ),
    ];
    let mut all: Vec<Timed> = lines
        .into_iter()
        .map(|(name, against, line)| Timed {
            name,
            against,
            line,
            times: Times::default(),
            memory: 0.0,
        })
        .collect();
    for _ in 0..rounds {
        all.iter_mut().for_each(|timed| timed.run(&folder));
    }
    println!(
        "{rounds} rounds, {} threads; ratios of means, and in brackets of processor time",
        threads()
    );
    for timed in &all {
        let base = timed
            .against
            .and_then(|base| all.iter().find(|other| other.name == base));
        let ratio = base.map_or(String::new(), |base| {
            format!("  {} of {}", timed.times.over(&base.times), base.name)
        });
        println!(
            "{:30} {} {:6.0} MiB{ratio}",
            timed.name,
            timed.times.shown(),
            timed.memory
        );
    }
}

impl Timed {
    /// One round: what the last one wrote is gone, and nothing waits for the disk.
    fn run(&mut self, folder: &Path) {
        let _ = fs::remove_dir_all(folder.join("out"));
        shell(folder, "sync");
        let before = children();
        let start = Instant::now();
        let mut child = command(folder, &self.line).spawn().unwrap();
        let id = child.id();
        let watch = std::thread::spawn(move || anonymous_memory(id));
        let status = child.wait().unwrap();
        self.times.wall.push(start.elapsed().as_secs_f64());
        self.times.processor.push(children() - before);
        self.memory = self.memory.max(watch.join().unwrap());
        // 1 is a check that says no, 2 a command that was refused.
        assert!(
            status.code().is_some_and(|code| code < 3),
            "{}: {status}",
            self.line
        );
    }
}

/// A command line of the shell, which is replaced by the last command in it.
fn command(folder: &Path, line: &str) -> Command {
    let mut command = Command::new("bash");
    command
        .args(["-c", line])
        .current_dir(folder)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.env("XDG_CACHE_HOME", folder.join("cache"));
    command
}

fn shell(folder: &Path, line: &str) {
    assert!(command(folder, line).status().unwrap().success(), "{line}");
}

/// Seconds of processor time of all processes that have ended.
fn children() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap()
        .split_whitespace()
        .collect();
    (fields[13].parse::<f64>().unwrap() + fields[14].parse::<f64>().unwrap()) / 100.0
}

/// The largest anonymous memory of a process in MiB, asked for every 10 ms until it ends.
fn anonymous_memory(id: u32) -> f64 {
    let mut most = 0.0f64;
    while let Ok(status) = fs::read_to_string(format!("/proc/{id}/status")) {
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("RssAnon:"));
        let Some(line) = line else { break };
        most = most.max(line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() / 1024.0);
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    most
}

fn threads() -> usize {
    std::thread::available_parallelism().unwrap().get()
}

/// Makes what is missing in the folder, and reads all of it once.
fn prepare(folder: &Path, bam: &str) {
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("config.json"), CONFIG).unwrap();
    let missing = |name: &str| !folder.join(name).exists();
    for number in 0..3 {
        if missing(&format!("m{number}")) {
            shell(
                folder,
                &format!("{bam} init config.json --rng-seed {number} --out m{number}"),
            );
        }
    }
    if missing("m0-plain") {
        // Without a manifest there is nothing to hash.
        shell(
            folder,
            "mkdir m0-plain && cp m0/*.safetensors m0/config.json m0-plain",
        );
    }
    if missing("btx") {
        shell(
            folder,
            &format!("{bam} upcycle --method btx --seed m0 --expert a=m1 --expert b=m2 --out btx"),
        );
    }
    (0..8).for_each(|number| sparse_70b(&folder.join("big").join(number.to_string())));
    shell(folder, "cat */*.safetensors > /dev/null");
}

/// A llama of 69 billion parameters in 29 files that hold headers and no data.
fn sparse_70b(folder: &Path) {
    let (hidden, width, kv, layers, vocabulary) = (8192u64, 28672, 1024, 80, 32000);
    let mut tensors = vec![(
        "model.embed_tokens.weight".to_owned(),
        vec![vocabulary, hidden],
    )];
    for layer in 0..layers {
        let mut add = |name: &str, shape: &[u64]| {
            tensors.push((
                format!("model.layers.{layer}.{name}.weight"),
                shape.to_vec(),
            ))
        };
        add("input_layernorm", &[hidden]);
        add("post_attention_layernorm", &[hidden]);
        add("self_attn.q_proj", &[hidden, hidden]);
        add("self_attn.k_proj", &[kv, hidden]);
        add("self_attn.v_proj", &[kv, hidden]);
        add("self_attn.o_proj", &[hidden, hidden]);
        add("mlp.gate_proj", &[width, hidden]);
        add("mlp.up_proj", &[width, hidden]);
        add("mlp.down_proj", &[hidden, width]);
    }
    tensors.push(("model.norm.weight".to_owned(), vec![hidden]));
    tensors.push(("lm_head.weight".to_owned(), vec![vocabulary, hidden]));
    fs::create_dir_all(folder).unwrap();
    let mut map = BTreeMap::new();
    let shards: Vec<_> = tensors.chunks(25).collect();
    let count = shards.len();
    for (number, shard) in shards.into_iter().enumerate() {
        let name = format!("model-{:05}-of-{count:05}.safetensors", number + 1);
        let (mut header, mut end) = (String::from("{"), 0);
        for (tensor, shape) in shard.iter() {
            let (start, comma) = (end, if end == 0 { "" } else { "," });
            end += 2 * shape.iter().product::<u64>();
            write!(header, r#"{comma}"{tensor}":{{"dtype":"BF16","shape":{shape:?},"data_offsets":[{start},{end}]}}"#)
                .unwrap();
            map.insert(tensor.clone(), name.clone());
        }
        header.push('}');
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        let path = folder.join(name);
        fs::write(&path, &bytes).unwrap();
        File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(bytes.len() as u64 + end)
            .unwrap();
    }
    let index = serde_json::json!({"metadata": {}, "weight_map": map});
    fs::write(
        folder.join("model.safetensors.index.json"),
        index.to_string(),
    )
    .unwrap();
    let config = serde_json::json!({
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": hidden, "intermediate_size": width,
        "num_hidden_layers": layers, "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": vocabulary,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu", "max_position_embeddings": 4096,
        "torch_dtype": "bfloat16", "tie_word_embeddings": false,
    });
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
}
