//! A standby's disk that hangs: no error, no answer (S2, S4). The device is a file system that is frozen under the standby's image; a primary's that hangs is in the lab (`machine-disk-hang`).

mod program;

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use disk_buffer::disk::HANG_BOUND;
use lockstep::demo::world::Host;
use lockstep_tests::e2e::disks::{FIRST_BLOCK, REGION_BLOCKS, Stamps};
use lockstep_tests::e2e::lab::{self, Guest, Lab};
use lockstep_tests::e2e::{Image, Spec, Watchdog};

/// Bound of a whole test here.
const TEST: Duration = Duration::from_secs(180);
/// Size of the disks.
const BYTES: u64 = 64 << 20;

/// A file system on a file, which can be frozen; unmounted when dropped.
struct FileSystem(PathBuf);

impl FileSystem {
    /// `None`, with a word about it, where there are no loop devices: containers often have none, and that says nothing about KVM. `disk-buffer/tests/hangs.rs` needs none.
    fn mount(lab: &Lab) -> Option<FileSystem> {
        let [file, path] = ["freezer.img", "freezer"].map(|name| lab.directory().join(name));
        std::fs::create_dir(&path).expect("a directory");
        std::fs::File::create(&file).and_then(|file| file.set_len(2 * BYTES)).expect("a file");
        let [file, directory] = [&file, &path].map(|path| path.to_str().expect("UTF-8"));
        // Without a journal: its thread would have nothing to do with the matter.
        let made = run("mkfs.ext4", &["-q", "-O", "^has_journal", file]).and_then(|()| run("mount", &["-o", "loop", file, directory]));
        match made {
            Ok(()) => Some(FileSystem(path)),
            Err(why) => {
                eprintln!("SKIPPED: no file system that can be frozen: {why}");
                None
            }
        }
    }

    /// From now on nothing can be written to it, and nobody is told.
    fn freeze(&self) -> Frozen<'_> {
        run("fsfreeze", &["-f", self.0.to_str().expect("UTF-8")]).expect("a file system that freezes");
        Frozen(self)
    }
}

impl Drop for FileSystem {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}

/// Thawed when dropped. To be declared after the nodes: a process whose write hangs cannot end.
struct Frozen<'a>(&'a FileSystem);

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        let _ = run("fsfreeze", &["-u", self.0.0.to_str().unwrap_or_default()]);
    }
}

fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    let output = Command::new(program).args(arguments).output().map_err(|error| format!("{program}: {error}"))?;
    let failed = || format!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim());
    output.status.success().then_some(()).ok_or_else(failed)
}

#[test]
fn a_standby_whose_disk_hangs_says_so_is_struck_out_and_is_brought_what_it_missed_when_it_returns() {
    if !lab::available() {
        return;
    }
    let _watchdog = Watchdog::new(TEST);
    let lab = Lab::new(program::lockstep(), Guest { verify: false, ..Guest::default() });
    let Some(file_system) = FileSystem::mount(&lab) else { return };
    let (a_image, b_image) = (Image::new(lab.directory().join("a.img"), BYTES), Image::new(file_system.0.join("b.img"), BYTES));
    let standby = |name: &str| Spec::standby(Host::B, name).with("node", "b").disk(&b_image, "");
    let (mut a, mut b) = lab.pair(&Spec::primary(Host::A, "a").disk(&a_image, ""), &standby("b"));
    let mut stamps = Stamps::new(lab.connect());
    let protected = a.until_protected(0);
    stamps.write(FIRST_BLOCK);
    a_image.until_equals(&b_image);
    a_image.until_marked(1);

    let frozen = file_system.freeze();
    // One write, which the guest is told of at once; then it is quiet, and nothing fills up.
    stamps.write(FIRST_BLOCK + 1);
    lab.until_logged_within("b", "the medium hangs", HANG_BOUND * 2);
    a.until_alone(protected);
    lab.until_logged("a", "the standby left: disk0 of the standby failed: the medium hangs");
    // As long as it is not started again it is refused, with the reason.
    lab.until_logged("a", "nothing more is entrusted to it");
    stamps.write(FIRST_BLOCK + 3 * REGION_BLOCKS);
    stamps.prove();
    assert_eq!(b.activations(), []);

    drop(frozen);
    let killed_ns = b.kill();
    b_image.until_free();
    let mut again = lab.start(&standby("b-again"));
    again.until_ready();
    a.until_protected(killed_ns);
    let sent = lab.blocks_sent("a");
    assert!(sent <= 3 * REGION_BLOCKS, "{sent} blocks were sent for two regions");
    stamps.prove();
    a_image.until_equals(&b_image);
}
