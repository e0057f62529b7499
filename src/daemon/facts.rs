//! Keeps what is known of the host current by the messages of rtnetlink(7), and
//! reads the nameservers from the files of its resolver.
//!
//! One socket receives both events and the answers to dumps, in the order in
//! which the kernel wrote them: an event before the end of a dump happened
//! before that end. What is added counts at once. What is removed, replaced, or
//! goes without a message makes its section stale, and a dump follows within a
//! share of the processor.

use crate::host::{Host, Knowledge};
use crate::kernel::{Descriptor, Errno, File, Kernel, More, Netlink, Path};
use crate::limits::{
    EARLY_READING_SHARE, FACTS_AGE, FACTS_REST, FACTS_RETRY, FACTS_ROUTES, FACTS_SETTLE,
};
use crate::netlink::{HostMessage, Progress, Section, host_request, walk_host};
use crate::text::{head, split};
use crate::time::{Duration, Instant, nearest};

use super::files::{open_of_root, open_regular};
use super::kept_file::fill;
use super::once::Once;

/// A bit for each section that must be known.
const ALL: u8 = Section::PROTECTING;
const LINKS: u8 = Section::Links.bit();
/// What ends without a message when a link does.
const OF_LINKS: u8 =
    Section::Ipv4Routes.bit() | Section::Ipv6Routes.bit() | Section::Nexthops.bit();
/// Where a removal meanwhile moves the place at which a dump goes on, so that
/// something that stays may be missing in it. IPv4 routes go on from a prefix,
/// not from a count (net/ipv4/fib_trie.c, fib_table_dump).
const COUNTED: u8 = (ALL | LINKS) & !Section::Ipv4Routes.bit();
/// After a dump of the links that failed, the next.
const LINKS_RETRY: Duration = Duration::from_secs(3_600);
/// So many dumps in a row with something removed meanwhile are taken together:
/// all would have to miss the same.
const UNCLEAN_DUMPS: u8 = 3;
/// Slices taken in one go before the first turn: more than a full table takes,
/// and less than a second.
pub(super) const START_SLICES: usize = 200;

/// The resolver's file, which can name a stub on this host, and where upstream
/// nameservers are named then, with blanks between. One text: a table of texts
/// would be addresses that the loader writes into memory of our own.
pub(super) const RESOLVER_FILES: &str = concat!(
    "/etc/resolv.conf",
    " /run/systemd/resolve/resolv.conf",
    " /run/NetworkManager/no-stub-resolv.conf",
    " /run/NetworkManager/resolv.conf",
    " /run/resolvconf/resolv.conf",
    " /etc/resolvconf/run/resolv.conf",
    " /run/connman/resolv.conf",
    " /run/netconfig/resolv.conf",
    // OpenWrt and its relatives.
    " /tmp/resolv.conf.d/resolv.conf.auto",
    " /tmp/resolv.conf.auto",
    " /tmp/resolv.conf.ppp",
    " /tmp/resolv.dnsmasq",
    " /var/etc/dnsmasq.conf.cfg01411c",
    " /var/etc/dnsmasq.conf",
    // pppd with usepeerdns.
    " /etc/ppp/resolv.conf",
    " /run/pppd/resolv.conf",
    // dnsmasq: the second is Debian's, from resolvconf.
    " /etc/dnsmasq.conf",
    " /run/dnsmasq/resolv.conf",
    " /etc/dnsmasq-resolv.conf",
    " /etc/resolv.dnsmasq.conf",
    " /etc/resolv.dnsmasq",
    " /etc/dnsmasq.d/01-pihole.conf",
    " /etc/pihole/dnsmasq.conf",
);
/// Reads of one of them; the rest of a longer one is left out.
const RESOLVER_READS: usize = 32;

const UNKNOWN: &[u8] =
    b"own addresses and gateways are not fully known; nothing is blocked until they are";
const TOO_MANY: &[u8] =
    b"more own addresses or gateways than fit; nothing is blocked until they do";
