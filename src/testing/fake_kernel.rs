//! A kernel that fails on purpose, from a seed or a script: its clock moves
//! only in `poll`, its firewall is a model, and each of its verbs can fail.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::net::IpAddr;

use super::fake_network::{
    BRIDGE, End, Entry, EventSocket, Frame, OTHER_UPLINK, PacketSocket, UPLINK, answer_conntrack,
};
use super::fake_proc::{
    self, Dump, FakeHost, FakeLink, FakeSocket, Farewell, NLMSG_DONE, NLMSG_ERROR, asked_family,
    message, octets,
};
use super::filter_table::FilterTable;
use super::nf_tables_model::NfTables;
use crate::address::{Endpoint, Family, Network, PerFamily};
use crate::kernel::{
    Accepted, CAP_NET_ADMIN, Child, Claim, Clock, Descriptor, Errno, Exit, File, HOOK_RECORD,
    HookRun, Instruction, Interest, Invocation, Kernel, Link, More, Netlink, Path, ProcessStatus,
    Sandbox, Screen, Signal, StartUp, Stream,
};
use crate::proc_net_tcp::TcpState;
use crate::sandbox::Layer;
use crate::table::HashKey;
use crate::time::{Calendar, Duration, Instant, nearest};

/// Numbers from a seed (splitmix64, Steele, Lea and Flood 2014).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// True this many times in a thousand.
    pub fn hits(&mut self, per_mille: u64) -> bool {
        self.below(1_000) < per_mille
    }

    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }
}

/// What goes wrong as long as it is set.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// How often in a thousand a verb that can be interrupted is.
    pub interrupts: u64,
    /// Reads and writes end at any byte.
    pub short: bool,
    /// Rows repeat, as they do while others come and go.
    pub churn: bool,
    /// EMFILE wherever a descriptor would be made.
    pub no_descriptors: bool,
    /// Opening or reading tcp, or tcp6, fails.
    pub rows: PerFamily<Option<Errno>>,
    /// Dumps of routes fail.
    pub netlink: Option<Errno>,
    /// The kernel reports no changes of the host.
    pub no_route_events: bool,
    /// How often in a thousand a dump is interrupted by a change.
    pub dump_interruptions: u64,
    /// How long a dump rests before each of its parts.
    pub dump_pause: Duration,
    /// How often in a thousand a change of the host finds no room.
    pub route_losses: u64,
    /// How the end of an object is reported.
    pub farewell: Option<Farewell>,
    /// The init system's socket refuses.
    pub notify: Option<Errno>,
    /// The kernel reports destroyed sockets of ours this much later.
    pub late_events: Duration,
    /// No socket is to be had at 127.0.0.1.
    pub no_loopback: bool,
    /// No lookup finds a socket: the kernel was built without tcp_diag.
    pub lacks_tcp_diag: bool,
    /// No packet socket can be opened.
    pub packets: Option<Errno>,
    /// An answer to another question comes before that of a lookup.
    pub older_answers: bool,
    /// The address to listen on cannot be had.
    pub listen: Option<Errno>,
    /// The fault of each child.
    pub child: ChildFault,
    /// A batch line that holds this is refused.
    pub refused: Option<String>,
    /// No events of other network namespaces are.
    pub foreign_events: Option<Errno>,
    /// No dump of links is to be had.
    pub no_links: bool,
    /// Conntrack refuses each question.
    pub conntrack: Option<Errno>,
    /// How often in a thousand a packet, or an event of another network
    /// namespace, finds no room.
    pub packet_losses: u64,
    pub foreign_losses: u64,
}

/// Which iptables are installed; the ip6tables likewise.
#[derive(Clone, Copy, Debug)]
pub struct Tools {
    /// There is an `iptables`.
    pub has_preferred: bool,
    /// It, or what stands in for it, is of the legacy flavour.
    pub is_legacy: bool,
    pub has_nft: bool,
    pub has_legacy: bool,
    /// The kernel holds legacy tables.
    pub are_tables_made: bool,
    /// There is no `ip6tables` of any name.
    pub lacks_ipv6: bool,
}

impl Default for Tools {
    fn default() -> Self {
        Self {
            has_preferred: true,
            is_legacy: false,
            has_nft: false,
            has_legacy: false,
            are_tables_made: false,
            lacks_ipv6: false,
        }
    }
}

impl Tools {
    /// Whether a command is of the flavour of `iptables`; `None` where it is
    /// not installed.
    fn is_preferred(&self, words: &str) -> Option<bool> {
        let program = words.split(' ').next().unwrap_or_default();
        let (is_installed, is_legacy) = if program.contains("-nft") {
            (self.has_nft, false)
        } else if program.contains("-legacy") {
            (self.has_legacy, true)
        } else {
            (self.has_preferred, self.is_legacy)
        };
        let lacks = self.lacks_ipv6 && words.starts_with("ip6");
        (is_installed && !lacks).then_some(is_legacy == self.is_legacy)
    }
}

/// How a rule for it begins.
fn source_words(source: Network) -> String {
    let mut text: crate::text::Text<64> = crate::text::Text::new();
    source.write_cidr(&mut text);
    format!("-s {} ", String::from_utf8_lossy(text.as_bytes()))
}

/// How a child fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ChildFault {
    #[default]
    None,
    /// It cannot be started at all.
    NoSpawn(Errno),
    /// It ends with this status and changes nothing: 127 for a program that is
    /// not there.
    Exit(u8),
    /// Another program holds the lock all the five seconds it waits.
    LockHeld,
    /// It gets the lock after four seconds.
    LockLate,
    /// Ended by a signal before or after it did its work.
    Killed { worked: bool },
    /// Hangs until SIGTERM, or until SIGKILL.
    Hangs {
        ignores_sigterm: bool,
        closes_output: bool,
        worked: bool,
    },
    /// A listing of nothing that makes sense.
    Garbage,
    /// A listing with many rules of others, in small pieces.
    Huge,
    /// Failure with a megabyte of errors.
    Flood,
}

/// How standard output takes what is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stdout {
    Open,
    /// Takes this many bytes more, then none.
    Room(usize),
    Broken,
}

/// What answers connections to this host.
pub enum Service {
    /// No socket listens.
    Refuses,
    /// Takes what comes and sends nothing.
    Silent,
    /// Answers the first request, then closes.
    Answers(&'static str),
}

/// What a sandbox left.
#[derive(Clone, Debug)]
pub struct Given {
    pub at: Instant,
    pub capabilities: u32,
    pub is_sealed: bool,
    readable: Vec<String>,
}

type Event = Box<dyn FnOnce(&mut FakeKernel)>;

enum Open {
    Standard,
    Signals,
    Lock,
    /// Who connected to it.
    Stranger,
    File {
        path: String,
        text: Vec<u8>,
        offset: usize,
    },
    Routes(RouteSocket),
    Events(VecDeque<Vec<u8>>),
    ForeignEvents(EventSocket),
    Packets(PacketSocket),
    /// A sock_diag socket, where SOCK_DESTROY works.
    Diag(VecDeque<Vec<u8>>),
    Netfilter(VecDeque<Vec<u8>>),
    NetfilterEvents(VecDeque<Vec<u8>>),
    Listener,
    Client(usize),
    /// Our own connection to `service`: what it is still to receive.
    Connection(VecDeque<u8>),
    ChildOutput,
    ChildErrors,
    HookAnswers,
}

/// A socket of rtnetlink.
#[derive(Default)]
struct RouteSocket {
    is_subscribed: bool,
    queue: VecDeque<Vec<u8>>,
    dump: Option<Dump>,
    /// An event found no room: that is reported once, and no event is taken in
    /// until the queue was empty (net/netlink/af_netlink.c, netlink_overrun).
    is_congested: bool,
    has_overrun: bool,
}

impl RouteSocket {
    /// Puts the next part of the dump behind what waits.
    fn go_on(&mut self, host: &FakeHost, most: usize) {
        if let Some(dump) = &mut self.dump {
            let (datagram, is_last) = dump.next(host, most);
            self.queue.push_back(datagram);
            self.dump = self.dump.take().filter(|_| !is_last);
        }
    }

    fn take(&mut self) -> Result<Vec<u8>, Errno> {
        if std::mem::take(&mut self.has_overrun) {
            return Err(Errno::ENOBUFS);
        }
        self.queue.pop_front().ok_or(Errno::EAGAIN)
    }

    fn queue_event(&mut self, event: Vec<u8>, has_room: bool) {
        if has_room && !self.is_congested {
            self.queue.push_back(event);
        } else if !std::mem::replace(&mut self.is_congested, true) {
            self.has_overrun = true;
        }
    }
}

/// A pipe from the child to the daemon.
#[derive(Default)]
struct Pipe {
    ready: VecDeque<u8>,
    /// Not written yet: the pipe is full, or the child takes its time.
    waiting: VecDeque<u8>,
    /// Bytes the child writes at a time; 0 for all at once.
    piece: usize,
    next_piece: Option<Instant>,
    is_closed: bool,
}

/// pipe(7): the capacity of a pipe.
const PIPE: usize = 65_536;

impl Pipe {
    fn is_due(&self) -> bool {
        !self.waiting.is_empty() && self.ready.len() < PIPE
    }

