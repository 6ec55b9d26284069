//! Chat templates: what transformers renders, and programs from strangers that are rendered in a process that may die.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use bam_convert::model::chat::{ChatTemplate, Conversation, RenderRequest};
use bam_convert::model::tokenizer::Tokenizer;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::common::{Run, copy_folder, finish, fixture, read_json};

/// What transformers renders and we refuse: see the head of `src/model/chat/mod.rs`.
const REFUSED: [&str; 35] = [
    r#"math: +3"#,
    r#"percent: '%d' % 7.9"#,
    r#"percent: '%r' % 'x'"#,
    r#"percent: '%s=%r' | format('a', 'b')"#,
    r#"percent: '{!r}'.format('x')"#,
    r#"percent: '{0[a]} {0.b}'.format({'a': 1})"#,
    r#"percent: '{:>{}}'.format('a', 4)"#,
    r#"string: '½'.isnumeric()"#,
    r#"string: '²'.isdigit()"#,
    r#"string: '½'.isdigit()"#,
    r#"string: 'a\tb'.expandtabs(4)"#,
    r#"string: 'abc'.casefold()"#,
    r#"string: 'abc'.encode()"#,
    r#"string: '{a}'.format_map({'a': 1})"#,
    r#"collection: cycler('a', 'b').next()"#,
    r#"collection: joiner(', ')()"#,
    r#"filter: 'abcdefghij' | truncate(5)"#,
    r#"filter: 'abc def ghi' | truncate(8)"#,
    r#"filter: 'abc def ghi' | truncate(8, true, '!')"#,
    r#"filter: 'a<b>c</b>' | striptags"#,
    r#"filter: 'a b' | urlencode"#,
    r#"filter: 'a b c d' | wordwrap(3)"#,
    r#"filter: 1234567 | filesizeformat"#,
    r#"filter: {'a': 1} | xmlattr"#,
    r#"filter: 'x' | pprint"#,
    r#"filter: [1, 'a'] | pprint"#,
    r#"filter: 'a' | forceescape"#,
    r#"filter: 'abc' | random | length"#,
    r#"percent of a text that is no literal"#,
    r#"with sees what was outside"#,
    r#"macro varargs"#,
    r#"macro default of an argument"#,
    r#"block"#,
    r#"names with letters of any script"#,
    r#"tuple without parentheses"#,
];

/// What we render otherwise, or where transformers raises an error.
const OTHERWISE: [&str; 10] = [
    r#"print: range(3)"#,
    r#"math: 5.real"#,
    r#"filter: [{'a': 1, 'b': 2}, {'a': 1, 'b': 3}, {'a': 0, 'b': 4}] | groupby('a')"#,
    r#"macro properties"#,
    r#"math: 'a' < 1"#,
    r#"math: none < 1"#,
    r#"math: 1 in 'a1'"#,
    r#"math: undefined_thing < 1"#,
    r#"filter: range(2) | tojson"#,
    r#"print: 1e16 ~ ''"#,
];

fn request(template: &str, special: &Value, conversation: &Value) -> RenderRequest {
    let request = json!({"source": template, "special": special, "conversation": conversation});
    serde_json::from_value(request).unwrap()
}

