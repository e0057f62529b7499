//! The rule once more, slow and simple: rows taken apart by blanks, maps that
//! never fill up. What it says of a reading is what the daemon must say.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::fake_kernel::Reading;
use crate::time::{Duration, Instant};

/// How long vanished connections and services are remembered.
const MEMORY: Duration = Duration::from_secs(600);
/// What a listener outlives a connection by that is a service.
const SERVICE_AGE: Duration = Duration::from_secs(1);
/// How old one is that is a service without a connection.
const LISTENER_AGE: Duration = Duration::from_secs(1_200);

const ANY: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

/// A scan, as its line reports it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ReportedScan {
    pub source: String,
    pub local: String,
    pub ports: Vec<u16>,
}

type FourTuple = (IpAddr, u16, IpAddr, u16);

type Listening = (IpAddr, u16);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Port {
    Unknown,
    New,
    Foreign,
    Service,
}

struct Known {
    first_seen: Instant,
    last_seen: Instant,
    inode: u64,
    port: Port,
    is_inbound: bool,
    /// The number of the reading that showed it last, or that was the last one
    /// when it was looked up.
    reading: usize,
}

/// What is seen of a connection.
#[derive(Clone, Copy)]
struct Shown {
    state: u8,
    inode: u64,
    /// When the reading was that shows the listeners.
    listeners: Instant,
}

/// A connection that would be evidence.
struct Waiter {
    source: String,
    local: Listening,
    first_seen: Instant,
    since: Instant,
}

#[derive(Default)]
struct Watched {
    ports: BTreeMap<u16, Instant>,
    last_seen: Option<Instant>,
    /// The local address of the connection that completed the evidence.
    crossed: Option<IpAddr>,
    is_reported: bool,
}

/// Since when and until when readings showed a listener, and the last one
/// before that.
#[derive(Clone, Copy)]
struct Stands {
    first: Instant,
    last: Instant,
    absent: Option<Instant>,
}

pub struct Oracle {
    pub ports: usize,
    pub window: Duration,
    pub own: Vec<IpAddr>,
    /// Prefixes where each IPv6 address is a source of its own.
    pub on_link: Vec<(Ipv6Addr, u8)>,
    known: HashMap<FourTuple, Known>,
    /// The time of the last reading; `None` before the first.
    last_reading: Option<Instant>,
    readings: usize,
    /// Sockets that listen.
    listeners: HashMap<(Listening, u64), Stands>,
    /// Services, and when they stood first and last.
    services: HashMap<Listening, (Instant, Instant)>,
    /// Where one stood for long, and when last.
    old: HashMap<Listening, Instant>,
    waiting: Vec<Waiter>,
    pub interval: Duration,
    pub next_scheduled: Option<Instant>,
    sources: HashMap<String, Watched>,
    blocked: HashSet<String>,
    ended: HashMap<String, Instant>,
}

/// What the oracle makes of one reading.
pub struct Opinion {
    pub scans: Vec<ReportedScan>,
    /// The list: remote, arrow, local.
    pub list: Vec<String>,
}

impl Oracle {
    pub fn new(ports: usize, window: Duration, own: &[IpAddr]) -> Self {
        Self {
            ports,
            window,
            own: own.to_vec(),
            on_link: vec![
                ("2001:db8:1::".parse().unwrap(), 64),
                ("fe80::".parse().unwrap(), 64),
            ],
            known: HashMap::new(),
            last_reading: None,
            readings: 0,
            listeners: HashMap::new(),
            services: HashMap::new(),
            old: HashMap::new(),
            waiting: Vec::new(),
            interval: Duration::from_secs(10),
            next_scheduled: None,
            sources: HashMap::new(),
            blocked: HashSet::new(),
            ended: HashMap::new(),
        }
    }

    /// The daemon wants the source blocked: its evidence is spent.
    pub fn block(&mut self, source: &str) {
        self.blocked.insert(source.to_owned());
        self.sources.remove(source);
    }

    /// The source's block ended; `at` is no time where it never stood.
    pub fn unblock(&mut self, source: &str, at: Option<Instant>) {
        self.blocked.remove(source);
        self.sources.remove(source);
        if let Some(at) = at {
            self.ended.insert(source.to_owned(), at);
        }
    }