    fn advance(&mut self, now: Instant) {
        while self.is_due() && now.is_past(self.next_piece) {
            let room = PIPE - self.ready.len();
            let piece = if self.piece == 0 { PIPE } else { self.piece };
            let count = piece.min(room).min(self.waiting.len());
            self.ready.extend(self.waiting.drain(..count));
            if self.piece != 0 {
                self.next_piece = Some(now.after(Duration::from_millis(1)));
            }
        }
    }

    fn next_event(&self) -> Option<Instant> {
        let at_once = Instant::from_nanos(0);
        self.is_due().then(|| self.next_piece.unwrap_or(at_once))
    }
}

/// A command that was started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    pub at: Instant,
    /// Words separated by blanks.
    pub words: String,
    pub input: String,
    /// The root directory it runs in; empty for ours.
    pub root: String,
}

impl Command {
    pub fn is_listing(&self) -> bool {
        self.words.ends_with("-S")
    }
}

struct Running {
    process: i32,
    command: Command,
    fault: ChildFault,
    /// When it does its work; `None` once it did, or where it never will.
    work_at: Option<Instant>,
    /// `None` where it hangs.
    exit_at: Option<Instant>,
    exit: Exit,
    ended: Option<Exit>,
    is_reaped: bool,
    output: Pipe,
    errors: Pipe,
}

impl Running {
    fn next_event(&self) -> Option<Instant> {
        if self.ended.is_some() {
            return None;
        }
        let is_written = self.output.waiting.is_empty() && self.errors.waiting.is_empty();
        let pipes = nearest(self.output.next_event(), self.errors.next_event());
        let exit_at = self.exit_at.filter(|_| is_written);
        nearest(nearest(self.work_at, exit_at), pipes)
    }
}

/// The hook's launcher.
pub struct Launcher {
    /// The start fails.
    pub fault: Option<Errno>,
    /// Its file.
    pub file: String,
    /// How long a run takes, and what comes of it.
    pub takes: Duration,
    pub ends: HookRun,
    /// Words of each run, with `|` behind each, in the order of the runs.
    pub runs: Vec<String>,
    /// Something ended it.
    pub is_gone: bool,
    waiting: VecDeque<String>,
    run_ends: Option<Instant>,
    answers: VecDeque<u8>,
}

impl Launcher {
    const fn new() -> Self {
        Self {
            fault: None,
            file: String::new(),
            takes: Duration::ZERO,
            ends: HookRun::Ok,
            runs: Vec::new(),
            is_gone: false,
            waiting: VecDeque::new(),
            run_ends: None,
            answers: VecDeque::new(),
        }
    }

    /// Takes a record as a pipe does: whole or not at all.
    fn take(&mut self, record: &[u8], now: Instant) -> Result<usize, Errno> {
        if self.is_gone {
            return Err(Errno::EPIPE);
        }
        if (self.waiting.len() + 1) * HOOK_RECORD > PIPE {
            return Err(Errno::EAGAIN);
        }
        assert_eq!(record.len(), HOOK_RECORD);
        let words = String::from_utf8(record.to_vec()).unwrap();
        let (words, padding) = words.rsplit_once('\0').unwrap();
        assert_eq!(padding.trim(), "");
        self.waiting.push_back(words.replace('\0', "|") + "|");
        self.go_on(now);
        Ok(record.len())
    }

    fn go_on(&mut self, now: Instant) {
        while !self.is_gone {
            match self.run_ends {
                Some(end) if end > now => return,
                Some(_) => self.answers.push_back(self.ends as u8),
                None => {}
            }
            let next = self.waiting.pop_front();
            self.run_ends = next.is_some().then(|| now.after(self.takes));
            let Some(words) = next else { return };
            self.runs.push(words);
        }
    }
}

/// An HTTP client.
pub struct Client {
    peer: IpAddr,
    pub to_send: VecDeque<u8>,
    is_closed: bool,
    is_accepted: bool,
    /// Its last bytes are held back for the end of the connection.
    is_corked: bool,
    pub answer: Vec<u8>,
    /// The daemon closed its end.
    pub is_done: bool,
}

/// A socket that was asked for, and what was found.
pub struct LookedUp {
    pub at: Instant,
    /// Readings that began before.
    pub readings: usize,
    pub local: End,
    pub remote: End,
    pub found: Option<(TcpState, u32)>,
}

/// One reading of tcp and tcp6 as the daemon was given them.
pub struct Reading {
    pub at: Instant,
    pub rows: PerFamily<String>,
}

pub struct FakeKernel {
    pub now: Instant,
    /// CLOCK_REALTIME at boot, nanoseconds.
    pub realtime_at_boot: u64,
    pub random: Random,
    pub faults: Faults,
    pub host: FakeHost,
    /// What the host was when its changes were reported last.
    reported_host: FakeHost,
    /// For what rtnetlink does, so that nothing else changes with it.
    route_random: Random,
    /// More files than those that are made up here.
    pub files: HashMap<String, String>,
    pub sockets: Vec<FakeSocket>,
    pub environment: HashMap<String, Vec<u8>>,
    pub boot_id: String,
    pub capabilities: u64,
    /// What claims of a name find, before it is free.
    pub claims: VecDeque<Claim>,
    /// Connections to the name we hold that wait for accept.
    pub knocks: u32,
    pub has_tcp6: bool,
    /// net.ipv4.tcp_fastopen.
    pub tcp_fastopen: u32,
    /// Whose connections were made by forged SYNs and nothing else.
    pub forged: Vec<IpAddr>,
    /// Sockets that were asked for one by one.
    pub lookups: u64,
    pub looked_up: Vec<LookedUp>,
    pub conntrack: Vec<Entry>,
    /// Who completed handshakes with which port, and when the last of those
    /// ended.
    pub left: HashMap<(IpAddr, u16), Instant>,
    /// Of whom it looks so, but for the way of a SYN.
    pub forgeable: HashSet<(IpAddr, u16)>,
    /// Packets received since boot, as the kernel counts them.
    pub received: PerFamily<u64>,
    /// For what packets do, so that nothing else changes with it.
    packet_random: Random,
    /// Ethertypes that packet sockets were bound to.
    pub bound: Vec<u16>,
    /// Inbound connections since boot, as the kernel counts them; 0: it does
    /// not say.
    pub passive_opens: u64,
    pub stdout: Stdout,
    /// Where it is a terminal.
    pub screen: Option<Screen>,
    pub output: Vec<u8>,
    pub errors: Vec<u8>,
    /// The filter tables, as `iptables` and `ip6tables` show them.
    pub tables: PerFamily<FilterTable>,
    /// Those of the other flavour.
    pub other_tables: PerFamily<FilterTable>,
    /// Our table of nf_tables; a kernel without, unless a test wants it.
    pub nf_tables: NfTables,
    /// Which iptables are installed.
    pub tools: Tools,
    /// SOCK_DESTROY works; how many sockets it took so far.
    pub destroyed: Option<usize>,
    pub cpu_time: Duration,
    /// What an answer to a client takes of that.
    pub send_cost: Duration,
    /// Dumps of sock_diag, each of them a walk over all sockets.
    pub dumps: usize,
    /// The faults of the next children, before `faults.child` counts.
    pub child_faults: VecDeque<ChildFault>,
    /// When another program last changed the tables.
    pub interfered: Option<Instant>,
    pub commands: Vec<Command>,
    pub launcher: Launcher,
    pub readings: Vec<Reading>,
    pub clients: Vec<Client>,
    pub service: Service,
    /// Where we connected to, and what we asked there.
    pub asked: Vec<Endpoint>,
    pub request: Vec<u8>,
    /// What NOTIFY_SOCKET received, and when.
    pub notified: Vec<(Instant, String)>,
    /// `poll` returns then, whatever it waits for.
    pub stop_at: Option<Instant>,
    /// Everything that happened that is worth a turn.
    pub progress: u64,
    /// Networks no batch may ever add.
    pub protected: Vec<Network>,
    /// Rules that were broken.
    pub violations: Vec<String>,
    /// What was given up.
    pub sandbox: Option<Given>,
    /// What the kernel lacks of it, bits of `Layer`.
    pub lacks_layers: u8,
    events: BTreeMap<(Instant, u64), Event>,
    event_count: u64,
    signals: VecDeque<Signal>,
    open: BTreeMap<i32, Open>,
    child: Option<Running>,
    process_count: i32,
}

const STDOUT: i32 = 1;
const SIGNALS: i32 = 3;

