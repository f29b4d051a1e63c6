//! Properties of the file arbiter: one winner, nothing destroyed, every trouble named.

use std::process::{Command, Stdio};

use nix::errno::Errno;
use types::{Generation, HostId, NodeId};

use super::*;
use crate::record::Predecessor;

fn record(generation: u64, owner: &str) -> Record {
    Record {
        generation: Generation(generation),
        owner: NodeId(owner.to_owned()),
        host: None,
        instance: 7,
        standby: Some(NodeId("b".to_owned())),
        unfenced: Vec::new(),
    }
}

fn arbiter(directory: &Path) -> FileArbiter {
    FileArbiter::new(directory.join("vm.json"), VmId("vm".to_owned()))
}

#[test]
fn what_was_swapped_in_is_what_another_arbiter_reads() {
    let directory = tempfile::tempdir().unwrap();
    let mut one = arbiter(directory.path());
    assert_eq!(one.read().unwrap(), None);
    assert_eq!(one.swap(None, &record(1, "a")).unwrap(), Swap::Done);
    assert_eq!(arbiter(directory.path()).read().unwrap(), Some(record(1, "a")));
}

#[test]
fn a_swap_with_another_expectation_is_lost_and_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let mut one = arbiter(directory.path());
    one.swap(None, &record(1, "a")).unwrap();
    let mut expect = record(1, "a");
    expect.standby = None;
    assert_eq!(one.swap(Some(&expect), &record(2, "b")).unwrap(), Swap::Lost(Some(record(1, "a"))));
    assert_eq!(one.swap(None, &record(2, "b")).unwrap(), Swap::Lost(Some(record(1, "a"))));
    assert_eq!(one.read().unwrap(), Some(record(1, "a")));
}

/// Wins as many swaps as it can until the generation reaches `limit`; says how many.
fn race(directory: &Path, name: &str, limit: u64) -> u64 {
    let mut arbiter = arbiter(directory).with_lock_wait(Duration::from_secs(20));
    let mut wins = 0;
    loop {
        let current = arbiter.read().unwrap();
        let generation = current.as_ref().map_or(0, |r| r.generation.0);
        if generation >= limit {
            return wins;
        }
        if arbiter.swap(current.as_ref(), &record(generation + 1, name)).unwrap() == Swap::Done {
            wins += 1;
        }
    }
}

#[test]
fn of_racing_threads_exactly_one_wins_each_generation() {
    let directory = tempfile::tempdir().unwrap();
    let total: u64 = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|i| {
                scope.spawn({
                    let d = directory.path();
                    move || race(d, &format!("n{i}"), 60)
                })
            })
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).sum()
    });
    assert_eq!(total, 60);
}

const RACER: &str = "LOCKSTEP_TEST_RACER_DIRECTORY";

/// Not a property: the body of each process of the next test.
#[test]
fn racer() {
    if let Ok(directory) = std::env::var(RACER) {
        println!("\nwins={}", race(Path::new(&directory), &std::process::id().to_string(), 60));
    }
}

#[test]
fn of_racing_processes_exactly_one_wins_each_generation() {
    let directory = tempfile::tempdir().unwrap();
    let children: Vec<_> = (0..4)
        .map(|_| {
            Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "file::tests::racer", "--nocapture"])
                .env(RACER, directory.path())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    let total: u64 = children
        .into_iter()
        .map(|child| {
            let output = child.wait_with_output().unwrap();
            let text = String::from_utf8(output.stdout).unwrap();
            text.lines().find_map(|l| l.strip_prefix("wins=")).unwrap().parse::<u64>().unwrap()
        })
        .sum();
    assert_eq!(total, 60);
}

#[test]
fn a_lock_that_is_held_is_waited_for_only_so_long() {
    let directory = tempfile::tempdir().unwrap();
    let mut one = arbiter(directory.path()).with_lock_wait(Duration::from_millis(5));
    let held = one.lock().unwrap();
    let error = one.swap(None, &record(1, "a")).unwrap_err();
    assert!(matches!(error, ArbiterError::Locked { .. }) && !error.outcome_unknown(), "{error}");
    drop(held);
    assert_eq!(one.swap(None, &record(1, "a")).unwrap(), Swap::Done);
}

