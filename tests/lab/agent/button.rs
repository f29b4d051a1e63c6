//! Listens to the power button and shuts the guest down in good order, as systemd-logind does on a whole system: the kernel only reports the key.

use std::fs::File;
use std::io::Read;
use std::time::Duration;

/// `struct input_event` (linux/input.h) on x86-64: two words of time, type, code, value.
const EVENT: usize = 24;
const EV_KEY: u16 = 1;
const KEY_POWER: u16 = 116;
/// The driver may find the button a little later than this begins.
const AGAIN: Duration = Duration::from_millis(200);
const ATTEMPTS: u32 = 50;

/// Listens to every input device there is.
pub fn listen() {
    std::thread::spawn(|| {
        for _ in 0..ATTEMPTS {
            let devices = std::fs::read_dir("/dev/input").into_iter().flatten().flatten().map(|entry| entry.path());
            let files: Vec<File> =
                devices.filter(|path| path.to_string_lossy().contains("/event")).filter_map(|path| File::open(path).ok()).collect();
            if !files.is_empty() {
                files.into_iter().for_each(|file| drop(std::thread::spawn(move || watch(file))));
                return;
            }
            std::thread::sleep(AGAIN);
        }
        println!("agent: no power button");
    });
}

fn watch(mut file: File) {
    let mut event = [0; EVENT];
    while file.read_exact(&mut event).is_ok() {
        let word = |at: usize| u16::from_ne_bytes([event[at], event[at + 1]]);
        if (word(16), word(18)) == (EV_KEY, KEY_POWER) && event[20] == 1 {
            println!("agent: the power button was pressed");
            if let Err(error) = crate::guest::end(false) {
                println!("agent: cannot turn off: {error}");
            }
        }
    }
}