impl FakeKernel {
    /// A quiet host with three addresses, ten minutes after its boot.
    pub fn new(seed: u64) -> Self {
        let parse = |text: &str| text.parse::<IpAddr>().unwrap();
        let host = FakeHost {
            addresses: vec![
                (parse("203.0.113.5"), 24),
                (parse("10.0.0.1"), 24),
                (parse("2001:db8:1::5"), 64),
                (parse("fe80::5"), 64),
            ],
            gateways: vec![parse("203.0.113.1"), parse("fe80::1")],
            diverted: Vec::new(),
            nameservers: vec![parse("10.0.0.53")],
            // The uplinks, and the bridge of two containers.
            links: [
                (UPLINK, 0, None),
                (OTHER_UPLINK, 0, None),
                (BRIDGE, 0, None),
                (4, BRIDGE, Some(0)),
                (5, BRIDGE, Some(1)),
            ]
            .map(|(number, master, namespace)| FakeLink {
                number,
                lower: 0,
                master,
                namespace,
            })
            .to_vec(),
            ways: [
                ("172.17.0.0/16", vec![BRIDGE]),
                // Behind a router that is a container.
                ("192.0.2.0/25", vec![BRIDGE]),
                ("192.0.2.128/25", vec![UPLINK, OTHER_UPLINK]),
                ("198.51.101.128/25", vec![UPLINK, OTHER_UPLINK]),
            ]
            .map(|(text, links)| (Network::parse(text.as_bytes()).unwrap(), links))
            .to_vec(),
        };
        let mut nf_tables = NfTables::new();
        nf_tables.lacks.nf_tables = true;
        let mut open = BTreeMap::new();
        for number in 0..3 {
            open.insert(number, Open::Standard);
        }
        open.insert(SIGNALS, Open::Signals);
        Self {
            now: Instant::from_secs(600),
            realtime_at_boot: 1_635_800_000_000_000_000,
            random: Random::new(seed),
            faults: Faults::default(),
            reported_host: host.clone(),
            route_random: Random::new(!seed),
            host,
            files: HashMap::new(),
            sockets: Vec::new(),
            environment: HashMap::new(),
            boot_id: "0badcafe-1111-4222-8333-444455556666".to_owned(),
            capabilities: CAP_NET_ADMIN,
            claims: VecDeque::new(),
            knocks: 0,
            has_tcp6: true,
            tcp_fastopen: 1,
            forged: Vec::new(),
            lookups: 0,
            looked_up: Vec::new(),
            conntrack: Vec::new(),
            left: HashMap::new(),
            forgeable: HashSet::new(),
            received: PerFamily::new(0, 0),
            packet_random: Random::new(seed.rotate_left(32)),
            bound: Vec::new(),
            passive_opens: 0,
            stdout: Stdout::Open,
            screen: None,
            output: Vec::new(),
            errors: Vec::new(),
            tables: PerFamily::from_fn(|_| FilterTable::new()),
            other_tables: PerFamily::from_fn(|_| FilterTable::new()),
            nf_tables,
            tools: Tools::default(),
            destroyed: None,
            cpu_time: Duration::ZERO,
            send_cost: Duration::ZERO,
            dumps: 0,
            child_faults: VecDeque::new(),
            interfered: None,
            commands: Vec::new(),
            launcher: Launcher::new(),
            readings: Vec::new(),
            clients: Vec::new(),
            service: Service::Refuses,
            asked: Vec::new(),
            request: Vec::new(),
            notified: Vec::new(),
            stop_at: None,
            progress: 0,
            protected: Vec::new(),
            violations: Vec::new(),
            sandbox: None,
            lacks_layers: 0,
            events: BTreeMap::new(),
            event_count: 0,
            signals: VecDeque::new(),
            open,
            child: None,
            process_count: 100,
        }
    }

