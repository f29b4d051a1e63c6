//! Faults made inside a host by its own kernel's traffic control: silent cuts in one direction, delay and loss. They need the host to be awake.
//!
//! Not here: faults made from outside (death, hang, carrier, unplugging: [`crate::host`]).

use crate::error::LabError;
use crate::host::Host;
use crate::net::Net;

/// Which way a host's card is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize, serde::Deserialize)]
pub enum Way {
    /// What the host sends does not arrive.
    From,
    /// What is sent to the host does not arrive.
    To,
    /// Neither.
    Both,
}

/// What happens to what a host sends on a card.
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
    /// Cuts a card silently: the carrier stays, no error is told.
    ///
    /// # Errors
    /// The host does not answer, or its kernel refuses.
    pub fn cut(&self, net: Net, way: Way) -> Result<(), LabError> {
        let card = net.card();
        let from = format!("modprobe sch_netem && tc qdisc replace dev {card} root netem loss 100%");
        let to = format!(
            "modprobe -a sch_ingress cls_matchall act_gact && tc qdisc replace dev {card} clsact && tc filter replace dev {card} ingress prio 1 matchall action drop"
        );
        let script = match way {
            Way::From => from,
            Way::To => to,
            Way::Both => format!("{from} && {to}"),
        };
        self.must(&script).map(drop)
    }

    /// Delays and loses what the host sends on a card.
    ///
    /// # Errors
    /// As [`Self::cut`].
    pub fn shape(&self, net: Net, shape: Shape) -> Result<(), LabError> {
        // The queue must hold what is on its way: 1.5 Gb/s for a second.
        let Shape { delay_ms, jitter_ms, loss_percent } = shape;
        self.must(&format!(
            "modprobe sch_netem && tc qdisc replace dev {} root netem limit 100000 delay {delay_ms}ms {jitter_ms}ms loss {loss_percent}%",
            net.card()
        ))
        .map(drop)
    }

    /// Undoes [`Self::cut`] and [`Self::shape`].
    ///
    /// # Errors
    /// The host does not answer.
    pub fn heal(&self, net: Net) -> Result<(), LabError> {
        let card = net.card();
        self.must(&format!("tc qdisc del dev {card} root 2>/dev/null; tc qdisc del dev {card} clsact 2>/dev/null; true")).map(drop)
    }
}
