//! The greeter: meets every connection to the replication port and lets the right primary in.
//!
//! Lives here: Hello and its answers. Not here: bytes that are not the protocol (the transport's listener closes those). Guards S5 (a state is only taken from a machine
//! of the same shape) and S7 (a stranger is refused with a reason, and costs a bounded time).

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use checkpoint::message::{self, Hello, Message, PROTOCOL, Welcome};
use checkpoint::{GuestShape, VerifyMemory};
use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded};
use transport::tcp::Listener;
use transport::{Geometry, Staging, StandbyLink, StandbyPending};
use types::event::NodeEventKind;
use types::{Generation, NodeId, VmId};

use crate::apply::Job;
use crate::disks::{self, Agreed};
use crate::error::ReplicaError;
use crate::shared::{News, Shared};
use crate::witness::Witness;

/// How often the thread looks whether it should end.
const POLL: Duration = Duration::from_millis(100);
/// How long a primary may take for its Hello: it says it at once.
const HELLO: Duration = Duration::from_secs(1);

/// How long a primary waits at the door for what is left of an earlier one, well within its own patience.
const DRAIN: Duration = Duration::from_secs(3);

/// A primary that was let in.
pub(crate) struct Linked {
    pub(crate) hello: Hello,
    pub(crate) link: StandbyLink,
    /// Goes with the link's data thread.
    pub(crate) alive: Alive,
}

/// Held by whoever may still write what came over a link into this standby's memory and disks. Nothing is ever sent.
pub(crate) type Alive = Sender<Infallible>;

/// The links so far, as the greeter sees them.
#[derive(Default)]
struct Earlier {
    /// Reserved with the first link, and used for all.
    staging: Option<Arc<Staging>>,
    /// Ends when nothing of the newest link is written any more.
    writes: Option<Receiver<Infallible>>,
    /// Why a primary was turned away last, since one was let in.
    refused: Option<String>,
}

impl Earlier {
    /// Waits until no thread of an earlier link writes; `false`: one still does at `until`.
    fn over(&self, until: Instant) -> bool {
        self.writes.as_ref().is_none_or(|writes| matches!(writes.recv_deadline(until), Err(RecvTimeoutError::Disconnected)))
    }
}

/// Who this standby is, and whether it can be linked to.
pub(crate) struct Door {
    pub(crate) vm: VmId,
    pub(crate) node: NodeId,
    pub(crate) shape: GuestShape,
    /// Digest of what this node would boot the guest from.
    pub(crate) boot: u64,
    pub(crate) verify_memory: VerifyMemory,
    pub(crate) geometry: Geometry,
    /// No primary is linked, and none has been lost that may have to be replaced.
    pub(crate) open: AtomicBool,
    /// The newest generation this node has seen.
    pub(crate) generation: AtomicU64,
    /// The thread should end.
    pub(crate) closed: AtomicBool,
}

/// Runs until the door is closed for good.
pub(crate) fn run(shared: &Arc<Shared>, door: &Door, mut witness: Witness, listener: &Listener) {
    let mut earlier = Earlier::default();
    while !door.closed.load(Ordering::Acquire) {
        match listener.accept(POLL) {
            Ok(None) => {}
            Ok(Some(pending)) => {
                let peer = pending.peer.clone();
                if let Err(error) = meet(shared, door, &mut witness, pending, &mut earlier) {
                    tracing::warn!(peer, %error, "a primary could not be linked");
                }
            }
            Err(error) => {
                tracing::error!(%error, "the replication port cannot be listened on any more");
                return;
            }
        }
    }
}

