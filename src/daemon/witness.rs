//! Packets that ask for connections: two packet sockets show them as they come
//! in. All of their bytes can be forged, so they are hints and no evidence.

use crate::address::{Family, PerFamily};
use crate::kernel::{Descriptor, Errno, Interest, Kernel};
use crate::limits::{
    WITNESS_FULL_REST, WITNESS_PACKETS, WITNESS_PAUSE, WITNESS_READS, WITNESS_REST,
};
use crate::metrics::Metrics;
use crate::packets::{NO_ETHERTYPE, Packet, ethertype, filter, parse};
use crate::text::{parse_decimal, split_once, trim};
use crate::time::{Duration, Instant, nearest};

use super::kept_file::{KeptFile, fill};
use super::once::Once;
use super::output::log_error;
use super::procfs::read_small;

/// Between two counts of packets that a rate is made of.
const RATE_PERIOD: Duration = Duration::from_millis(500);

/// All bytes zero when new.
pub(super) struct Witness {
    sockets: PerFamily<Option<Descriptor>>,
    down: Once,
    paused: Once,
    has_one_processor: bool,
    /// Packets may wait until then: others just came.
    rest_until: Option<Instant>,
    /// The sockets receive nothing until then.
    paused_until: Option<Instant>,
    /// More came than the last turn could take.
    is_behind: bool,
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
            sockets: PerFamily::new(None, None),
            down: Once::NEW,
            paused: Once::NEW,
            has_one_processor: false,
            rest_until: None,
            paused_until: None,
            is_behind: false,
            lost_at: None,
            snmp6: KeptFile::new(),
            received: 0,
            received_at: None,
        }
    }

    /// Opens the sockets, unless they are.
    pub(super) fn check(&mut self, kernel: &mut impl Kernel, proc_directory: &[u8]) {
        if self.sockets.v4.is_some() {
            return;
        }
        for family in Family::ALL {
            if let Err(Errno(_)) = self.open(kernel, family) {
                self.close(kernel);
                if self.down.say() {
                    let words = b"no packet sockets (CAP_NET_RAW): \
                        scans that hold their connections are seen some tenths of a second later";
                    log_error(kernel, &[words]);
                }
                return;
            }
        }
        self.snmp6.set_path(proc_directory, b"/net/snmp6");
        let mut buffer = [0; 8];
        let online = read_small(kernel, b"/sys/devices/system/cpu/online", &mut buffer);
        self.has_one_processor = trim(online) == b"0";
    }

    fn open(&mut self, kernel: &mut impl Kernel, family: Family) -> Result<(), Errno> {
        let socket = kernel.packet_socket()?;
        *self.sockets.get_mut(family) = Some(socket);
        // In this order none comes in that the filter did not see.
        kernel.attach_filter(socket, filter(family))?;
        kernel.bind_packets(socket, ethertype(family))
    }

    fn close(&mut self, kernel: &mut impl Kernel) {
        for family in Family::ALL {
            if let Some(socket) = self.sockets.get_mut(family).take() {
                kernel.close(socket);
            }
        }
    }

    /// Whether packets come in.
    pub(super) fn is_up(&self) -> bool {
        self.sockets.v4.is_some() && self.paused_until.is_none()
    }

    /// Whether packets may be missing among those that came in within `window`.
    pub(super) fn is_blind(&self, window: Duration, now: Instant) -> bool {
        !self.is_up() || self.is_behind || now.is_within(window, self.lost_at)
    }

    /// When packets that wait are to be taken, or the pause is over.
    pub(super) fn deadline(&self) -> Option<Instant> {
        nearest(self.rest_until, self.paused_until)
    }

    /// Where packets are waited for.
    pub(super) fn interests(&self, now: Instant) -> [Interest; 2] {
        [self.sockets.v4, self.sockets.v6]
            .map(|socket| Interest::read(socket.filter(|_| now.is_past(self.rest_until))))
    }

    /// Whether `drain` has something to do.
    pub(super) fn is_due(&self, found: &[Interest], now: Instant) -> bool {
        let sockets = [self.sockets.v4, self.sockets.v6];
        let mut met = found.iter().filter(|interest| interest.is_readable);
        now.reaches(self.deadline())
            || met.any(|one| one.descriptor.is_some() && sockets.contains(&one.descriptor))
    }

    /// Takes in the packets that came, even where they may wait, and hands each
    /// to `visit` with the number of its interface.
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
            self.resume(kernel, now);
        }
        let before = metrics.witness_packets;
        let mut is_full = false;
        for family in Family::ALL {
            let Some(socket) = *self.sockets.get(family) else {
                continue;
            };
            is_full |= !(0..WITNESS_READS).any(|_| match kernel.receive_from(socket, buffer) {
                Ok((count, link)) => {
                    metrics.witness_packets += 1;
                    let bytes = buffer.get(..count).unwrap_or_default();
                    if let Some(packet) = parse(bytes, family) {
                        visit(&packet, link);
                    }
                    false
                }
                // EAGAIN: there are no more.
                Err(error) => error != Errno::EINTR,
            });
        }
        self.is_behind = is_full;
        self.rest_until = None;
        if metrics.witness_packets != before {
            let rest = if is_full {
                WITNESS_FULL_REST
            } else {
                WITNESS_REST
            };
            self.rest_until = Some(now.after(rest));
            self.count_lost(kernel, metrics, now);
        }
    }

    /// What found no room while others waited.
    fn count_lost(&mut self, kernel: &mut impl Kernel, metrics: &mut Metrics, now: Instant) {
        for socket in [self.sockets.v4, self.sockets.v6].into_iter().flatten() {
            let lost = kernel.lost_packets(socket);
            if lost > 0 {
                metrics.witness_packets_dropped += u64::from(lost);
                self.lost_at = Some(now);
            }
        }
    }

    // Pauses.

    /// With the packets of IPv4 that the kernel received so far: pauses where
    /// there are too many.
    #[inline(never)]
    pub(super) fn check_rate(
        &mut self,
        kernel: &mut impl Kernel,
        buffer: &mut [u8],
        metrics: &mut Metrics,
        received: u64,
        now: Instant,
    ) {
        if !self.is_up() || now.is_within(RATE_PERIOD, self.received_at) {
            return;
        }
        self.count_lost(kernel, metrics, now);
        let received = received.wrapping_add(self.received_v6(kernel, buffer));
        let before = core::mem::replace(&mut self.received, received);
        let Some(since) = self.received_at.replace(now) else {
            return;
        };
        let most = WITNESS_PACKETS as u64 >> u8::from(self.has_one_processor);
        let most = now.since(since).as_millis_rounded_up().saturating_mul(most) / 1_000;
        // A counter of 32 bits may begin anew.
        if received.saturating_sub(before) <= most {
            return;
        }
        metrics.witness_pauses += 1;
        self.paused_until = Some(now.after(WITNESS_PAUSE));
        self.bind(kernel, |_| NO_ETHERTYPE);
        if self.paused.say() {
            let words = b"too many packets to look at each: \
                packet sockets pause, each time for 10 seconds";
            log_error(kernel, &[words]);
        }
    }

    fn resume(&mut self, kernel: &mut impl Kernel, now: Instant) {
        self.bind(kernel, ethertype);
        self.paused_until = None;
        self.lost_at = Some(now);
        self.received_at = None;
    }

    /// To bind takes milliseconds, to close twice as long (synchronize_net of
    /// net/core/dev.c), and to open needs a right.
    fn bind(&mut self, kernel: &mut impl Kernel, ethertype: fn(Family) -> u16) {
        for family in Family::ALL {
            if let Some(socket) = *self.sockets.get(family) {
                let _ = kernel.bind_packets(socket, ethertype(family));
            }
        }
    }

    /// Ip6InReceives, the first line of /proc/net/snmp6.
    fn received_v6(&mut self, kernel: &mut impl Kernel, buffer: &mut [u8]) -> u64 {
        let filled = self
            .snmp6
            .begin(kernel)
            .map(|file| fill(kernel, file, buffer).0);
        self.snmp6.end(kernel, filled.is_err());
        let text = buffer.get(..filled.unwrap_or(0)).unwrap_or_default();
        let (name, number) = split_once(split_once(text, b'\n').0, b' ');
        let number = parse_decimal(trim(number)).filter(|_| name.starts_with(b"Ip6InReceives"));
        number.unwrap_or(0)
    }
}
