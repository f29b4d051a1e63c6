//! The floors of ARCHITECTURE.md, checked from the manifests: a crate uses only crates on floors below its own, plus the named arrow.
//! A crate's tests may also use crates of its own floor (the machine's tests boot the guest), never of one above.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The one arrow within a floor.
const ARROWS: [(&str, &str); 1] = [("vmm", "dirty-tracking")];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn manifest(directory: &Path) -> toml::Table {
    let path = directory.join("Cargo.toml");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    text.parse().unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Floor of each crate, from the table in ARCHITECTURE.md: `| floor | crates |`; the crates stand in backquotes before any bracket.
fn floors() -> BTreeMap<String, u32> {
    let text = std::fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let section = text.split("## Crates and floors").nth(1).expect("ARCHITECTURE.md has the section").split("\n## ").next().unwrap();
    let mut floors = BTreeMap::new();
    for row in section.lines().filter(|l| l.starts_with('|')) {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let floor = match cells[1] {
            "program" => 4,
            number => match number.parse() {
                Ok(floor) => floor,
                Err(_) => continue,
            },
        };
        for name in crates(cells[2]) {
            assert_eq!(floors.insert(name.clone(), floor), None, "{name} is on two floors");
        }
    }
    floors
}

/// What stands in backquotes outside of brackets and before a colon.
fn crates(cell: &str) -> Vec<String> {
    let mut depth = 0u32;
    let mut outside = String::new();
    for letter in cell.split(':').next().unwrap_or_default().chars() {
        match letter {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ if depth == 0 => outside.push(letter),
            _ => {}
        }
    }
    outside.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// Directory of each workspace member by its name in the table: the program's package, the tests and so on go by their directories.
fn members() -> BTreeMap<String, PathBuf> {
    let root = root();
    let workspace = manifest(&root);
    let listed = workspace["workspace"]["members"].as_array().expect("members");
    listed
        .iter()
        .map(|member| member.as_str().expect("a path"))
        .map(|member| if member == "." { ("lockstep".to_owned(), root.clone()) } else { (member.to_owned(), root.join(member)) })
        .collect()
}

/// The workspace's crates that this one names under `kinds`, for all targets or for single ones.
fn used(manifest: &toml::Table, kinds: &[&str], members: &BTreeSet<String>) -> BTreeSet<String> {
    let mut tables = vec![manifest];
    if let Some(targets) = manifest.get("target").and_then(toml::Value::as_table) {
        tables.extend(targets.values().filter_map(toml::Value::as_table));
    }
    tables
        .into_iter()
        .flat_map(|table| kinds.iter().filter_map(|kind| table.get(*kind)?.as_table()))
        .flat_map(|dependencies| dependencies.iter())
        .map(|(key, value)| value.get("package").and_then(toml::Value::as_str).unwrap_or(key).to_owned())
        .filter(|name| members.contains(name))
        .collect()
}

#[test]
fn every_member_has_a_floor_and_every_floor_a_member() {
    let (floors, members) = (floors(), members());
    assert_eq!(floors.keys().collect::<Vec<_>>(), members.keys().collect::<Vec<_>>());
}

#[test]
fn a_crate_uses_only_crates_on_floors_below() {
    let (floors, members) = (floors(), members());
    let names: BTreeSet<String> = members.keys().cloned().collect();
    let mut wrong = Vec::new();
    for (name, directory) in &members {
        let manifest = manifest(directory);
        for (kinds, tests) in [(&["dependencies", "build-dependencies"][..], false), (&["dev-dependencies"][..], true)] {
            for other in used(&manifest, kinds, &names) {
                // On the top floor stand the program and what drives it.
                let allowed = floors[&other] < floors[name]
                    || (tests && floors[&other] == floors[name])
                    || (other == "lockstep" && floors[name] == 4)
                    || ARROWS.contains(&(name.as_str(), other.as_str()));
                if !allowed {
                    wrong.push(format!("{name} (floor {}) uses {other} (floor {})", floors[name], floors[&other]));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_crates_that_need_no_kvm_name_none() {
    let members = members();
    for (name, floor) in floors() {
        if floor == 2 || floor == 0 {
            let text = std::fs::read_to_string(members[&name].join("Cargo.toml")).unwrap();
            assert!(!text.contains("kvm"), "{name} names a KVM crate");
        }
    }
}
