//! Packets that ask for connections: two packet sockets show them as they come
//! in. All of their bytes can be forged, so they are hints and no evidence.

use crate::address::Family;
use crate::kernel::{Descriptor, Errno, Kernel, Path};
use crate::limits::{
    WITNESS_BURST, WITNESS_FULL_REST, WITNESS_PACKETS, WITNESS_PAUSE, WITNESS_READS,
    WITNESS_REPEATS, WITNESS_REST,
};
use crate::metrics::{self, Metrics};
use crate::packets::{NO_ETHERTYPE, Packet, ethertype, filter, parse};
use crate::text::{before, head, parse_decimal, split_once, trim};
use crate::time::{Duration, Instant, nearest};

use super::kept_file::KeptFile;
use super::once::Once;
use super::output::log_words;
use super::procfs::read_small;

/// Between two counts of packets that a rate is made of.
const RATE_PERIOD: Duration = Duration::from_millis(500);

/// All bytes zero when new.
pub(super) struct Witness {
    /// In the order of `Family::ALL`; both or none.
    sockets: [Option<Descriptor>; 2],
    down: Once,
    paused: Once,
    has_one_processor: bool,
    /// Packets may wait until then: others just came.
    rest_until: Option<Instant>,
    /// The sockets receive nothing until then.
    paused_until: Option<Instant>,
    /// More came than the last turn could take.
    is_behind: bool,
    /// Packets of this second.
    second: Option<Instant>,
    taken: usize,
    /// Until then a packet that came in before the sockets were opened may come in
    /// again by another link.
    repeats_until: Option<Instant>,
    /// When packets were last known to be lost.
    lost_at: Option<Instant>,
    snmp6: KeptFile,
    /// Packets that the kernel had received, and when.
    received: u64,
    received_at: Option<Instant>,
}

impl Witness {
    pub(super) const fn new() -> Self {
        Self {
            sockets: [None; 2],
            down: Once::NEW,
            paused: Once::NEW,
            has_one_processor: false,
            rest_until: None,
            paused_until: None,
            is_behind: false,
            second: None,
            taken: 0,
            repeats_until: None,
            lost_at: None,
            snmp6: KeptFile::new(),
            received: 0,
            received_at: None,
        }
    }

    /// Opens the sockets, unless they are.
    #[inline(never)]
    pub(super) fn check(&mut self, kernel: &mut impl Kernel, proc_directory: &Path, now: Instant) {
        if self.has_sockets() {
            return;
        }
        if self.open(kernel).is_ok() {
            self.repeats_until = Some(now.after(WITNESS_REPEATS));
            self.snmp6.set_path(proc_directory, b"/net/snmp6");
            let mut buffer = [0; 8];
            let online = read_small(kernel, b"/sys/devices/system/cpu/online", &mut buffer);
            self.has_one_processor = online == b"0\n";
            return;
        }
        for socket in &mut self.sockets {
            if let Some(socket) = socket.take() {
                kernel.close(socket);
            }
        }
        if self.down.say() {
            let words = b"no packet sockets (CAP_NET_RAW): \
                connections that are held are seen a little later";
            log_words(kernel, words);
        }
    }

    fn open(&mut self, kernel: &mut impl Kernel) -> Result<(), Errno> {
        for (place, &family) in self.sockets.iter_mut().zip(&Family::ALL) {
            let socket = kernel.packet_socket()?;
            *place = Some(socket);
            // In this order none comes in that the filter did not see.
            kernel.attach_filter(socket, filter(family))?;
            kernel.bind_packets(socket, ethertype(family))?;
        }
        Ok(())
    }

    fn has_sockets(&self) -> bool {
        self.sockets[0].is_some()
    }

    /// Whether packets come in.
    pub(super) fn is_up(&self) -> bool {
        self.has_sockets() && self.paused_until.is_none()
    }

    /// Whether packets may be missing among those that came in within `window`.
    pub(super) fn is_blind(&self, window: Duration, now: Instant) -> bool {
        !self.is_up() || self.is_behind || now.is_within(window, self.lost_at)
    }

    /// Whether what still waits is to be taken at once: not in a flood.
    pub(super) fn catches_up(&self) -> bool {
        self.is_behind && self.taken < WITNESS_BURST
    }

    /// When packets that wait are to be taken, or the pause is over.
    pub(super) fn deadline(&self) -> Option<Instant> {
        nearest(self.rest_until, self.paused_until)
    }

    /// Whether packets that rest may be taken in ahead of time: there is no
    /// flood of them.
    pub(super) fn may_be_hurried(&self, now: Instant) -> bool {
        now.after(WITNESS_REST).reaches(self.rest_until)
    }