const LINKS_UNKNOWN: &[u8] =
    b"more networks on links than fit; sources in the others are blocked like those from elsewhere";
const NAMESERVERS_UNKNOWN: &[u8] = b"more nameservers than fit; protect the others with --allow";
const NO_NAMESERVER: &[u8] =
    b"no nameserver is known but this host itself; protect its upstream nameservers with --allow";

/// Its state; all bytes zero when new.
pub(super) struct HostFacts {
    socket: Option<Descriptor>,
    /// It joined the groups of events.
    is_subscribed: bool,
    /// Events were lost, and more are until the receive queue was empty once
    /// (net/netlink/af_netlink.c, netlink_overrun and netlink_rcv_wake).
    is_congested: bool,
    has_failed: bool,
    /// No dump of the links before that: the last one failed, and cost what must
    /// be known.
    links_retry: Option<Instant>,
    /// Sections of which something may be gone: to be dumped within the share.
    stale: u8,
    /// Sections of which something may be missing: to be dumped at once.
    needed: u8,
    /// Sections of which nothing is missing: a dump and all events since.
    whole: u8,

    /// The section that a dump lists; 0 for none.
    asked: u8,
    sequence: u32,
    began: Option<Instant>,
    /// The answer must go on by then.
    deadline: Option<Instant>,
    cost: Duration,
    listed: usize,
    /// Something may be missing in it, or in the events beside it.
    is_unclean: bool,
    has_lost: bool,

    /// Of each section.
    dumps: [Dumps; Section::ALL.len()],
    /// No dump of what is stale before this, none at all before that.
    next_dump: Option<Instant>,
    retry: Option<Instant>,
    /// Events may wait until then.
    rest_until: Option<Instant>,
    last_taken: Option<Instant>,
    /// This slice brought messages.
    has_taken: bool,

    resolver_read: Option<Instant>,
    unknown: Once,
    links_unknown: Once,
    nameservers_unknown: Once,
    no_nameserver: Once,
    /// There was no descriptor for one of the resolver's files.
    has_missed_resolver: bool,
}

/// What came of the dumps of a section.
#[derive(Clone, Copy)]
struct Dumps {
    /// So many in a row were unclean.
    unclean: u8,
    /// When the last one that counts began, and how much it listed.
    began: Option<Instant>,
    size: usize,
}

impl Dumps {
    const NONE: Self = Self {
        unclean: 0,
        began: None,
        size: 0,
    };
}

impl HostFacts {
    pub(super) const fn new() -> Self {
        Self {
            socket: None,
            is_subscribed: false,
            is_congested: false,
            has_failed: false,
            links_retry: None,
            stale: 0,
            needed: 0,
            whole: 0,
            asked: 0,
            sequence: 0,
            began: None,
            deadline: None,
            cost: Duration::ZERO,
            listed: 0,
            is_unclean: false,
            has_lost: false,
            dumps: [Dumps::NONE; Section::ALL.len()],
            next_dump: None,
            retry: None,
            rest_until: None,
            last_taken: None,
            has_taken: false,
            resolver_read: None,
            unknown: Once::NEW,
            links_unknown: Once::NEW,
            nameservers_unknown: Once::NEW,
            no_nameserver: Once::NEW,
            has_missed_resolver: false,
        }
    }

    /// Asks for everything.
    pub(super) fn start(&mut self) {
        self.needed = ALL;
    }

    /// Asks for the links, which nothing waits for: for the first time, and again
    /// since a dump numbers the namespaces that came meanwhile.
    pub(super) fn refresh_links(&mut self, now: Instant) {
        if now.is_past(self.links_retry) {
            self.stale |= LINKS;
        }
    }

    /// Whether no link is missing.
    pub(super) fn knows_links(&self) -> bool {
        self.is_subscribed && self.whole & LINKS != 0
    }

    /// Whether nothing is asked for, or not to be had now.
    pub(super) fn is_idle(&self) -> bool {
        self.needed | self.asked == 0 || self.has_failed
    }

