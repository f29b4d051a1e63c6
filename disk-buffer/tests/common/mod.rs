//! Two hosts' copies of a disk in one process, and a guest that writes at random; used by the tests of whole disks.
#![allow(dead_code, reason = "each test file uses some of it")]

pub mod shared;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use disk_buffer::disk::Tuning;
use disk_buffer::engine::faults::{Asked, Faults, Strike};
use disk_buffer::{Disk, DiskCopy, DiskError, DiskEvent, DiskOptions, Disks, Hooks, Identity, Plan, plan};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use types::block::{BlockDone, BlockOp, BlockRequest, DiskIndex};
use types::{Commit, Epoch, Generation};

pub const BOUND: Duration = Duration::from_secs(20);
pub const MIB: u64 = 1 << 20;

/// One host's disk with what it told.
pub struct Host {
    pub disk: Arc<Disk>,
    pub events: Receiver<DiskEvent>,
    pub room: Receiver<()>,
    pub pressure: Receiver<()>,
    pub waiting: Receiver<()>,
    pub path: PathBuf,
}

pub fn options(path: &Path) -> DiskOptions {
    DiskOptions { path: path.to_owned(), ..DiskOptions::default() }
}

/// Settles often, so that tests need not wait for seconds.
pub fn tuning() -> Tuning {
    Tuning { settle: Duration::from_millis(2), hot_ticks: 0, full: Duration::from_millis(50), ..Tuning::default() }
}

/// A sparse image.
pub fn image(directory: &Path, name: &str, bytes: u64) -> PathBuf {
    let path = directory.join(name);
    std::fs::File::create(&path).unwrap().set_len(bytes).unwrap();
    path
}

impl Host {
    pub fn open(options: &DiskOptions) -> Host {
        Host::open_with(options, tuning())
    }

    pub fn open_with(options: &DiskOptions, tuning: Tuning) -> Host {
        let disk = Arc::new(Disk::open_with(DiskIndex(0), options, tuning).unwrap());
        let (tell, events) = channel();
        let (tell_room, room) = channel();
        let (tell_pressure, pressure) = channel();
        let (tell_waiting, waiting) = channel();
        let send = |to: Sender<()>| {
            let to = Mutex::new(to);
            Box::new(move || {
                let _ = to.lock().unwrap().send(());
            })
        };
        let tell = Mutex::new(tell);
        disk.attach(Hooks {
            room: send(tell_room),
            pressure: send(tell_pressure),
            waiting: send(tell_waiting),
            event: Box::new(move |event| {
                let _ = tell.lock().unwrap().send(event);
            }),
        });
        Host { disk, events, room, pressure, waiting, path: options.path.clone() }
    }

    pub fn content(&self) -> Vec<u8> {
        std::fs::read(&self.path).unwrap()
    }

