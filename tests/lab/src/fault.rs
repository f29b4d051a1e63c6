//! Faults made inside a host by its own kernel's traffic control: silent cuts in one direction, delay and loss. They need the host to be awake.
//!
//! Not here: faults made from outside (death, hang, carrier, unplugging: [`crate::host`]).

use crate::error::LabError;
use crate::host::Host;
use crate::net::Net;

/// Which way a host's card is cut or shaped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize, serde::Deserialize)]
pub enum Way {
    /// What the host sends.
    From,
    /// What is sent to the host.
    To,
    /// Either.
    Both,
}

/// What happens to frames on their way from or to a host's card.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Shape {
    /// Delay.
    pub delay_ms: f64,
    /// Spread of the delay (uniform), which reorders nothing by itself as long as it is below the delay.
    pub jitter_ms: f64,
    /// Part of the frames that is lost, per cent.
    pub loss_percent: f64,
}

impl Host {
    /// Cuts a card silently: the carrier stays, no error is told. In place of an earlier cut or [`Self::shape`] of that way.
    ///
    /// # Errors
    /// The host does not answer, or its kernel refuses.
    pub fn cut(&self, net: Net, way: Way) -> Result<(), LabError> {
        let card = net.card();
        let from = format!("modprobe sch_netem && tc qdisc replace dev {card} root netem loss 100%");
        let to = format!("modprobe act_gact && {}", arriving(card, "drop"));
        let script = match way {
            Way::From => from,
            Way::To => to,
            Way::Both => format!("{from} && {to}"),
        };
        self.must(&script).map(drop)
    }

    /// Delays and loses what the host sends on a card, or what is sent to it. In place of an earlier [`Self::cut`] or shape of that way.
    ///
    /// # Errors
    /// As [`Self::cut`].
    pub fn shape(&self, net: Net, way: Way, shape: Shape) -> Result<(), LabError> {
        let card = net.card();
        // The queue must hold what is on its way: 1.5 Gb/s for a second.
        let Shape { delay_ms, jitter_ms, loss_percent } = shape;
        let netem = |card: &str| {
            format!("tc qdisc replace dev {card} root netem limit 100000 delay {delay_ms}ms {jitter_ms}ms loss {loss_percent}%")
        };
        let from = format!("modprobe sch_netem && {}", netem(card));
        // What arrives can only be queued at a card that it leaves by: it takes a turn through one of its own, and goes on as if it came from the wire.
        let (turn, turned) = (turn(card), netem(&turn(card)));
        let to = format!(
            "modprobe -a sch_netem act_mirred && modprobe ifb numifbs=0 && {{ ip link show {turn} >/dev/null 2>&1 || ip link add {turn} type ifb; }} && \
             ip link set {turn} up && {turned} && {}",
            arriving(card, &format!("mirred egress redirect dev {turn}"))
        );
        let script = match way {
            Way::From => from,
            Way::To => to,
            Way::Both => format!("{from} && {to}"),
        };
        self.must(&script).map(drop)
    }

    /// Undoes [`Self::cut`] and [`Self::shape`].
    ///
    /// # Errors
    /// The host does not answer.
    pub fn heal(&self, net: Net) -> Result<(), LabError> {
        let card = net.card();
        let turn = turn(card);
        self.must(&format!(
            "tc qdisc del dev {card} root 2>/dev/null; tc qdisc del dev {card} clsact 2>/dev/null; ip link del {turn} 2>/dev/null; true"
        ))
        .map(drop)
    }
}

/// Has all that arrives at `card` done with by `action`, in place of what was done with it before (one matchall filter cannot be replaced by another).
fn arriving(card: &str, action: &str) -> String {
    format!(
        "modprobe -a sch_ingress cls_matchall && tc qdisc replace dev {card} clsact && {{ tc filter del dev {card} ingress prio 1 2>/dev/null; true; }} && \
         tc filter add dev {card} ingress prio 1 matchall action {action}"
    )
}

/// Name of the card by which what arrives at `card` takes its turn.
fn turn(card: &str) -> String {
    format!("to-{card}")
}