    /// The socket, where its events are waited for.
    pub(super) fn events(&self, now: Instant) -> Option<Descriptor> {
        now.once_past(self.rest_until, self.socket)
    }

    /// When something is to be done though nothing was received.
    pub(super) fn deadline(&self, now: Instant) -> Option<Instant> {
        let dump = match (self.asked, self.needed, self.stale) {
            (0, 0, 0) => None,
            (0, 0, _) => Some(now.or_later(self.next_dump).or_later(self.retry)),
            (0, ..) => Some(now.or_later(self.retry)),
            _ => self.deadline,
        };
        nearest(dump, self.rest_until)
    }

    /// Requests the dump that is due and takes in a message; whether there may
    /// be more.
    #[inline(never)]
    pub(super) fn take(
        &mut self,
        kernel: &mut impl Kernel,
        host: &mut Host,
        buffer: &mut [u8],
        now: Instant,
    ) -> bool {
        self.ask(kernel, host, now);
        let Some(socket) = self.socket else {
            return false;
        };
        match kernel.receive(socket, buffer) {
            Ok(count) => {
                self.has_taken = true;
                let bytes = head(buffer, count);
                self.take_datagram(kernel, host, bytes, now);
            }
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) if self.is_congested => self.is_congested = false,
            Err(Errno::EAGAIN) => return false,
            Err(Errno::ENOBUFS) => self.note_overrun(now),
            Err(_) => self.fail(kernel, now),
        }
        true
    }

    /// Ends a slice that began at `now` and took so much of the processor.
    pub(super) fn end_slice(
        &mut self,
        kernel: &mut impl Kernel,
        host: &mut Host,
        cost: Duration,
        now: Instant,
    ) {
        self.rest_until = None;
        if core::mem::take(&mut self.has_taken) {
            if now.is_within(FACTS_REST, self.last_taken) {
                self.rest_until = Some(now.after(FACTS_REST));
            }
            self.last_taken = Some(now);
        }
        if self.asked != 0 && now.reaches(self.deadline) {
            self.fail(kernel, now);
        }
        self.cost = self.cost.saturating_add(cost);
        self.update_knowledge(host, now);
    }

    /// Requests a dump of the next section that is due.
    #[inline(never)]
    fn ask(&mut self, kernel: &mut impl Kernel, host: &mut Host, now: Instant) {
        let due = if now.is_past(self.next_dump) {
            self.needed | self.stale
        } else {
            self.needed
        };
        let mut sections = Section::ALL.iter().copied();
        let Some(section) = sections.find(|section| due & section.bit() != 0) else {
            return;
        };
        if self.asked != 0 || self.is_congested || !now.is_past(self.retry) {
            return;
        }
        self.sequence = self.sequence.wrapping_add(1);
        let (request, length) = host_request(section, self.sequence);
        let request = request.get(..length).unwrap_or_default();
        match self
            .open(kernel)
            .and_then(|socket| kernel.send(socket, request, More::No))
        {
            Ok(_) => self.begin(host, section, now),
            Err(Errno::EINTR) => {}
            Err(_) => self.fail(kernel, now),
        }
    }

    fn open(&mut self, kernel: &mut impl Kernel) -> Result<Descriptor, Errno> {
        if let Some(socket) = self.socket {
            return Ok(socket);
        }
        let events = kernel.netlink(Netlink::RouteEvents);
        self.is_subscribed = events.is_ok();
        let socket = events.or_else(|_| kernel.netlink(Netlink::Route))?;
        self.socket = Some(socket);
        Ok(socket)
    }

    fn begin(&mut self, host: &mut Host, section: Section, now: Instant) {
        host.begin(section);
        self.asked = section.bit();
        self.needed &= !self.asked;
        self.stale &= !self.asked;
        (self.began, self.deadline) = (Some(now), Some(now.after(FACTS_RETRY)));
        (self.listed, self.cost) = (0, Duration::ZERO);
        (self.is_unclean, self.has_lost) = (false, false);
    }

    /// Takes in one datagram.
    #[inline(never)]
    fn take_datagram(
        &mut self,
        kernel: &mut impl Kernel,
        host: &mut Host,
        bytes: &[u8],
        now: Instant,
    ) {
        let (mut gone, mut is_interrupted, mut listed) = (0, false, 0);
        let progress = walk_host(bytes, self.sequence, &mut |message| match message {
            HostMessage::Removed(section) => gone |= section.bit(),
            HostMessage::LinkDown => gone |= OF_LINKS,
            HostMessage::Interrupted => is_interrupted = true,
            added => {
                listed += 1;
                host.take(added);
            }
        });
        self.listed += listed;
        // The links, only where they are wanted.
        gone &= ALL | self.whole | self.asked;
        self.is_unclean |= is_interrupted || gone & self.asked & COUNTED != 0;
        self.mark_stale(gone, now);
        if host.has_new_shared_links() {
            self.mark_stale(LINKS & (self.whole | self.asked), now);
        }
        match progress {
            Progress::More => self.deadline = Some(now.after(FACTS_RETRY)),
            Progress::Done if self.asked != 0 => self.finish(host, now),
            Progress::Done => {}
            Progress::Failed(_) => self.fail(kernel, now),
        }
    }

    fn mark_stale(&mut self, sections: u8, now: Instant) {
        if sections & !self.stale != 0 {
            let settled = now.after(FACTS_SETTLE);
            self.next_dump = Some(settled.or_later(self.next_dump));
            self.stale |= sections;
        }
    }

    /// ENOBUFS: the kernel dropped events (netlink(7)).
    fn note_overrun(&mut self, now: Instant) {
        let known = ALL | self.whole;
        self.whole = 0;
        (self.is_congested, self.is_unclean, self.has_lost) = (true, true, true);
        self.mark_stale(known, now);
    }

    /// A dump came to its end.
    #[inline(never)]
    fn finish(&mut self, host: &mut Host, now: Instant) {
        let asked = core::mem::take(&mut self.asked);
        let mut sections = Section::ALL.iter().copied().zip(&mut self.dumps);
        let found = sections.find(|(section, _)| section.bit() == asked);
        let Some((section, dumps)) = found else {
            return;
        };
        dumps.unclean += u8::from(self.is_unclean);
        if self.is_unclean && dumps.unclean < UNCLEAN_DUMPS {
            self.needed |= asked & ALL & !self.whole;
            self.stale |= asked;
        } else {
            *dumps = Dumps {
                unclean: 0,
                began: self.began,
                size: self.listed,
            };
            self.has_failed = false;
            self.whole |= if self.has_lost { 0 } else { asked };
            // There may be room now for what did not fit.
            self.stale |= host.finish(section, !self.is_unclean);
            self.stale |= if self.is_unclean { asked } else { 0 };
        }
        let rest = self.cost.saturating_mul(EARLY_READING_SHARE as u64);
        let rested = now.after(rest.max(FACTS_SETTLE));
        self.next_dump = Some(rested.or_later(self.next_dump));
    }

    /// Starts anew a while later: what is left of a dump must not be taken for
    /// the next one's.
    fn fail(&mut self, kernel: &mut impl Kernel, now: Instant) {
        if let Some(socket) = self.socket.take() {
            kernel.close(socket);
        }
        if self.asked == LINKS {
            self.links_retry = Some(now.after(LINKS_RETRY));
        }
        self.stale |= self.whole & LINKS;
        (self.asked, self.whole, self.needed) = (0, 0, ALL);
        (self.is_congested, self.has_failed) = (false, true);
        self.retry = Some(now.after(FACTS_RETRY));
    }

    /// Whether nothing that was added more than a moment ago can be missing.
    fn is_current(&self, now: Instant) -> bool {
        let is_current = if self.is_subscribed {
            self.whole & ALL == ALL
        } else {
            let mut dumps = self.dumps.iter().take(ALL.count_ones() as usize);
            dumps.all(|dumps| !is_old(dumps.began, now))
        };
        let is_large = self.dumps.iter().map(|dumps| dumps.size).sum::<usize>() > FACTS_ROUTES;
        is_current || (is_large && !self.has_failed)
    }

    fn update_knowledge(&self, host: &mut Host, now: Instant) {
        let is_pending = (self.needed | self.stale | self.asked) & host.lost() != 0;
        let was_lacking = host.knowledge() == Knowledge::Lacking;
        host.set_knowledge(if host.lost() != 0 && (was_lacking || !is_pending) {
            Knowledge::Lacking
        } else if !host.is_incomplete() && self.is_current(now) {
            Knowledge::Whole
        } else if self.has_failed {
            Knowledge::Lacking
        } else {
            Knowledge::Awaited
        });
    }

    /// Before a block: what nothing keeps current is asked for when it is old.
    pub(super) fn renew(
        &mut self,
        kernel: &mut impl Kernel,
        host: &mut Host,
        buffer: &mut [u8],
        now: Instant,
    ) {
        if is_old(self.resolver_read, now) {
            self.read_resolver(kernel, host, buffer, now);
        }
        if !self.is_current(now) && self.needed | self.asked == 0 {
            self.needed = if self.is_subscribed {
                ALL & !self.whole
            } else {
                ALL
            };
        }
    }

    /// With each scheduled reading; whether there is something to ask for.
    pub(super) fn refresh(&mut self) -> bool {
        if !self.is_subscribed {
            self.stale = ALL;
        }
        !self.is_subscribed
    }

    pub(super) fn read_resolver(
        &mut self,
        kernel: &mut impl Kernel,
        host: &mut Host,
        buffer: &mut [u8],
        now: Instant,
    ) {
        self.resolver_read = Some(now);
        self.has_missed_resolver = false;
        host.begin_resolver();
        for (path, number) in split(RESOLVER_FILES.as_bytes(), b' ').zip(0..) {
            if number == 1 && !host.needs_upstreams() {
                break;
            }
            self.read_resolver_file(kernel, host, buffer, path, number);
        }
        host.finish_resolver();
    }

    #[inline(never)]
    fn read_resolver_file(
        &mut self,
        kernel: &mut impl Kernel,
        host: &mut Host,
        buffer: &mut [u8],
        path: &[u8],
        number: u8,
    ) {
        let file = open_resolver_file(kernel, path);
        self.has_missed_resolver |= matches!(file, Err(Errno::EMFILE | Errno::ENFILE));
        let Ok(file) = file else {
            return;
        };
        for _ in 0..RESOLVER_READS {
            let (filled, _) = fill(kernel, file.descriptor, buffer);
            host.feed_resolver(number, head(buffer, filled));
            if filled == 0 {
                break;
            }
        }
        host.end_resolver_file(number);
        kernel.close(file.descriptor);
    }

    /// The next diagnostic where blocks are wanted: once each time it becomes so.
    #[inline(never)]
    pub(super) fn next_notice(&mut self, host: &Host) -> Option<&'static [u8]> {
        let is_unknown = host.knowledge() == Knowledge::Lacking;
        if self.unknown.say_while(is_unknown) {
            return Some(if host.lost() == 0 { UNKNOWN } else { TOO_MANY });
        }
        if self.links_unknown.say_while(!host.fits_links()) {
            return Some(LINKS_UNKNOWN);
        }
        if self.nameservers_unknown.say_while(!host.fits_nameservers()) {
            return Some(NAMESERVERS_UNKNOWN);
        }
        // Only at the start; a stub at an address of our own is none before
        // that is known to be ours.
        let is_known = !self.has_missed_resolver && !host.is_incomplete();
        let is_first = is_known && self.no_nameserver.say();
        (is_first && host.lacks_nameserver()).then_some(NO_NAMESERVER)
    }
}