    /// Waits for answers to requests.
    pub fn answers(&self) -> Vec<BlockDone> {
        let mut done = Vec::new();
        while done.is_empty() {
            // SAFETY: the disk, and with it its eventfd, lives as long as self.
            let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(self.disk.event()) };
            let ready = poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], PollTimeout::try_from(20_000).unwrap()).unwrap();
            assert_eq!(ready, 1, "an answer within 20 s");
            self.disk.take_done(&mut done);
        }
        done
    }

    /// Submits one request and waits for its answer.
    pub fn ask(&self, op: BlockOp) -> BlockDone {
        self.disk.submit(BlockRequest { tag: u64::MAX, op }).unwrap();
        let done = self.answers();
        assert_eq!((done.len(), done[0].tag), (1, u64::MAX));
        done.into_iter().next().unwrap()
    }

    /// Submits one request, for which there must be room.
    pub fn submit(&self, tag: u64, op: BlockOp) {
        self.disk.submit(BlockRequest { tag, op }).expect("room");
    }

    /// What is answered by now.
    pub fn done(&self) -> Vec<BlockDone> {
        let mut done = Vec::new();
        self.disk.take_done(&mut done);
        done
    }

    pub fn write(&self, offset: u64, byte: u8, len: usize) {
        let done = self.ask(BlockOp::Write { offset, data: vec![byte; len].into() });
        assert_eq!(done.result, Ok(None));
    }

    /// What this copy is. On a busy machine it may still be looked at: then a node is refused, and asks again.
    pub fn identity(&self) -> Identity {
        let until = std::time::Instant::now() + BOUND;
        loop {
            match self.disk.identity() {
                Err(DiskError::Looking { .. }) if std::time::Instant::now() < until => std::thread::yield_now(),
                identity => return identity.unwrap(),
            }
        }
    }

    /// Waits until nothing is marked in the log any more.
    pub fn wait_cleared(&self) {
        let until = std::time::Instant::now() + BOUND;
        while !self.disk.identity().unwrap().changed.is_empty() {
            assert!(std::time::Instant::now() < until, "the log is not cleared");
            std::thread::yield_now();
        }
    }

    pub fn wait_durable(&self, at_least: u64) {
        loop {
            match self.events.recv_timeout(BOUND).unwrap() {
                DiskEvent::Durable { generation, .. } if generation != Generation(7) => {
                    panic!("of {generation}, which the copy was not joined in")
                }
                DiskEvent::Durable { epoch, .. } if epoch.0 >= at_least => return,
                DiskEvent::Durable { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

/// A guest that writes at random, and what its disk must hold.
pub struct Guest {
    pub model: Vec<u8>,
    pub random: StdRng,
    tag: u64,
    pub in_flight: usize,
    /// It discards; else it writes zeroes instead, whose content is certain.
    pub discards: bool,
}

impl Guest {
    pub fn new(model: Vec<u8>, seed: u64) -> Guest {
        Guest { model, random: StdRng::seed_from_u64(seed), tag: 0, in_flight: 0, discards: true }
    }

    /// Any request, from 512 bytes to 1 MiB, many of them overlapping one another.
    pub fn any_op(&mut self) -> BlockOp {
        let sectors = self.model.len() as u64 / 512;
        let len = match self.random.random_range(0..10) {
            0..4 => 1,
            4..7 => 8,
            7..9 => self.random.random_range(1..64),
            _ => self.random.random_range(64..=2048),
        };
        // Half of the disk is left in peace, a small part is hot.
        let window = if self.random.random_bool(0.5) { sectors / 16 } else { sectors };
        let start = self.random.random_range(0..window.min(sectors - len).max(1));
        let (offset, bytes) = (start * 512, len * 512);
        match self.random.random_range(0..20) {
            0 => BlockOp::Flush,
            1 => BlockOp::Discard { offset, len: bytes },
            2 => BlockOp::WriteZeroes { offset, len: bytes, may_unmap: self.random.random() },
            3 => BlockOp::Read { offset, len: bytes as u32 },
            _ => {
                let mut data = vec![0u8; bytes as usize];
                let stamp: u64 = self.random.random();
                for (index, word) in data.chunks_mut(8).enumerate() {
                    word.copy_from_slice(&(stamp ^ index as u64).to_le_bytes());
                }
                BlockOp::Write { offset, data: data.into() }
            }
        }
    }

    fn remember(&mut self, op: &BlockOp) {
        match op {
            BlockOp::Write { offset, data } => self.model[*offset as usize..*offset as usize + data.len()].copy_from_slice(data),
            BlockOp::Discard { offset, len } | BlockOp::WriteZeroes { offset, len, .. } => {
                self.model[*offset as usize..(offset + len) as usize].fill(0);
            }
            BlockOp::Read { .. } | BlockOp::Flush => {}
        }
    }

    /// Submits a request at random, and looks at what has been answered. `false`: the disk had no room.
    pub fn act(&mut self, host: &Host) -> bool {
        let op = match self.any_op() {
            BlockOp::Discard { offset, len } if !self.discards => BlockOp::WriteZeroes { offset, len, may_unmap: true },
            op => op,
        };
        self.tag += 1;
        let taken = host.disk.submit(BlockRequest { tag: self.tag, op: op.clone() }).is_ok();
        if taken {
            self.remember(&op);
            self.in_flight += 1;
        }
        let mut done = Vec::new();
        host.disk.take_done(&mut done);
        self.answered(&done);
        taken
    }

    pub fn answered(&mut self, done: &[BlockDone]) {
        for answer in done {
            assert!(answer.result.is_ok(), "{answer:?}");
            self.in_flight -= 1;
        }
    }

    pub fn finish(&mut self, host: &Host) {
        while self.in_flight > 0 {
            let done = host.answers();
            self.answered(&done);
        }
    }
}

/// Agrees on a plan and joins, as the two nodes do.
pub fn join(primary: &Host, standby: &Host) -> (Plan, DiskCopy) {
    join_while(primary, standby, || {})
}

/// As [`join`], while something happens between any two steps.
pub fn join_while(primary: &Host, standby: &Host, mut meanwhile: impl FnMut()) -> (Plan, DiskCopy) {
    let (identity, theirs) = (primary.identity(), standby.identity());
    let plan = plan(&identity, &theirs);
    assert!(!matches!(plan, Plan::Refuse(_)), "{plan:?}\nprimary {identity:?}\nstandby {theirs:?}");
    meanwhile();
    standby.disk.join(&plan, &identity, Generation(7)).unwrap();
    meanwhile();
    let copy = primary.disk.begin_copy(&plan, &theirs).unwrap();
    (plan, copy)
}

/// Hands the rest of the pass over; how many blocks there were.
pub fn hand_over(copy: &mut DiskCopy, standby: &Host) -> usize {
    let mut blocks = 0;
    while let Some(piece) = copy.next_piece().unwrap() {
        for (number, content) in piece.blocks() {
            standby.disk.sync_block(number * 4096, content).unwrap();
            blocks += 1;
        }
    }
    blocks
}

/// Seals, sends and commits an epoch.
pub fn epoch(primary: &Host, standby: &Host, number: u64) {
    let sealed = primary.disk.seal(Epoch(number)).unwrap();
    assert!(Disks::of(vec![Arc::clone(&primary.disk)]).marking().wait(BOUND).unwrap());
    standby.disk.stage(Epoch(number), sealed.to_vec()).unwrap();
    standby.disk.commit(Epoch(number)).unwrap();
    primary.disk.release(&Commit::attest(Generation(1), Epoch(number)));
}

/// Copies everything, and commits epoch 1.
pub fn protect(primary: &Host, standby: &Host) -> Plan {
    let (plan, mut copy) = join(primary, standby);
    hand_over(&mut copy, standby);
    copy.record(types::Generation(1)).unwrap();
    hand_over(&mut copy, standby);
    epoch(primary, standby, 1);
    plan
}

/// A host's medium: what of it would be there after a loss of power.
pub struct Medium {
    pub options: DiskOptions,
    durable: Arc<Mutex<Vec<u8>>>,
}

impl Medium {
    pub fn new(directory: &Path, name: &str, bytes: u64) -> Medium {
        let path = image(directory, name, bytes);
        Medium { options: options(&path), durable: Arc::new(Mutex::new(vec![0; bytes as usize])) }
    }

    pub fn path(&self) -> &PathBuf {
        &self.options.path
    }

    /// Starts the host's process.
    pub fn open(&self) -> Host {
        self.open_as(&self.options)
    }

    /// The same, by an operator who gives this copy up.
    pub fn open_to_be_overwritten(&self) -> Host {
        self.open_as(&DiskOptions { overwrite: true, ..self.options.clone() })
    }

    fn open_as(&self, options: &DiskOptions) -> Host {
        let (path, durable) = (self.path().clone(), Arc::clone(&self.durable));
        let watch = move |asked| {
            if asked == Asked::Sync {
                // Whatever was carried out before is durable when this is answered.
                *durable.lock().unwrap() = std::fs::read(&path).unwrap();
            }
            Strike::Pass
        };
        Host::open_with(options, Tuning { faults: Some(Arc::new(watch)), ..tuning() })
    }

    /// Power fails: of what was written since the last flush, what is `lost` is not there, block by block.
    pub fn lose_power(&self, mut lost: impl FnMut() -> bool) {
        let mut content = std::fs::read(self.path()).unwrap();
        let durable = self.durable.lock().unwrap();
        for (now, then) in content.chunks_mut(4096).zip(durable.chunks(4096)) {
            if now != then && lost() {
                now.copy_from_slice(then);
            }
        }
        std::fs::write(self.path(), &content).unwrap();
    }
}

/// Of the image that [`host`] makes.
pub const BYTES: u64 = 8 * MIB;

/// Faults that begin when the switch is thrown.
#[derive(Clone, Default)]
pub struct Switch(pub Arc<AtomicBool>);

impl Switch {
    pub fn throw(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    pub fn back(&self) {
        self.0.store(false, Ordering::SeqCst);
    }

    pub fn fail(&self, which: fn(Asked) -> bool, errno: i32) -> Option<Arc<dyn Faults>> {
        let on = Arc::clone(&self.0);
        Some(Arc::new(move |asked| if on.load(Ordering::SeqCst) && which(asked) { Strike::Fail(errno) } else { Strike::Pass }))
    }
}

/// Changes the image.
pub fn is_write(asked: Asked) -> bool {
    matches!(asked, Asked::Write(..) | Asked::Zero(..))
}

/// A host with an image of [`BYTES`].
pub fn host(directory: &std::path::Path, name: &str, faults: Option<Arc<dyn Faults>>) -> Host {
    Host::open_with(&options(&image(directory, name, BYTES)), Tuning { faults, ..tuning() })
}

/// A protected primary and its standby, each over faults of its own.
pub fn protected(directory: &Path, primary: Option<Arc<dyn Faults>>, standby: Option<Arc<dyn Faults>>) -> (Host, Host) {
    let (primary, standby) = (host(directory, "one", primary), host(directory, "two", standby));
    primary.disk.start_primary().unwrap();
    protect(&primary, &standby);
    (primary, standby)
}

/// A block of one byte.
pub fn write(offset: u64, byte: u8) -> BlockOp {
    BlockOp::Write { offset, data: vec![byte; 4096].into() }
}

/// A file system of two megabytes, in a mount namespace of this thread alone.
pub fn on_a_small_file_system(body: impl FnOnce(&std::path::Path) + Send + 'static) {
    let thread = std::thread::spawn(move || {
        let directory = tempfile::tempdir().unwrap();
        let path = std::ffi::CString::new(directory.path().to_str().unwrap()).unwrap();
        // SAFETY: unshare(2) and mount(2) read C strings that live for the call; the namespace is this thread's.
        let mounted = unsafe {
            libc::unshare(libc::CLONE_NEWNS) == 0
                && libc::mount(c"none".as_ptr(), c"/".as_ptr(), std::ptr::null(), libc::MS_REC | libc::MS_PRIVATE, std::ptr::null()) == 0
                && libc::mount(c"none".as_ptr(), path.as_ptr(), c"tmpfs".as_ptr(), 0, c"size=2m".as_ptr().cast()) == 0
        };
        if !mounted {
            eprintln!("skipped: no right to mount a small file system ({})", std::io::Error::last_os_error());
            return;
        }
        body(directory.path());
        // SAFETY: umount2(2) reads a C string; nothing has the file system open any more.
        unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) };
    });
    thread.join().unwrap();
}

/// A medium that hangs when it is asked for what `which` names, from the first time after the throw until the gate is dropped.
pub fn hanging(switch: &Switch, which: fn(Asked) -> bool) -> (Option<Arc<dyn Faults>>, Sender<()>) {
    let (gate, opened) = channel::<()>();
    let (on, opened) = (Arc::clone(&switch.0), Mutex::new(opened));
    let faults = move |asked| {
        if on.load(Ordering::SeqCst) && which(asked) {
            // Until the gate is dropped; then it never waits again.
            let _ = opened.lock().unwrap().recv();
        }
        Strike::Pass
    };
    (Some(Arc::new(faults)), gate)
}
