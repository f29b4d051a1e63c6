//! What a pause costs, in its parts. Prints, asserts nothing: run by hand with `--ignored --nocapture` on a quiet machine.

mod support;

use std::time::{Duration, Instant};

use dirty_tracking::{Choice, DirtySet};
use support::{Program, kvm_is_there, load, machine, read, wait_past};

const COUNTER: u64 = 0x20_0000;
const REGION: u64 = 64 << 20;
const TURNS: usize = 1000;

fn line(name: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100];
    println!("  {name:<10} p10 {:>9.1?}  p50 {:>9.1?}  p99 {:>9.1?}", at(10), at(50), at(99));
}

#[test]
#[ignore = "prints timings; run by hand"]
fn parts_of_a_pause() {
    if !kvm_is_there() {
        return;
    }
    for (mib, pages, vcpus, choice) in [
        (256, 64, 1, Choice::Bitmap),
        (256, 64, 1, Choice::Ring),
        (256, 4096, 1, Choice::Bitmap),
        (1024, 64, 1, Choice::Bitmap),
        (4096, 64, 1, Choice::Ring),
        (256, 64, 2, Choice::Bitmap),
    ] {
        let mut machine = machine(mib << 20, vcpus, choice);
        let programs: Vec<_> = (0..u64::from(vcpus))
            .map(|index| Program::stamp(COUNTER + 8 * index, REGION + (index << 20), REGION + (index << 20), pages))
            .collect();
        load(&mut machine, &programs);
        machine.start_tracking().unwrap();
        machine.start().unwrap();
        let mut dirty = DirtySet::new(machine.slots());
        let (mut stop, mut capture, mut collect, mut resume, mut all) = (vec![], vec![], vec![], vec![], vec![]);
        for _ in 0..TURNS {
            wait_past(&machine, COUNTER, read(&machine, COUNTER) + 4 * pages);
            dirty.clear();
            let start = Instant::now();
            let mut paused = machine.pause().unwrap();
            let stopped = Instant::now();
            let state = paused.capture().unwrap();
            let captured = Instant::now();
            paused.collect_dirty(&mut dirty).unwrap();
            let collected = Instant::now();
            paused.resume();
            let end = Instant::now();
            drop(state);
            stop.push(stopped - start);
            capture.push(captured - stopped);
            collect.push(collected - captured);
            resume.push(end - collected);
            all.push(end - start);
        }
        println!("{mib} MiB, {pages} pages, {vcpus} vCPU, {choice:?}:");
        for (name, times) in [("stop", stop), ("capture", capture), ("collect", collect), ("resume", resume), ("all", all)] {
            line(name, times);
        }
    }
}