    /// What a new process is handed, with this environment.
    pub fn start_up<'a>(
        &mut self,
        environment: &'a dyn Fn(usize) -> Option<&'a [u8]>,
    ) -> StartUp<'a> {
        self.sandbox = None;
        StartUp {
            signals: Descriptor::new(SIGNALS),
            output: Descriptor::new(STDOUT),
            output_file: Some((8, 4_711)),
            screen: self.screen,
            capabilities: self.capabilities,
            hash_key: HashKey {
                k0: self.random.next(),
                k1: self.random.next(),
            },
            environment,
        }
    }

    /// What a new process finds: the old one's descriptors are closed, its
    /// child runs on without it and ends when it will.
    pub fn restart(&mut self) {
        self.open.retain(|number, _| *number <= SIGNALS);
        self.child = None;
        self.signals.clear();
        for client in &mut self.clients {
            client.is_done = true;
        }
    }

    /// Does something when that time comes.
    pub fn at(&mut self, at: Instant, event: impl FnOnce(&mut FakeKernel) + 'static) {
        self.event_count += 1;
        self.events.insert((at, self.event_count), Box::new(event));
    }

    /// Another program does something to nf_tables.
    pub fn interfere(&mut self, change: impl FnOnce(&mut NfTables)) {
        self.nf_tables.expire(self.now);
        change(&mut self.nf_tables);
        self.interfered = Some(self.now);
        self.report_nf_tables();
    }

    /// The kernel reports what was changed there.
    fn report_nf_tables(&mut self) {
        let events = self.nf_tables.take_events();
        for open in self.open.values_mut() {
            if let Open::NetfilterEvents(datagrams) = open {
                datagrams.extend(events.iter().cloned());
            }
        }
    }

    /// No element is protected.
    fn check_sets(&mut self) {
        if self.protected.is_empty() {
            return;
        }
        for element in self.nf_tables.elements() {
            let source = element.source;
            if self.protected.iter().any(|one| one.overlaps(source)) {
                self.violations.push(format!("protected: {source:?}"));
            }
        }
    }

    /// The elements of our sets, as rules begin.
    fn rules_of_sets(&self) -> Vec<String> {
        let elements = self.nf_tables.elements().into_iter();
        let rule = elements.map(|element| {
            let comment = String::from_utf8_lossy(element.comment);
            let start = source_words(element.source);
            format!("{start}@{:?} {comment}", element.set)
        });
        rule.collect()
    }

    /// All that drops sources of a family.
    pub fn rules_of(&self, family: Family) -> Vec<String> {
        let tables = [&self.tables, &self.other_tables];
        let rules = tables.map(|tables| tables.get(family).blocks()).concat();
        let is_ipv6 = |rule: &String| rule.split(' ').nth(1).unwrap_or_default().contains(':');
        let elements = self.rules_of_sets().into_iter();
        let elements = elements.filter(|rule| is_ipv6(rule) == (family == Family::V6));
        rules.into_iter().chain(elements).collect()
    }

    /// What was to come does not.
    pub fn forget_events(&mut self) {
        self.events.clear();
    }

    pub fn signal(&mut self, signal: Signal) {
        self.signals.push_back(signal);
    }

    /// An HTTP client connects and sends `request`; its number.
    pub fn connect(&mut self, peer: &str, request: &[u8]) -> usize {
        self.clients.push(Client {
            peer: peer.parse().unwrap(),
            to_send: request.iter().copied().collect(),
            is_closed: false,
            is_accepted: false,
            is_corked: false,
            answer: Vec::new(),
            is_done: false,
        });
        self.clients.len() - 1
    }

    /// A client sends more.
    pub fn client_sends(&mut self, client: usize, bytes: &[u8]) {
        self.clients[client].to_send.extend(bytes);
    }

    /// A packet comes in by a link; it lies on as many packet sockets as let it
    /// through.
    pub fn send_packet(&mut self, source: Endpoint, destination: Endpoint, flags: u8, link: u32) {
        let end = |end: Endpoint| (end.address, end.port);
        self.hand_over(&Frame::segment(
            end(source),
            end(destination),
            flags,
            0,
            link,
        ));
    }

    pub fn descriptors(&self) -> usize {
        self.open.len()
    }

    pub fn has_child(&self) -> bool {
        self.child.is_some()
    }

    pub fn is_listening(&self) -> bool {
        self.open
            .values()
            .any(|open| matches!(open, Open::Listener))
    }

    // Descriptors.

    fn new_descriptor(&mut self, open: Open) -> Result<Descriptor, Errno> {
        if self.faults.no_descriptors {
            return Err(Errno::EMFILE);
        }
        let number = (0..)
            .find(|number| !self.open.contains_key(number))
            .unwrap();
        self.open.insert(number, open);
        Ok(Descriptor::new(number).unwrap())
    }

    fn interrupt(&mut self) -> Result<(), Errno> {
        if self.random.hits(self.faults.interrupts) {
            self.progress += 1;
            return Err(Errno::EINTR);
        }
        Ok(())
    }

    /// How much of `length` bytes is moved at once.
    fn portion(&mut self, length: usize) -> usize {
        if self.faults.short && length > 1 && self.random.hits(300) {
            1 + self.random.below(length as u64) as usize
        } else {
            length
        }
    }

    fn rows(&mut self, family: Family) -> String {
        let text = fake_proc::rows(&self.sockets, family);
        if !self.faults.churn {
            return text;
        }
        let (header, rows) = text.split_at(text.find('\n').map_or(0, |at| at + 1));
        let mut churned = header.to_owned();
        for row in rows.split_inclusive('\n') {
            let times = if self.random.hits(100) { 2 } else { 1 };
            churned += &row.repeat(times);
        }
        churned
    }

    /// procfs makes the text while it is read; here at once.
    fn text(&mut self, path: &str) -> Result<Vec<u8>, Errno> {
        match path {
            "/proc/net/tcp" => {
                if let Some(error) = self.faults.rows.v4 {
                    return Err(error);
                }
                Ok(self.rows(Family::V4).into_bytes())
            }
            "/proc/net/tcp6" => {
                if let Some(error) = self.faults.rows.v6 {
                    return Err(error);
                }
                if !self.has_tcp6 {
                    return Err(Errno::ENOENT);
                }
                Ok(self.rows(Family::V6).into_bytes())
            }
            "/proc/net/snmp" if self.passive_opens > 0 || self.received.v4 > 0 => {
                let (received, opens) = (self.received.v4, self.passive_opens);
                let ip = format!("Ip: Forwarding InReceives\nIp: 1 {received}\n");
                Ok(format!("{ip}Tcp: PassiveOpens OutRsts\nTcp: {opens} 0\n").into_bytes())
            }
            "/proc/net/snmp6" if self.received.v6 > 0 => {
                let received = self.received.v6;
                let text = format!("Ip6InReceives                   \t{received}\n");
                Ok((text + "Ip6InHdrErrors                  \t7\n").into_bytes())
            }
            "/proc/sys/net/ipv4/ip_local_port_range" => Ok(b"32768\t60999\n".to_vec()),
            "/proc/sys/net/ipv4/tcp_fastopen" => {
                Ok(format!("{}\n", self.tcp_fastopen).into_bytes())
            }
            "/proc/sys/kernel/random/boot_id" => Ok(format!("{}\n", self.boot_id).into_bytes()),
            "/proc/self/net/ip_tables_names" | "/proc/self/net/ip6_tables_names" => {
                let is_made = self.tools.are_tables_made || self.tools.is_legacy;
                Ok(if is_made {
                    b"filter\n".to_vec()
                } else {
                    Vec::new()
                })
            }
            _ if self.files.contains_key(path) => Ok(self.files[path].clone().into_bytes()),
            "/etc/resolv.conf" => {
                let servers = self.host.nameservers.iter();
                let lines = servers.map(|server| format!("nameserver {server}\n"));
                Ok(lines.collect::<String>().into_bytes())
            }
            _ if self.is_folder(path) => Ok(Vec::new()),
            _ => Err(Errno::ENOENT),
        }
    }

    /// The first read of a file of rows.
    fn note_reading(&mut self, path: &str, text: &[u8]) {
        let text = String::from_utf8(text.to_vec()).unwrap();
        match (path, self.readings.last_mut()) {
            ("/proc/net/tcp", _) => self.readings.push(Reading {
                at: self.now,
                rows: PerFamily::new(text, String::new()),
            }),
            ("/proc/net/tcp6", Some(reading)) => reading.rows.v6 = text,
            _ => {}
        }
    }

    /// Whether there is a file in it.
    fn is_folder(&self, path: &str) -> bool {
        let mut files = self.files.keys();
        path == "/"
            || files.any(|file| {
                file.rsplit_once('/')
                    .is_some_and(|(folder, _)| folder == path)
            })
    }

    // What happens by itself.

    fn next_event(&self) -> Option<Instant> {
        let event = self.events.keys().next().map(|key| key.0);
        let child = self.child.as_ref().and_then(Running::next_event);
        let run_ends = self.launcher.run_ends.filter(|_| !self.launcher.is_gone);
        nearest(nearest(event, child), run_ends)
    }

    /// Reports what changed in the host since this was called last.
    fn report_host(&mut self) {
        if self.host == self.reported_host {
            return;
        }
        let farewell = self.faults.farewell.unwrap_or(Farewell::Notified);
        let (events, shortened) = self.host.changes_from(&self.reported_host, farewell);
        self.reported_host = self.host.clone();
        for open in self.open.values_mut() {
            let Open::Routes(socket) = open else { continue };
            for list in &shortened {
                if let Some(dump) = &mut socket.dump {
                    dump.removed(*list);
                }
            }
            let is_subscribed = socket.is_subscribed;
            for event in events.iter().filter(|_| is_subscribed) {
                let has_room = !self.route_random.hits(self.faults.route_losses);
                socket.queue_event(event.clone(), has_room);
            }
        }
    }

    fn dumps_go_on(&mut self) {
        for open in self.open.values_mut() {
            if let Open::Routes(socket) = open {
                socket.go_on(&self.host, 1);
            }
        }
    }

    fn happen(&mut self) {
        self.happen_now();
        self.report_host();
    }

    fn happen_now(&mut self) {
        loop {
            let due = self
                .events
                .first_entry()
                .filter(|event| event.key().0 <= self.now);
            match due {
                Some(event) => event.remove()(self),
                None => break,
            }
        }
        self.launcher.go_on(self.now);
        while self
            .child
            .as_ref()
            .is_some_and(|child| self.now.reaches(child.next_event()))
        {
            self.child_goes_on();
        }
    }

    fn child_goes_on(&mut self) {
        let now = self.now;
        let Some(mut child) = self.child.take() else {
            return;
        };
        if child.work_at.is_some_and(|at| at <= now) {
            child.work_at = None;
            self.work(&mut child);
        }
        child.output.advance(now);
        child.errors.advance(now);
        let is_written = child.output.waiting.is_empty() && child.errors.waiting.is_empty();
        let exits = now.reaches(child.exit_at) && child.ended.is_none();
        if is_written && child.work_at.is_none() && exits {
            child.ended = Some(child.exit);
            self.signals.push_back(Signal::Child);
        }
        if child.ended.is_some() {
            (child.output.is_closed, child.errors.is_closed) = (true, true);
        }
        self.child = Some(child);
    }

    fn work(&mut self, child: &mut Running) {
        let family = if child.command.words.starts_with("ip6") {
            Family::V6
        } else {
            Family::V4
        };
        let is_preferred = self.tools.is_preferred(&child.command.words) == Some(true);
        let is_legacy = self.tools.is_legacy == is_preferred;
        if child.command.words.ends_with("-V") {
            let words = if is_legacy { "legacy" } else { "nf_tables" };
            let line = format!("iptables v1.8.9 ({words})\n");
            child.output.waiting.extend(line.bytes());
            return;
        }
        if is_legacy && !self.tools.are_tables_made && !self.tools.is_legacy {
            self.violations.push("a look made legacy tables".to_owned());
        }
        let tables = if is_preferred {
            &mut self.tables
        } else {
            &mut self.other_tables
        };
        let table = tables.get_mut(family);
        if child.command.is_listing() {
            let mut listing = table.listing().into_bytes();
            match child.fault {
                ChildFault::Garbage => {
                    listing = (0..5_000).map(|_| self.random.next() as u8).collect();
                }
                ChildFault::Huge => {
                    let rule =
                        "-A DOCKER -d 172.17.0.2/32 ! -i docker0 -o docker0 -p tcp -j ACCEPT\n";
                    let foreign = format!("-N DOCKER\n{}", rule.repeat(3_000));
                    listing.splice(0..0, foreign.bytes());
                    child.output.piece = 2_000;
                }
                _ => {}
            }
            child.output.waiting.extend(listing);
            return;
        }
        if let Err(line) = table.restore(&child.command.input, self.faults.refused.as_deref()) {
            child.exit = Exit::Status(1);
            let words = format!("iptables-restore: line {line} failed\n");
            child.errors.waiting.extend(words.bytes());
        }
    }

    fn start_child(&mut self, command: Command, fault: ChildFault) -> Running {
        self.process_count += 1;
        let soon = self
            .now
            .after(Duration::from_millis(1 + self.random.below(4)));
        let mut child = Running {
            process: self.process_count,
            command,
            fault,
            work_at: Some(soon),
            exit_at: Some(soon),
            exit: Exit::Status(0),
            ended: None,
            is_reaped: false,
            output: Pipe::default(),
            errors: Pipe::default(),
        };
        if self.tools.is_preferred(&child.command.words).is_none() {
            child.work_at = None;
            child.exit = Exit::Status(127);
            return child;
        }
        match fault {
            ChildFault::None | ChildFault::NoSpawn(_) | ChildFault::Garbage | ChildFault::Huge => {}
            ChildFault::Exit(status) => {
                child.work_at = None;
                child.exit = Exit::Status(status);
                child
                    .errors
                    .waiting
                    .extend(b"Permission denied (you must be root)\n");
            }
            ChildFault::LockHeld => {
                child.work_at = None;
                child.exit_at = Some(self.now.after(Duration::from_secs(5)));
                child.exit = Exit::Status(4);
                let words = b"Another app is currently holding the xtables lock.\n";
                child.errors.waiting.extend(words);
            }
            ChildFault::LockLate => {
                let late = Some(self.now.after(Duration::from_secs(4)));
                (child.work_at, child.exit_at) = (late, late);
            }
            ChildFault::Killed { worked } => {
                child.work_at = child.work_at.filter(|_| worked);
                child.exit = Exit::Signal(9);
            }
            ChildFault::Hangs {
                closes_output,
                worked,
                ..
            } => {
                child.work_at = child.work_at.filter(|_| worked);
                child.exit_at = None;
                (child.output.is_closed, child.errors.is_closed) = (closes_output, closes_output);
            }
            ChildFault::Flood => {
                child.work_at = None;
                child.exit = Exit::Status(2);
                child
                    .errors
                    .waiting
                    .extend(b"no\x1b[31m\n\"quotes\" ".repeat(1 << 16));
            }
        }
        child
    }

    /// No protected address is ever in a batch.
    fn check_batch(&mut self, command: &Command) {
        for line in command.input.lines() {
            let Some(rest) = line.strip_prefix("-A TCPPARSER -s ") else {
                continue;
            };
            let source = rest.split(' ').next().unwrap_or_default();
            let Some(source) = Network::parse(source.as_bytes()) else {
                self.violations.push(format!("not a network: {line}"));
                continue;
            };
            if self
                .protected
                .iter()
                .any(|network| network.overlaps(source))
            {
                self.violations.push(format!("protected: {line}"));
            }
        }
    }

    // Readiness.

    fn is_readable(&self, descriptor: Descriptor) -> bool {
        match self.open.get(&descriptor.number()) {
            Some(Open::Signals) => !self.signals.is_empty(),
            Some(Open::Listener) => self.clients.iter().any(|client| !client.is_accepted),
            Some(Open::Client(client)) => {
                let client = &self.clients[*client];
                !client.to_send.is_empty() || client.is_closed
            }
            Some(Open::Connection(answer)) => {
                !answer.is_empty() || !matches!(self.service, Service::Silent)
            }
            Some(Open::HookAnswers) => !self.launcher.answers.is_empty() || self.launcher.is_gone,
            Some(Open::ChildOutput) => self.is_pipe_readable(|child| &child.output),
            Some(Open::ChildErrors) => self.is_pipe_readable(|child| &child.errors),
            Some(
                Open::Events(datagrams)
                | Open::Netfilter(datagrams)
                | Open::NetfilterEvents(datagrams),
            ) => !datagrams.is_empty(),
            Some(Open::ForeignEvents(socket)) => !socket.queue.is_empty() || socket.has_overrun,
            Some(Open::Packets(socket)) => !socket.queue.is_empty(),
            Some(Open::Routes(socket)) => !socket.queue.is_empty() || socket.has_overrun,
            Some(Open::Standard | Open::Lock | Open::Stranger | Open::File { .. }) => true,
            Some(Open::Diag(_)) => true,
            // POLLNVAL.
            None => true,
        }
    }

    fn is_pipe_readable(&self, pipe: impl Fn(&Running) -> &Pipe) -> bool {
        let child = self.child.as_ref();
        child.is_none_or(|child| !pipe(child).ready.is_empty() || pipe(child).is_closed)
    }

    fn is_writable(&self, descriptor: Descriptor) -> bool {
        descriptor.number() != STDOUT || self.stdout != Stdout::Room(0)
    }

    fn fill(&self, interests: &mut [Interest]) -> bool {
        let mut is_any = false;
        for interest in interests {
            let Some(descriptor) = interest.descriptor else {
                continue;
            };
            assert!(
                self.open.contains_key(&descriptor.number()),
                "poll on a closed descriptor"
            );
            // A hang-up is reported whatever was asked for (poll(2)).
            interest.is_readable = interest.readable && self.is_readable(descriptor);
            interest.is_writable = interest.writable && self.is_writable(descriptor);
            is_any |= interest.is_met();
        }
        is_any
    }

    fn read_answers(&mut self, buffer: &mut [u8]) -> Result<usize, Errno> {
        let portion = self.portion(buffer.len());
        let answers = &mut self.launcher.answers;
        let count = portion.min(answers.len());
        if count == 0 && !self.launcher.is_gone {
            return Err(Errno::EAGAIN);
        }
        for (to, from) in buffer.iter_mut().zip(answers.drain(..count)) {
            *to = from;
        }
        self.progress += 1;
        Ok(count)
    }

    fn read_pipe(&mut self, is_output: bool, buffer: &mut [u8]) -> Result<usize, Errno> {
        let length = self.portion(buffer.len());
        let now = self.now;
        let Some(child) = &mut self.child else {
            return Ok(0);
        };
        let pipe = if is_output {
            &mut child.output
        } else {
            &mut child.errors
        };
        if pipe.ready.is_empty() {
            return if pipe.is_closed {
                Ok(0)
            } else {
                Err(Errno::EAGAIN)
            };
        }
        let count = length.min(pipe.ready.len());
        for (to, from) in buffer.iter_mut().zip(pipe.ready.drain(..count)) {
            *to = from;
        }
        pipe.advance(now);
        self.progress += 1;
        Ok(count)
    }
}

