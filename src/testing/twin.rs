//! The rule once more, slow and simple: rows taken apart by blanks, maps that
//! never fill up. What it says of a reading is what the daemon must say.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::fake_kernel::Reading;
use crate::time::{Duration, Instant};

/// How long vanished connections and listeners are remembered.
const MEMORY: Duration = Duration::from_secs(600);

/// A scan, as its line tells it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TwinScan {
    pub source: String,
    pub local: String,
    pub ports: Vec<u16>,
}

type FourTuple = (IpAddr, u16, IpAddr, u16);

struct Known {
    first_seen: Instant,
    last_seen: Instant,
    inode: u64,
    is_inbound: bool,
}

#[derive(Default)]
struct Watched {
    ports: BTreeMap<u16, Instant>,
    last_seen: Option<Instant>,
    /// The local address of the connection that completed the evidence.
    crossed: Option<IpAddr>,
    is_reported: bool,
}

pub struct Twin {
    pub ports: usize,
    pub window: Duration,
    pub own: Vec<IpAddr>,
    /// Prefixes where each IPv6 address is a source of its own.
    pub on_link: Vec<(Ipv6Addr, u8)>,
    known: HashMap<FourTuple, Known>,
    listeners: HashMap<(IpAddr, u16), Instant>,
    sources: HashMap<String, Watched>,
    blocked: HashSet<String>,
    ended: HashMap<String, Instant>,
}

/// What the twin makes of one reading.
pub struct Opinion {
    pub scans: Vec<TwinScan>,
    /// The list: remote, arrow, local.
    pub list: Vec<String>,
}

impl Twin {
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
            listeners: HashMap::new(),
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

    /// Rows of `forged` peers that are closing prove nothing.
    pub fn read(&mut self, reading: &Reading, forged: &[IpAddr]) -> Opinion {
        let now = reading.at;
        let mut list = Vec::new();
        let mut seen = BTreeSet::new();
        let lines = [&reading.tcp, &reading.tcp6].map(|text| text.lines().skip(1));
        let is_forged = |line: &str| {
            let words: Vec<&str> = line.split_ascii_whitespace().collect();
            forged.contains(&endpoint(words[2]).0) && matches!(words[3], "04" | "09" | "0B")
        };
        for line in lines.into_iter().flatten().filter(|line| !is_forged(line)) {
            self.row(line, now, &mut seen, &mut list);
        }
        self.known
            .retain(|_, known| now.since(known.last_seen) < MEMORY);
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
            self.listeners.insert((local, local_port), now);
            return;
        }
        if !matches!(state, 1 | 4 | 5 | 6 | 8 | 9 | 0x0b) || remote_port == 0 {
            return;
        }
        let tuple = (local, local_port, remote, remote_port);
        let is_inbound = self.is_inbound(local, local_port, now);
        let known = self.known.entry(tuple).or_insert(Known {
            first_seen: now,
            last_seen: Instant::BOOT,
            inode,
            is_inbound,
        });
        let is_other = known.inode != 0 && inode != 0 && known.inode != inode;
        if is_other {
            (known.first_seen, known.is_inbound) = (now, is_inbound);
        }
        let is_new = known.last_seen == Instant::BOOT || is_other;
        known.last_seen = now;
        if inode != 0 {
            known.inode = inode;
        }
        let (first_seen, is_inbound) = (known.first_seen, known.is_inbound);
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
        if is_inbound && !is_stale && (state != 6 || is_new) {
            self.evidence(source, local, local_port, now);
        }
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

    fn scans(&mut self) -> Vec<TwinScan> {
        let mut scans = Vec::new();
        for (source, watched) in &mut self.sources {
            if let Some(local) = watched.crossed.take() {
                watched.is_reported = true;
                scans.push(TwinScan {
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

    /// Listening now, or lately outside the ephemeral range.
    fn is_inbound(&self, local: IpAddr, port: u16, now: Instant) -> bool {
        let any = [
            local,
            IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        ];
        any.iter().any(|address| {
            self.listeners
                .get(&(*address, port))
                .is_some_and(|seen| *seen == now || (port < 32_768 && now.since(*seen) < MEMORY))
        })
    }
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
