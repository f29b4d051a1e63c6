//! What README.md and ARCHITECTURE.md name is there: files and folders, targets of make, options, scenarios of the lab.

mod program;

use std::path::{Path, PathBuf};
use std::process::Command;

const PAGES: [&str; 2] = ["README.md", "ARCHITECTURE.md"];
const VERBS: [&str; 5] = ["run", "standby", "console", "check", "demo"];
/// Options of other programs than `lockstep`: where they are.
const OPTIONS_ELSEWHERE: [(&str, &str, &str); 1] = [("--quick", "bench/src/main.rs", "    quick: bool,")];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// What stands in backquotes, in text and not in blocks of code.
fn quoted(page: &str) -> Vec<String> {
    let text: String = read(page).split("```").step_by(2).collect();
    text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// Files and folders of the project, by their paths from its root.
fn paths(folder: &Path, into: &mut Vec<String>) {
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        let name = path.strip_prefix(root()).expect("inside").to_str().expect("a name").to_owned();
        if name.starts_with('.') || name == "target" {
            continue;
        }
        if path.is_dir() {
            paths(&path, into);
        }
        into.push(name);
    }
}

#[test]
fn every_file_and_folder_that_is_named_is_there() {
    let mut there = Vec::new();
    paths(&root(), &mut there);
    for page in PAGES {
        for span in quoted(page) {
            let named = span.trim_end_matches('/');
            let first = named.split('/').next().unwrap_or_default();
            let is_path = named.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_./-".contains(&byte))
                && (named.ends_with(".rs") || (span.contains('/') && there.iter().any(|path| path == first)));
            // In the section of one crate, files go by the ends of their paths.
            let found = there.iter().any(|path| path == named || path.ends_with(&format!("/{named}")));
            assert!(!is_path || found, "{page} names {span}, which is not there");
        }
    }
}

#[test]
fn every_target_of_make_that_is_named_is_one() {
    let makefile = read("Makefile");
    for page in PAGES {
        for words in read(page).split("make ").skip(1) {
            let target: String = words.chars().take_while(|letter| letter.is_ascii_lowercase() || *letter == '-').collect();
            let before_is_code = read(page).contains(&format!("`make {target}"));
            assert!(!before_is_code || makefile.contains(&format!("\n{target}:")), "{page} names make {target}, which is no target");
        }
    }
}

#[test]
fn every_option_that_is_named_is_one() {
    let mut known = String::new();
    for verb in VERBS {
        let output = Command::new(program::lockstep()).args([verb, "--help"]).output().expect("the program runs");
        assert!(output.status.success());
        known += &String::from_utf8(output.stdout).expect("text");
    }
    for page in PAGES {
        for words in read(page).split("--").skip(1) {
            let name: String = words.chars().take_while(|letter| letter.is_ascii_lowercase() || *letter == '-').collect();
            // Lines of tables and arrows.
            if name.is_empty() || name.starts_with('-') {
                continue;
            }
            let option = format!("--{name}");
            let elsewhere = OPTIONS_ELSEWHERE.iter().any(|(other, file, line)| *other == option && read(file).contains(line));
            assert!(elsewhere || known.contains(&option), "{page} names {option}, which no verb has");
        }
    }
}

#[test]
fn every_scenario_whose_figures_are_shown_exists() {
    let scenarios = read("tests/lab/src/scenario/mod.rs");
    let text = read("README.md");
    let table = text.split("| scenario |").nth(1).expect("the table of the lab's scenarios").split("\n\n").next().expect("its rows");
    let names: Vec<&str> = table.lines().filter_map(|row| row.strip_prefix("| `")?.split('`').next()).collect();
    assert!(!names.is_empty());
    for name in names {
        assert!(scenarios.contains(&format!("\"{name}\"")), "README.md shows figures of {name}, which is no scenario");
    }
}
