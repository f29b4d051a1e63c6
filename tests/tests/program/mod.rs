//! Where the `lockstep` program is: built by the cargo that runs the tests, in the same profile and target directory.

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

/// The program, built once for a test binary.
pub fn lockstep() -> PathBuf {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(build).clone()
}

fn build() -> PathBuf {
    // TARGET_DIR/PROFILE_DIR/deps/THIS_TEST
    let test = std::env::current_exe().expect("the test's own path");
    let profile_dir = test.ancestors().nth(2).expect("a profile directory");
    let target_dir = profile_dir.parent().expect("a target directory");
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "--locked", "--package", "lockstep", "--bin", "lockstep"]).arg("--target-dir").arg(target_dir);
    if profile_dir.ends_with("release") {
        cargo.arg("--release");
    }
    cargo.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    assert!(cargo.status().expect("cargo").success(), "the program does not build");
    profile_dir.join("lockstep")
}
