//! The kernel's complaints, without a process: on an emulated guest the first shell takes seconds, all of it read from the disk.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;

/// Largest record (Documentation/ABI/testing/dev-kmsg); a read returns one.
const RECORD: usize = 8192;
/// Level and facility are in the first number: `facility * 8 + level`. The kernel's own facility is 0, "error" is level 3.
const ERROR: u32 = 3;
const O_NONBLOCK: i32 = 0o4000;

/// Level of a warning: of these only some tell of trouble.
const WARNING: u32 = 4;
/// How they begin and what they say further: a check in the kernel that failed (`WARN_ON`), and a clock that was found to go wrong (kernel/time/clocksource.c). Not that
/// the kernel's watch on clocks came late: over a failover all clocks move on by seconds, and it says that it left that look out.
const TROUBLE: [(&str, &str); 2] = [("WARNING:", ""), ("clocksource:", "unstable")];

/// All that the kernel has said of level error and worse, and warnings that tell of trouble, a line each.
///
/// # Errors
/// `/dev/kmsg` cannot be read.
pub fn errors() -> std::io::Result<String> {
    let mut log = OpenOptions::new().read(true).custom_flags(O_NONBLOCK).open("/dev/kmsg")?;
    let mut record = vec![0; RECORD];
    let mut lines = String::new();
    loop {
        match log.read(&mut record) {
            Ok(0) => return Ok(lines),
            Ok(length) => lines.extend(error(&String::from_utf8_lossy(&record[..length])).map(|line| format!("{line}\n"))),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(lines),
            // Records were overwritten before they were read: the next read goes on at the oldest that is left.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
            Err(error) => return Err(error),
        }
    }
}

/// The words of a record `LEVEL,SEQUENCE,TIME,FLAGS[,...];WORDS\n KEY=VALUE...` of the kernel's if it is an error.
fn error(record: &str) -> Option<&str> {
    let (head, words) = record.split_once(';')?;
    let level: u32 = head.split(',').next()?.parse().ok()?;
    let words = words.lines().next().unwrap_or_default();
    (level <= ERROR || (level == WARNING && TROUBLE.iter().any(|(begin, word)| words.starts_with(begin) && words.contains(word))))
        .then_some(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_errors_of_the_kernel_itself_are_told() {
        assert_eq!(error("3,145,99,-;Buffer I/O error on dev vda\n SUBSYSTEM=block\n"), Some("Buffer I/O error on dev vda"));
        assert_eq!(error("0,1,2,-;Kernel panic"), Some("Kernel panic"));
        assert_eq!(error("4,145,99,-;a warning\n"), None);
        assert_eq!(
            error("4,145,99,-;WARNING: CPU: 0 PID: 1 at kernel/x.c:1 f+0x1/0x2\n"),
            Some("WARNING: CPU: 0 PID: 1 at kernel/x.c:1 f+0x1/0x2")
        );
        let unstable = "clocksource: timekeeping watchdog on CPU0: Marking clocksource 'tsc' as unstable because the skew is too large:";
        assert_eq!(error(&format!("4,145,99,-;{unstable}\n")), Some(unstable));
        assert_eq!(
            error("4,145,99,-;clocksource: Long readout interval, skipping watchdog check: cs_nsec: 2607071514 wd_nsec: 2607052029\n"),
            None
        );
        assert_eq!(error("6,145,99,-;clocksource: Switched to clocksource kvm-clock\n"), None);
        assert_eq!(error("11,145,99,-;a program's error (facility 1)\n"), None);
        assert_eq!(error("no record"), None);
    }
}
