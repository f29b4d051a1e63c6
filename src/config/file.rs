//! The configuration file: TOML with the command line's long option names as keys. An unknown key is an error that names the nearest known one (S7).

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::options::NodeOptions;
use super::pairs::nearest;

/// Largest configuration file, bytes: many times what all keys need. A larger one is no configuration, and is not read.
const MAX_BYTES: u64 = 64 << 10;

/// Why a configuration file was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The file cannot be read.
    #[error("cannot read the configuration file {path}; check the path, its permissions, and that it is text")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Too large to be one.
    #[error(
        "{path} has more than {MAX_BYTES} bytes: that is no configuration file; `lockstep run --help` lists the options, whose long names are its keys"
    )]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// A key that does not exist.
    #[error("{path}: unknown key {key:?}{}", nearest.as_ref().map(|n| format!("; did you mean {n:?}?")).unwrap_or_default())]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// The key as it is written.
        key: String,
        /// The known key that looks most like it.
        nearest: Option<String>,
    },
    /// Not TOML, or a value of the wrong kind.
    #[error("{path} is not a valid configuration file: TOML, with the long names of the options as keys (`lockstep run --help`)")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: Box<toml::de::Error>,
    },
}

/// Reads and checks a configuration file.
///
/// # Errors
/// The file is missing, unreadable or far too large, is not TOML, has an unknown key or a value of the wrong kind.
pub fn read(path: &Path) -> Result<NodeOptions, FileError> {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(MAX_BYTES + 1).read_to_string(&mut text));
    let length = read.map_err(|source| FileError::Read { path: path.to_owned(), source })?;
    if length as u64 > MAX_BYTES {
        return Err(FileError::TooLarge { path: path.to_owned() });
    }
    parse(path, &text)
}

fn parse(path: &Path, text: &str) -> Result<NodeOptions, FileError> {
    let syntax = |source| FileError::Syntax { path: path.to_owned(), source: Box::new(source) };
    let table: toml::Table = toml::from_str(text).map_err(syntax)?;
    let known = NodeOptions::keys();
    if let Some(key) = table.keys().find(|key| !known.contains(key)) {
        return Err(FileError::UnknownKey {
            path: path.to_owned(),
            key: key.clone(),
            nearest: nearest(key, known.iter().map(String::as_str)).map(str::to_owned),
        });
    }
    toml::from_str(text).map_err(syntax)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::units::ByteSize;

    fn parse_text(text: &str) -> Result<NodeOptions, FileError> {
        parse(Path::new("vm.toml"), text)
    }

    #[test]
    fn a_file_that_never_ends_is_refused() {
        let refused = read(Path::new("/dev/zero")).unwrap_err();
        assert!(matches!(refused, FileError::TooLarge { .. }), "{refused}");
    }

    #[test]
    fn every_key_of_the_command_line_is_a_key_of_the_file() {
        let text = r#"
            vm = "a"
            node = "n"
            kernel = "k"
            initramfs = "i"
            cmdline = "c"
            memory = "64M"
            vcpus = 2
            net = ["tap=t0,mac=52:54:00:00:00:01"]
            disk = ["path=/a.img"]
            rng = true
            bus = "pci"
            cpu = "x86-64-v2"
            backing = "memfd"
            console = "none"
            standby = "h:1"
            listen = "0.0.0.0:1"
            arbiter = "file:/x"
            fence-command = "fence_ipmilan --plug=$LOCKSTEP_FENCE_NODE --action=off"
            transport = "tcp"
            heartbeat-interval = "5ms"
            detection-bound = "50ms"
            output-wait-us = 10
            dirty-budget = "8M"
            longest-interval-ms = 20
            max-in-flight = 2
            dirty-tracking = "ring"
            delta-cache = 0
            verify-memory = true
            events = "-"
            log = "debug"
        "#;

        let options = parse_text(text).expect("a file with every key");

        let written = text.lines().filter(|line| line.contains(" = ")).count();
        assert_eq!(written, NodeOptions::keys().len(), "this test lists every key: {:?}", NodeOptions::keys());
        assert_eq!(options.memory, Some(ByteSize(64 << 20)));
        assert_eq!(options.delta_cache, Some(ByteSize(0)));
    }

    #[test]
    fn disks_are_tables_or_strings() {
        let tables = parse_text("vm = \"a\"\n[[disk]]\npath = \"/a.img\"\nreadonly = true\n[[disk]]\npath = \"/b.img\"\nserial = \"x\"");
        let strings = parse_text("disk = [\"path=/a.img,readonly\", \"path=/b.img,serial=x\"]");
        assert_eq!(tables.expect("tables").disk, strings.expect("strings").disk);
        assert_eq!(
            parse_text("disk = \"path=/a.img\"").expect("a string").disk,
            parse_text("[disk]\npath = \"/a.img\"").expect("a table").disk
        );
    }

    #[test]
    fn a_disk_with_an_unknown_key_or_value_is_an_error_that_says_so() {
        for (text, word) in [
            ("[[disk]]\npath = \"/a\"\nserail = \"x\"", "did you mean \"serial\"?"),
            ("[[disk]]\npath = \"/a\"\nreadonly = \"perhaps\"", "readonly=false"),
            ("[[disk]]\npath = 5", "not a string"),
            ("[[disk]]\nreadonly = true", "path is missing"),
            ("disk = 5", "[[disk]] tables"),
        ] {
            let error = parse_text(text).expect_err(text);
            let FileError::Syntax { source, .. } = error else { panic!("{error}") };
            assert!(source.to_string().contains(word), "{text}: {source}");
        }
    }

    #[test]
    fn an_unknown_key_is_named_with_the_nearest_known_one() {
        for (key, near) in [("memroy", "memory"), ("dirty_budget", "dirty-budget"), ("standyb", "standby")] {
            let error = parse_text(&format!("{key} = 1")).expect_err(key).to_string();
            assert!(error.contains(&format!("unknown key {key:?}")) && error.contains(&format!("{near:?}")), "{error}");
        }
    }

    #[test]
    fn a_key_like_nothing_gets_no_suggestion() {
        let error = parse_text("zzzzqqq = 1").expect_err("unknown").to_string();
        assert!(!error.contains("did you mean"), "{error}");
    }

    #[test]
    fn a_value_of_the_wrong_kind_is_an_error_with_its_line() {
        let error = parse_text("vm = \"a\"\nvcpus = \"two\"").expect_err("a string for a number");
        let FileError::Syntax { source, .. } = error else { panic!("{error}") };
        assert!(source.to_string().contains("line 2"), "{source}");
    }

    #[test]
    fn the_command_line_wins_over_the_file() {
        let line = NodeOptions { vcpus: Some(4), ..NodeOptions::default() };
        let file = NodeOptions { vcpus: Some(2), vm: Some("db".into()), ..NodeOptions::default() };

        let merged = line.or(file);

        assert_eq!((merged.vcpus, merged.vm.as_deref()), (Some(4), Some("db")));
    }
}