    /// The scan was reported and no block follows: silence until the source
    /// was quiet for one window.
    pub fn refuse(&mut self, source: &str, at: Instant) {
        if self.blocked.remove(source) {
            let watched = self.sources.entry(source.to_owned()).or_default();
            (watched.last_seen, watched.is_reported) = (Some(at), true);
        }
    }

    pub fn is_blocked(&self, source: &str) -> bool {
        self.blocked.contains(source)
    }

    /// The source an address belongs to, as it is printed.
    pub fn source_of(&self, address: IpAddr) -> String {
        let IpAddr::V6(v6) = address else {
            return address.to_string();
        };
        let high = v6.to_bits() >> 64;
        let is_alone = self
            .on_link
            .iter()
            .any(|link| link.0.to_bits() >> 64 == high);
        if is_alone {
            address.to_string()
        } else {
            format!("{}/64", Ipv6Addr::from_bits(high << 64))
        }
    }

    /// A connection that was looked up between two readings, and found with a
    /// proven handshake.
    pub fn look_up(&mut self, local: Listening, remote: Listening, found: (u8, u64), now: Instant) {
        let tuple = (local.0, local.1, remote.0, remote.1);
        let is_repeated = |known: &Known| known.reading == self.readings;
        if self.known.get(&tuple).is_some_and(is_repeated) {
            return;
        }
        let shown = Shown {
            state: found.0,
            inode: found.1,
            listeners: self.last_reading.unwrap_or(now),
        };
        self.connection(tuple, shown, now, &mut BTreeSet::new(), &mut Vec::new());
    }

    /// What became clear since it was asked last.
    pub fn scans_so_far(&mut self) -> Opinion {
        Opinion {
            scans: self.scans(),
            list: Vec::new(),
        }
    }

    /// Rows of `forged` peers that are closing prove nothing.
    pub fn read(&mut self, reading: &Reading, forged: &[IpAddr]) -> Opinion {
        let now = reading.at;
        self.readings += 1;
        let mut list = Vec::new();
        let mut seen = BTreeSet::new();
        let lines = reading.rows.iter().map(|(_, text)| text.lines().skip(1));
        let is_forged = |line: &str| {
            let words: Vec<&str> = line.split_ascii_whitespace().collect();
            forged.contains(&endpoint(words[2]).0) && matches!(words[3], "04" | "09" | "0B")
        };
        for line in lines.flatten().filter(|line| !is_forged(line)) {
            self.row(line, now, &mut seen, &mut list);
        }
        self.known
            .retain(|_, known| now.since(known.last_seen) < MEMORY);
        self.last_reading = Some(now);
        self.listeners.retain(|_, stands| stands.last == now);
        let old = &mut self.old;
        self.services.retain(|local, (first, last)| {
            if *last != now && !is_ephemeral(local.1) && last.since(*first) >= LISTENER_AGE {
                old.insert(*local, *last);
            }
            *last == now
        });
        self.try_again(now);
        if !self.is_scheduled(now) {
            list.clear();
        }
        let window = self.window;
        self.sources.retain(|_, watched| {
            watched
                .last_seen
                .is_some_and(|seen| now.since(seen) < window)
        });
        Opinion {
            scans: self.scans(),
            list,
        }
    }

    fn row(
        &mut self,
        line: &str,
        now: Instant,
        seen: &mut BTreeSet<FourTuple>,
        list: &mut Vec<String>,
    ) {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let (local, local_port) = endpoint(words[1]);
        let (remote, remote_port) = endpoint(words[2]);
        let state = u8::from_str_radix(words[3], 16).unwrap();
        let inode: u64 = words[9].parse().unwrap();
        if state == 0x0a {
            return self.listen((local, local_port), inode, now);
        }
        if !matches!(state, 1 | 4 | 5 | 6 | 8 | 9 | 0x0b) {
            return;
        }
        let tuple = (local, local_port, remote, remote_port);
        let shown = Shown {
            state,
            inode,
            listeners: now,
        };
        self.connection(tuple, shown, now, seen, list);
    }

