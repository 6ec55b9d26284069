//! What is checked before torch starts, and how it starts, on one node or several.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::Value;

use super::{PROBE, Stage};
use crate::common::finish;
use crate::train::{command, run_folder, seed, train};

#[test]
fn a_python_that_does_not_fit_is_refused_with_what_to_install() {
    let steps = ["--steps", "2"];
    let missing = r#"{"event":"failed","kind":"torch-missing","message":"has no package torch, expected 2.6 or newer","install":["/a b/python","-m","pip","install","torch>=2.6"]}"#;
    let stage = Stage::answering(missing, "");
    let hint = "hint: install it with: '/a b/python' -m pip install 'torch>=2.6'";
    stage
        .train(&steps)
        .refused(3, &["has no package torch, expected 2.6 or newer", hint]);
    // A dry run checks it, too.
    stage
        .train(&["--steps", "2", "--dry-run"])
        .refused(3, &[hint]);
    assert!(!run_folder(&stage.out()).exists());

    let stage = Stage::answering("not JSON", "");
    stage
        .train(&steps)
        .refused(3, &["does not say which torch it has"]);
    let mut command = command(&seed(), &stage.out(), &steps);
    command.args(["--engine", "torch", "--python", "/no/such/python"]);
    finish(command).refused(
        3,
        &["cannot run Python as /no/such/python", "pass --python PATH"],
    );

    // `auto` says why it does not take torch.
    let auto = |probe: &str, flags: &[&str]| {
        let stage = Stage::answering(probe, "exit 1");
        let mut command =
            crate::train::command(&seed(), &stage.out(), &["--steps", "1", "--batch", "1"]);
        command
            .args(["--engine", "auto", "--python"])
            .arg(stage.python())
            .args(flags);
        finish(command)
    };
    let run = auto(missing, &[]).ok();
    assert!(
        run.stderr.contains("--engine auto: this program trains: ")
            && run.stderr.contains("has no package torch"),
        "{run}"
    );
    let run = auto(PROBE, &[]).ok();
    assert!(
        run.stderr
            .contains("--engine auto: this program trains: torch 2.9.1 finds no GPU"),
        "{run}"
    );
    // Our own trainer would start once on each of several nodes.
    let nodes = [
        "--nnodes",
        "2",
        "--node-rank",
        "1",
        "--rdzv-endpoint",
        "first:29500",
    ];
    auto(missing, &nodes).refused(3, &["has no package torch"]);
    auto(PROBE, &nodes).refused(3, &["torch 2.9.1 of ", " finds no GPU"]);
    auto(PROBE, &nodes[..2]).refused(3, &["finds no GPU"]);
    let on_cpu = [&nodes[..], &["--device", "cpu"]].concat();
    auto(PROBE, &on_cpu).refused(3, &["exit status: 1"]);
    let gpu = PROBE.replace("[]", r#"["Some GPU"],"cuda_memory":[1000000]"#);
    let run = auto(&gpu, &[]).refused(3, &["ended after step 0 (exit status: 1)"]);
    for part in [
        "--engine auto: torch 2.9.1 trains, on 1 x Some GPU",
        "with 1.00 MB on the smallest GPU",
    ] {
        assert!(run.stderr.contains(part), "{run}");
    }
}

#[test]
fn python_sees_no_modules_of_others() {
    let stage = Stage::new("exit 1");
    fs::create_dir_all(stage.engine()).unwrap();
    for name in ["torch.py", "__pycache__"] {
        let path = stage.engine().join(name);
        fs::create_dir(&path).unwrap();
        let problem = format!("engine/{name}: is no file of this program");
        stage
            .train(&["--steps", "1"])
            .refused(2, &[&problem, "move it"]);
        fs::remove_dir(&path).unwrap();
    }
    let path = stage.engine().join("torch");
    std::os::unix::fs::symlink("/tmp", &path).unwrap();
    stage
        .train(&["--steps", "1"])
        .refused(2, &["engine/torch: is no file of this program"]);
    fs::remove_file(&path).unwrap();
    // What is no code stays where it is.
    for name in [".plan.json.partial", "core", ".nfs0001"] {
        fs::write(stage.engine().join(name), "").unwrap();
    }
    stage
        .train(&["--steps", "1"])
        .refused(3, &["exit status: 1"]);
    let stage = Stage::new("pwd > \"$engine/output-pwd.log\"; exit 1");
    stage
        .train(&["--steps", "1"])
        .refused(3, &["exit status: 1"]);
    let folder = fs::read_to_string(stage.engine().join("output-pwd.log")).unwrap();
    assert_eq!(
        Path::new(folder.trim()),
        stage.engine().canonicalize().unwrap()
    );
}

#[test]
fn flags_of_the_engine_are_checked() {
    let stage = Stage::new("exit 1");
    let native =
        |flags: &[&str]| train(&seed(), &stage.out(), &[&["--steps", "1"], flags].concat());
    native(&["--nproc-per-node", "2"])
        .refused(2, &["--nproc-per-node has no effect with --engine native"]);
    native(&["--compile"]).refused(2, &["--compile has no effect with --engine native"]);
    native(&["--node-rank", "1"]).refused(2, &["--rdzv-endpoint"]);
    stage.train(&["--steps", "1", "--batch", "1"]).refused(
        2,
        &[
            "--batch: expected a row for each of 2 ranks, found 1",
            "a larger --batch",
        ],
    );
    stage.train(&["--steps", "1", "--device", "cuda"]).refused(
        3,
        &[
            "--device cuda: torch 2.9.1 of ",
            " finds no GPU",
            "--device cpu",
        ],
    );
    stage
        .train(&["--steps", "1", "--nnodes", "2"])
        .refused(2, &["--nnodes 2: expected --node-rank and --rdzv-endpoint"]);
    let far = [
        "--steps",
        "1",
        "--nnodes",
        "2",
        "--node-rank",
        "2",
        "--rdzv-endpoint",
        "n:1",
    ];
    stage
        .train(&far)
        .refused(2, &["--node-rank: expected a number below 2, found 2"]);

    // A dry run plans for machines that this one is not.
    let run = stage
        .train(&[
            "--steps",
            "1",
            "--device",
            "cuda",
            "--nnodes",
            "4",
            "--batch",
            "64",
            "--dry-run",
        ])
        .ok();
    assert!(run.stdout.contains("in each of 8 ranks: weights "), "{run}");
    assert!(run.stderr.contains("finds no GPU"), "{run}");
    let memory = |ranks: &str| {
        let flags = [
            "--steps",
            "1",
            "--nnodes",
            ranks,
            "--batch",
            "64",
            "--dry-run",
            "--json",
        ];
        let json = stage.train(&flags).ok().json();
        let of = |key: &str| json["memory"][key].as_u64().unwrap();
        assert_eq!(json["ranks"], 2 * ranks.parse::<u64>().unwrap());
        [of("optimiser"), of("activations")]
    };
    let (few, many) = (memory("1"), memory("4"));
    assert!(
        few[0] >= 4 * many[0] - 64 && few[1] > many[1],
        "{few:?} {many:?}"
    );
    assert!(!run_folder(&stage.out()).exists());
}

#[test]
fn one_gpu_of_several_trains() {
    let gpus = PROBE.replace("[]", r#"["A","B"],"cuda_memory":[3000000,1000]"#);
    let stage = Stage::answering(&gpus, "exit 7");
    let on = |device: &str, processes: &str| {
        let flags = [
            "--steps",
            "1",
            "--device",
            device,
            "--nproc-per-node",
            processes,
        ];
        // The helper names two processes already, and a flag may come once.
        let mut command = command(&seed(), &stage.out(), &flags);
        command.args(["--engine", "torch", "--force", "--python"]);
        command.arg(stage.python());
        finish(command)
    };
    let run = on("cuda:0", "1").refused(3, &["exit status: 7"]);
    assert_eq!(stage.plan()["device"], "cuda");
    assert_eq!(stage.plan()["gpu"], 0);
    // The memory of the GPU that was named.
    assert!(
        run.stderr.contains("with 3.00 MB on the smallest GPU"),
        "{run}"
    );
    on("cuda:1", "1").refused(3, &["exit status: 7"]);
    assert_eq!(stage.plan()["gpu"], 1);
    on("cuda", "2").refused(3, &["exit status: 7"]);
    assert_eq!(stage.plan()["gpu"], Value::Null);
    on("cuda:9", "1").refused(
        3,
        &["--device cuda:9: torch 2.9.1 of ", "finds only 2 GPUs"],
    );
    on("cuda:1", "2").refused(2, &["--device cuda:1 is one GPU", "--nproc-per-node"]);
}

#[test]
fn nodes_find_each_other() {
    let endpoint = [
        "--nnodes",
        "2",
        "--rdzv-endpoint",
        "first:29500",
        "--node-rank",
    ];
    let steps = ["--steps", "1"];
    let stage = Stage::new("exit 5");
    stage
        .train(&[&steps[..], &endpoint, &["0"]].concat())
        .refused(3, &["exit status: 5"]);
    let arguments = fs::read_to_string(stage.engine().join("arguments")).unwrap();
    let expected = "-m\ntorch.distributed.run\n--node-rank=0\n--nnodes=2\n--rdzv-backend=static\n--rdzv-endpoint=first:29500\n--nproc-per-node=2\n";
    assert!(arguments.starts_with(expected), "{arguments}");

    // Another node only runs its processes.
    let stage = Stage::new("echo 'of node 1' >&2");
    stage.train(&[&steps[..], &endpoint, &["1"]].concat()).ok();
    assert_eq!(
        fs::read_to_string(stage.engine().join("output-1.log")).unwrap(),
        "of node 1\n"
    );
    assert!(!stage.engine().join("plan.json").exists());

    // In a job of Slurm with several nodes, srun starts a task on each.
    let stage = Stage::new("exit 6");
    let srun = stage.path("srun");
    fs::write(&srun, "#!/bin/sh\nprintf '%s\\n' \"$@\" > \"$0.arguments\"\nwhile [ \"$1\" != sh ]; do shift; done\nSLURM_NODEID=0 exec \"$@\"\n").unwrap();
    fs::set_permissions(&srun, fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = stage.command(&seed(), &steps);
    let path = format!(
        "{}:{}",
        stage.folder.path().display(),
        std::env::var("PATH").unwrap()
    );
    command
        .env("PATH", path)
        .env("SLURM_JOB_ID", "7")
        .env("SLURM_JOB_NUM_NODES", "3");
    command
        .env("SLURMD_NODENAME", "n1")
        .env("SLURM_CPUS_PER_TASK", "12");
    finish(command).refused(3, &["exit status: 6"]);
    let words = fs::read_to_string(stage.path("srun.arguments")).unwrap();
    let begin = "--nodes=3\n--ntasks=3\n--ntasks-per-node=1\n--kill-on-bad-exit=1\n--cpus-per-task=12\nsh\n-c\n";
    assert!(words.starts_with(begin), "{words}");
    let arguments = fs::read_to_string(stage.engine().join("arguments")).unwrap();
    let expected = "-m\ntorch.distributed.run\n--node-rank=0\n--nnodes=3\n--rdzv-backend=static\n--rdzv-endpoint=n1:20007\n";
    assert!(arguments.starts_with(expected), "{arguments}");
}
