//! Builds the lab's agent (`agent/`): one static program, by rustc alone, since it runs in an initramfs where there is no C library.

use std::env;
use std::path::PathBuf;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=agent");
    println!("cargo:rerun-if-changed=build.rs");
    let Some(out) = env::var_os("OUT_DIR").map(PathBuf::from) else { fail("OUT_DIR is not set") };
    let agent = out.join("lab-agent");
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let status = Command::new(rustc)
        .args(["--edition", "2024", "--crate-name", "lab_agent", "-O", "-D", "warnings"])
        .args(["-C", "target-feature=+crt-static", "-C", "panic=abort", "-C", "strip=symbols", "-o"])
        .arg(&agent)
        .arg("agent/main.rs")
        .status();
    match status {
        Ok(status) if status.success() => println!("cargo:rustc-env=LOCKSTEP_LAB_AGENT={}", agent.display()),
        Ok(status) => fail(&format!("rustc could not build the lab's agent ({status}); it needs the static C library (libc6-dev)")),
        Err(error) => fail(&format!("cannot run rustc: {error}")),
    }
}

fn fail(why: &str) -> ! {
    eprintln!("error: {why}");
    std::process::exit(1);
}
