//! Every capacity and period that is not an option, each with its reason.
//!
//! The environment of the build overrides any of them: `TCPPARSER_BUILD_NAME=7
//! make build` (build.rs checks the names). The assertions at the end are
//! compile-time proofs that an override keeps the program sound.

use crate::time::Duration;

/// A number that the environment of the build may override.
macro_rules! limit {
    ($(#[$doc:meta])* $name:ident: usize = $default:expr) => {
        $(#[$doc])*
        pub const $name: usize =
            from_environment(option_env!(concat!("TCPPARSER_BUILD_", stringify!($name))), $default);
    };
    ($(#[$doc:meta])* $name:ident: Duration = $milliseconds:expr) => {
        $(#[$doc])*
        pub const $name: Duration = Duration::from_millis(from_environment(
            option_env!(concat!("TCPPARSER_BUILD_", stringify!($name))),
            $milliseconds,
        ) as u64);
    };
}

const fn from_environment(text: Option<&str>, default: usize) -> usize {
    let Some(text) = text else { return default };
    let bytes = text.as_bytes();
    let mut value = 0;
    let mut index = 0;
    assert!(!bytes.is_empty(), "a build-time override is a whole number");
    while index < bytes.len() {
        assert!(
            bytes[index].is_ascii_digit(),
            "a build-time override is a whole number"
        );
        value = value * 10 + (bytes[index] - b'0') as usize;
        index += 1;
    }
    value
}

/// The smallest power of two that indexes a table of `capacity` half full.
pub const fn index_size(capacity: usize) -> usize {
    let size = (2 * capacity).next_power_of_two();
    if size < 64 { 64 } else { size }
}

limit! {
    /// Bytes read(2) is given at a time: procfs hands out at most one page
    /// whatever it is given (fs/seq_file.c), so more would only cost memory.
    READ_BUFFER: usize = 4096
}
limit! {
    /// Sources watched at once. A larger botnet makes the least suspicious
    /// be evicted; those close to the threshold stay.
    SOURCES: usize = 8_192
}
limit! {
    /// Ports remembered for one source: --ports allows 63, one more decides.
    PORTS_PER_SOURCE: usize = 64
}
limit! {
    /// Blocks held back at once: each look at whose turn it is walks over them,
    /// and what is newest comes first.
    HELD_BLOCKS: usize = 512
}
limit! {
    /// Networks whose share of a minute's blocks is known: those with more than
    /// a sixty-fourth of it are among them.
    SHARES: usize = 64
}
limit! {
    /// 4-tuples remembered: several times what a router's conntrack holds.
    CONNECTIONS: usize = 131_072
}
limit! {
    /// Sources blocked, waiting to be, or with strikes remembered.
    BLOCKS: usize = 16_384
}
limit! {
    /// Rules of one family that go into the chain where the sets can take the
    /// rest: 16 leave 0.8 of the packet rate of a host without any, 255 leave
    /// 0.28.
    CHAIN_RULES: usize = 16
}
limit! {
    /// Rules of one family that a chain takes where there are no sets: 2,000
    /// take three quarters of the packet rate.
    CHAIN_RULES_MAX: usize = 500
}
limit! {
    /// Conversations with nf_tables in one turn: 4,000 blocks, or a listing.
    NETFILTER_JOBS: usize = 64
}
limit! {
    /// Datagrams of events of nf_tables taken in one turn.
    NETFILTER_EVENTS: usize = 64
}
limit! {
    /// How long such events may wait after others: one load of another program
    /// makes thousands.
    NETFILTER_REST: Duration = 20
}
limit! {
    /// Listeners of one address. The others have a place each.
    LISTENERS: usize = 1_024
}
limit! {
    /// A listener that outlives a connection by this much, as two readings
    /// show, is a service. One that serves passive FTP closes at once.
    SERVICE_AGE: Duration = 1_000
}
limit! {
    /// A listener this old is a service without any connection, and remembered:
    /// longer than an FTP server waits for a client that asked for a port
    /// (vsftpd 1 minute, ProFTPD 5, Pure-FTPd 15).
    LISTENER_AGE: Duration = 1_200_000
}
limit! {
    /// HTTP clients at once; the oldest unfinished one is evicted.
    HTTP_CLIENTS: usize = 64
}
limit! {
    /// Bytes of one HTTP request (request line and headers).
    HTTP_REQUEST: usize = 8_192
}
limit! {
    /// Bytes of one HTTP answer: all metrics with the largest numbers that can
    /// stand in them (a test proves it), and the head.
    HTTP_RESPONSE: usize = 32_768
}
limit! {
    /// Bytes read away behind the last answer before the connection is closed
    /// all the same.
    HTTP_LINGER_BYTES: usize = 65_536
}
limit! {
    /// How long the metrics are sent again as they were written: less than any
    /// scraper can notice, and a hundred times a second they cost nothing.
    HTTP_FRESH: Duration = 10
}
limit! {
    /// HTTP clients accepted at once: a burst must not hold up a reading
    /// or push out those that were accepted just before.
    HTTP_ACCEPTS: usize = 16
}
limit! {
    /// HTTP may use one part in this many of one processor, once it used what
    /// it had saved up: answers by the thousand a second are of no use to a
    /// scraper, and their clients wait for some milliseconds then.
    HTTP_SHARE: usize = 4
}
limit! {
    /// What it may have saved up of that: some ten thousand answers.
    HTTP_SAVINGS: Duration = 1_000
}
limit! {
    /// The host's own addresses and networks: a container host has a few
    /// hundred, kube-proxy in IPVS mode gives a node one for each service, of
    /// which a large cluster has 10,000.
    OWN_ADDRESSES: usize = 16_384
}
limit! {
    /// On-link prefixes of the host; a concentrator has one for each peer.
    ON_LINK_PREFIXES: usize = 16_384
}
limit! {
    /// Gateways. A full routing table has a million routes through as many
    /// neighbours as an exchange point has members, a thousand or two.
    GATEWAYS: usize = 4_096
}
limit! {
    /// Gateways in fe80::/10: a router has one neighbour or a few on each of its
    /// links. More are forged by a host on a link.
    LINK_LOCAL_GATEWAYS: usize = 1_024
}
limit! {
    /// Nameservers: three in resolv.conf, some more in dnsmasq's files.
    NAMESERVERS: usize = 256
}
limit! {
    /// Broadcast addresses, one for each network on a link. No connection comes
    /// from there.
    BROADCASTS: usize = 1_024
}
limit! {
    /// Links that what is in another network namespace may send by: a bridge for
    /// each network of containers, and a port for each container.
    SHARED_LINKS: usize = 1_024
}
limit! {
    /// SYNs remembered of one link: of its clients of one window, but for the
    /// busiest.
    SIGHTS: usize = 1_024
}
limit! {
    /// Links whose SYNs are remembered apart, and one more for all others: two
    /// uplinks and the bridge of the containers.
    SIGHT_RINGS: usize = 4
}
limit! {
    /// Events of other network namespaces taken in one turn.
    NAMESPACE_EVENTS: usize = 128
}
limit! {
    /// Events of other network namespaces that conntrack and routes are asked
    /// about in one second, at 10 us each: half of them for whoever comes first,
    /// then of one network a 64th, and thrice that of its sources with evidence.
    NAMESPACE_LOOKUPS: usize = 512
}
limit! {
    /// Sources and ports of other network namespaces that are known to be
    /// evidence, so that they need not be asked for again within the window.
    NAMESPACE_MEMORY: usize = 1_024
}
limit! {
    /// How long netlink is listened to in one turn: some thousand routes of a
    /// dump. HTTP waits meanwhile.
    FACTS_SLICE: Duration = 4
}
limit! {
    /// Messages of netlink taken in one turn; events are one each.
    FACTS_PER_TURN: usize = 512
}
limit! {
    /// How long events about the host may wait after others came: a routing
    /// table that flaps must not wake us for each of its changes.
    FACTS_REST: Duration = 5
}
limit! {
    /// How long after something was removed all is asked for again: what
    /// removes one route removes more.
    FACTS_SETTLE: Duration = 100
}
limit! {
    /// How long an answer may pause, and after which time a failure is tried
    /// again.
    FACTS_RETRY: Duration = 1_000
}
limit! {
    /// Facts that nothing keeps current (nameservers, and all where the kernel
    /// does not report changes) are asked for before a block when older.
    FACTS_AGE: Duration = 5_000
}
limit! {
    /// With more routes than this the last whole dump has to do where messages
    /// were lost or are not to be had: a dump takes longer than a block should.
    FACTS_ROUTES: usize = 50_000
}
limit! {
    /// How soon a block that waits for a dump is looked at again.
    FACTS_WAIT: Duration = 10
}
limit! {
    /// --allow networks.
    ALLOWED: usize = 256
}
limit! {
    /// Connections that were over before a scheduled reading and join its list.
    LIST_EXTRA: usize = 100
}
limit! {
    /// Lines of the largest screen, and pairs of peer and port kept while a list
    /// is folded to fit.
    SCREEN_LINES: usize = 256
}
limit! {
    /// Destroy events taken in one turn: a flood must not hold up HTTP, and
    /// what stays in the socket's buffer comes next turn.
    EVENTS_PER_TURN: usize = 512
}
limit! {
    /// How long events may wait after others that were all of connections
    /// within the host: a busy loopback must not wake us for each of them.
    EVENTS_REST: Duration = 1
}
limit! {
    /// Ports of sources that wait for a reading to show whether a service
    /// listens there: twice what events bring in a turn, so that none is lost
    /// before the reading that half of them bring.
    WAITING: usize = 1_024
}
limit! {
    /// How often /proc/net/snmp is looked at.
    COUNTERS_PERIOD: Duration = 1_000
}
limit! {
    /// Looks in a row that must miss a connection before a reading is made for
    /// it: where every other look finds one on its way, one series of looks in
    /// 32 leads to a reading in vain.
    COUNTERS_LOOKS: usize = 5
}
limit! {
    /// Between two such looks.
    COUNTERS_AGAIN: Duration = 10
}
limit! {
    /// How often where no packets are seen: then the counters alone hint at
    /// connections that are held. Four looks cost 0.1 ms a second.
    COUNTERS_PERIOD_BLIND: Duration = 250
}
limit! {
    /// Packets taken from one packet socket in one turn: as many as its buffer
    /// holds, 3 us each.
    WITNESS_READS: usize = 128
}
limit! {
    /// How long packets may wait after others came: a scan is known some
    /// milliseconds later, and a busy host wakes us 200 times a second at most.
    WITNESS_REST: Duration = 5
}
limit! {
    /// So many of one second are all taken, at 1.4 % of one processor: a scan of
    /// thousands of ports is no flood.
    WITNESS_BURST: usize = 4_096
}
limit! {
    /// The same after more than those: of a flood a sample is taken,
    /// at 0.7 % of one processor.
    WITNESS_FULL_REST: Duration = 50
}
limit! {
    /// With more packets a second from the network the packet sockets pause:
    /// each takes 0.25 to 0.4 us more on its way beside them, 2 % of one
    /// processor by then. Half as many where there is one processor.
    WITNESS_PACKETS: usize = 50_000
}
limit! {
    /// How long they pause.
    WITNESS_PAUSE: Duration = 10_000
}
limit! {
    /// How long after packet sockets were opened the link of a SYN proves nothing:
    /// one that came in by another link just before may be sent back by a router.
    WITNESS_REPEATS: Duration = 1_000
}
limit! {
    /// Sources remembered that ask for ports and complete no handshake. All of
    /// them are looked through at each packet: 1 us.
    PROBERS: usize = 512
}
limit! {
    /// How long a source that probes ports waits to be reported: its connections
    /// to services may make it a scanner by then.
    PROBES_WAIT: Duration = 1_000
}
limit! {
    /// How much later than its first sight a SYN that something outside turns
    /// round can come in again, through queues that are full.
    TURN_ROUND: Duration = 10_000
}
limit! {
    /// SYNs to services remembered, each until it is known what became of it:
    /// those of three seconds at 100 new clients a second.
    OPENS: usize = 256
}
limit! {
    /// Sockets looked up for them in one turn, 4 us each.
    OPENS_PER_TURN: usize = 64
}
limit! {
    /// The same in one second: forged SYNs cost 0.2 % of one processor.
    OPENS_PER_SECOND: usize = 512
}
limit! {
    /// Connections whose handshake the kernel is asked about in one reading, at
    /// 3 us each: those first seen while they close. The rest wait for the next
    /// reading or their destroy event.
    HANDSHAKES_ASKED: usize = 256
}
limit! {
    /// How often net.ipv4.tcp_fastopen and ip_local_port_range are looked at, and
    /// destroy events that do not arrive are tried again.
    EVENTS_RETRY: Duration = 60_000
}
limit! {
    /// How long the self-test's event may take: 123 us were measured, but the
    /// kernel's worker (sock_diag_broadcast_destroy of net/core/sock_diag.c) waits
    /// for others where all network namespaces together close many thousands.
    SELF_TEST_WAIT_BUDGET: Duration = 5_000
}
limit! {
    /// How long after a close its destroy event may still be on its way: 123 us
    /// were measured, some milliseconds where every processor is busy.
    EVENTS_LATENESS: Duration = 25
}
limit! {
    /// Early readings may use one part in this many of one processor.
    EARLY_READING_SHARE: usize = 50
}
limit! {
    /// What they may have saved up of that.
    EARLY_READING_SAVINGS: Duration = 200
}
limit! {
    /// Early readings where destroy events do not arrive, as long as their
    /// share allows.
    FAST_READING: Duration = 100
}
limit! {
    /// Sources whose sockets one dump asks for: each is one more condition that
    /// the kernel holds every socket against.
    PEERS_ASKED: usize = 32
}
limit! {
    /// Between two dumps for sockets of blocked sources, each of which takes the
    /// kernel a walk over all sockets: what is blocked may linger so long.
    DESTROY_REST: Duration = 250
}
limit! {
    /// Sockets of blocked sources that one dump brings (50 bytes each): a dump
    /// takes the kernel a walk over all sockets.
    DOOMED: usize = 1_024
}
limit! {
    /// Of those, destroyed in one turn: some milliseconds, then HTTP, events
    /// and other blocks have theirs.
    DESTROYS_PER_TURN: usize = 256
}
limit! {
    /// Bytes of output kept while stdout is not ready. Writes of at most
    /// PIPE_BUF bytes (pipe(7)) are whole or not at all.
    OUTPUT_BUFFER: usize = 4_096
}
limit! {
    /// Lines of scans and of what becomes of blocks in one period: a thousand
    /// scanners must not fill a disk with them.
    LINES_PER_PERIOD: usize = 300
}
limit! {
    /// Lines of sources that probe ports, which may be forged, in one period.
    PROBE_LINES: usize = 10
}
limit! {
    /// That period.
    LINES_PERIOD: Duration = 60_000
}
limit! {
    /// How often the journal gets a sign of life.
    DAY: Duration = 86_400_000
}
limit! {
    /// How long one reading may wait for a stdout that takes nothing; one that
    /// takes its lines slowly gets ten times that.
    OUTPUT_WAIT_BUDGET: Duration = 10
}
limit! {
    /// How long a command that prints and ends may wait for its reader.
    ONE_SHOT_WAIT_BUDGET: Duration = 60_000
}
limit! {
    /// How long a vanished 4-tuple and a vanished listener stay remembered:
    /// applications close sockets that were reset minutes before.
    MEMORY: Duration = 600_000
}
limit! {
    /// A firewall command, or a run of the hook, past this is asked to end (SIGTERM).
    CHILD_DEADLINE: Duration = 10_000
}
limit! {
    /// Between SIGTERM and SIGKILL.
    CHILD_GRACE: Duration = 1_000
}
/// The sandbox waits so long for first listings: one that hangs is over by then.
pub const SANDBOX_WAIT: Duration = CHILD_DEADLINE.saturating_add(Duration::from_secs(5));
limit! {
    /// Events that wait for the hook beside the one it runs for: a pipe holds their
    /// records. More are dropped.
    HOOK_WAITING: usize = 64
}
limit! {
    /// What a running child gets of our own last second.
    EXIT_GRACE: Duration = 700
}
limit! {
    /// How often the firewall is listed and compared with what we know.
    VERIFY_PERIOD: Duration = 60_000
}
limit! {
    /// A jump of ours that was moved back to the first place and is pushed down
    /// again within this stays there so long: what pushes it would do so at
    /// once. Longer than the deploys of other firewall managers take.
    MOVE_MEMORY: Duration = 600_000
}
limit! {
    /// The first wait before a failed firewall command is tried again; it
    /// doubles up to `RETRY_LONGEST`.
    RETRY_FIRST: Duration = 1_000
}
limit! {
    /// The longest wait between tries.
    RETRY_LONGEST: Duration = 60_000
}
limit! {
    /// Strikes of a source are forgotten after this much quiet.
    STRIKE_MEMORY: Duration = 604_800_000
}
limit! {
    /// A request's headers must be whole by then.
    HTTP_HEADER_DEADLINE: Duration = 5_000
}
limit! {
    /// A whole exchange must be over by then.
    HTTP_EXCHANGE_DEADLINE: Duration = 10_000
}
limit! {
    /// An idle keep-alive connection is closed after this.
    HTTP_KEEP_ALIVE: Duration = 75_000
}
limit! {
    /// How long a client may take to close after its last answer. Until then
    /// what it still sends is read away: a reset would eat the answer
    /// (RFC 9112 section 9.6).
    HTTP_LINGER: Duration = 2_000
}
limit! {
    /// How long --healthcheck may take: the daemon answers within milliseconds,
    /// and supervisors kill a check after some seconds (Docker: 30).
    HEALTHCHECK_DEADLINE: Duration = 3_000
}
limit! {
    /// How often a start asks for the name that one daemon may hold: what holds
    /// it for a moment only is no daemon.
    CLAIM_TRIES: usize = 3
}
limit! {
    /// How far apart these are; bind(2) and listen(2) of another start lie
    /// microseconds apart, and both processors may be busy.
    CLAIM_PAUSE: Duration = 10
}
limit! {
    /// How often what was missing at start (listen address, /proc/net/tcp) is
    /// tried again.
    START_RETRY: Duration = 1_000
}

const _: () = assert!(READ_BUFFER >= 1_024, "a row and its carry-over must fit");
const _: () = assert!(
    PORTS_PER_SOURCE == 64,
    "--ports N allows 63 and the set is printed whole"
);
const _: () = assert!(SOURCES >= 2 && CONNECTIONS >= 2 && BLOCKS >= 2 && LISTENERS >= 2);
const _: () =
    assert!(OWN_ADDRESSES >= 1 && GATEWAYS >= 1 && LINK_LOCAL_GATEWAYS >= 1 && FACTS_PER_TURN >= 1);
const _: () = assert!(HTTP_CLIENTS >= 1 && HTTP_REQUEST >= 512);
const _: () = assert!(COUNTERS_LOOKS >= 1 && COUNTERS_LOOKS <= 100);
const _: () = {
    let series = COUNTERS_AGAIN.as_nanos() * (COUNTERS_LOOKS as u64 - 1);
    assert!(
        series >= EVENTS_LATENESS.as_nanos(),
        "what is on its way arrives"
    );
    assert!(
        series < COUNTERS_PERIOD_BLIND.as_nanos(),
        "the next look is later"
    );
};
const _: () = assert!(
    COUNTERS_PERIOD_BLIND.as_nanos() <= COUNTERS_PERIOD.as_nanos(),
    "more often, not less"
);
const _: () = assert!(WITNESS_READS >= 1 && OPENS >= PORTS_PER_SOURCE && OPENS_PER_TURN >= 1);
const _: () = assert!(OPENS_PER_SECOND >= OPENS_PER_TURN && WITNESS_PACKETS >= 2);
const _: () =
    assert!(EVENTS_PER_TURN >= 1 && WAITING >= 2 * EVENTS_PER_TURN && EARLY_READING_SHARE >= 1);
const _: () = assert!(HTTP_RESPONSE >= 4_096 && HTTP_LINGER_BYTES >= 1 && HTTP_ACCEPTS >= 1);
const _: () = assert!(SIGHTS >= 1 && SIGHT_RINGS >= 2 && NAMESPACE_MEMORY >= 1);
const _: () = assert!(SHARED_LINKS >= 1 && NAMESPACE_EVENTS >= 1 && NAMESPACE_LOOKUPS >= 64);
const _: () = assert!(DESTROYS_PER_TURN >= 1 && DOOMED >= DESTROYS_PER_TURN);
const _: () = assert!(SCREEN_LINES >= 2);
const _: () = assert!(
    PEERS_ASKED >= 2 && PEERS_ASKED <= 1_000,
    "both families fit, and the filter in an attribute"
);
const _: () = assert!(
    OUTPUT_BUFFER >= 1_024 && OUTPUT_BUFFER <= 4_096,
    "a line fits, PIPE_BUF holds"
);
const _: () = assert!(CHILD_GRACE.as_nanos() > 0 && EXIT_GRACE.as_nanos() < 1_000_000_000);