impl FakeKernel {
    /// A violation where the sandbox took away what this verb needs.
    fn needs(&mut self, verb: &str, allows: fn(&Given) -> bool) {
        if self.sandbox.as_ref().is_some_and(|given| !allows(given)) {
            self.violations.push(format!("{verb} in the sandbox"));
        }
    }

    fn may_read(&self, path: &str) -> bool {
        let Some(given) = &self.sandbox else {
            return true;
        };
        let is_below = |folder: &String| {
            let rest = path.strip_prefix(folder.as_str());
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        given.readable.iter().any(is_below)
    }
}

impl Kernel for FakeKernel {
    fn clock(&mut self, clock: Clock) -> Duration {
        let since_boot = self.now.as_nanos();
        Duration::from_nanos(match clock {
            Clock::Boottime => since_boot,
            Clock::Realtime => self.realtime_at_boot.saturating_add(since_boot),
            Clock::ProcessCpu => self.cpu_time.as_nanos(),
        })
    }

    /// UTC, and no month but one: nothing depends on it.
    fn calendar(&mut self, unix_seconds: u64) -> Calendar {
        let november = 1_635_724_800;
        Calendar::at(november + (unix_seconds % (28 * 86_400)) as i64)
    }

    fn process_status(&mut self) -> ProcessStatus {
        ProcessStatus::default()
    }

    fn poll(&mut self, interests: &mut [Interest], timeout: Option<Duration>) -> Result<(), Errno> {
        if self.clients.iter().any(|one| one.is_corked && !one.is_done) {
            self.violations.push("an answer is held back".to_owned());
        }
        let deadline = timeout.map(|timeout| self.now.after(timeout));
        let deadline = nearest(deadline, self.stop_at);
        self.interrupt()?;
        loop {
            self.happen();
            if self.fill(interests) || self.now.reaches(deadline) {
                return Ok(());
            }
            let next = nearest(self.next_event(), deadline);
            self.now = self.now.max(next.expect("a sleep that nothing ends"));
            self.nf_tables.expire(self.now);
            self.progress += 1;
        }
    }

    fn next_signal(&mut self) -> Option<Signal> {
        let signal = self.signals.pop_front()?;
        self.progress += 1;
        Some(signal)
    }

    fn open(&mut self, path: &Path, _: Link) -> Result<File, Errno> {
        let path = String::from_utf8(path.as_bytes().to_vec()).unwrap();
        if self.faults.no_descriptors {
            return Err(Errno::EMFILE);
        }
        if !self.may_read(&path) {
            return Err(Errno::EACCES);
        }
        let text = self.text(&path)?;
        let is_folder = self.is_folder(&path);
        Ok(File {
            is_procfs: path.starts_with("/proc"),
            mode: if is_folder {
                libc::S_IFDIR
            } else {
                libc::S_IFREG | libc::S_IXUSR
            },
            owner: 0,
            is_linked_once: true,
            inode: 1,
            descriptor: self.new_descriptor(Open::File {
                path,
                text,
                offset: 0,
            })?,
        })
    }

    fn read(&mut self, descriptor: Descriptor, buffer: &mut [u8]) -> Result<usize, Errno> {
        assert!(!buffer.is_empty(), "a read into nothing looks like the end");
        self.interrupt()?;
        match self.open.get(&descriptor.number()) {
            Some(Open::ChildOutput) => return self.read_pipe(true, buffer),
            Some(Open::ChildErrors) => return self.read_pipe(false, buffer),
            Some(Open::HookAnswers) => return self.read_answers(buffer),
            _ => {}
        }
        let is_short = self.faults.short;
        let portion = self.portion(buffer.len().min(4_096));
        if let Some(Open::File {
            path,
            text,
            offset: 0,
        }) = self.open.get(&descriptor.number())
        {
            let (path, text) = (path.clone(), text.clone());
            self.note_reading(&path, &text);
        }
        let Some(Open::File { text, offset, .. }) = self.open.get_mut(&descriptor.number()) else {
            panic!("a read from something else");
        };
        let rest = &text[*offset..];
        let mut count = portion.min(rest.len());
        // procfs hands out whole rows (fs/seq_file.c).
        if !is_short && count < rest.len() {
            let whole = rest[..count].iter().rposition(|byte| *byte == b'\n');
            count = whole.map_or(count, |newline| newline + 1);
        }
        buffer[..count].copy_from_slice(&rest[..count]);
        *offset += count;
        self.progress += u64::from(count > 0);
        Ok(count)
    }