    fn connection(
        &mut self,
        tuple: FourTuple,
        shown: Shown,
        now: Instant,
        seen: &mut BTreeSet<FourTuple>,
        list: &mut Vec<String>,
    ) {
        let (local, local_port, remote, remote_port) = tuple;
        let reading = self.readings;
        let Shown { state, inode, .. } = shown;
        let port = self.port((local, local_port), shown.listeners);
        let is_inbound = port != Port::Unknown || !is_ephemeral(local_port);
        let is_known = self.known.contains_key(&tuple);
        let known = self.known.entry(tuple).or_insert(Known {
            first_seen: now,
            last_seen: now,
            inode,
            port,
            is_inbound,
            reading,
        });
        let is_other = known.inode != 0 && inode != 0 && known.inode != inode;
        if is_other {
            (known.first_seen, known.is_inbound) = (now, is_inbound);
        }
        let is_repeated = is_known && known.last_seen == now && !is_other;
        if is_other || (!is_repeated && matches!(known.port, Port::New | Port::Foreign)) {
            known.port = port;
        }
        let is_new = !is_known || is_other;
        (known.last_seen, known.reading) = (now, reading);
        if inode != 0 {
            known.inode = inode;
        }
        let (first_seen, is_inbound) = (known.first_seen, known.is_inbound);
        let port = known.port;
        if (!seen.insert(tuple) && !is_other) || self.is_own(remote) {
            return;
        }
        let source = self.source_of(remote);
        if self.is_blocked(&source) {
            return;
        }
        if state == 1 {
            let arrow = if is_inbound { "->" } else { "<-" };
            let remote = printed(remote, remote_port);
            list.push(format!("{remote} {arrow} {}", printed(local, local_port)));
        }
        let is_stale = self
            .ended
            .get(&source)
            .is_some_and(|ended| first_seen <= *ended);
        if is_stale || (state == 6 && !is_new) {
            return;
        }
        match port {
            Port::Unknown => {}
            Port::Service => self.evidence(source, local, local_port, now),
            Port::New | Port::Foreign => self.wait(source, (local, local_port), first_seen),
        }
    }

    fn listen(&mut self, (address, port): Listening, inode: u64, now: Instant) {
        let any = (ANY, port);
        let local = if address.is_unspecified() {
            any
        } else {
            (address, port)
        };
        let last_reading = self.last_reading;
        let stands = self.listeners.entry((local, inode)).or_insert(Stands {
            first: now,
            last: now,
            absent: last_reading,
        });
        stands.last = now;
        let (first, age) = (stands.first, now.since(stands.first));
        let was_old = |local| {
            self.old
                .get(&local)
                .is_some_and(|at| now.since(*at) < MEMORY)
        };
        if last_reading.is_none()
            || [local, any]
                .iter()
                .any(|local| self.services.contains_key(local))
            || [local, any].into_iter().any(was_old)
            || age >= LISTENER_AGE
        {
            self.services.entry(local).or_insert((first, now)).1 = now;
        }
    }

    /// Where connections go out from, only while readings show it.
    fn is_service(&self, local: Listening, now: Instant) -> bool {
        let mut last = self.services.get(&local).map(|(_, last)| *last);
        last.take_if(|last| *last != now && is_ephemeral(local.1));
        last.is_some()
    }

    fn stands(&self, local: Listening, now: Instant) -> bool {
        let mut listeners = self.listeners.iter();
        listeners.any(|((other, _), stands)| *other == local && stands.last == now)
    }

    fn port(&self, local: Listening, now: Instant) -> Port {
        let state = |local| {
            if self.is_service(local, now) {
                Port::Service
            } else if self.stands(local, now) {
                Port::New
            } else {
                Port::Unknown
            }
        };
        let (exact, any) = (state(local), state((ANY, local.1)));
        if exact == Port::Service || any == Port::Unknown {
            exact
        } else if self.is_own(local.0) {
            any
        } else if exact == Port::Unknown {
            Port::Foreign
        } else {
            exact
        }
    }

    fn wait(&mut self, source: String, local: Listening, first_seen: Instant) {
        let mut waiting = self.waiting.iter_mut();
        match waiting.find(|one| one.source == source && one.local.1 == local.1) {
            Some(one) => {
                one.local = local;
                one.first_seen = one.first_seen.max(first_seen);
            }
            None => self.waiting.push(Waiter {
                source,
                local,
                first_seen,
                since: first_seen,
            }),
        }
    }