fn meet(
    shared: &Shared,
    door: &Door,
    witness: &mut Witness,
    mut pending: StandbyPending,
    earlier: &mut Earlier,
) -> Result<(), ReplicaError> {
    let Some(bytes) = pending.control_rx.receive(HELLO)? else {
        return refuse(shared, earlier, pending, "no Hello came in time".to_owned());
    };
    let hello = match message::decode(&bytes) {
        Ok(Message::Hello(hello)) => hello,
        Ok(_) => return refuse(shared, earlier, pending, "the first message must be a Hello".to_owned()),
        Err(error) => return refuse(shared, earlier, pending, error.to_string()),
    };
    if let Some(reason) = objection(door, &hello) {
        return refuse(shared, earlier, pending, reason);
    }
    // Before anything is copied: a standby that has another record than its primary could never take over.
    if let Err(reason) = witness.vouches(&hello.node, hello.generation) {
        return refuse(shared, earlier, pending, reason);
    }
    let Agreed { primary, plans, own } = match disks::agree(&shared.disks, &hello.disks) {
        Ok(agreed) => agreed,
        Err(error) => return refuse(shared, earlier, pending, error.to_string()),
    };
    // First the thread that takes an earlier link's parts: it may be writing one of a first copy, to whatever copy there is. Then the one behind it: what an earlier primary committed is on
    // its way to the disks until this is answered.
    let until = Instant::now() + DRAIN;
    let (done, drained) = bounded(1);
    let over = earlier.over(until) && {
        shared.apply(Job::Forget(done));
        drained.recv_deadline(until).is_ok()
    };
    if !over {
        return refuse(shared, earlier, pending, "this standby still applies what its last primary sent; its disks are slow".to_owned());
    }
    // Durably before the answer: from the Welcome on the primary may change what is here.
    if let Err(error) = shared.disks.join(&plans, &primary, hello.generation) {
        return refuse(shared, earlier, pending, error.to_string());
    }
    let staging = match &mut earlier.staging {
        Some(staging) => Arc::clone(staging),
        staging => Arc::clone(staging.insert(Staging::new(door.geometry)?)),
    };
    let Geometry { slots, slot_bytes } = door.geometry;
    let welcome = Welcome { node: door.node.clone(), slots, slot_bytes, disks: own };
    pending.control_tx.send(&message::encode(&Message::Welcome(welcome))?)?;
    let link = pending.open_data(staging)?;
    door.open.store(false, Ordering::Release);
    if let Some(text) = reservation(door, &hello) {
        tracing::warn!("{text}");
        (shared.report)(NodeEventKind::Warning { text });
    }
    let (alive, writes) = bounded(0);
    earlier.writes = Some(writes);
    earlier.refused = None;
    shared.tell(News::Linked(Linked { hello, link, alive }));
    Ok(())
}

/// Why this primary cannot be let in, in words for its operator.
fn objection(door: &Door, hello: &Hello) -> Option<String> {
    let newest = Generation(door.generation.load(Ordering::Acquire));
    if hello.protocol != PROTOCOL {
        return Some(format!("protocol {} is spoken there, {PROTOCOL} here: run the same lockstep on both hosts", hello.protocol));
    }
    if hello.vm != door.vm {
        return Some(format!("this standby is for VM {}, not for {}", door.vm, hello.vm));
    }
    if hello.node == door.node {
        return Some(format!("both nodes are named {}: give each a name of its own", door.node));
    }
    if hello.generation < newest {
        return Some(format!("generation {} is over, generation {newest} runs", hello.generation));
    }
    if let Some(difference) = door.shape.mismatch(&hello.shape) {
        return Some(format!("the machines differ (here is the standby): {difference}"));
    }
    if hello.verify_memory != door.verify_memory {
        let (ours, theirs) = (door.verify_memory, hello.verify_memory);
        return Some(format!("--verify-memory is {ours} here and {theirs} at the peer: it must be the same at both nodes"));
    }
    if !door.open.load(Ordering::Acquire) {
        return Some("this standby serves another primary".to_owned());
    }
    None
}

/// What the operators should know of a primary that is let in. Not a refusal: a kernel that was upgraded on one host must not keep the guest from being protected, and what runs in the guest now
/// is in its memory, whatever it was booted from.
fn reservation(door: &Door, hello: &Hello) -> Option<String> {
    (hello.boot != door.boot).then(|| {
        format!(
            "kernel, initramfs or command line are not those of {}: a guest that reboots after a failover boots what this node ({}) has; \
             give both the same files and --cmdline, and start this node again",
            hello.node, door.node
        )
    })
}

fn refuse(shared: &Shared, earlier: &mut Earlier, pending: StandbyPending, reason: String) -> Result<(), ReplicaError> {
    tracing::warn!(peer = pending.peer, reason, "a primary is refused");
    // It asks again every few seconds.
    if earlier.refused.as_ref() != Some(&reason) {
        earlier.refused = Some(reason.clone());
        (shared.report)(NodeEventKind::PrimaryRefused { peer: pending.peer.clone(), reason: reason.clone() });
    }
    Ok(pending.reject(&message::encode(&Message::Refuse { reason })?)?)
}