    fn refused_connect(&mut self) -> Result<u16, Errno> {
        const PORT: u16 = 40_404;
        if self.faults.no_loopback {
            return Err(Errno::EADDRNOTAVAIL);
        }
        let event = (([0; 4], PORT), ([127, 0, 0, 1], 0));
        match self.faults.late_events {
            Duration::ZERO => self.destroy(event.0, event.1),
            late => self.at(self.now.after(late), move |kernel| {
                kernel.destroy(event.0, event.1);
            }),
        }
        Ok(PORT)
    }

    fn rewind(&mut self, descriptor: Descriptor) -> Result<(), Errno> {
        let Some(Open::File { path, .. }) = self.open.get(&descriptor.number()) else {
            panic!("a rewind of something else");
        };
        let path = path.clone();
        let text = self.text(&path)?;
        self.open.insert(
            descriptor.number(),
            Open::File {
                path,
                text,
                offset: 0,
            },
        );
        Ok(())
    }

    fn close(&mut self, descriptor: Descriptor) {
        match self.open.remove(&descriptor.number()) {
            Some(Open::Client(client)) => self.clients[client].is_done = true,
            Some(Open::ChildErrors) => self.child = self.child.take().filter(|one| !one.is_reaped),
            // They could not be opened again.
            Some(Open::Packets(_) | Open::ForeignEvents(_)) => self.needs("close", |_| false),
            Some(_) => {}
            None => panic!("descriptor {} is not open", descriptor.number()),
        }
        self.progress += 1;
    }

    fn write(&mut self, stream: Stream, bytes: &[u8]) -> Result<usize, Errno> {
        if stream == Stream::Error {
            self.errors.extend(bytes);
            return Ok(bytes.len());
        }
        if stream == Stream::Hook {
            return self.launcher.take(bytes, self.now);
        }
        self.interrupt()?;
        let room = match self.stdout {
            Stdout::Open => bytes.len(),
            Stdout::Room(0) => return Err(Errno::EAGAIN),
            Stdout::Room(room) => room.min(bytes.len()),
            Stdout::Broken => {
                self.progress += 1;
                return Err(Errno::EPIPE);
            }
        };
        let count = self.portion(room);
        if let Stdout::Room(room) = &mut self.stdout {
            *room -= count;
        }
        self.output.extend(&bytes[..count]);
        self.progress += 1;
        Ok(count)
    }

    fn claim(&mut self, _: &str) -> Result<Claim, Errno> {
        self.needs("claim", |_| false);
        match self.claims.pop_front() {
            Some(claim) => Ok(claim),
            None => self.new_descriptor(Open::Lock).map(Claim::Ours),
        }
    }

    fn notify(&mut self, socket: &[u8], message: &[u8]) -> Result<(), Errno> {
        assert_eq!(socket, self.environment["NOTIFY_SOCKET"]);
        if let Some(error) = self.faults.notify {
            return Err(error);
        }
        if !message.is_empty() {
            let message = String::from_utf8(message.to_vec()).unwrap();
            self.notified.push((self.now, message));
        }
        Ok(())
    }

    fn listen(&mut self, address: Endpoint) -> Result<Descriptor, Errno> {
        if address.port < 1_024 {
            self.needs("listen", |given| given.capabilities & 1 << 10 != 0);
        }
        match self.faults.listen {
            Some(error) => Err(error),
            None => self.new_descriptor(Open::Listener),
        }
    }

    fn accept(&mut self, listener: Descriptor) -> Result<Accepted, Errno> {
        if matches!(self.open.get(&listener.number()), Some(Open::Lock)) {
            return self.accept_stranger();
        }
        self.interrupt()?;
        let waiting = self.clients.iter().position(|client| !client.is_accepted);
        let client = waiting.ok_or(Errno::EAGAIN)?;
        let descriptor = self.new_descriptor(Open::Client(client))?;
        self.clients[client].is_accepted = true;
        self.progress += 1;
        let address = self.clients[client].peer;
        let mut own = self.host.addresses.iter().map(|own| own.0);
        let own = own.find(|own| own.is_ipv4() == address.is_ipv4() && !address.is_loopback());
        let local = Endpoint {
            address: own.unwrap_or(address),
            port: 3021,
        };
        let port = 40_000_u16.wrapping_add(client as u16);
        let remote = Endpoint { address, port };
        Ok(Accepted {
            descriptor,
            local,
            remote,
        })
    }

    fn connect(&mut self, address: Endpoint) -> Result<Descriptor, Errno> {
        self.asked.push(address);
        let answer = match self.service {
            Service::Refuses => return Err(Errno::ECONNREFUSED),
            Service::Silent => VecDeque::new(),
            Service::Answers(text) => text.bytes().collect(),
        };
        self.new_descriptor(Open::Connection(answer))
    }

    fn receive(&mut self, socket: Descriptor, buffer: &mut [u8]) -> Result<usize, Errno> {
        self.interrupt()?;
        self.report_host();
        let portion = self.portion(buffer.len());
        let most = 1 + self.route_random.below(4) as usize;
        match self.open.get_mut(&socket.number()) {
            Some(Open::Connection(answer)) => {
                if answer.is_empty() && matches!(self.service, Service::Silent) {
                    return Err(Errno::EAGAIN);
                }
                let count = portion.min(answer.len());
                for (to, from) in buffer.iter_mut().zip(answer.drain(..count)) {
                    *to = from;
                }
                Ok(count)
            }
            Some(Open::Routes(socket)) => {
                let datagram = socket.take();
                let pause = self.faults.dump_pause;
                if pause == Duration::ZERO {
                    socket.go_on(&self.host, most);
                }
                socket.is_congested &= !socket.queue.is_empty();
                let is_resting = socket.dump.is_some() && pause != Duration::ZERO;
                let datagram = datagram?;
                buffer[..datagram.len()].copy_from_slice(&datagram);
                self.progress += 1;
                if is_resting {
                    self.at(self.now.after(pause), FakeKernel::dumps_go_on);
                }
                Ok(datagram.len())
            }
            Some(
                Open::Events(datagrams)
                | Open::Diag(datagrams)
                | Open::Netfilter(datagrams)
                | Open::NetfilterEvents(datagrams),
            ) => {
                let datagram = datagrams.pop_front().ok_or(Errno::EAGAIN)?;
                buffer[..datagram.len()].copy_from_slice(&datagram);
                Ok(datagram.len())
            }
            Some(Open::Client(client)) => {
                let client = &mut self.clients[*client];
                if client.to_send.is_empty() {
                    return if client.is_closed {
                        Ok(0)
                    } else {
                        Err(Errno::EAGAIN)
                    };
                }
                let count = portion.min(client.to_send.len());
                for (to, from) in buffer.iter_mut().zip(client.to_send.drain(..count)) {
                    *to = from;
                }
                self.progress += 1;
                Ok(count)
            }
            _ => panic!("received from something else"),
        }
    }

    fn receive_from(
        &mut self,
        socket: Descriptor,
        buffer: &mut [u8],
    ) -> Result<(usize, u32), Errno> {
        self.interrupt()?;
        let received = match self.open.get_mut(&socket.number()) {
            Some(Open::ForeignEvents(socket)) => socket.take()?,
            Some(Open::Packets(socket)) => socket.queue.pop_front().ok_or(Errno::EAGAIN)?,
            _ => return Err(Errno::EINVAL),
        };
        let (bytes, origin) = received;
        let count = bytes.len().min(buffer.len());
        buffer[..count].copy_from_slice(&bytes[..count]);
        self.progress += 1;
        Ok((count, origin))
    }

    fn packet_socket(&mut self) -> Result<Descriptor, Errno> {
        match self.faults.packets {
            _ if self.sandbox.is_some() => Err(Errno::EPERM),
            Some(error) => Err(error),
            None => self.new_descriptor(Open::Packets(PacketSocket::default())),
        }
    }

    fn bind_packets(&mut self, socket: Descriptor, ethertype: u16) -> Result<(), Errno> {
        match self.open.get_mut(&socket.number()) {
            Some(Open::Packets(socket)) => {
                assert!(!socket.filter.is_empty(), "packets pass that no filter saw");
                socket.ethertype = ethertype;
                self.bound.push(ethertype);
            }
            _ => return Err(Errno::EINVAL),
        }
        self.progress += 1;
        Ok(())
    }

    fn lost_packets(&mut self, socket: Descriptor) -> u32 {
        match self.open.get_mut(&socket.number()) {
            Some(Open::Packets(socket)) => std::mem::take(&mut socket.lost),
            _ => 0,
        }
    }