    /// Where packets are waited for.
    pub(super) fn sockets(&self, now: Instant) -> [Option<Descriptor>; 2] {
        if now.is_past(self.rest_until) {
            self.sockets
        } else {
            [None; 2]
        }
    }

    /// Takes in the packets that came, even where they may wait, and hands each
    /// to `visit` with the number of its interface; 0 while that proves nothing.
    #[inline(never)]
    pub(super) fn drain(
        &mut self,
        kernel: &mut impl Kernel,
        buffer: &mut [u8],
        metrics: &mut Metrics,
        now: Instant,
        visit: &mut dyn FnMut(&Packet, u32),
    ) {
        if now.reaches(self.paused_until) {
            self.bind(kernel, false);
            (self.paused_until, self.received_at) = (None, None);
            self.lost_at = Some(now);
        }
        self.is_behind = false;
        self.rest_until = None;
        let repeats = !now.is_past(self.repeats_until);
        let before = metrics.get(metrics::WITNESS_PACKETS);
        if !now.is_within(Duration::from_secs(1), self.second) {
            (self.second, self.taken) = (Some(now), 0);
        }
        for (socket, &family) in self.sockets.iter().zip(&Family::ALL) {
            let Some(socket) = *socket else { continue };
            let mut left = WITNESS_READS;
            while left > 0 {
                left -= 1;
                match kernel.receive_from(socket, buffer) {
                    Ok((count, link)) => {
                        metrics.count(metrics::WITNESS_PACKETS);
                        let bytes = head(buffer, count);
                        if let Some(packet) = parse(bytes, family) {
                            visit(&packet, if repeats { 0 } else { link });
                        }
                    }
                    Err(Errno::EINTR) => {}
                    // EAGAIN: there are no more.
                    Err(_) => break,
                }
            }
            self.is_behind |= left == 0;
        }
        if metrics.get(metrics::WITNESS_PACKETS) != before {
            self.taken += (metrics.get(metrics::WITNESS_PACKETS) - before) as usize;
            let rest = if self.taken >= WITNESS_BURST {
                WITNESS_FULL_REST
            } else {
                WITNESS_REST
            };
            self.rest_until = Some(now.after(rest));
            self.count_lost(kernel, metrics, now);
        }
    }

    /// What found no room while others waited.
    #[inline(never)]
    fn count_lost(&mut self, kernel: &mut impl Kernel, metrics: &mut Metrics, now: Instant) {
        for socket in self.sockets.iter().flatten() {
            let lost = kernel.lost_packets(*socket);
            metrics.add(metrics::WITNESS_PACKETS_DROPPED, lost.into());
            if lost > 0 {
                self.lost_at = Some(now);
            }
        }
    }

    /// Pauses where the kernel receives too many packets; `received` are those
    /// of IPv4 so far.
    #[inline(never)]
    pub(super) fn check_rate(
        &mut self,
        kernel: &mut impl Kernel,
        metrics: &mut Metrics,
        received: u64,
        now: Instant,
    ) {
        if !self.is_up() || now.is_within(RATE_PERIOD, self.received_at) {
            return;
        }
        self.count_lost(kernel, metrics, now);
        // Ip6InReceives is the first line.
        let mut buffer = [0; 64];
        let text = self.snmp6.read(kernel, &mut buffer).unwrap_or_default();
        let line = before(text, b'\n');
        let received_v6 = parse_decimal(trim(split_once(line, b' ').1)).unwrap_or(0);
        let received = received.wrapping_add(received_v6);
        // A counter of 32 bits may begin anew.
        let came = received.saturating_sub(self.received);
        self.received = received;
        let Some(since) = self.received_at.replace(now) else {
            return;
        };
        let each = 1_000_000_000 / WITNESS_PACKETS as u64;
        let most = now.since(since).as_nanos() / each;
        if came <= most >> u8::from(self.has_one_processor) {
            return;
        }
        metrics.count(metrics::WITNESS_PAUSES);
        self.paused_until = Some(now.after(WITNESS_PAUSE));
        self.bind(kernel, true);
        if self.paused.say() {
            let words = b"too many packets: packet sockets pause for 10 seconds each time";
            log_words(kernel, words);
        }
    }

    /// To bind takes milliseconds, to close twice as long (synchronize_net of
    /// net/core/dev.c), and to open needs a right.
    #[inline(never)]
    fn bind(&mut self, kernel: &mut impl Kernel, pauses: bool) {
        for (socket, &family) in self.sockets.iter().zip(&Family::ALL) {
            let ethertype = if pauses {
                NO_ETHERTYPE
            } else {
                ethertype(family)
            };
            if let Some(socket) = *socket {
                let _ = kernel.bind_packets(socket, ethertype);
            }
        }
    }
}