/// Golden: `render_jinja_template` of transformers 5.24.0, by `fixtures/make_templates.py`.
#[test]
fn every_template_is_rendered_as_transformers_renders_it() {
    let golden = read_json(fixture("templates.json"));
    let cases = golden["cases"].as_array().unwrap();
    assert!(cases.len() > 600);
    let mut wrong = Vec::new();
    let (mut refused, mut otherwise) = (BTreeSet::new(), BTreeSet::new());
    for case in cases {
        let text = |key: &str| case[key].as_str().unwrap();
        let name = text("name");
        let conversation = &golden["conversations"][text("conversation")];
        let ours = request(text("template"), &golden["special"], conversation).text();
        match (&ours, case["text"].as_str()) {
            (Ok(ours), Some(theirs)) if ours == theirs => {}
            (Err(_), None) => {}
            (Err(_), Some(_)) if REFUSED.contains(&name) => {
                refused.insert(name);
            }
            (Ok(_), _) if OTHERWISE.contains(&name) => {
                otherwise.insert(name);
            }
            (_, theirs) => wrong.push(format!("{name}\n  ours:   {ours:?}\n  theirs: {theirs:?}")),
        }
    }
    assert!(
        wrong.is_empty(),
        "{} differ:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    assert_eq!(refused, BTreeSet::from(REFUSED));
    assert_eq!(otherwise, BTreeSet::from(OTHERWISE));
}

#[test]
fn the_binary_lays_out_prompts_by_the_template() {
    let work = TempDir::new().unwrap();
    let folder = copy_folder(&fixture("llama/seed"), &work.path().join("a"));
    let file = folder.join("chat_template.jinja");
    let generated = |arguments: &[&str]| {
        let mut command = Command::new(crate::common::binary());
        command.arg("generate").arg(&folder).args(arguments);
        command.args(["--max-tokens", "2", "--json"]);
        finish(command).ok().json()
    };
    for (template, text) in [
        (
            "{{ messages | tojson }}",
            r#"[{"role": "user", "content": "<é>"}]"#,
        ),
        ("{{ '%s:%s' % (messages[0].role, tools) }}", "user:None"),
        (
            "{% generation %}{{ messages[-1].content.strip('<>') }}{% endgeneration %}",
            "é",
        ),
        (
            "{% for m in messages %}\n  {% if loop.last %}\n{{ m }}\n  {% endif %}\n{% endfor %}\n",
            "{'role': 'user', 'content': '<é>'}\n",
        ),
    ] {
        std::fs::write(&file, template).unwrap();
        let chat = generated(&["--chat", "--prompt", "<é>"]);
        let tokens = Tokenizer::load(&folder, 384)
            .unwrap()
            .encode(text, false)
            .unwrap();
        assert_eq!(chat["prompt_tokens"], tokens.ids.len(), "{template}");
        let plain = generated(&["--prompt", text]);
        assert_eq!(chat["ids"], plain["ids"], "{template}");
    }
}

/// The template that a folder's conversations are rendered with, and its tokens.
#[test]
fn templates_and_tokens_are_found_where_transformers_finds_them() {
    let work = TempDir::new().unwrap();
    let write = |name: &str, value: Value| {
        std::fs::write(work.path().join(name), value.to_string()).unwrap();
    };
    let rendered = |tools: Option<Vec<Value>>| {
        let conversation = Conversation {
            tools,
            ..Conversation::question(None, "Hi")
        };
        let template = ChatTemplate::load(work.path()).unwrap();
        template.request(conversation).text().unwrap()
    };
    let named = json!([
        {"name": "default", "template": "default {{ bos_token }}{{ eos_token }}{{ tools }}"},
        {"name": "tool_use", "template": "tools {{ tools | length }}"},
    ]);
    let token = json!({"content": "<s>", "lstrip": false});
    write(
        "tokenizer_config.json",
        json!({"chat_template": named, "bos_token": token}),
    );
    write(
        "special_tokens_map.json",
        json!({"eos_token": "</s>", "bos_token": "<old>"}),
    );
    assert_eq!(rendered(None), "default <s></s>None");
    assert_eq!(rendered(Some(vec![json!({})])), "tools 1");
    std::fs::write(
        work.path().join("chat_template.jinja"),
        "file {{ bos_token }}",
    )
    .unwrap();
    assert_eq!(rendered(None), "file <s>");
    std::fs::remove_file(work.path().join("chat_template.jinja")).unwrap();
    for (template, part) in [
        (json!([{"name": "rag", "template": ""}]), "`default`"),
        (json!(3), "a template or a list"),
    ] {
        write("tokenizer_config.json", json!({"chat_template": template}));
        let error = ChatTemplate::load(work.path()).unwrap_err().to_string();
        assert!(
            error.contains("tokenizer_config.json") && error.contains(part),
            "{error}"
        );
    }
}

/// The templates of a group of `fixtures/hostile_templates.json`, where `[text, n]` means n times the text.
fn hostile(group: &str) -> Vec<(String, String)> {
    let piece = |piece: &Value| match piece {
        Value::Array(repeated) => {
            let [text, times] = &repeated[..] else {
                panic!("{piece}")
            };
            let times = times.as_u64().unwrap() as usize;
            text.as_str().unwrap().repeat(times)
        }
        text => text.as_str().unwrap().to_owned(),
    };
    let table = read_json(fixture("hostile_templates.json"));
    let templates = table[group].as_object().unwrap().iter();
    let whole = |pieces: &Value| pieces.as_array().unwrap().iter().map(piece).collect();
    templates
        .map(|(name, pieces)| (name.clone(), whole(pieces)))
        .collect()
}

/// Runs every template in a process with 1 GiB of address space: each is refused or rendered, and none takes long.
fn endures(templates: Vec<(String, String)>) {
    let left = Mutex::new(templates);
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(|| {
                let work = TempDir::new().unwrap();
                let folder = copy_folder(&fixture("hostile/template-good"), &work.path().join("a"));
                let file = folder.join("chat_template.jinja");
                while let Some((name, template)) = { left.lock().unwrap().pop() } {
                    std::fs::write(&file, template).unwrap();
                    let began = Instant::now();
                    let run = generate_within_a_gibibyte(&folder);
                    assert!(
                        began.elapsed() < Duration::from_secs(30),
                        "{name}: {:?}",
                        began.elapsed()
                    );
                    assert!([Some(0), Some(2)].contains(&run.code), "{name}: {run}");
                    assert!(run.stderr.len() < 2000, "{name}: {run}");
                    if run.code == Some(2) && !run.stderr.contains("the prompt ") {
                        assert!(run.stderr.contains("chat_template.jinja"), "{name}: {run}");
                    }
                }
            });
        }
    });
}