    fn attach_filter(&mut self, socket: Descriptor, filter: &[Instruction]) -> Result<(), Errno> {
        assert!(!filter.is_empty(), "EINVAL");
        match self.open.get_mut(&socket.number()) {
            Some(Open::Packets(socket)) => socket.filter = filter.to_vec(),
            Some(Open::ForeignEvents(socket)) => socket.filter = filter.to_vec(),
            _ => return Err(Errno::EINVAL),
        }
        Ok(())
    }

    fn send(&mut self, socket: Descriptor, bytes: &[u8], more: More) -> Result<usize, Errno> {
        self.interrupt()?;
        self.report_host();
        let portion = self.portion(bytes.len());
        let is_interrupted = self.route_random.hits(self.faults.dump_interruptions);
        match self.open.get_mut(&socket.number()) {
            Some(Open::Routes(socket)) if bytes[7] & 3 == 0 => {
                socket.queue.push_back(self.host.route_answer(bytes));
                Ok(bytes.len())
            }
            Some(Open::Routes(socket)) => {
                assert!(socket.dump.is_none(), "EBUSY: a dump is under way");
                let is_refused = self.faults.no_links && bytes[4] == 18;
                match Dump::new(bytes).and_then(|dump| dump.unless(is_refused, bytes)) {
                    Ok(mut dump) => {
                        dump.is_interrupted = is_interrupted;
                        socket.dump = Some(dump);
                        socket.go_on(&self.host, 1);
                    }
                    Err(refusal) => socket.queue.push_back(refusal),
                }
                Ok(bytes.len())
            }
            Some(Open::Client(client)) => {
                self.cpu_time = self.cpu_time.saturating_add(self.send_cost);
                self.now = self.now.after(self.send_cost);
                let client = &mut self.clients[*client];
                client.answer.extend(&bytes[..portion]);
                client.is_corked = more == More::Fin && portion == bytes.len();
                self.progress += 1;
                Ok(portion)
            }
            Some(Open::Connection(_)) => {
                self.request.extend(&bytes[..portion]);
                Ok(portion)
            }
            Some(Open::Diag(_)) => {
                let answers = match self.lookup(bytes) {
                    Some(found) if self.faults.older_answers => {
                        let mut older = found.clone();
                        older[8] = older[8].wrapping_sub(1);
                        vec![older, found]
                    }
                    Some(found) => vec![found],
                    None if self.destroyed.is_some() => self.answer_diag(bytes),
                    None => {
                        let refusal = (-libc::EOPNOTSUPP).to_ne_bytes();
                        vec![diag(2, &bytes[8..12], &refusal)]
                    }
                };
                if let Some(Open::Diag(datagrams)) = self.open.get_mut(&socket.number()) {
                    datagrams.extend(answers);
                }
                Ok(bytes.len())
            }
            Some(Open::Netfilter(datagrams)) if bytes[5] == 1 => {
                let error = self.faults.conntrack;
                datagrams.push_back(answer_conntrack(&self.conntrack, error, bytes));
                Ok(bytes.len())
            }
            Some(Open::Netfilter(_)) => {
                let port = 4_000 + socket.number() as u32;
                let answers = self.nf_tables.request(bytes, port, "tcpparser", self.now);
                self.check_sets();
                if let Some(Open::Netfilter(datagrams)) = self.open.get_mut(&socket.number()) {
                    datagrams.extend(answers);
                }
                self.report_nf_tables();
                self.progress += 1;
                Ok(bytes.len())
            }
            _ => panic!("sent to something else"),
        }
    }

    /// The client saw the end and closes as well.
    fn shutdown_sending(&mut self, socket: Descriptor) -> bool {
        if let Some(Open::Client(client)) = self.open.get(&socket.number()) {
            let client = &mut self.clients[*client];
            (client.is_closed, client.is_corked) = (true, false);
        }
        self.progress += 1;
        self.faults.short && self.random.hits(500)
    }

    fn netlink(&mut self, kind: Netlink) -> Result<Descriptor, Errno> {
        if kind == Netlink::DestroyEvents {
            return self.new_descriptor(Open::Events(VecDeque::new()));
        }
        if kind == Netlink::ForeignEvents {
            return match self.faults.foreign_events {
                _ if self.sandbox.is_some() => Err(Errno::EPERM),
                Some(error) => Err(error),
                None => self.new_descriptor(Open::ForeignEvents(EventSocket::default())),
            };
        }
        if let Some(error) = self.faults.netlink {
            return Err(error);
        }
        match kind {
            Netlink::Netfilter => {
                return self.new_descriptor(Open::Netfilter(VecDeque::new()));
            }
            Netlink::NetfilterEvents if self.nf_tables.lacks.permission => {
                return Err(Errno::EPERM);
            }
            Netlink::NetfilterEvents => {
                return self.new_descriptor(Open::NetfilterEvents(VecDeque::new()));
            }
            _ => {}
        }
        if kind == Netlink::SockDiag {
            return self.new_descriptor(Open::Diag(VecDeque::new()));
        }
        let is_subscribed = kind == Netlink::RouteEvents;
        if is_subscribed && self.faults.no_route_events {
            return Err(Errno::EPERM);
        }
        self.report_host();
        self.new_descriptor(Open::Routes(RouteSocket {
            is_subscribed,
            ..RouteSocket::default()
        }))
    }

    fn spawn(&mut self, invocation: &Invocation) -> Result<Child, Errno> {
        self.needs("spawn", |given| !given.is_sealed);
        if self.child.is_some() {
            self.violations.push("two children at once".to_owned());
        }
        let words = String::from_utf8(invocation.arguments.as_bytes().to_vec()).unwrap();
        let command = Command {
            at: self.now,
            words: words.trim_end_matches('\0').replace('\0', " "),
            input: String::from_utf8(invocation.input.as_bytes().to_vec()).unwrap(),
            root: String::from_utf8(invocation.root.as_bytes().to_vec()).unwrap(),
        };
        let words = &command.words;
        let (program, options) = words.split_once(' ').unwrap_or((words, ""));
        let family = program.trim_start_matches("ip6").trim_start_matches("ip");
        let known = match family {
            "tables" | "tables-nft" | "tables-legacy" => ["-w 5 -S", "-V"].as_slice(),
            "tables-restore" | "tables-nft-restore" | "tables-legacy-restore" => {
                ["-w 5 --noflush"].as_slice()
            }
            _ => [].as_slice(),
        };
        if !known.contains(&options) {
            self.violations
                .push(format!("unknown command: {}", command.words));
        }
        self.check_batch(&command);
        self.commands.push(command.clone());
        self.progress += 1;
        let fault = self.child_faults.pop_front().unwrap_or(self.faults.child);
        if let ChildFault::NoSpawn(error) = fault {
            return Err(error);
        }
        if self.faults.no_descriptors {
            return Err(Errno::EMFILE);
        }
        let output = self.new_descriptor(Open::ChildOutput)?;
        let errors = self.new_descriptor(Open::ChildErrors)?;
        let child = self.start_child(command, fault);
        let process = child.process;
        self.child = Some(child);
        Ok(Child {
            process,
            output,
            errors,
        })
    }

    fn start_launcher(&mut self, file: &Path) -> Result<Descriptor, Errno> {
        let launcher = &mut self.launcher;
        launcher.file = String::from_utf8(file.as_bytes().to_vec()).unwrap();
        launcher.waiting.clear();
        launcher.answers.clear();
        (launcher.is_gone, launcher.run_ends) = (false, None);
        match launcher.fault {
            Some(error) => Err(error),
            None => self.new_descriptor(Open::HookAnswers),
        }
    }

    fn reap(&mut self, process: i32) -> Option<Exit> {
        self.happen();
        let child = self.child.as_mut()?;
        assert!(child.process == process && !child.is_reaped);
        let exit = child.ended?;
        // What it wrote stays in the pipes until they are closed.
        child.is_reaped = true;
        self.progress += 1;
        Some(exit)
    }

    fn kill_group(&mut self, process: i32, force: bool) {
        let Some(child) = &mut self.child else {
            return;
        };
        assert_eq!(child.process, process);
        let ignores = matches!(
            child.fault,
            ChildFault::Hangs {
                ignores_sigterm: true,
                ..
            }
        );
        if force || !ignores {
            child.work_at = None;
            child.output.waiting.clear();
            child.errors.waiting.clear();
            child.exit = Exit::Signal(if force { 9 } else { 15 });
            child.exit_at = Some(self.now);
        }
        self.progress += 1;
    }