    /// After a reading: whose listener became a service, or stands a second
    /// after it, is evidence.
    fn try_again(&mut self, now: Instant) {
        for waiter in std::mem::take(&mut self.waiting) {
            let window = self.window.max(Duration::from_secs(2));
            if now.since(waiter.first_seen.max(waiter.since)) >= window {
                continue;
            }
            if self.port(waiter.local, now) == Port::New {
                self.outlive(&waiter, now);
            }
            match self.port(waiter.local, now) {
                Port::Unknown => {}
                Port::New | Port::Foreign => self.waiting.push(waiter),
                Port::Service if self.is_blocked(&waiter.source) => {}
                Port::Service => {
                    let ended = self.ended.get(&waiter.source);
                    if ended.is_none_or(|ended| waiter.first_seen > *ended) {
                        let (address, port) = waiter.local;
                        self.evidence(waiter.source, address, port, now);
                    }
                }
            }
        }
    }

    fn outlive(&mut self, waiter: &Waiter, now: Instant) {
        let any = (ANY, waiter.local.1);
        let is_bound = self.stands(waiter.local, now);
        let local = if is_bound { waiter.local } else { any };
        let first = self.listeners.iter().filter_map(|((other, _), stands)| {
            let is_candidate = *other == local
                && stands.last == now
                && stands
                    .absent
                    .is_none_or(|absent| absent < waiter.first_seen);
            is_candidate.then_some(stands.first)
        });
        let Some(first) = first.min() else { return };
        if now.since(waiter.since.max(first)) >= SERVICE_AGE {
            self.services.insert(local, (first, now));
        }
    }

    /// Readings in between list nothing.
    fn is_scheduled(&mut self, now: Instant) -> bool {
        let Some(due) = self.next_scheduled.filter(|due| now >= *due) else {
            return false;
        };
        let next = due.after(self.interval);
        let late = now.after(self.interval);
        self.next_scheduled = Some(if next > now { next } else { late });
        true
    }

    fn evidence(&mut self, source: String, local: IpAddr, port: u16, now: Instant) {
        let (window, most) = (self.window, self.ports);
        let watched = self.sources.entry(source).or_default();
        let is_quiet = watched
            .last_seen
            .is_none_or(|seen| now.since(seen) >= window);
        watched.last_seen = Some(now);
        watched.is_reported &= !is_quiet;
        watched.ports.insert(port, now);
        watched.ports.retain(|_, seen| now.since(*seen) < window);
        if watched.ports.len() > most && !watched.is_reported && watched.crossed.is_none() {
            watched.crossed = Some(local);
        }
    }

    fn scans(&mut self) -> Vec<ReportedScan> {
        let mut scans = Vec::new();
        for (source, watched) in &mut self.sources {
            if let Some(local) = watched.crossed.take() {
                watched.is_reported = true;
                scans.push(ReportedScan {
                    source: source.clone(),
                    local: local.to_string(),
                    ports: watched.ports.keys().copied().collect(),
                });
            }
        }
        scans.sort();
        scans
    }

    fn is_own(&self, address: IpAddr) -> bool {
        address.is_loopback() || self.own.contains(&address)
    }
}

fn is_ephemeral(port: u16) -> bool {
    (32_768..=60_999).contains(&port)
}

fn endpoint(field: &str) -> (IpAddr, u16) {
    let (digits, port) = field.split_once(':').unwrap();
    let mut octets = Vec::new();
    for start in (0..digits.len()).step_by(8) {
        let word = u32::from_str_radix(&digits[start..start + 8], 16).unwrap();
        octets.extend(word.to_ne_bytes());
    }
    let address = match <[u8; 4]>::try_from(&octets[..]) {
        Ok(v4) => IpAddr::from(v4),
        Err(_) => IpAddr::from(<[u8; 16]>::try_from(&octets[..]).unwrap()).to_canonical(),
    };
    (address, u16::from_str_radix(port, 16).unwrap())
}

fn printed(address: IpAddr, port: u16) -> String {
    std::net::SocketAddr::new(address, port).to_string()
}
