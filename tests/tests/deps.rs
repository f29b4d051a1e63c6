//! What the workspace depends on: one version of each rust-vmm crate, crates.io only, known licences, and bincode where it is allowed
//! (deny.toml gives the reasons); and that the fuzz targets, which are a workspace of their own, can be built from their lock file.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use serde_json::Value;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// Two copies of one of these would mean two kinds of guest memory, or of KVM structures.
const ONE_VERSION: &[&str] =
    &["kvm-bindings", "kvm-ioctls", "linux-loader", "virtio-bindings", "virtio-queue", "vm-memory", "vm-superio", "vmm-sys-util"];

fn packages() -> Vec<Value> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked", "--filter-platform", "x86_64-unknown-linux-gnu"])
        .current_dir(ROOT)
        .output()
        .expect("cargo metadata");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    metadata["packages"].as_array().expect("packages").clone()
}

fn text<'a>(package: &'a Value, field: &str) -> &'a str {
    package[field].as_str().unwrap_or_default()
}

fn allowed_licences() -> BTreeSet<String> {
    let text = std::fs::read_to_string(Path::new(ROOT).join("deny.toml")).expect("deny.toml");
    let deny: toml::Table = toml::from_str(&text).expect("TOML");
    let allow = deny["licenses"]["allow"].as_array().expect("a list");
    allow.iter().map(|licence| licence.as_str().expect("a name").to_owned()).collect()
}

/// Whether an SPDX expression (AND, OR, WITH, parentheses, the old slash) can be met with `allowed` alone.
fn permits(expression: &str, allowed: &BTreeSet<String>) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let (answer, rest) = any(&words, allowed);
    assert!(rest.is_empty(), "not an SPDX expression: {expression}");
    answer
}

fn any<'a>(words: &'a [&'a str], allowed: &BTreeSet<String>) -> (bool, &'a [&'a str]) {
    let (mut answer, mut rest) = all(words, allowed);
    while rest.first() == Some(&"OR") {
        let (other, after) = all(&rest[1..], allowed);
        (answer, rest) = (answer | other, after);
    }
    (answer, rest)
}

fn all<'a>(words: &'a [&'a str], allowed: &BTreeSet<String>) -> (bool, &'a [&'a str]) {
    let (mut answer, mut rest) = one(words, allowed);
    while rest.first() == Some(&"AND") {
        let (other, after) = one(&rest[1..], allowed);
        (answer, rest) = (answer & other, after);
    }
    (answer, rest)
}

fn one<'a>(words: &'a [&'a str], allowed: &BTreeSet<String>) -> (bool, &'a [&'a str]) {
    match words {
        ["(", rest @ ..] => {
            let (answer, rest) = any(rest, allowed);
            assert_eq!(rest.first(), Some(&")"));
            (answer, &rest[1..])
        }
        [licence, "WITH", exception, rest @ ..] => (allowed.contains(&format!("{licence} WITH {exception}")), rest),
        [licence, rest @ ..] => (allowed.contains(*licence), rest),
        [] => panic!("an SPDX expression ends too soon"),
    }
}

#[test]
fn there_is_one_version_of_each_rust_vmm_crate() {
    let mut versions: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for package in packages() {
        versions.entry(text(&package, "name").to_owned()).or_default().insert(text(&package, "version").to_owned());
    }
    for name in ONE_VERSION {
        assert!(versions.get(*name).is_none_or(|v| v.len() == 1), "{name}: {:?}", versions[*name]);
    }
}

#[test]
fn everything_comes_from_crates_io_or_this_workspace() {
    for package in packages() {
        let source = package["source"].as_str();
        let ours =
            source.is_none() && Path::new(text(&package, "manifest_path")).starts_with(Path::new(ROOT).canonicalize().expect("a path"));
        let theirs = source == Some("registry+https://github.com/rust-lang/crates.io-index");
        assert!(ours || theirs, "{} comes from {source:?}", text(&package, "name"));
    }
}

#[test]
fn every_licence_is_on_the_list() {
    let allowed = allowed_licences();
    for package in packages() {
        let licence = text(&package, "license");
        assert!(!licence.is_empty(), "{} names no licence", text(&package, "name"));
        assert!(permits(licence, &allowed), "{}: {licence}", text(&package, "name"));
    }
}

#[test]
fn licence_expressions_are_understood() {
    let allowed: BTreeSet<String> = ["MIT", "Apache-2.0 WITH LLVM-exception"].map(str::to_owned).into();
    for (expression, expected) in [
        ("MIT", true),
        ("GPL-3.0", false),
        ("MIT OR GPL-3.0", true),
        ("GPL-3.0/MIT", true),
        ("MIT AND GPL-3.0", false),
        ("(GPL-3.0 OR MIT) AND MIT", true),
        ("Apache-2.0 WITH LLVM-exception", true),
        ("Apache-2.0", false),
    ] {
        assert_eq!(permits(expression, &allowed), expected, "{expression}");
    }
}

#[test]
fn bincode_is_pinned_and_named_by_the_codec_only() {
    for package in packages() {
        let name = text(&package, "name");
        if name == "bincode" {
            assert_eq!(text(&package, "version"), "2.0.1");
        }
        let dependencies = package["dependencies"].as_array().expect("dependencies");
        if package["source"].is_null() {
            let names_it = dependencies.iter().find(|d| text(d, "name") == "bincode");
            assert!(
                names_it.is_none_or(|_| ["checkpoint", "vmm"].contains(&name)),
                "{name} names bincode: only the codec may, and a test of vmm"
            );
            assert!(names_it.is_none_or(|d| text(d, "req") == "=2.0.1"), "{name} does not pin bincode");
        }
    }
    let deny = std::fs::read_to_string(Path::new(ROOT).join("deny.toml")).expect("deny.toml");
    assert!(deny.contains("RUSTSEC-2025-0141"), "the exception and its reason");
}

/// Nothing in CI builds the fuzz targets (they need a C++ compiler), so nothing else would notice that their lock file has been left behind.
#[test]
fn the_fuzz_targets_lock_file_has_what_the_crates_use() {
    let read = |path: &str| -> toml::Table {
        let text = std::fs::read_to_string(Path::new(ROOT).join(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
        toml::from_str(&text).unwrap_or_else(|error| panic!("{path}: {error}"))
    };
    let lock = read("fuzz/Cargo.lock");
    let name = |package: &toml::Value| package["name"].as_str().expect("a name").to_owned();
    let all = lock["package"].as_array().expect("packages");
    let ours: Vec<&toml::Value> = all.iter().filter(|p| p.get("source").is_none() && name(p) != "lockstep-fuzz").collect();
    assert!(ours.iter().any(|package| name(package) == "checkpoint"), "{ours:?}");
    for package in ours {
        let listed = package.get("dependencies").and_then(toml::Value::as_array).into_iter().flatten();
        // Where there are two versions of a package the entry is its name and the version.
        let locked: BTreeSet<String> = listed.filter_map(|entry| entry.as_str()?.split(' ').next().map(str::to_owned)).collect();
        let manifest = read(&format!("{}/Cargo.toml", name(package)));
        let used: BTreeSet<String> = manifest["dependencies"].as_table().expect("dependencies").keys().cloned().collect();
        assert_eq!(used, locked, "fuzz/Cargo.lock is out of date for {}: run cargo metadata in fuzz/ and commit it", name(package));
    }
}
