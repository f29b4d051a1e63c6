//! What the guest's disks and network cards have refused, dropped or failed at, told to an operator, ever more rarely.
//!
//! Lives here: which counters, and when one is worth a word. Not here: the counting (`vmm`). Guards S7: a guest that makes such requests without end gets no
//! log without end.

use std::time::Duration;

use types::block::DiskIndex;
use vmm::Machine;

/// The counters are looked at this often: nobody acts on them sooner.
pub(crate) const LOOK_EVERY_NS: u64 = Duration::from_secs(10).as_nanos() as u64;

/// One counter.
struct Watched {
    device: String,
    what: &'static str,
    count: Box<dyn Fn() -> u64>,
    told: u64,
}

/// The counters of one machine.
pub(crate) struct Refusals(Vec<Watched>);

impl Refusals {
    pub(crate) fn of(machine: &Machine) -> Refusals {
        let mut all = Vec::new();
        let mut watch = |device: String, what, count: Box<dyn Fn() -> u64>| all.push(Watched { device, what, count, told: 0 });
        for (index, metrics) in (0u8..).map_while(|index| Some((index, machine.disk_metrics(DiskIndex(index))?))) {
            let what =
                "requests of the guest's refused (beyond the disk's end, of odd length, written to a read-only disk or of an unknown kind)";
            watch(format!("disk{index}"), what, Box::new(move || metrics.counts().refused));
        }
        for (port, metrics) in (0u8..).map_while(|port| Some((port, machine.net_metrics(port)?))) {
            let (dropped, errors, runts) = (metrics.clone(), metrics.clone(), metrics);
            let net = || format!("net{port}");
            watch(
                net(),
                "frames for the guest dropped, since it had no buffer that could hold them",
                Box::new(move || dropped.counts().rx_dropped),
            );
            watch(net(), "failed reads of the TAP", Box::new(move || errors.counts().rx_errors));
            watch(
                net(),
                "frames of the guest's dropped that are shorter than an Ethernet header",
                Box::new(move || runts.counts().tx_runts),
            );
        }
        Refusals(all)
    }

    /// What to tell now: of each counter its first rise, and then each doubling.
    pub(crate) fn look(&mut self) -> Vec<String> {
        let due = |watched: &mut Watched| {
            let count = (watched.count)();
            if count == 0 || count < watched.told.saturating_mul(2) {
                return None;
            }
            watched.told = count;
            Some(format!("{}: {count} {}", watched.device, watched.what))
        };
        self.0.iter_mut().filter_map(due).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use super::*;

    #[test]
    fn a_counter_is_told_at_its_first_rise_and_at_each_doubling() {
        let counter = Rc::new(Cell::new(0));
        let count = Rc::clone(&counter);
        let mut refusals =
            Refusals(vec![Watched { device: "disk0".into(), what: "refused", count: Box::new(move || count.get()), told: 0 }]);
        let told: Vec<u64> = (0..1000)
            .filter(|count| {
                counter.set(*count);
                !refusals.look().is_empty()
            })
            .collect();
        assert_eq!(told, [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]);
        assert!(refusals.look().is_empty(), "nothing new is nothing to tell");
        counter.set(5000);
        assert_eq!(refusals.look(), ["disk0: 5000 refused"]);
    }
}