#[test]
fn records_of_the_first_version_are_read_and_can_be_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let old = r#"{"version":1,"vm":"vm","record":{"generation":4,"owner":"a","instance":7,"standby":"b","unfenced":["c"]}}"#;
    std::fs::write(directory.path().join("vm.json"), old).unwrap();
    let mut one = arbiter(directory.path());
    let unfenced = |host: Option<&str>| {
        vec![Predecessor { node: NodeId("c".to_owned()), host: host.and_then(|host| HostId::try_from(host.to_owned()).ok()) }]
    };
    let was = Record { unfenced: unfenced(None), ..record(4, "a") };
    assert_eq!(one.read().unwrap(), Some(was.clone()));

    let new = Record {
        host: HostId::try_from("0000000000001234".to_owned()).ok(),
        unfenced: unfenced(Some("0123456789abcdef")),
        ..record(5, "b")
    };
    assert_eq!(one.swap(Some(&was), &new).unwrap(), Swap::Done);

    assert_eq!(arbiter(directory.path()).read().unwrap(), Some(new));
    let text = std::fs::read_to_string(directory.path().join("vm.json")).unwrap();
    assert!(text.contains("\"host\": \"0000000000001234\""), "{text}");
    assert!(text.contains("\"version\": 2"), "an older program says that it does not know it: {text}");
}

#[test]
fn content_that_is_no_record_is_refused_by_name_and_kept() {
    let good = serde_json::to_string(&Content { version: VERSION, vm: VmId("vm".to_owned()), record: record(1, "a") }).unwrap();
    type Check = fn(&ArbiterError) -> bool;
    let cases: [(&str, Check); 8] = [
        ("", |e| matches!(e, ArbiterError::Garbage { .. })),
        ("{\"version\": 1", |e| matches!(e, ArbiterError::Garbage { .. })),
        ("[]", |e| matches!(e, ArbiterError::Garbage { .. })),
        (&good.replace("\"version\":2", "\"version\":3"), |e| matches!(e, ArbiterError::Version { found: 3, .. })),
        (&good.replace("\"vm\":\"vm\"", "\"vm\":\"other\""), |e| matches!(e, ArbiterError::OtherVm { .. })),
        (&good.replace("\"generation\":1", "\"generation\":-1"), |e| matches!(e, ArbiterError::Garbage { .. })),
        (&good.replace("\"instance\"", "\"instanz\""), |e| matches!(e, ArbiterError::Garbage { .. })),
        (&" ".repeat(20_000), |e| matches!(e, ArbiterError::Garbage { .. })),
    ];
    for (text, is_right) in cases {
        let directory = tempfile::tempdir().unwrap();
        let mut one = arbiter(directory.path());
        fs::write(one.path(), text).unwrap();
        for error in [one.read().unwrap_err(), one.swap(None, &record(1, "a")).unwrap_err()] {
            assert!(is_right(&error), "{text:?}: {error}");
        }
        assert_eq!(fs::read_to_string(one.path()).unwrap(), text);
    }
}

#[test]
fn a_missing_directory_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let mut one = arbiter(&directory.path().join("absent"));
    for error in [one.read().unwrap_err(), one.swap(None, &record(1, "a")).unwrap_err()] {
        assert!(matches!(&error, ArbiterError::NoDirectory { path } if path.ends_with("absent")), "{error}");
    }
}

#[test]
fn a_generation_that_went_backwards_or_a_record_that_vanished_grants_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let mut one = arbiter(directory.path());
    one.swap(None, &record(1, "a")).unwrap();
    let old = fs::read(one.path()).unwrap();
    one.swap(Some(&record(1, "a")), &record(2, "a")).unwrap();
    fs::write(one.path(), old).unwrap();
    assert!(matches!(one.swap(Some(&record(1, "a")), &record(2, "b")).unwrap_err(), ArbiterError::WentBackwards { seen: 2, found: 1, .. }));
    fs::remove_file(one.path()).unwrap();
    assert!(matches!(one.read().unwrap_err(), ArbiterError::WentBackwards { seen: 2, found: 0, .. }));
}