    fn enter_sandbox(&mut self, sandbox: &Sandbox) -> u8 {
        self.needs("a second sandbox", |_| false);
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let mut readable = Vec::new();
        readable.extend(
            text(sandbox.files)
                .split(':')
                .map(|path| path[1..].to_owned()),
        );
        readable.push(text(sandbox.proc_directory));
        for file in text(sandbox.beside).split(' ') {
            if self.files.contains_key(file) {
                readable.push(file.rsplit_once('/').unwrap().0.to_owned());
            }
        }
        self.sandbox = Some(Given {
            at: self.now,
            capabilities: sandbox.capabilities,
            is_sealed: sandbox.is_sealed,
            readable,
        });
        let all: u8 = Layer::ALL.iter().map(|layer| layer.bit()).sum();
        all & !self.lacks_layers
    }
}

impl FakeKernel {
    fn accept_stranger(&mut self) -> Result<Accepted, Errno> {
        let left = self.knocks.checked_sub(1).ok_or(Errno::EAGAIN)?;
        let descriptor = self.new_descriptor(Open::Stranger)?;
        self.knocks = left;
        self.progress += 1;
        Ok(Accepted {
            descriptor,
            local: Endpoint::BLANK,
            remote: Endpoint::BLANK,
        })
    }

    /// The kernel reports a socket that it destroyed.
    pub fn destroy(&mut self, local: ([u8; 4], u16), remote: ([u8; 4], u16)) {
        self.destroy_ends(ipv4(local), ipv4(remote));
    }

    pub fn destroy_ends(&mut self, local: End, remote: End) {
        let event = self.diag_message((local, remote), TcpState::Close, &[0; 4]);
        for open in self.open.values_mut() {
            match open {
                Open::Events(datagrams) => datagrams.push_back(event.clone()),
                Open::ForeignEvents(socket) => socket.take_in(&event, 0, true),
                _ => {}
            }
        }
    }

    /// A packet comes in.
    pub fn arrive(&mut self, frame: &Frame) {
        let is_ipv6 = frame.bytes.first().is_some_and(|first| first >> 4 == 6);
        let family = if is_ipv6 { Family::V6 } else { Family::V4 };
        *self.received.get_mut(family) += 1;
        self.hand_over(frame);
    }

    pub fn hand_over(&mut self, frame: &Frame) {
        let has_room = !self.packet_random.hits(self.faults.packet_losses);
        for open in self.open.values_mut() {
            if let Open::Packets(socket) = open {
                socket.take_in(frame, has_room);
            }
        }
    }

    /// A SYN comes in by each of these links.
    pub fn ask_for(&mut self, source: End, destination: End, sequence: u32, links: &[u32]) {
        for link in links {
            let syn = super::fake_network::SYN;
            self.arrive(&Frame::segment(source, destination, syn, sequence, *link));
        }
    }

    /// A socket of another network namespace is destroyed.
    pub fn destroy_foreign(&mut self, local: End, remote: End, namespace: u32) {
        let event = self.diag_message((local, remote), TcpState::Close, &[0; 4]);
        let has_room = !self.packet_random.hits(self.faults.foreign_losses);
        for open in self.open.values_mut() {
            if let Open::ForeignEvents(socket) = open {
                socket.take_in(&event, namespace + 1, has_room);
            }
        }
    }

    /// The answer to a request for one socket, SOCK_DIAG_BY_FAMILY without
    /// NLM_F_DUMP.
    fn lookup(&mut self, request: &[u8]) -> Option<Vec<u8>> {
        let word = |at: usize| u16::from_ne_bytes([request[at], request[at + 1]]);
        if word(4) != 20 || word(6) & 0x300 != 0 {
            return None;
        }
        self.lookups += 1;
        let end = |port: usize, address: usize| {
            let address = if request[16] == libc::AF_INET as u8 {
                IpAddr::from(<[u8; 4]>::try_from(&request[address..][..4]).unwrap())
            } else {
                IpAddr::from(<[u8; 16]>::try_from(&request[address..][..16]).unwrap())
            };
            let port = u16::from_be_bytes([request[port], request[port + 1]]);
            (address, port)
        };
        let ends = (end(24, 28), end(26, 44));
        let mut sockets = self.sockets.iter().filter(|_| !self.faults.lacks_tcp_diag);
        let socket = sockets.find(|socket| (socket.local, socket.remote) == ends);
        let found = socket.map(|socket| (socket.state, socket.inode));
        let sequence = &request[8..12];
        let answer = match found {
            Some((state, inode)) => {
                let mut answer = self.diag_message(ends, state, sequence);
                answer[16 + 68..][..4].copy_from_slice(&inode.to_ne_bytes());
                answer
            }
            None => diag(2, sequence, &(-libc::ENOENT).to_ne_bytes()),
        };
        self.looked_up.push(LookedUp {
            at: self.now,
            readings: self.readings.len(),
            local: ends.0,
            remote: ends.1,
            found,
        });
        Some(answer)
    }

    /// struct inet_diag_msg of linux/inet_diag.h, and tcp_info up to
    /// tcpi_delivered.
    fn diag_message(&self, ends: (End, End), state: TcpState, sequence: &[u8]) -> Vec<u8> {
        let (local, remote) = ends;
        let mut message = vec![0; 72];
        let family = if local.0.is_ipv4() {
            libc::AF_INET
        } else {
            libc::AF_INET6
        };
        (message[0], message[1]) = (family as u8, state as u8);
        for ((address, port), port_at, at) in [(local, 4, 8), (remote, 6, 24)] {
            message[port_at..][..2].copy_from_slice(&port.to_be_bytes());
            match address {
                IpAddr::V4(v4) => message[at..][..4].copy_from_slice(&v4.octets()),
                IpAddr::V6(v6) => message[at..][..16].copy_from_slice(&v6.octets()),
            }
        }
        let mut info = vec![0; 196];
        let min_rtt = if self.forged.contains(&remote.0) {
            u32::MAX
        } else {
            123
        };
        info[148..152].copy_from_slice(&min_rtt.to_ne_bytes());
        message.extend(200u16.to_ne_bytes());
        message.extend(2u16.to_ne_bytes());
        message.extend(info);
        diag(20, sequence, &message)
    }
}

fn ipv4((address, port): ([u8; 4], u16)) -> End {
    (IpAddr::from(address), port)
}

/// A netlink message of that type.
fn diag(kind: u16, sequence: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut message = (16 + payload.len() as u32).to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend([0; 2]);
    message.extend(sequence);
    message.extend([0; 4]);
    message.extend(payload);
    message
}

/// Whether net/ipv4/inet_diag.c, inet_diag_bc_run, ends at the end.
fn matches_bytecode(mut bytecode: &[u8], remote: IpAddr) -> bool {
    const JUMP: u8 = 1;
    const PEER: u8 = 8;
    while let [code, yes, no_low, no_high, ref rest @ ..] = *bytecode {
        let no = usize::from(u16::from_ne_bytes([no_low, no_high]));
        let is_met = match code {
            JUMP => false,
            PEER => {
                let address = if i32::from(rest[0]) == libc::AF_INET6 {
                    IpAddr::from(<[u8; 16]>::try_from(&rest[8..24]).unwrap())
                } else {
                    IpAddr::from(<[u8; 4]>::try_from(&rest[8..12]).unwrap())
                };
                Network::new(address, rest[1]).contains(remote)
            }
            _ => panic!("an operation that is not needed"),
        };
        let step = if is_met { yes.into() } else { no };
        match bytecode.get(step..) {
            Some(after) => bytecode = after,
            None => return false,
        }
    }
    true
}

impl FakeKernel {
    /// What sock_diag answers: a dump of one family's connections with a peer in
    /// the network asked for, or the end of one socket.
    fn answer_diag(&mut self, request: &[u8]) -> Vec<Vec<u8>> {
        const SOCK_DESTROY: u16 = 21;
        let sequence = &request[8..12];
        let port = |at: usize| u16::from_be_bytes([request[at], request[at + 1]]);
        if u16::from_ne_bytes([request[4], request[5]]) == SOCK_DESTROY {
            let ports = (port(24), port(26));
            let before = self.sockets.len();
            self.sockets.retain(|socket| {
                let (local, remote) = (octets(socket.local.0), octets(socket.remote.0));
                let is_meant = (socket.local.1, socket.remote.1) == ports
                    && request[28..].starts_with(&local)
                    && request[44..].starts_with(&remote);
                !is_meant
            });
            let count = before - self.sockets.len();
            self.destroyed = self.destroyed.map(|sum| sum + count);
            self.progress += 1;
            let error = if count == 1 { 0 } else { -libc::ENOENT };
            let payload = [&error.to_ne_bytes()[..], &request[..16]].concat();
            return vec![message(NLMSG_ERROR, 0, sequence, &payload)];
        }
        self.dumps += 1;
        let filter = usize::from(u16::from_ne_bytes([request[72], request[73]]));
        assert_eq!(request.len(), 72 + filter);
        let sockets = self.sockets.iter().filter(|socket| {
            socket.family() == asked_family(request)
                && socket.remote.1 != 0
                && matches_bytecode(&request[76..], socket.remote.0)
        });
        let mut answers: Vec<Vec<u8>> = sockets
            .map(|socket| self.diag_message((socket.local, socket.remote), socket.state, sequence))
            .collect();
        answers.push(message(NLMSG_DONE, 2, sequence, &[0; 4]));
        answers
    }
}