/// Staging for a guest of so many pages: room for an epoch that changes all of it and has the largest of tails, so that any epoch fits, and some more for
/// epochs in flight. Reserved, and touched only when used.
pub(crate) fn geometry(pages: u64) -> Geometry {
    /// Slots of 1 MiB: 255 raw pages, so that a part's digest is checked while the next is on its way.
    const SLOT_BYTES: u32 = 1 << 20;
    /// Slots beyond one whole guest: small epochs in flight or being applied take one each.
    const SPARE: u64 = 64;
    /// The largest tail: an epoch's output, disk writes, machine state.
    const TAIL: u64 = checkpoint::codec::MAX_ENCODED_BYTES as u64;
    let mut slot_bytes = SLOT_BYTES;
    loop {
        let per_slot = checkpoint::wire::pages_per_part(slot_bytes as usize, 0) as u64;
        let slots = pages.div_ceil(per_slot.max(1)) + TAIL.div_ceil(u64::from(slot_bytes)) + SPARE;
        if slots <= u64::from(transport::link::MAX_SLOTS) {
            return Geometry { slots: slots as u32, slot_bytes };
        }
        slot_bytes *= 2;
    }
}

#[cfg(test)]
mod tests {
    use checkpoint::GuestBus;
    use types::cpu::GuestCpu;

    use super::*;

    fn hello() -> Hello {
        let shape = GuestShape {
            memory_bytes: 1 << 28,
            vcpus: 1,
            nets: vec![[2, 0, 0, 0, 0, 1]],
            bus: GuestBus::Mmio,
            rng: false,
            cpu: GuestCpu::default(),
        };
        Hello {
            protocol: PROTOCOL,
            vm: VmId("vm".to_owned()),
            node: NodeId("a".to_owned()),
            generation: Generation(3),
            shape,
            boot: 5,
            verify_memory: VerifyMemory::Off,
            disks: Vec::new(),
        }
    }

    fn door() -> Door {
        Door {
            vm: VmId("vm".to_owned()),
            node: NodeId("b".to_owned()),
            shape: hello().shape,
            boot: 5,
            verify_memory: VerifyMemory::Off,
            geometry: geometry(1 << 16),
            open: AtomicBool::new(true),
            generation: AtomicU64::new(3),
            closed: AtomicBool::new(false),
        }
    }

    #[test]
    fn the_right_primary_is_let_in() {
        assert_eq!(objection(&door(), &hello()), None);
    }

    #[test]
    fn a_primary_that_boots_something_else_is_let_in_and_warned_of() {
        assert_eq!(reservation(&door(), &hello()), None);

        let other = Hello { boot: 6, ..hello() };

        assert_eq!(objection(&door(), &other), None);
        let text = reservation(&door(), &other).unwrap();
        assert!(text.contains("--cmdline") && text.contains("reboots"), "{text}");
    }

    #[test]
    fn every_wrong_primary_is_told_what_is_wrong() {
        type Change = fn(&mut Hello);
        let wrong: [(&str, Change); 6] = [
            ("VM", |h| h.vm = VmId("other".to_owned())),
            ("named", |h| h.node = NodeId("b".to_owned())),
            ("is over", |h| h.generation = Generation(2)),
            ("memory", |h| h.shape.memory_bytes = 1),
            ("CPU", |h| h.shape.cpu.model = "d".to_owned()),
            ("--verify-memory is off here and 1024K at the peer", |h| h.verify_memory = VerifyMemory::Window { pages: 256 }),
        ];
        for (word, change) in wrong {
            let mut hello = hello();
            change(&mut hello);
            let objection = objection(&door(), &hello).unwrap();
            assert!(objection.contains(word), "{objection}");
        }
    }

    #[test]
    fn a_new_link_waits_for_whoever_still_writes_for_the_last_one() {
        let mut earlier = Earlier::default();
        assert!(earlier.over(Instant::now()), "the first link");
        let (alive, writes) = bounded(0);
        earlier.writes = Some(writes);
        assert!(!earlier.over(Instant::now() + Duration::from_millis(1)));

        let writer = std::thread::spawn(move || drop::<Alive>(alive));
        assert!(earlier.over(Instant::now() + DRAIN));
        writer.join().unwrap();
    }

    #[test]
    fn a_second_primary_is_refused() {
        let door = door();
        door.open.store(false, Ordering::Release);
        assert!(objection(&door, &hello()).is_some());
    }

    #[test]
    fn any_epoch_fits_the_staging() {
        for pages in [1, 1 << 14, 1 << 18, 1 << 22, 1 << 25] {
            let geometry = geometry(pages).validate().unwrap();
            let per_slot = checkpoint::wire::pages_per_part(geometry.slot_bytes as usize, 0) as u64;
            let tail_slots = (checkpoint::codec::MAX_ENCODED_BYTES as u64).div_ceil(u64::from(geometry.slot_bytes));
            assert!((u64::from(geometry.slots) - tail_slots) * per_slot > pages, "{pages}");
        }
    }
}