#[test]
fn a_swap_that_would_lower_the_generation_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let mut one = arbiter(directory.path());
    one.swap(None, &record(5, "a")).unwrap();
    assert!(matches!(one.swap(Some(&record(5, "a")), &record(4, "a")).unwrap_err(), ArbiterError::NotForward { old: 5, new: 4, .. }));
}

#[test]
fn a_remnant_of_a_crashed_swap_is_no_obstacle() {
    let directory = tempfile::tempdir().unwrap();
    let mut one = arbiter(directory.path());
    fs::write(one.beside(".new"), "half a rec").unwrap();
    assert_eq!(one.swap(None, &record(1, "a")).unwrap(), Swap::Done);
    assert_eq!(one.read().unwrap(), Some(record(1, "a")));
}

#[test]
fn a_failure_at_the_rename_leaves_the_outcome_unknown() {
    let directory = tempfile::tempdir().unwrap();
    let mut one = arbiter(directory.path());
    // A directory in the record's place: reading it fails, so only `store` is asked.
    fs::create_dir(one.path()).unwrap();
    let error = one.store(&record(1, "a")).unwrap_err();
    assert!(error.outcome_unknown(), "{error}");
}

#[test]
fn refused_permission_and_full_storage_are_named() {
    let one = arbiter(Path::new("/"));
    let explain = |errno: Errno| one.explain("write", Path::new("/x"), errno.into());
    assert!(matches!(explain(Errno::EACCES), ArbiterError::Permission { .. }));
    assert!(matches!(explain(Errno::EROFS), ArbiterError::Permission { .. }));
    assert!(matches!(explain(Errno::ENOSPC), ArbiterError::NoSpace { .. }));
    assert!(matches!(explain(Errno::EDQUOT), ArbiterError::NoSpace { .. }));
    assert!(matches!(explain(Errno::EIO), ArbiterError::Io { .. }));
    assert!(!explain(Errno::ENOSPC).outcome_unknown());
}

const FULL: &str = "LOCKSTEP_TEST_FULL_DIRECTORY";

/// Not a property: what the next test runs where its storage is full.
#[test]
fn swap_on_full_storage() {
    if let Ok(directory) = std::env::var(FULL) {
        let mut one = arbiter(Path::new(&directory));
        one.swap(None, &record(1, "a")).unwrap();
        let mut filler = File::create(Path::new(&directory).join("filler")).unwrap();
        while filler.write_all(&[0; 4096]).is_ok() {}
        let error = one.swap(Some(&record(1, "a")), &record(2, "b")).unwrap_err();
        assert!(matches!(error, ArbiterError::NoSpace { .. }), "{error}");
        assert_eq!(one.read().unwrap(), Some(record(1, "a")));
        println!("\nfull and intact");
    }
}

#[test]
fn full_storage_keeps_the_old_record() {
    let directory = tempfile::tempdir().unwrap();
    let script = "mount -t tmpfs -o size=32k none \"$1\" || exit 42; shift; exec \"$@\"";
    let output = Command::new("unshare")
        .args(["-rm", "sh", "-c", script, "sh"])
        .arg(directory.path())
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "file::tests::swap_on_full_storage", "--nocapture"])
        .env(FULL, directory.path())
        .output();
    match output {
        Ok(output) if output.status.success() => assert!(String::from_utf8_lossy(&output.stdout).contains("full and intact")),
        // Where user namespaces are not allowed there is no storage that may be filled; the naming of the error is tested above.
        Ok(output) if matches!(output.status.code(), Some(1 | 42)) && !output.stderr.is_empty() && output.stdout.is_empty() => {
            eprintln!("not run: {}", String::from_utf8_lossy(&output.stderr));
        }
        other => panic!("{other:?}"),
    }
}
