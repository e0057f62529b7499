//! Sources that ask for many ports and complete no handshake: half-open scans,
//! closed ports. Whoever sends such packets may name any source, and a scanner's
//! host answers as that of a forged one does: this is reported and counted, and
//! never blocked.

use crate::address::Network;
use crate::detector::{Data, Detector, Evidence, Scan};
use crate::label::label;
use crate::limits::{PROBERS, PROBES_WAIT};
use crate::packets::{Kind, Packet};
use crate::time::Instant;

/// Where a source's packets go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// To an address of this host.
    Host,
    /// To a machine behind it.
    Behind,
}

label!(Target, "target", 0, ["host", "behind"]);

/// Sources under watch, by the rule of scans but apart from them: `PROBERS` at
/// once of the `N` places. All bytes zero when new, and until a packet comes.
#[repr(C)]
pub struct Probes<const N: usize, const I: usize> {
    /// Packets of sources that are blocked already.
    pub of_blocked: u64,
    pub sources: Detector<N, I>,
}

impl<const N: usize, const I: usize> Probes<N, I> {
    /// None is watched.
    pub const fn new() -> Self {
        Self {
            of_blocked: 0,
            sources: Detector::new(),
        }
    }

    /// Takes in a packet; the rule is that of `scanners`.
    #[inline(never)]
    pub fn note(
        &mut self,
        source: Network,
        packet: &Packet,
        scanners: &Detector<N, I>,
        now: Instant,
    ) {
        let probe = Evidence {
            source,
            port: packet.destination.port,
            local: packet.destination.address,
            data: Data::Unknown,
            is_new: true,
            is_whole: true,
        };
        self.sources.configure_as(scanners, PROBERS);
        self.sources.observe_marked(&probe, packet.kind.mark(), now);
    }

    /// When `next` has something to do: where many wait, at once, since no place
    /// of theirs is free for others.
    pub fn deadline(&self) -> Option<Instant> {
        let (oldest, count) = self.sources.recognised()?;
        Some(if count > PROBERS / 2 {
            oldest
        } else {
            oldest.after(PROBES_WAIT)
        })
    }

    /// The next source to be reported: once, until it was quiet for one window.
    /// Its marks are those of the kinds of its packets.
    pub fn next(&mut self, now: Instant) -> Option<Scan> {
        if now.reaches(self.deadline()) {
            self.sources.next_scan()
        } else {
            None
        }
    }
}

/// The least usual of kinds with these marks: by SYNs some find out who is there
/// before they send others.
pub fn kind(marks: u16) -> Kind {
    // The highest bit.
    match marks {
        0..=1 => Kind::Syn,
        2..=3 => Kind::Null,
        4..=7 => Kind::Fin,
        _ => Kind::Xmas,
    }
}
