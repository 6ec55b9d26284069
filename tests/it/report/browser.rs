//! The page of `report` in headless Chromium, where this machine has one.

use std::fs;
use std::path::{Path, PathBuf};

use super::bench;
use crate::common::{bam, note};

/// A script that looks at the page and changes every control.
const PROBE: &str = include_str!("probe.js");

/// A browser without a window: the one that is asked for, or one of this machine.
fn browser() -> Option<PathBuf> {
    if let Some(asked) = std::env::var_os("BAM_CONVERT_BROWSER") {
        return Some(asked.into());
    }
    // Windows of other builds are at least 500 px wide.
    let names = ["chromium-headless-shell", "chrome-headless-shell"];
    let folders: Vec<PathBuf> = std::env::split_paths(&std::env::var_os("PATH")?).collect();
    let mut paths = names
        .iter()
        .flat_map(|name| folders.iter().map(move |folder| folder.join(name)));
    paths.find(|path| path.exists())
}

/// What the probe found in the page, in a window of this width.
fn probed(browser: &Path, page: &Path, width: u32, dark: bool) -> serde_json::Value {
    let profile = tempfile::tempdir().unwrap();
    let scheme = if dark { 0 } else { 1 };
    let output = std::process::Command::new(browser)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"])
        .args(["--virtual-time-budget=5000", "--hide-scrollbars"])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .arg(format!("--window-size={width},900"))
        .arg(format!("--blink-settings=preferredColorScheme={scheme}"))
        .arg(format!("file://{}", page.display()))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let found = text
        .split("PROBE")
        .last()
        .and_then(|rest| rest.split("END").next());
    let found = found.filter(|found| found.starts_with("%7B"));
    let found = found.unwrap_or_else(|| {
        panic!("{}\n{text}", String::from_utf8_lossy(&output.stderr));
    });
    serde_json::from_str(&percent_decoded(found)).unwrap()
}

fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let digits = [rest.next().unwrap(), rest.next().unwrap()];
            let digits = std::str::from_utf8(&digits).unwrap();
            bytes.push(u8::from_str_radix(digits, 16).unwrap());
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).unwrap()
}

/// Needs Chromium; `bash tests/live/report.sh` installs it.
#[test]
fn the_page_works_in_a_browser_of_any_width_and_colour_scheme() {
    let Some(browser) = browser() else {
        note(
            "the report is not opened: there is no headless Chromium; `bash tests/live/report.sh` installs it",
        );
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    bench(folder.path());
    let page = folder.path().join("report.html");
    bam!("report", folder.path(), "--out", page).ok();
    let text = fs::read_to_string(&page).unwrap();
    fs::write(
        &page,
        text.replacen("<head>", &format!("<head><script>{PROBE}</script>"), 1),
    )
    .unwrap();
    for width in [390, 768, 1280] {
        for dark in [false, true] {
            let found = probed(&browser, &page, width, dark);
            assert_eq!(found["faults"], serde_json::json!([]), "{width} {dark}");
            assert_eq!(found["width"], width);
            let paper = if dark {
                "rgb(20, 23, 27)"
            } else {
                "rgb(255, 255, 255)"
            };
            assert_eq!(found["paper"], paper);
            let backs = found["backs"].to_string();
            assert!(!backs.contains("255, 255, 255"), "{width} {dark}: {backs}");
            if width == 1280 {
                let height = found["height"].as_u64().unwrap();
                assert!(height <= 4000, "{height} px before anything is unfolded");
            }

            let saved: Vec<String> = found["saved"]
                .as_array()
                .unwrap()
                .iter()
                .map(|link| percent_decoded(link.as_str().unwrap()))
                .collect();
            assert!(
                saved[0].starts_with("data:image/svg+xml;charset=utf-8,<svg xmlns="),
                "{}",
                saved[0]
            );
            // Inkscape and LaTeX know no variables of a page.
            assert!(saved[0].contains("fill=\"rgb("), "{}", saved[0]);
            assert!(!saved[0].contains("var("), "{}", saved[0]);
            assert!(
                saved[1].starts_with("data:text/csv;charset=utf-8,name,place,"),
                "{}",
                saved[1]
            );
            assert!(saved[1].contains("\r\nseed,code,"), "{}", saved[1]);
        }
    }
}