/// Whether what nothing keeps current was not asked for lately.
fn is_old(asked: Option<Instant>, now: Instant) -> bool {
    !now.is_within(FACTS_AGE, asked)
}

fn open_resolver_file(kernel: &mut impl Kernel, path: &[u8]) -> Result<File, Errno> {
    // Every user may write to /tmp; OpenWrt's /var is a link to it.
    let is_shared = path.starts_with(b"/tmp/") || path.starts_with(b"/var/");
    let path = Path::from_bytes(path);
    if is_shared {
        open_of_root(kernel, &path)
    } else {
        open_regular(kernel, &path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Network;
    use crate::host::Protection;
    use crate::limits::FACTS_PER_TURN;
    use crate::testing::fake_kernel::{FakeKernel, Faults, Random};
    use crate::testing::fake_proc::Farewell;
    use std::boxed::Box;
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
    use std::vec::Vec;

    struct Bench {
        kernel: FakeKernel,
        host: Box<Host>,
        facts: HostFacts,
        buffer: Vec<u8>,
    }

    impl Bench {
        fn new(seed: u64) -> Self {
            Self {
                kernel: FakeKernel::new(seed),
                host: crate::testing::boxed(Host::new),
                facts: HostFacts::new(),
                buffer: std::vec![0; 8_192],
            }
        }

        fn start(&mut self) {
            self.facts.start();
            for _ in 0..START_SLICES {
                self.take();
                if self.facts.is_idle() {
                    break;
                }
            }
            let now = self.kernel.now;
            let (kernel, host) = (&mut self.kernel, &mut self.host);
            self.facts
                .read_resolver(kernel, host, &mut self.buffer, now);
        }

        fn take(&mut self) {
            let (facts, now) = (&mut self.facts, self.kernel.now);
            let (kernel, host) = (&mut self.kernel, &mut self.host);
            let messages = 0..FACTS_PER_TURN;
            messages
                .take_while(|_| facts.take(kernel, host, &mut self.buffer, now))
                .for_each(drop);
            facts.end_slice(kernel, host, Duration::ZERO, now);
        }

        fn renew(&mut self) {
            let now = self.kernel.now;
            let (kernel, host) = (&mut self.kernel, &mut self.host);
            self.facts.renew(kernel, host, &mut self.buffer, now);
            self.take();
        }

        fn advance(&mut self, milliseconds: u64) {
            self.kernel.now = self.kernel.now.after(Duration::from_millis(milliseconds));
        }

        fn knows_gateway(&self, address: IpAddr) -> bool {
            let network = Network::single(address);
            self.host.protected(network) == Some(Protection::Gateway)
        }

        /// Whatever the host has is known.
        fn check_nothing_is_missing(&self) {
            let host = &self.kernel.host;
            for (address, _) in &host.addresses {
                assert!(self.host.is_own(*address), "{address} is ours");
            }
            for gateway in &host.gateways {
                let known = self.host.protected(Network::single(*gateway));
                assert!(known.is_some(), "{gateway} is a gateway");
                assert_ne!(known, Some(Protection::HostUnknown));
            }
        }

        /// And nothing else.
        fn check_nothing_is_left_over(&self) {
            for address in universe() {
                let host = &self.kernel.host;
                let is_own = host.addresses.iter().any(|own| own.0 == address);
                assert_eq!(self.host.is_own(address), is_own, "{address}");
                if !is_own {
                    let is_gateway = host.gateways.contains(&address);
                    assert_eq!(self.knows_gateway(address), is_gateway, "{address}");
                }
            }
        }
    }

    fn universe() -> impl Iterator<Item = IpAddr> {
        let ipv4 = (1..20).map(|low| IpAddr::V4(Ipv4Addr::new(10, 7, 0, low)));
        let ipv6 = (1..20).map(|low| IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 7, 0, 0, 0, 0, low)));
        ipv4.chain(ipv6)
    }

    /// Something comes or goes.
    fn change(kernel: &mut FakeKernel, random: &mut Random) {
        let all: Vec<IpAddr> = universe().collect();
        let address = random.pick(&all);
        let length = if address.is_ipv4() { 24 } else { 64 };
        let host = &mut kernel.host;
        match random.below(4) {
            0 if !host.addresses.contains(&(address, length)) => {
                host.addresses.push((address, length));
            }
            1 if !host.gateways.contains(&address) => host.gateways.push(address),
            2 => host.addresses.retain(|own| own.0 != address),
            _ => host.gateways.retain(|gateway| *gateway != address),
        }
        // The kernel lists them by some order of its own.
        host.addresses.sort();
        host.gateways.sort();
    }

    /// Those of the other sections say nothing of what is missing in one.
    #[test]
    fn unclean_dumps_of_one_section_are_taken_together() {
        let mut bench = Bench::new(1);
        let (facts, now) = (&mut bench.facts, bench.kernel.now);
        for round in 1..=UNCLEAN_DUMPS {
            for section in Section::ALL {
                facts.begin(&mut bench.host, section, now);
                facts.is_unclean = true;
                facts.finish(&mut bench.host, now);
                let counts = facts.whole & section.bit() != 0;
                assert_eq!(counts, round == UNCLEAN_DUMPS, "{section:?} {round}");
            }
        }
    }

    /// Without a descriptor for the files nothing is said of them until there is.
    #[test]
    fn files_that_could_not_be_opened_say_nothing() {
        for (nameserver, expected) in [("10.0.0.53", None), ("127.0.0.1", Some(NO_NAMESERVER))] {
            let mut bench = Bench::new(1);
            bench.kernel.host.nameservers = std::vec![nameserver.parse().unwrap()];
            bench.start();
            bench.kernel.faults.no_descriptors = true;
            bench.advance(6_000);
            bench.renew();
            assert_eq!(bench.host.knowledge(), Knowledge::Whole);
            assert_eq!(bench.facts.next_notice(&bench.host), None);
            bench.kernel.faults.no_descriptors = false;
            bench.advance(6_000);
            bench.renew();
            assert_eq!(bench.facts.next_notice(&bench.host), expected);
            assert_eq!(bench.facts.next_notice(&bench.host), None);
        }
    }

    /// The host changes during dumps and events, some of which are lost, late or
    /// never sent: where all is said to be known nothing is missing, and in the
    /// end nothing is left over.
    #[test]
    fn nothing_is_lost_and_nothing_stays() {
        let (mut whole, mut others) = (0, 0);
        for seed in 0..80 {
            let mut bench = Bench::new(seed);
            let mut random = Random::new(seed);
            bench.kernel.faults = Faults {
                interrupts: random.pick(&[0, 100]),
                dump_interruptions: random.pick(&[0, 300]),
                route_losses: random.pick(&[0, 0, 50, 300]),
                no_route_events: random.hits(100),
                ..Faults::default()
            };
            let has_events = !bench.kernel.faults.no_route_events;
            bench.start();
            for _ in 0..200 {
                for _ in 0..random.below(3) {
                    let farewells = [Farewell::Notified, Farewell::Replaced, Farewell::WithLink];
                    bench.kernel.faults.farewell = Some(random.pick(&farewells));
                    change(&mut bench.kernel, &mut random);
                }
                let pause = random.pick(&[0, 1, 30, 300, 3_000]);
                bench.advance(pause);
                if random.hits(200) {
                    bench.renew();
                } else {
                    bench.take();
                }
                if bench.host.knowledge() == Knowledge::Whole && has_events {
                    whole += 1;
                    bench.check_nothing_is_missing();
                } else {
                    others += 1;
                }
            }
            bench.kernel.faults = Faults::default();
            for _ in 0..100 {
                bench.advance(100);
                bench.renew();
            }
            bench.advance(6_000);
            bench.renew();
            assert_eq!(bench.host.knowledge(), Knowledge::Whole, "seed {seed}");
            bench.check_nothing_is_missing();
            bench.check_nothing_is_left_over();
        }
        assert!(whole > 3_000 && others > 500, "{whole} {others}");
    }
}