fn generate_within_a_gibibyte(folder: &Path) -> Run {
    let mut command = Command::new("bash");
    command
        .args(["-c", "ulimit -v 1048576; exec timeout 60 \"$@\"", "bash"])
        .arg(crate::common::binary())
        .arg("generate")
        .arg(folder)
        .args(["--chat", "--prompt", "abc", "--max-tokens", "1"]);
    finish(command)
}

#[test]
fn hostile_templates_are_refused_or_rendered() {
    let templates = hostile("quick");
    assert!(templates.len() > 95);
    endures(templates);
}

#[test]
#[ignore = "many of them take two seconds of a processor"]
fn hostile_templates_that_never_end_are_refused() {
    endures(hostile("slow"));
}

#[test]
fn what_the_engine_cannot_bound_ends_with_the_file_named() {
    let work = TempDir::new().unwrap();
    let folder = copy_folder(&fixture("hostile/template-good"), &work.path().join("a"));
    let cycle = "{% set ns = namespace() %}{% set ns.x = ns %}{{ ns ~ '' }}";
    let chain = format!("{{{{ 1{} }}}}", "+1".repeat(400_000));
    let long = format!("{{{{ 'x'{} }}}}", " ".repeat(1 << 20));
    let raised = "{{ raise_exception('x' * 1000000) }}";
    for (template, parts) in [
        (cycle, ["it takes more than", "chat_template.jinja"]),
        (chain.as_str(), ["at most 10000 tokens", ""]),
        ("{{ '{:>999999999}'.format('x') }}", ["at most 10000", ""]),
        (long.as_str(), ["at most 1048576 bytes", "found 10485"]),
        (raised, ["xxxxx", "more bytes)"]),
        ("{{ raise_exception('no system') }}", ["no system", ""]),
        (
            "{% macro f(a) %}{{ varargs }}{% endmacro %}{{ f(1) }}",
            ["`varargs` of a macro", ""],
        ),
    ] {
        std::fs::write(folder.join("chat_template.jinja"), template).unwrap();
        let run = generate_within_a_gibibyte(&folder).refused(2, &["chat_template.jinja"]);
        assert!(run.stderr.len() < 2000, "{run}");
        run.refused(2, &parts);
    }
}
