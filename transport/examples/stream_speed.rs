//! How fast the TCP link is on this host, against plain blocking TCP over the same loopback in the same run: `MiB/s` of 1 MiB slots, and the
//! round trip of a small epoch (4 KiB and its end to the standby, a control message back) against plain send and receive of as many bytes.
//!
//! Usage: `cargo run -p transport --example stream_speed [MiB per round]`

use std::error::Error;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use transport::{Geometry, Piece, PrimaryLink, Region, RegionId, Staging, StandbyLink, tcp};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// Rounds of each kind, taken in turns so that a drift of the host hits both.
const ROUNDS: usize = 5;
const SMALL_ROUNDS: u64 = 5000;
const SMALL_BYTES: usize = 4096;
const GEOMETRY: Geometry = Geometry { slots: 64, slot_bytes: 1 << 20 };
const PATIENCE: Duration = Duration::from_secs(10);

fn main() -> Result<()> {
    let mib: u64 = std::env::args().nth(1).map_or(Ok(1024), |a| a.parse())?;
    let (mut primary, mut standby) = link()?;
    let region = Region::new(GEOMETRY.total_bytes())?;
    region.claim_all()?.fill(0xa5);
    let id = primary.data.register(Arc::clone(&region))?;

    let (mut ours, mut plain) = (Vec::new(), Vec::new());
    let mut ticket = 0;
    for _ in 0..ROUNDS {
        let rate;
        (primary, standby, rate) = stream(primary, standby, id, mib, &mut ticket)?;
        ours.push(rate);
        plain.push(plain_stream(mib)?);
    }
    let (ours, plain) = (median(ours), median(plain));
    println!("stream of 1 MiB slots   {ours:8.0} MiB/s   plain TCP {plain:8.0} MiB/s   ratio {:.2}", ours / plain);

    let ours = small(primary, standby, id, ticket)?;
    let plain = plain_small()?;
    println!("small epoch round trip  {ours:8.1} us      plain TCP {plain:8.1} us      ratio {:.2}", ours / plain);
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn link() -> Result<(PrimaryLink, StandbyLink)> {
    let listener = tcp::Listener::bind("127.0.0.1:0")?;
    let pending = tcp::connect(listener.local_addr(), PATIENCE)?;
    let accepted = listener.accept(PATIENCE)?.ok_or("nobody connected")?;
    let standby = std::thread::spawn(move || accepted.open_data(Staging::new(GEOMETRY)?));
    let primary = pending.open_data(GEOMETRY)?;
    Ok((primary, standby.join().map_err(|_| "standby panicked")??))
}

fn stream(mut p: PrimaryLink, mut s: StandbyLink, region: RegionId, mib: u64, ticket: &mut u64) -> Result<(PrimaryLink, StandbyLink, f64)> {
    let began = Instant::now();
    let receiving = std::thread::spawn(move || -> Result<StandbyLink> {
        for _ in 0..mib {
            s.data.receive(PATIENCE)?.ok_or("no slot in time")?;
        }
        s.control_tx.send(b"done")?;
        Ok(s)
    });
    for i in 0..mib {
        let slot = p.data.acquire(PATIENCE)?.ok_or("no credit in time")?;
        // Scattered pages, as a checkpoint has them: 32 runs of 8 pages.
        let base = (i as usize % 32) << 20;
        let pieces: [Piece; 32] = std::array::from_fn(|n| Piece { region, offset: base + (n << 16), len: 32 << 10 });
        p.data.post_write(slot, 0, &pieces)?;
        *ticket += 1;
        p.data.post_end(slot, 32 * (32 << 10), *ticket)?;
        p.data.flush()?;
        while p.data.completed(Duration::ZERO)?.is_some() {}
    }
    while p.data.completed(PATIENCE)?.is_some() {}
    p.control_rx.receive(PATIENCE)?.ok_or("no answer in time")?;
    let rate = mib as f64 / began.elapsed().as_secs_f64();
    Ok((p, receiving.join().map_err(|_| "receiver panicked")??, rate))
}

fn plain_pair() -> Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let a = TcpStream::connect(listener.local_addr()?)?;
    let (b, _) = listener.accept()?;
    a.set_nodelay(true)?;
    b.set_nodelay(true)?;
    Ok((a, b))
}

fn plain_stream(mib: u64) -> Result<f64> {
    let (mut a, mut b) = plain_pair()?;
    // The same memory footprint as the link's: 32 MiB to send from, and one warm MiB to receive into.
    let from = vec![0xa5_u8; 32 << 20];
    let began = Instant::now();
    let receiving = std::thread::spawn(move || -> Result<()> {
        let mut to = vec![0_u8; 1 << 20];
        for _ in 0..mib {
            b.read_exact(&mut to)?;
        }
        Ok(b.write_all(b"done")?)
    });
    for i in 0..mib as usize {
        a.write_all(&from[(i % 32) << 20..][..1 << 20])?;
    }
    a.read_exact(&mut [0; 4])?;
    let rate = mib as f64 / began.elapsed().as_secs_f64();
    receiving.join().map_err(|_| "receiver panicked")??;
    Ok(rate)
}

fn small(mut p: PrimaryLink, mut s: StandbyLink, region: RegionId, mut ticket: u64) -> Result<f64> {
    let answering = std::thread::spawn(move || -> Result<()> {
        for _ in 0..SMALL_ROUNDS {
            let slot = s.data.receive(PATIENCE)?.ok_or("no slot in time")?;
            s.control_tx.send(&[0; 24])?;
            drop(slot);
        }
        Ok(())
    });
    let mut times = Vec::new();
    for _ in 0..SMALL_ROUNDS {
        let began = Instant::now();
        let slot = p.data.acquire(PATIENCE)?.ok_or("no credit in time")?;
        p.data.post_write(slot, 0, &[Piece { region, offset: 0, len: SMALL_BYTES }])?;
        ticket += 1;
        p.data.post_end(slot, SMALL_BYTES as u32, ticket)?;
        p.data.flush()?;
        p.control_rx.receive(PATIENCE)?.ok_or("no answer in time")?;
        times.push(began.elapsed().as_secs_f64() * 1e6);
    }
    answering.join().map_err(|_| "standby panicked")??;
    Ok(median(times))
}

fn plain_small() -> Result<f64> {
    let (mut a, mut b) = plain_pair()?;
    let answering = std::thread::spawn(move || -> Result<()> {
        let mut to = [0; SMALL_BYTES + 32];
        for _ in 0..SMALL_ROUNDS {
            b.read_exact(&mut to)?;
            b.write_all(&[0; 28])?;
        }
        Ok(())
    });
    let mut times = Vec::new();
    for _ in 0..SMALL_ROUNDS {
        let began = Instant::now();
        a.write_all(&[0; SMALL_BYTES + 32])?;
        a.read_exact(&mut [0; 28])?;
        times.push(began.elapsed().as_secs_f64() * 1e6);
    }
    answering.join().map_err(|_| "peer panicked")??;
    Ok(median(times))
}
