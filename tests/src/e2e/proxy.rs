//! A TCP proxy on the replication wire that damages one byte of an epoch on its way. For S2 and S7 only; cuts are the world's.
//!
//! Not here: what the damage leads to.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use lockstep::demo::world::{Host, Place, World};

/// Bytes moved at once: a damaged byte is somewhere in the middle of as many.
const CHUNK_BYTES: usize = 64 << 10;
/// Only a chunk of at least so many bytes is damaged: it is more than a frame's header, so the damage is in an epoch.
const LEAST_DAMAGED: usize = 512;
/// Where a connection's preamble says which of a link's two it is, and what it says for data.
const KIND_AT: usize = 10;
const KIND_DATA: u8 = 2;
/// Bytes of a preamble.
const PREAMBLE_BYTES: usize = 32;

#[derive(Debug, Default)]
struct Damage {
    armed: AtomicBool,
    done: AtomicBool,
}

/// A proxy that runs until the process ends: its sockets close with the nodes that use it.
#[derive(Debug)]
pub struct Proxy {
    /// Where the primary shall look for its standby.
    pub address: SocketAddr,
    damage: Arc<Damage>,
}

impl Proxy {
    /// A proxy on `host` for the standby on the other host.
    ///
    /// # Panics
    /// No socket or thread to be had.
    #[must_use]
    pub fn start(world: &World, host: Host) -> Proxy {
        let damage = Arc::new(Damage::default());
        let shared = Arc::clone(&damage);
        let standby = host.other().replication_address();
        let mut address = host.replication_address();
        address.set_port(0);
        // Sockets and threads made there stay there.
        let start = || -> std::io::Result<SocketAddr> {
            let listener = TcpListener::bind(address)?;
            let address = listener.local_addr()?;
            std::thread::Builder::new().name("proxy".to_owned()).spawn(move || accept(&listener, standby, &shared))?;
            Ok(address)
        };
        let address = world.run(Place::On(host), start).expect("a thread on the host").expect("a listener and a thread");
        Proxy { address, damage }
    }

    /// The next epoch that comes by is damaged.
    pub fn damage_next(&self) {
        self.damage.armed.store(true, Ordering::Release);
    }

    /// Whether the damage is done.
    #[must_use]
    pub fn damaged(&self) -> bool {
        self.damage.done.load(Ordering::Acquire)
    }
}

fn accept(listener: &TcpListener, standby: SocketAddr, damage: &Arc<Damage>) {
    for from in listener.incoming().flatten() {
        let Ok(to) = TcpStream::connect(standby) else { continue };
        let (Ok(back_from), Ok(back_to)) = (to.try_clone(), from.try_clone()) else { continue };
        let damage = Arc::clone(damage);
        std::thread::spawn(move || forward(from, to, Some(&damage)));
        std::thread::spawn(move || forward(back_from, back_to, None));
    }
}

/// Moves bytes until either end closes, then closes the other.
fn forward(mut from: TcpStream, mut to: TcpStream, damage: Option<&Damage>) {
    let _ = to.set_nodelay(true);
    let mut bytes = vec![0; CHUNK_BYTES];
    let mut is_data = false;
    if damage.is_some() {
        let preamble = &mut bytes[..PREAMBLE_BYTES];
        if from.read_exact(preamble).is_err() || to.write_all(preamble).is_err() {
            return;
        }
        is_data = preamble[KIND_AT] == KIND_DATA;
    }
    while let Ok(count) = from.read(&mut bytes) {
        if count == 0 {
            break;
        }
        if let Some(damage) = damage.filter(|_| is_data && count >= LEAST_DAMAGED)
            && damage.armed.swap(false, Ordering::AcqRel)
        {
            bytes[count / 2] ^= 0x10;
            damage.done.store(true, Ordering::Release);
        }
        if to.write_all(&bytes[..count]).is_err() {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
