//! Links the freestanding image (feature `image`) and embeds it in the library (feature `embed`).
//!
//! With `embed` a nested cargo builds the image in a target directory of its own, so that the two never wait for one another's lock. The
//! outer build's flags are scrubbed from the nested one's environment: a wrapper such as clippy, or `RUSTFLAGS` meant for the host's
//! binaries, would otherwise leak into the image.

use std::env;
use std::path::PathBuf;
use std::process::Command;

/// The image's file name in the nested target directory.
const BINARY: &str = "lockstep-guest";
/// The ordinary host target: the image is freestanding by its linker script, not by a target of its own.
const TARGET: &str = "x86_64-unknown-linux-gnu";
/// Cargo's own settings that the nested build must keep: where its home is and how it reaches the registry.
const KEPT: [&str; 5] = ["CARGO_HOME", "CARGO_NET_", "CARGO_HTTP_", "CARGO_REGISTR", "CARGO_SOURCE_"];
/// Variables of the outer build that would change the image or confuse the nested cargo.
const DROPPED: [&str; 8] =
    ["RUSTFLAGS", "RUSTDOCFLAGS", "RUSTC", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "RUSTC_LINKER", "MAKEFLAGS", "MFLAGS"];

fn main() {
    let manifest_dir = PathBuf::from(var("CARGO_MANIFEST_DIR"));
    for path in ["build.rs", "Cargo.toml", "src", "../Cargo.toml", "../Cargo.lock"] {
        println!("cargo:rerun-if-changed={path}");
    }
    if env::var_os("CARGO_FEATURE_IMAGE").is_some() {
        let script = manifest_dir.join("src/image/link.ld");
        for argument in
            ["-nostartfiles", "-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none", "-Wl,-z,max-page-size=4096", "-Wl,-z,noexecstack"]
        {
            println!("cargo:rustc-link-arg-bin={BINARY}={argument}");
        }
        println!("cargo:rustc-link-arg-bin={BINARY}=-Wl,-T,{}", script.display());
    }
    if env::var_os("CARGO_FEATURE_EMBED").is_some() {
        let image = build_image(&manifest_dir);
        println!("cargo:rustc-env=LOCKSTEP_GUEST_IMAGE={}", image.display());
    }
}

/// Runs the nested cargo and returns the path of the image; ends the build with the reason when it fails.
fn build_image(manifest_dir: &std::path::Path) -> PathBuf {
    let target_dir = PathBuf::from(var("OUT_DIR")).join("image");
    let mut cargo = Command::new(var("CARGO"));
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        let cargo_setting = text.starts_with("CARGO") && !KEPT.iter().any(|kept| text.starts_with(kept));
        if cargo_setting || DROPPED.contains(&text.as_ref()) {
            cargo.env_remove(&name);
        }
    }
    // Set even though the environment is scrubbed: it also overrides flags from configuration files.
    cargo.env("CARGO_ENCODED_RUSTFLAGS", "-Crelocation-model=static");
    cargo
        .current_dir(manifest_dir)
        .args(["build", "--package", "guest", "--bin", BINARY, "--features", "image", "--profile", "guest", "--target", TARGET])
        .arg("--target-dir")
        .arg(&target_dir);
    match cargo.status() {
        Ok(status) if status.success() => target_dir.join(TARGET).join("guest").join(BINARY),
        Ok(status) => fail(&format!("building the guest image failed ({status}): its errors are above")),
        Err(error) => fail(&format!("cannot run cargo for the guest image: {error}")),
    }
}

/// An environment variable that cargo promises to build scripts.
fn var(name: &str) -> String {
    env::var(name).unwrap_or_else(|error| fail(&format!("{name}: {error}; build scripts are run by cargo")))
}

fn fail(message: &str) -> ! {
    eprintln!("guest/build.rs: {message}");
    std::process::exit(1)
}
