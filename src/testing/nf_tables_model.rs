//! A small model of the kernel's nf_tables: batches and requests in; answers,
//! listings and events out, as Linux 6.18 writes them to sockets with
//! NETLINK_CAP_ACK. There is no table but ours; packets run through its rules.
//!
//! Not modelled: socket buffers (ENOBUFS, EMSGSIZE), dumps during which
//! something changes, NLM_F_EXCL, acknowledgements of a batch's end, handles,
//! and what else the kernel adds to the attributes a set, chain or rule was
//! made with.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::fake_proc::{self, NLMSG_DONE, attribute, octets};
use crate::address::Network;
use crate::kernel::Errno;
use crate::netlink::{
    Attributes, HEADER, Message, Messages, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NLMSG_ERROR,
    RECEIVE_BUFFER, address_of, header,
};
use crate::nf_tables::{Element, Set};
use crate::time::{Duration, Instant};

// NFT_MSG_* with NFNL_SUBSYS_NFTABLES (linux/netfilter/nf_tables.h).
const NEWTABLE: u16 = 0xa00;
const GETTABLE: u16 = 0xa01;
const DELTABLE: u16 = 0xa02;
const NEWCHAIN: u16 = 0xa03;
const DELCHAIN: u16 = 0xa05;
const NEWRULE: u16 = 0xa06;
const GETRULE: u16 = 0xa07;
const DELRULE: u16 = 0xa08;
const NEWSET: u16 = 0xa09;
const DELSET: u16 = 0xa0b;
const NEWSETELEM: u16 = 0xa0c;
const GETSETELEM: u16 = 0xa0d;
const DELSETELEM: u16 = 0xa0e;
const NEWGEN: u16 = 0xa0f;
const GETGEN: u16 = 0xa10;
const DESTROYSETELEM: u16 = 0xa1e;
const BATCH_BEGIN: u16 = libc::NFNL_MSG_BATCH_BEGIN as u16;
const BATCH_END: u16 = libc::NFNL_MSG_BATCH_END as u16;

const NLM_F_MULTI: u16 = 0x2;
const NLM_F_CAPPED: u16 = 0x100;
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_APPEND: u16 = 0x800;
const NFPROTO_INET: u8 = 1;
const NFT_TABLE_F_DORMANT: u32 = 1;
const NFT_SET_TIMEOUT: u32 = libc::NFT_SET_TIMEOUT as u32;

/// What a datagram of events holds (NLMSG_GOODSIZE where pages have 4 KiB).
const EVENTS: usize = 3_776;
/// When the collector has removed what timed out (nft_set_gc_interval).
const COLLECTION: Duration = Duration::from_secs(1);
/// Our table.
const NAME: &[u8] = b"tcpparser\0";
/// The socket and the process of other programs.
const FOREIGN: u32 = 0x1156;

type Bytes = Vec<u8>;

fn nest(kind: u16, attributes: &[Bytes]) -> Bytes {
    attribute(kind, &attributes.concat())
}

fn be32(kind: u16, number: u32) -> Bytes {
    attribute(kind, &number.to_be_bytes())
}

fn be64(kind: u16, number: u64) -> Bytes {
    attribute(kind, &number.to_be_bytes())
}

fn text(kind: u16, text: &str) -> Bytes {
    attribute(kind, &[text.as_bytes(), b"\0"].concat())
}

fn message(kind: u16, flags: u16, sequence: u32, port: u32, payload: &[u8]) -> Bytes {
    let mut bytes = fake_proc::message(kind, flags, &sequence.to_ne_bytes(), payload);
    bytes[12..16].copy_from_slice(&port.to_ne_bytes());
    bytes
}

/// An acknowledgement, or with an error's number a refusal.
fn acknowledgement(of: &Message, error: i32, port: u32) -> Bytes {
    let request = header(HEADER + of.payload.len(), of.kind, of.flags, of.sequence);
    let payload = [&(-error).to_ne_bytes()[..], &request].concat();
    message(NLMSG_ERROR, NLM_F_CAPPED, of.sequence, port, &payload)
}

/// Messages in datagrams of at most `most` bytes.
fn datagrams(messages: Vec<Bytes>, most: usize) -> Vec<Bytes> {
    let mut datagrams: Vec<Bytes> = Vec::new();
    for message in messages {
        match datagrams.last_mut() {
            Some(last) if last.len() + message.len() <= most => last.extend(message),
            _ => datagrams.push(message),
        }
    }
    datagrams
}

type Outcome<T> = Result<T, Errno>;

/// Attributes by their types.
struct Fields<'a>(BTreeMap<u16, &'a [u8]>);

impl<'a> Fields<'a> {
    fn of(bytes: &'a [u8]) -> Outcome<Self> {
        let found = Attributes::new(bytes).map(|found| found.map(|one| (one.kind, one.value)));
        let fields: Result<_, _> = found.collect();
        fields.map(Self).or(Err(Errno::EINVAL))
    }

    /// EINVAL where it is absent.
    fn get(&self, kind: u16) -> Outcome<&'a [u8]> {
        self.0.get(&kind).copied().ok_or(Errno::EINVAL)
    }

    fn number(&self, kind: u16) -> Outcome<u32> {
        let bytes = self.get(kind)?.try_into().or(Err(Errno::EINVAL))?;
        Ok(u32::from_be_bytes(bytes))
    }

    fn nested(&self, kind: u16) -> Outcome<Self> {
        Self::of(self.get(kind)?)
    }
}

/// Nests in a list: elements, or the expressions of a rule.
fn list(bytes: &[u8]) -> Outcome<Vec<Fields<'_>>> {
    let attributes = Attributes::new(bytes);
    let values = attributes.map(|one| one.or(Err(Errno::EINVAL)).map(|one| one.value));
    values.map(|value| Fields::of(value?)).collect()
}

/// A packet, and what rules loaded of it.
struct Packet {
    family: u8,
    protocol: u8,
    network_header: Bytes,
    registers: BTreeMap<u32, Bytes>,
}

impl Packet {
    fn new(source: IpAddr, protocol: u8) -> Self {
        let (family, length, offset) = match source {
            IpAddr::V4(_) => (libc::NFPROTO_IPV4, 20, 12),
            IpAddr::V6(_) => (libc::NFPROTO_IPV6, 40, 8),
        };
        let mut network_header = vec![0xa5; length];
        let source = octets(source);
        network_header[offset..][..source.len()].copy_from_slice(&source);
        Self {
            family: family as u8,
            protocol,
            network_header,
            registers: BTreeMap::new(),
        }
    }

    /// Runs one expression: whether the rule goes on, and the verdict, if it is
    /// one. An error is a rule that the kernel would not have taken.
    fn run(&mut self, expression: &Fields, table: &Table) -> Outcome<(bool, Option<u32>)> {
        let data = expression.nested(2)?;
        let number = |kind| data.number(kind);
        let value = |kind| data.nested(kind)?.get(1);
        let load = |packet: &Self, register: u32, length: usize| {
            let loaded = packet.registers.get(&register);
            let bytes = loaded.and_then(|loaded| loaded.get(..length));
            bytes.map(<[u8]>::to_vec).ok_or(Errno::EINVAL)
        };
        match expression.get(1)? {
            b"meta\0" => {
                let value = match number(2)? as i32 {
                    libc::NFT_META_NFPROTO => self.family,
                    libc::NFT_META_L4PROTO => self.protocol,
                    _ => return Err(Errno::EOPNOTSUPP),
                };
                self.registers.insert(number(1)?, vec![value]);
            }
            b"cmp\0" => {
                let is_equal = load(self, number(1)?, value(3)?.len())? == value(3)?;
                let wants_equal = number(2)? as i32 == libc::NFT_CMP_EQ;
                return Ok((is_equal == wants_equal, None));
            }
            b"payload\0" => {
                if number(2)? as i32 != libc::NFT_PAYLOAD_NETWORK_HEADER {
                    return Err(Errno::EOPNOTSUPP);
                }
                let (start, length) = (number(3)? as usize, number(4)? as usize);
                let Some(bytes) = self.network_header.get(start..start + length) else {
                    return Ok((false, None));
                };
                self.registers.insert(number(1)?, bytes.to_vec());
            }
            b"bitwise\0" => {
                let loaded = load(self, number(1)?, number(3)? as usize)?;
                let (mask, xor) = (value(4)?, value(5)?);
                let triples = loaded.iter().zip(mask).zip(xor);
                let result = triples.map(|((byte, mask), xor)| byte & mask ^ xor);
                self.registers.insert(number(2)?, result.collect());
            }
            b"lookup\0" => {
                let set = table.set(data.get(1)?)?;
                let key = load(self, number(2)?, set.key_length())?;
                return Ok((set.elements.contains_key(&key), None));
            }
            b"counter\0" => {}
            // Register 0 takes verdicts.
            b"immediate\0" if number(1)? == 0 => {
                let verdict = data.nested(2)?.nested(2)?.number(1)?;
                return Ok((false, Some(verdict)));
            }
            _ => return Err(Errno::ENOENT),
        }
        Ok((true, None))
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Member {
    timeout_ms: Option<u64>,
    end: Option<Instant>,
    userdata: Bytes,
}

impl Member {
    fn left_ms(&self, now: Instant) -> Option<u64> {
        let end = self.end?;
        Some(now.until(end).as_nanos() / 1_000_000)
    }

    fn write(&self, key: &[u8], now: Instant) -> Bytes {
        let mut attributes = vec![nest(1, &[attribute(1, key)])];
        attributes.extend(self.timeout_ms.map(|timeout| be64(4, timeout)));
        attributes.extend(self.left_ms(now).map(|left| be64(5, left)));
        if !self.userdata.is_empty() {
            attributes.push(attribute(6, &self.userdata));
        }
        nest(1, &attributes)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct ElementSet {
    /// As all names here, with its NUL.
    name: Bytes,
    /// Flags, the number nft has for the type of its keys, their length.
    kind: [u32; 3],
    size: usize,
    elements: BTreeMap<Bytes, Member>,
    /// When those timed out that the collector has not removed.
    ended: Vec<Instant>,
}

impl ElementSet {
    fn key_length(&self) -> usize {
        self.kind[2] as usize
    }

    /// Whether that changed anything.
    fn add(&mut self, key: &[u8], element: &Fields, now: Instant, lacks: Lacks) -> Outcome<bool> {
        let userdata = element.get(6).unwrap_or_default().to_vec();
        let timeout = element.get(4).unwrap_or(&[0; 8]).try_into();
        let timeout = u64::from_be_bytes(timeout.or(Err(Errno::EINVAL))?);
        let takes_timeouts = self.kind[0] & NFT_SET_TIMEOUT != 0;
        if key.len() != self.key_length() || timeout != 0 && !takes_timeouts {
            return Err(Errno::EINVAL);
        }
        // NFT_USERDATA_MAXLEN, and nanoseconds in 64 bits.
        if userdata.len() > 256 || timeout >= u64::MAX / 1_000_000 {
            return Err(Errno(libc::ERANGE));
        }
        let timeout_ms = Some(timeout).filter(|timeout| *timeout != 0);
        let end = timeout_ms.map(|timeout| now.after(Duration::from_millis(timeout)));
        if let Some(member) = self.elements.get_mut(key) {
            let is_update = !lacks.timeout_updates && member.timeout_ms != timeout_ms;
            if is_update {
                (member.timeout_ms, member.end) = (timeout_ms, end);
            }
            return Ok(is_update);
        }
        // One too many is there, too, for a deletion in the same batch.
        let member = Member {
            timeout_ms,
            end,
            userdata,
        };
        self.elements.insert(key.to_vec(), member);
        let is_full = self.elements.len() + self.ended.len() > self.size;
        (!is_full).then_some(true).ok_or(Errno::ENFILE)
    }

    fn expire(&mut self, now: Instant) {
        let ended = &mut self.ended;
        self.elements.retain(|_, member| {
            let end = member.end.filter(|end| *end <= now);
            ended.extend(end);
            end.is_none()
        });
        ended.retain(|end| end.after(COLLECTION) > now);
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct BaseChain {
    name: Bytes,
    /// Its number and priority.
    hook: [u32; 2],
    /// The expressions of each.
    rules: Vec<Bytes>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Table {
    family: u8,
    flags: u32,
    /// They change in this transaction.
    is_updated: bool,
    userdata: Option<Bytes>,
    sets: Vec<ElementSet>,
    chains: Vec<BaseChain>,
}

/// Message type and attributes.
type Event = (u16, Bytes);

/// Attributes: our table, a set or chain, and the rest.
fn in_table(name: &[u8], rest: &[u8]) -> Bytes {
    [&attribute(1, NAME), &attribute(2, name), rest].concat()
}

impl Table {
    fn set(&self, name: &[u8]) -> Outcome<&ElementSet> {
        let set = self.sets.iter().find(|set| set.name == name);
        set.ok_or(Errno::ENOENT)
    }

    fn set_mut(&mut self, name: &[u8]) -> Outcome<&mut ElementSet> {
        let set = self.sets.iter_mut().find(|set| set.name == name);
        set.ok_or(Errno::ENOENT)
    }

    fn write(&self) -> Bytes {
        let objects = self.sets.len() + self.chains.len();
        let mut attributes = vec![attribute(1, NAME), be32(3, objects as u32)];
        attributes.push(be32(2, self.flags));
        attributes.extend(self.userdata.iter().map(|userdata| attribute(6, userdata)));
        attributes.concat()
    }

    /// Of one chain, or of all.
    fn write_rules(&self, of: Option<&[u8]>) -> Vec<Bytes> {
        let chains = self
            .chains
            .iter()
            .filter(|chain| of.is_none_or(|name| chain.name == name));
        let pairs = chains.flat_map(|chain| chain.rules.iter().map(|rule| (&chain.name, rule)));
        pairs
            .map(|(name, rule)| in_table(name, &attribute(4, rule)))
            .collect()
    }

    fn new_set(&mut self, fields: &Fields, creates: bool) -> Outcome<()> {
        let name = fields.get(2)?;
        let kind = [fields.number(3)?, fields.number(4)?, fields.number(5)?];
        // The number by which rules of the same batch may name it is demanded.
        fields.number(10)?;
        match self.set(name) {
            Ok(set) if set.kind != kind => Err(Errno(libc::EEXIST)),
            Err(absent) if !creates => Err(absent),
            Ok(_) => Ok(()),
            Err(_) => {
                let size = fields.nested(9).and_then(|nest| nest.number(1));
                self.sets.push(ElementSet {
                    name: name.to_vec(),
                    kind,
                    size: size.unwrap_or(u32::MAX) as usize,
                    elements: BTreeMap::new(),
                    ended: Vec::new(),
                });
                Ok(())
            }
        }
    }

    fn new_chain(&mut self, fields: &Fields, creates: bool) -> Outcome<()> {
        let (name, hook) = (fields.get(3)?, fields.nested(4)?);
        let hook = [hook.number(1)?, hook.number(2)?];
        match self.chains.iter().find(|chain| chain.name == name) {
            Some(chain) if chain.hook != hook => Err(Errno::EOPNOTSUPP),
            None if !creates || fields.get(7)? != b"filter\0" => Err(Errno::ENOENT),
            None if self.is_updated => Err(Errno::EINVAL),
            Some(_) => Ok(()),
            None => {
                let (name, rules) = (name.to_vec(), Vec::new());
                self.chains.push(BaseChain { name, hook, rules });
                Ok(())
            }
        }
    }

    fn new_rule(&mut self, fields: &Fields, appends: bool) -> Outcome<()> {
        let (name, rule) = (fields.get(2)?, fields.get(4)?);
        // Every expression has to make sense behind those before it.
        let mut packet = Packet::new(IpAddr::from([0; 16]), 0);
        for expression in list(rule)? {
            packet.run(&expression, self)?;
        }
        let chain = self.chains.iter_mut().find(|chain| chain.name == name);
        let rules = &mut chain.ok_or(Errno::ENOENT)?.rules;
        rules.insert(if appends { rules.len() } else { 0 }, rule.to_vec());
        Ok(())
    }

    /// What deletes returns its events.
    fn delete_rules(&mut self, fields: &Fields) -> Outcome<Vec<Event>> {
        let name = fields.get(2).ok();
        let rules = self.write_rules(name).into_iter();
        let mut count = 0;
        for chain in &mut self.chains {
            if name.is_none_or(|name| chain.name == name) {
                chain.rules.clear();
                count += 1;
            }
        }
        let is_there = count > 0 || name.is_none();
        let events = is_there.then(|| rules.map(|rule| (DELRULE, rule)).collect());
        events.ok_or(Errno::ENOENT)
    }

    fn change_elements(
        &mut self,
        kind: u16,
        fields: &Fields,
        now: Instant,
        lacks: Lacks,
    ) -> Outcome<Vec<Event>> {
        let mut events = Vec::new();
        let name = fields.get(2)?;
        for element in list(fields.get(3)?)? {
            let key = element.nested(1)?.get(1)?;
            let set = self.set_mut(name)?;
            let (event, changed) = if kind == NEWSETELEM {
                let is_change = set.add(key, &element, now, lacks)?;
                (kind, set.elements.get(key).filter(|_| is_change).cloned())
            } else {
                (DELSETELEM, set.elements.remove(key))
            };
            if changed.is_none() && kind == DELSETELEM {
                return Err(Errno::ENOENT);
            }
            let list = changed.map(|member| nest(3, &[member.write(key, now)]));
            events.extend(list.map(|list| (event, in_table(name, &list))));
        }
        Ok(events)
    }

    /// Of its end and of what ends with it, but for elements.
    fn end(&self) -> Vec<Event> {
        let chain = |chain: &BaseChain| {
            let names = [attribute(1, NAME), attribute(3, &chain.name)];
            (DELCHAIN, names.concat())
        };
        let set = |set: &ElementSet| (DELSET, in_table(&set.name, &[]));
        let rules = self.write_rules(None).into_iter();
        let rules = rules.map(|rule| (DELRULE, rule));
        let (sets, chains) = (self.sets.iter().map(set), self.chains.iter().map(chain));
        let inside = rules.chain(sets).chain(chains);
        inside.chain([(DELTABLE, attribute(1, NAME))]).collect()
    }

    fn drops(&self, chain: &BaseChain, mut packet: Packet) -> Outcome<bool> {
        for rule in &chain.rules {
            for expression in list(rule)? {
                match packet.run(&expression, self)? {
                    // NF_DROP
                    (_, Some(verdict)) => return Ok(verdict == 0),
                    (false, None) => break,
                    (true, None) => {}
                }
            }
        }
        Ok(false)
    }
}

/// What a kernel, or the process, does not have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lacks {
    pub nf_tables: bool,
    /// Tables of that family: a kernel without IPv6.
    pub inet: bool,
    /// DESTROYSETELEM, of Linux 6.3.
    pub destroy: bool,
    /// Of 6.12: adding what is there changes its timeout.
    pub timeout_updates: bool,
    /// User data of tables, of 5.10.
    pub comments: bool,
    /// CAP_NET_ADMIN; other programs have it.
    pub permission: bool,
}

/// nf_tables of a network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NfTables {
    pub lacks: Lacks,
    /// What the other program is called.
    pub program: &'static str,
    table: Option<Table>,
    generation: u32,
    events: Vec<Bytes>,
    now: Instant,
}

/// Type, flags, sequence number and port of a message.
type Head = (u16, u16, u32, u32);

impl NfTables {
    pub fn new() -> Self {
        Self {
            lacks: Lacks::default(),
            program: "nft",
            table: None,
            generation: 1,
            events: Vec::new(),
            now: Instant::from_nanos(0),
        }
    }

    /// What one send(2) does: a batch, or a request. Returns the datagrams that
    /// can be received then.
    pub fn request(&mut self, bytes: &[u8], port: u32, program: &str, now: Instant) -> Vec<Bytes> {
        self.expire(now);
        let messages: Result<Vec<_>, _> = Messages::new(bytes).collect();
        let Ok([first, rest @ ..]) = messages.as_deref() else {
            return Vec::new();
        };
        let is_batch = first.kind == BATCH_BEGIN;
        let result = if self.lacks.permission {
            Err(Errno::EPERM)
        } else if self.lacks.nf_tables {
            Err(if is_batch {
                Errno::EOPNOTSUPP
            } else {
                Errno::EINVAL
            })
        } else if is_batch {
            Ok(self.batch(rest, port, program))
        } else {
            self.answer(first, port, program)
        };
        result.unwrap_or_else(|error| vec![acknowledgement(first, error.0, port)])
    }

    /// All or nothing, which its acknowledgements do not say: they are of each
    /// message.
    fn batch(&mut self, messages: &[Message], port: u32, program: &str) -> Vec<Bytes> {
        let mut changed = self.clone();
        changed.generation = self.next_generation();
        let (mut answers, mut events, mut is_good) = (Vec::new(), Vec::new(), true);
        let is_command = |message: &&Message| message.kind != BATCH_END;
        for message in messages.iter().take_while(is_command) {
            let result = changed.command(message);
            let error = result.as_ref().err().map_or(0, |error| error.0);
            is_good &= error == 0;
            if error != 0 || message.flags & NLM_F_ACK != 0 {
                answers.push(acknowledgement(message, error, port));
            }
            let flags = message.flags & (NLM_F_CREATE | NLM_F_APPEND);
            for (kind, attributes) in result.unwrap_or_default() {
                let is_element = matches!(kind, NEWSETELEM | DELSETELEM);
                let sequence = if is_element { 0 } else { message.sequence };
                let head = (kind, flags, sequence, port);
                events.push(changed.object(head, message.payload[0], &attributes));
            }
        }
        let is_ended = !messages.iter().all(|message| is_command(&message));
        if is_good && is_ended && !events.is_empty() {
            *self = changed;
            self.table
                .iter_mut()
                .for_each(|table| table.is_updated = false);
            self.report(events, (NEWGEN, 0, messages[0].sequence, port), program);
        }
        answers
    }

    fn next_generation(&self) -> u32 {
        self.generation.checked_add(1).unwrap_or(1)
    }

    fn report(&mut self, events: Vec<Bytes>, end: Head, program: &str) {
        self.events.extend(datagrams(events, EVENTS));
        self.events.push(self.write_generation(end, program));
    }

    /// A message with its struct nfgenmsg.
    fn object(&self, head: Head, family: u8, attributes: &[u8]) -> Bytes {
        let (kind, flags, sequence, port) = head;
        let [high, low] = (self.generation as u16).to_be_bytes();
        let payload = [&[family, 0, high, low], attributes].concat();
        message(kind, flags, sequence, port, &payload)
    }

    /// The process has the number of its socket.
    fn write_generation(&self, head: Head, program: &str) -> Bytes {
        let attributes = [be32(1, self.generation), be32(2, head.3), text(3, program)];
        self.object(head, 0, &attributes.concat())
    }

    fn command(&mut self, message: &Message) -> Outcome<Vec<Event>> {
        let (head, body) = message.payload.split_at_checked(4).ok_or(Errno::EINVAL)?;
        let (fields, now, lacks) = (Fields::of(body)?, self.now, self.lacks);
        let creates = message.flags & NLM_F_CREATE != 0;
        if message.kind == NEWTABLE && fields.get(1)? == NAME {
            return self.new_table(head[0], &fields);
        }
        let is_ours = |table: &&mut Table| table.family == head[0] && fields.get(1) == Ok(NAME);
        let table = self.table.as_mut().filter(is_ours).ok_or(Errno::ENOENT)?;
        match message.kind {
            DELTABLE => {
                let events = table.end();
                self.table = None;
                return Ok(events);
            }
            DELRULE => return table.delete_rules(&fields),
            DESTROYSETELEM if lacks.destroy => return Err(Errno::EINVAL),
            NEWSETELEM | DELSETELEM | DESTROYSETELEM => {
                return table.change_elements(message.kind, &fields, now, lacks);
            }
            NEWSET => table.new_set(&fields, creates)?,
            NEWCHAIN => table.new_chain(&fields, creates)?,
            NEWRULE if creates => table.new_rule(&fields, message.flags & NLM_F_APPEND != 0)?,
            _ => return Err(Errno::EINVAL),
        }
        // It is reported as it was asked for.
        Ok(vec![(message.kind, body.to_vec())])
    }

    fn new_table(&mut self, family: u8, fields: &Fields) -> Outcome<Vec<Event>> {
        if self.lacks.inet && family == NFPROTO_INET {
            return Err(Errno::EOPNOTSUPP);
        }
        let flags = fields.number(2)?;
        let userdata = fields.get(6).ok().filter(|_| !self.lacks.comments);
        let is_new = self.table.is_none();
        let table = self.table.get_or_insert_with(|| Table {
            family,
            flags,
            is_updated: false,
            userdata: userdata.map(<[u8]>::to_vec),
            sets: Vec::new(),
            chains: Vec::new(),
        });
        table.is_updated |= table.flags != flags;
        let is_change = is_new || table.flags != flags;
        table.flags = flags;
        let event = (NEWTABLE, table.write());
        Ok(is_change.then_some(event).into_iter().collect())
    }

    fn answer(&self, request: &Message, port: u32, program: &str) -> Outcome<Vec<Bytes>> {
        let (head, body) = request.payload.split_at_checked(4).ok_or(Errno::EINVAL)?;
        let fields = Fields::of(body)?;
        let is_ours = |table: &&Table| table.family == head[0] && fields.get(1) == Ok(NAME);
        let table = self.table.as_ref().filter(is_ours).ok_or(Errno::ENOENT);
        let head_of = |kind, flags| (kind, flags, request.sequence, port);
        let object =
            |kind, flags, attributes: &[u8]| self.object(head_of(kind, flags), head[0], attributes);
        let done = message(NLMSG_DONE, NLM_F_MULTI, request.sequence, port, &[0; 4]);
        let is_dump = request.flags & NLM_F_DUMP == NLM_F_DUMP;
        match (request.kind, is_dump) {
            (GETGEN, false) => Ok(vec![self.write_generation(head_of(NEWGEN, 0), program)]),
            (GETTABLE, false) => Ok(vec![object(NEWTABLE, 0, &table?.write())]),
            (GETRULE, true) => {
                // None where there is no such chain or table.
                let rules = table.map_or(Vec::new(), |table| table.write_rules(fields.get(2).ok()));
                let flags = NLM_F_MULTI | NLM_F_APPEND;
                let rules = rules
                    .iter()
                    .map(|rule| object(NEWRULE, flags, rule))
                    .collect();
                Ok([datagrams(rules, RECEIVE_BUFFER), vec![done]].concat())
            }
            (GETSETELEM, true) => {
                let set = table?.set(fields.get(2)?)?;
                let part = |elements: &[u8]| {
                    let list = in_table(&set.name, &attribute(3, elements));
                    object(NEWSETELEM, NLM_F_MULTI, &list)
                };
                let members = set.elements.iter();
                let elements = members
                    .map(|(key, member)| member.write(key, self.now))
                    .collect();
                let parts = datagrams(elements, RECEIVE_BUFFER - part(&[]).len());
                let parts = parts.iter().map(|elements| part(elements));
                // One without any comes last.
                Ok(parts.chain([[part(&[]), done].concat()]).collect())
            }
            _ => Err(Errno::EINVAL),
        }
    }

    /// Tells the time. Elements time out, and no event says so.
    pub fn expire(&mut self, now: Instant) {
        self.now = now;
        let sets = self.table.iter_mut().flat_map(|table| &mut table.sets);
        sets.for_each(|set| set.expire(now));
    }

    /// The datagrams for NFNLGRP_NFTABLES since the last call.
    pub fn take_events(&mut self) -> Vec<Bytes> {
        std::mem::take(&mut self.events)
    }

    /// Whether that becomes of a packet of a TCP connection.
    pub fn drops(&self, source: IpAddr, is_forwarded: bool) -> bool {
        self.drops_protocol(source, is_forwarded, libc::IPPROTO_TCP)
    }

    pub fn drops_protocol(&self, source: IpAddr, is_forwarded: bool, protocol: i32) -> bool {
        // NF_INET_LOCAL_IN and NF_INET_FORWARD.
        let hook = if is_forwarded { 2 } else { 1 };
        let packet = || Packet::new(source, protocol as u8);
        let is_met = |table: &&Table| {
            let is_family = [NFPROTO_INET, packet().family].contains(&table.family);
            is_family && table.flags & NFT_TABLE_F_DORMANT == 0
        };
        self.table.iter().filter(is_met).any(|table| {
            let mut chains = table.chains.iter().filter(|chain| chain.hook[0] == hook);
            chains.any(|chain| table.drops(chain, packet()).unwrap())
        })
    }

    /// What our sets hold.
    pub fn elements(&self) -> Vec<Element<'_>> {
        let mut elements = Vec::new();
        let sets = self.table.iter().flat_map(|table| &table.sets);
        for (of, set) in sets.flat_map(|of| Set::ALL.map(|set| (of, set))) {
            let bits = match set {
                _ if of.name != terminated(set.name()) => continue,
                Set::Drop4 | Set::Host4 => 32,
                Set::Drop6 | Set::Host6 => 128,
                Set::Net64 => 64,
                Set::Net56 => 56,
                Set::Net48 => 48,
            };
            elements.extend(of.elements.iter().map(|(key, member)| Element {
                set,
                source: Network::new(address_of(key).unwrap(), bits),
                left_ms: member.left_ms(self.now),
                comment: match &member.userdata[..] {
                    [0, _, comment @ .., 0] => comment,
                    _ => &[],
                },
            }));
        }
        elements
    }

    pub fn is_there(&self) -> bool {
        self.table.is_some()
    }
}

/// What other programs do to our table; false where the kernel refuses.
impl NfTables {
    /// A command of nft(8).
    fn nft(&mut self, kind: u16, flags: u16, attributes: &[Bytes]) -> bool {
        let boundary = |kind| message(kind, NLM_F_REQUEST, 0, 0, &[0, 0, 0, 10]);
        let family = self.table.as_ref().map(|table| table.family);
        let inet = if self.lacks.inet { 2 } else { NFPROTO_INET };
        let head = [family.unwrap_or(inet), 0, 0, 0];
        let payload = [&head, &attribute(1, NAME)[..], &attributes.concat()].concat();
        let command = message(kind, flags | NLM_F_REQUEST, 1, 0, &payload);
        let bytes = [boundary(BATCH_BEGIN), command, boundary(BATCH_END)].concat();
        let lacks = self.lacks;
        self.lacks.permission = false;
        let answers = self.request(&bytes, FOREIGN, self.program, self.now);
        self.lacks = lacks;
        answers.is_empty()
    }

    /// As `nft flush ruleset` does, too.
    pub fn delete_table(&mut self) -> bool {
        self.nft(DELTABLE, 0, &[])
    }

    /// `nft flush table`: its rules.
    pub fn flush_table(&mut self) -> bool {
        self.nft(DELRULE, 0, &[])
    }

    /// Makes it with that comment, or makes it dormant, or no longer.
    pub fn add_table(&mut self, comment: &str, is_dormant: bool) -> bool {
        let flags = be32(2, u32::from(is_dormant));
        self.nft(
            NEWTABLE,
            NLM_F_CREATE,
            &[flags, userdata(comment.as_bytes())],
        )
    }

    pub fn add_chain(&mut self, name: &str, hook: u32, priority: i32) -> bool {
        let hook = nest(4, &[be32(1, hook), be32(2, priority as u32)]);
        let attributes = [text(3, name), hook, be32(5, 1), text(7, "filter")];
        self.nft(NEWCHAIN, NLM_F_CREATE, &attributes)
    }

    /// A set of IPv4 addresses.
    pub fn add_set(&mut self, name: &str, has_timeouts: bool) -> bool {
        let flags = if has_timeouts { NFT_SET_TIMEOUT } else { 0 };
        let numbers = [be32(3, flags), be32(4, 7), be32(5, 4), be32(10, 1)];
        self.nft(NEWSET, NLM_F_CREATE, &[text(2, name), numbers.concat()])
    }

    /// A rule that counts packets.
    pub fn add_rule(&mut self, chain: &str) -> bool {
        let counter = nest(1, &[text(1, "counter"), nest(2, &[])]);
        let attributes = [text(2, chain), nest(4, &[counter])];
        self.nft(NEWRULE, NLM_F_CREATE | NLM_F_APPEND, &attributes)
    }

    pub fn add_element(&mut self, element: &Element) -> bool {
        let timeout = element.left_ms.map_or(Vec::new(), |left| be64(4, left));
        let rest = [timeout, userdata(element.comment)].concat();
        let list = element_list(element.set, element.source, rest);
        self.nft(NEWSETELEM, NLM_F_CREATE, &list)
    }

    pub fn delete_element(&mut self, set: Set, source: Network) -> bool {
        self.nft(DELSETELEM, 0, &element_list(set, source, Vec::new()))
    }

    /// Another table's load of that many elements.
    pub fn load_other(&mut self, count: u32) {
        self.generation = self.next_generation();
        let event = |number| {
            let element = nest(1, &[nest(1, &[be32(1, number)])]);
            let attributes = [text(1, "other"), text(2, "list"), nest(3, &[element])];
            let head = (NEWSETELEM, NLM_F_CREATE, 0, FOREIGN);
            self.object(head, NFPROTO_INET, &attributes.concat())
        };
        let events = (0..count).map(event).collect();
        self.report(events, (NEWGEN, 0, 1, FOREIGN), "nft");
    }
}

fn element_list(set: Set, source: Network, rest: Bytes) -> [Bytes; 2] {
    let key = nest(1, &[attribute(1, &octets(source.address()))]);
    let list = nest(3, &[nest(1, &[key, rest])]);
    [attribute(2, &terminated(set.name())), list]
}

/// User data that is a comment, of a table or an element.
fn userdata(comment: &[u8]) -> Bytes {
    let length = comment.len() as u8 + 1;
    attribute(6, &[&[0, length], comment, b"\0"].concat())
}

fn terminated(name: &[u8]) -> Bytes {
    [name, b"\0"].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::{Failure, Progress};
    use crate::nf_tables::{
        Answer, Batch, Chain, Elements, Event, Owner, Question, Removal, TableFamily, count_rules,
        generation_answer, table_answer, walk_events,
    };
    use crate::text::Text;

    const INET: TableFamily = TableFamily::Inet;
    const PORT: u32 = 0x10bf;
    const NOW: Instant = Instant::from_nanos(1_000_000_000);

    fn after(milliseconds: u64) -> Instant {
        NOW.after(Duration::from_millis(milliseconds))
    }

    fn batch(family: TableFamily, fill: impl FnOnce(&mut Batch)) -> Bytes {
        let mut buffer = Box::new(Text::<32_768>::new());
        let mut batch = Batch::begin(&mut buffer, family, 1);
        fill(&mut batch);
        batch.end();
        buffer.as_bytes().to_vec()
    }

    fn element<'a>(source: &str, left_ms: Option<u64>, comment: &'a str) -> Element<'a> {
        let source = Network::parse(source.as_bytes()).unwrap();
        Element {
            set: Set::of(source, false).unwrap(),
            source,
            left_ms,
            comment: comment.as_bytes(),
        }
    }

    /// Success, and the errors with their messages' numbers.
    type Outcome = (bool, Vec<(u32, i32)>);

    fn ask(kernel: &mut NfTables, bytes: &[u8]) -> Vec<Bytes> {
        kernel.request(bytes, PORT, "python3", kernel.now)
    }

    fn request_for(question: Question, family: TableFamily, sequence: u32) -> Text<72> {
        let mut out = Text::new();
        question.put(&mut out, family, sequence);
        out
    }

    fn send(kernel: &mut NfTables, bytes: &[u8]) -> Outcome {
        let (mut answer, mut errors) = (Answer::default(), Vec::new());
        for datagram in ask(kernel, bytes) {
            let mut each = |sequence, error: Errno| errors.push((sequence, error.0));
            answer.read(&datagram, &(1..999), &mut each);
        }
        (answer.is_success(), errors)
    }

    fn good() -> Outcome {
        (true, Vec::new())
    }

    fn bad(sequence: u32, error: i32) -> Outcome {
        (false, vec![(sequence, error)])
    }

    fn add(kernel: &mut NfTables, one: &Element) -> Outcome {
        send(kernel, &batch(INET, |batch| assert!(batch.add(one))))
    }

    fn remove(kernel: &mut NfTables, one: &Element, removal: Removal) -> Outcome {
        let fill = |batch: &mut Batch| assert!(batch.remove(one.set, one.source, removal));
        send(kernel, &batch(INET, fill))
    }

    fn set_up() -> NfTables {
        let mut kernel = NfTables::new();
        kernel.expire(NOW);
        let bytes = batch(INET, |batch| batch.set_up());
        assert_eq!(send(&mut kernel, &bytes), good());
        kernel
    }

    fn hex(text: &str) -> Bytes {
        let digits: String = text.split_whitespace().collect();
        let byte = |at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap();
        (0..digits.len()).step_by(2).map(byte).collect()
    }

    /// What Linux 6.18 answered to the same, and reported of nft's command.
    #[test]
    #[cfg(target_endian = "little")]
    fn recorded_answers() {
        let mut kernel = set_up();
        let one = element("192.0.2.9", Some(600_000), "tcpparser v1 x");
        let bytes = batch(INET, |batch| assert!(batch.add(&one)));
        // The first of three messages, which is acknowledged as the last is.
        let mut bytes = [&bytes[..124], &bytes[bytes.len() - 20..]].concat();
        bytes[26] |= NLM_F_ACK as u8;
        kernel.generation = 0x5e;
        let acknowledged = "24000000 02000001 02000000 bf100000 00000000 68000000 0c0a0504
            02000000 00000000";
        assert_eq!(ask(&mut kernel, &bytes), [hex(acknowledged)]);
        kernel.expire(after(16));
        let listed = "74000000 0c0a0200 09000000 bf100000 0100005f 0e000100 74637070 61727365
            72000000 0a000200 64726f70 34000000 44000300 40000100 0c000100 08000100 c0000209
            0c000400 00000000 000927c0 0c000500 00000000 000927b0 15000600 000f7463 70706172
            73657220 76312078 00000000";
        let end = "34000000 0c0a0200 09000000 bf100000 0100005f 0e000100 74637070 61727365
            72000000 0a000200 64726f70 34000000 04000300 14000000 03000200 09000000 bf100000
            00000000";
        let request = request_for(Question::Elements(Set::Drop4), INET, 9);
        assert_eq!(
            ask(&mut kernel, request.as_bytes()),
            [hex(listed), hex(end)]
        );
        let generation = "30000000 0f0a0000 0b000000 bf100000 0000005f 08000100 0000005f
            08000200 000010bf 0c000300 70797468 6f6e3300";
        let request = request_for(Question::Generation, INET, 11);
        assert_eq!(ask(&mut kernel, request.as_bytes()), [hex(generation)]);
        kernel.take_events();
        kernel.expire(after(24));
        assert!(kernel.delete_element(one.set, one.source));
        let deleted = "74000000 0e0a0000 00000000 56110000 01000060 0e000100 74637070 61727365
            72000000 0a000200 64726f70 34000000 44000300 40000100 0c000100 08000100 c0000209
            0c000400 00000000 000927c0 0c000500 00000000 000927a8 15000600 000f7463 70706172
            73657220 76312078 00000000";
        let committed = "2c000000 0f0a0000 01000000 56110000 00000060 08000100 00000060
            08000200 00001156 08000300 6e667400";
        assert_eq!(kernel.take_events(), [hex(deleted), hex(committed)]);
        assert!(kernel.delete_table());
        let absent = "24000000 02000001 0a000000 bf100000 feffffff 30000000 0d0a0103 0a000000
            00000000";
        let request = request_for(Question::Elements(Set::Drop4), INET, 10);
        assert_eq!(ask(&mut kernel, request.as_bytes()), [hex(absent)]);
    }

    /// Type, flags, family and the first two attributes of a message.
    fn outline(message: &Message) -> (u16, u16, u8, Vec<Bytes>) {
        let all = Attributes::new(message.payload.get(4..).unwrap_or_default());
        // Then a handle follows, or a number of a process.
        let count = if [DELTABLE, NEWGEN].contains(&message.kind) {
            1
        } else {
            2
        };
        let names = all.take(count).map(|one| one.unwrap().value.to_vec());
        (
            message.kind,
            message.flags,
            message.payload[0],
            names.collect(),
        )
    }

    fn assert_alike(datagrams: &[Bytes], recorded: &[u8]) {
        let outlines = |bytes: &[u8]| -> Vec<_> {
            let messages = Messages::new(bytes).map(Result::unwrap);
            messages.map(|message| outline(&message)).collect()
        };
        assert_eq!(outlines(&datagrams.concat()), outlines(recorded));
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn recorded_rules_and_events() {
        let mut kernel = set_up();
        let request = request_for(Question::Rules(Chain::Input), INET, 7);
        let answers = ask(&mut kernel, request.as_bytes());
        assert_eq!(answers.len(), 2, "the end comes alone");
        assert_alike(&answers, include_bytes!("nf_tables/rules.bin"));
        kernel.take_events();
        kernel.generation = 24;
        assert!(kernel.delete_table());
        let recorded = include_bytes!("nf_tables/flush_ruleset.bin");
        assert_alike(&kernel.take_events(), recorded);
    }

    /// Of each set.
    const SOURCES: &str = "192.0.2.9 2001:db8::9 2001:db8:1:2::/64 2001:db8:2:300::/56
        2001:db8:3::/48 192.0.2.7 2001:db8::7";
    /// In each, and just beside.
    const PACKETS: &str = "192.0.2.9 2001:db8::9 2001:db8:1:2::5 2001:db8:2:3ff::5
        2001:db8:3:ffff::5 192.0.2.7 2001:db8::7 192.0.2.8 2001:db8::8 2001:db8:1:3::5
        2001:db8:2:400::5 2001:db8:4::5";

    fn blocked() -> NfTables {
        let mut kernel = set_up();
        for (source, set) in SOURCES.split_whitespace().zip(Set::ALL) {
            let one = Element {
                set,
                ..element(source, None, "")
            };
            assert_eq!(add(&mut kernel, &one), good());
        }
        kernel
    }

    /// How many of `PACKETS` are dropped here, and how many are not forwarded.
    fn dropped(kernel: &NfTables) -> [usize; 2] {
        [false, true].map(|is_forwarded| {
            let drops = |source: &&str| kernel.drops(source.parse().unwrap(), is_forwarded);
            PACKETS.split_whitespace().filter(drops).count()
        })
    }

    #[test]
    fn packets() {
        let mut kernel = blocked();
        for (source, at) in PACKETS.split_whitespace().zip(0..) {
            let source = source.parse().unwrap();
            let drops = [false, true].map(|is_forwarded| kernel.drops(source, is_forwarded));
            assert_eq!(drops, [at < 7, at < 5], "{source}");
        }
        let neighbour = "2001:db8::7".parse().unwrap();
        assert!(!kernel.drops_protocol(neighbour, false, libc::IPPROTO_ICMPV6));
        let single = "2001:db8::9".parse().unwrap();
        assert!(kernel.drops_protocol(single, false, libc::IPPROTO_ICMPV6));
        assert!(kernel.add_table("", true));
        assert_eq!(dropped(&kernel), [0, 0], "dormant");
        assert!(kernel.add_table("", false));
        assert_eq!(dropped(&kernel), [7, 5]);
        assert!(kernel.flush_table());
        assert_eq!((dropped(&kernel), kernel.elements().len()), ([0, 0], 7));
        let bytes = batch(INET, |batch| batch.set_up());
        assert_eq!(send(&mut kernel, &bytes), good());
        assert_eq!(dropped(&kernel), [7, 5]);
        assert!(kernel.delete_table());
        assert_eq!((dropped(&kernel), kernel.is_there()), ([0, 0], false));
    }

    /// Rules that say something else are refused, or drop something else.
    #[test]
    fn wrong_rules_show() {
        let right = batch(INET, |batch| batch.set_up());
        let replace = |from: &[u8], to: &[u8]| {
            let mut bytes = right.clone();
            for at in 0..=bytes.len() - from.len() {
                if bytes[at..].starts_with(from) {
                    bytes[at..][..to.len()].copy_from_slice(to);
                }
            }
            assert_ne!(bytes, right);
            bytes
        };
        let mask = |ones| [vec![0xff; ones], vec![0; 16 - ones]].concat();
        let family = |family| attribute(1, &[family]);
        let verdict = |code| nest(0x8002, &[be32(1, code)]);
        for (from, to, expected) in [
            // Where the source stands in an IPv4 header, then in an IPv6 header.
            (be32(3, 12), be32(3, 16), [5, 4]),
            (be32(3, 8), be32(3, 24), [2, 1]),
            (mask(6), mask(7), [6, 4]),
            (family(2), family(10), [5, 4]),
            (attribute(1, b"drop6\0"), attribute(1, b"net48\0"), [6, 4]),
            (verdict(0), verdict(1), [0, 0]),
        ] {
            let mut kernel = blocked();
            send(&mut kernel, &replace(&from, &to));
            assert_eq!(dropped(&kernel), expected, "{to:?}");
        }
    }

    /// Good, bad, good, bad, good: nothing is done, all that is bad is named,
    /// and what is good is acknowledged.
    #[test]
    fn all_or_nothing() {
        let mut kernel = set_up();
        let one = element("192.0.2.9", None, "");
        let bytes = batch(INET, |batch| {
            for source in ["192.0.2.1", "192.0.2.2"] {
                assert!(batch.add(&one));
                assert!(batch.remove(one.set, element(source, None, "").source, Removal::Delete));
            }
            assert!(batch.add(&one));
        });
        let before = kernel.clone();
        let expected = (false, vec![(3, libc::ENOENT), (5, libc::ENOENT)]);
        assert_eq!(send(&mut kernel, &bytes), expected);
        assert_eq!(kernel, before);
        assert_eq!(ask(&mut kernel, &bytes).len(), 3);
        // Without its end a good batch is acknowledged, and nothing is done.
        let good_one = batch(INET, |batch| assert!(batch.add(&one)));
        let unended = &good_one[..good_one.len() - 20];
        assert_eq!(send(&mut kernel, unended), good());
        assert_eq!(kernel, before);
        assert_eq!(send(&mut kernel, &good_one), good());
        assert_eq!(kernel.elements().len(), 1);
        // The set-up goes again and again, and elements stay.
        let bytes = batch(INET, |batch| batch.set_up());
        for _ in 0..2 {
            assert_eq!(send(&mut kernel, &bytes), good());
            let mut count = 0;
            let request = request_for(Question::Rules(Chain::Forward), INET, 7);
            let answers = ask(&mut kernel, request.as_bytes());
            assert_eq!(
                count_rules(&answers.concat(), 7, &mut count),
                Progress::Done
            );
            assert_eq!((count, kernel.elements().len()), (5, 1));
        }
    }

    /// To the millisecond, and without an event; then a deletion is an error.
    #[test]
    fn elements_time_out() {
        let mut kernel = set_up();
        let one = element("2001:db8:1:2::/64", Some(10_000), "tcpparser v1");
        assert_eq!(add(&mut kernel, &one), good());
        kernel.take_events();
        let address = "2001:db8:1:2::5".parse().unwrap();
        for (now, left) in [(9_999, Some(1)), (10_000, None)] {
            kernel.expire(after(now));
            let listed = left.map(|left| Element {
                left_ms: Some(left),
                ..one
            });
            assert_eq!(kernel.elements(), listed.into_iter().collect::<Vec<_>>());
            assert_eq!(kernel.drops(address, true), left.is_some());
        }
        let before = kernel.clone();
        let gone = bad(2, libc::ENOENT);
        assert_eq!(remove(&mut kernel, &one, Removal::Delete), gone);
        assert_eq!(remove(&mut kernel, &one, Removal::Destroy), good());
        assert_eq!(kernel, before);
        kernel.lacks.destroy = true;
        let unknown = bad(2, libc::EINVAL);
        assert_eq!(remove(&mut kernel, &one, Removal::Destroy), unknown);
    }

    /// What timed out counts until the collector ran.
    #[test]
    fn a_full_set() {
        let mut kernel = set_up();
        kernel.table.as_mut().unwrap().sets[0].size = 2;
        for source in ["192.0.2.1", "192.0.2.2", "192.0.2.2"] {
            let one = element(source, Some(100), "");
            assert_eq!(add(&mut kernel, &one), good(), "{source}");
        }
        let full = (false, vec![(2, libc::ENFILE); 2]);
        for (now, expected) in [(0, full.clone()), (1_099, full), (1_100, good())] {
            kernel.expire(after(now));
            let third = element("192.0.2.3", Some(100), "");
            assert_eq!(add(&mut kernel, &third), expected);
        }
    }

    /// Adding what is there leaves the comment, and before Linux 6.12 the
    /// timeout; with the same timeout it does nothing at all.
    #[test]
    fn elements_added_again() {
        for (timeout_updates, left_ms) in [(false, Some(7_000)), (true, Some(5_000))] {
            let mut kernel = set_up();
            kernel.lacks.timeout_updates = timeout_updates;
            let old = element("192.0.2.9", Some(5_000), "old");
            let new = element("192.0.2.9", Some(7_000), "new");
            assert!(kernel.add_element(&old));
            assert!(kernel.add_element(&new));
            assert_eq!(kernel.elements(), [Element { left_ms, ..old }]);
            kernel.expire(after(1_000));
            let before = kernel.clone();
            assert!(kernel.add_element(if timeout_updates { &old } else { &new }));
            assert_eq!(kernel, before);
            assert_eq!(add(&mut kernel, &new), good());
            assert_eq!(kernel.elements(), [new]);
        }
        let mut kernel = set_up();
        for (left, comment) in [(1_000 * 365 * 86_400_000, "x".into()), (1, "x".repeat(254))] {
            let odd = element("192.0.2.9", Some(left), &comment);
            assert!(!kernel.add_element(&odd), "ERANGE");
        }
    }

    /// What cannot be changed, and the cure.
    #[test]
    fn odd_tables() {
        type Trap = fn(&mut NfTables) -> bool;
        let traps: [(Trap, u32, i32); 3] = [
            (
                |kernel| kernel.add_chain("input", 1, 0),
                10,
                libc::EOPNOTSUPP,
            ),
            (
                |kernel| kernel.add_chain("input", 2, -10),
                10,
                libc::EOPNOTSUPP,
            ),
            (|kernel| kernel.add_set("drop4", false), 3, libc::EEXIST),
        ];
        for (trap, sequence, error) in traps {
            let mut kernel = NfTables::new();
            assert!(kernel.add_table("mine", false) && trap(&mut kernel));
            let state = |kernel: &mut NfTables| {
                let answers = ask(kernel, request_for(Question::Table, INET, 7).as_bytes());
                table_answer(&answers[0], 7).map(|table| (table.owner, table.objects))
            };
            assert_eq!(state(&mut kernel), Ok((Owner::Other, 1)));
            let bytes = batch(INET, |batch| batch.set_up());
            assert_eq!(send(&mut kernel, &bytes), bad(sequence, error));
            let bytes = batch(INET, |batch| {
                batch.delete_table();
                batch.set_up();
            });
            assert_eq!(send(&mut kernel, &bytes), good());
            assert_eq!(state(&mut kernel), Ok((Owner::Ours, 9)));
            assert!(kernel.add_set("mine", true) && kernel.add_rule("input"));
            assert_eq!(state(&mut kernel), Ok((Owner::Ours, 10)));
            assert!(!kernel.add_rule("output"));
            assert!(kernel.delete_table() && !kernel.delete_table());
            assert_eq!(state(&mut kernel), Err(Errno::ENOENT));
        }
    }

    /// One transaction does not wake a dormant table and give it chains.
    #[test]
    fn a_dormant_table_without_chains() {
        let mut kernel = NfTables::new();
        let set_up = batch(INET, |batch| batch.set_up());
        assert!(kernel.add_table("mine", true));
        let (is_success, errors) = send(&mut kernel, &set_up);
        assert_eq!((is_success, errors[0]), (false, (10, libc::EINVAL)));
        assert!(kernel.add_table("", false));
        assert_eq!(send(&mut kernel, &set_up), good());
        assert!(kernel.add_table("", true));
        assert_eq!(send(&mut kernel, &set_up), good());
    }

    #[test]
    fn what_kernels_lack() {
        type Lack = fn(&mut Lacks);
        let all = |error, listing| [(Some((1, error)), Err(listing)); 2];
        let works = |owner| (None, Ok(owner));
        let no_inet = (Some((2, libc::EOPNOTSUPP)), Err(Errno::ENOENT));
        let table: [(Lack, _); 5] = [
            (|_| (), [works(Owner::Ours); 2]),
            (|lacks| lacks.comments = true, [works(Owner::Unknown); 2]),
            (
                |lacks| lacks.permission = true,
                all(libc::EPERM, Errno::EPERM),
            ),
            (
                |lacks| lacks.nf_tables = true,
                all(libc::EOPNOTSUPP, Errno::EINVAL),
            ),
            (|lacks| lacks.inet = true, [no_inet, works(Owner::Ours)]),
        ];
        for (lack, expected) in table {
            let outcomes = [INET, TableFamily::Ip].map(|family| {
                let mut kernel = NfTables::new();
                lack(&mut kernel.lacks);
                let (_, errors) = send(&mut kernel, &batch(family, |batch| batch.set_up()));
                let answers = ask(
                    &mut kernel,
                    request_for(Question::Table, family, 7).as_bytes(),
                );
                let owner = table_answer(&answers[0], 7).map(|table| table.owner);
                (errors.first().copied(), owner)
            });
            assert_eq!(outcomes, expected);
        }
        // Of a kernel without IPv6.
        let mut kernel = NfTables::new();
        kernel.lacks.inet = true;
        let one = element("192.0.2.9", None, "");
        let bytes = batch(TableFamily::Ip, |batch| {
            batch.set_up();
            assert!(batch.add(&one));
        });
        assert_eq!(send(&mut kernel, &bytes), good());
        assert_eq!(dropped(&kernel), [1, 1]);
        assert!(kernel.delete_element(one.set, one.source));
        assert_eq!(dropped(&kernel), [0, 0]);
    }

    /// In short: what was reported of our table, then who.
    fn reported(kernel: &mut NfTables) -> Vec<String> {
        let mut reported = Vec::new();
        for datagram in kernel.take_events() {
            assert!(datagram.len() <= RECEIVE_BUFFER);
            let mut each = |event: Event| {
                reported.push(match event {
                    Event::Deleted => "deleted".into(),
                    Event::Changed => "changed".into(),
                    Event::Committed { generation, is_own } => {
                        let program = String::from_utf8_lossy(generation.program.as_bytes());
                        format!("{is_own} {} {program}", generation.id)
                    }
                });
            };
            walk_events(&datagram, INET, PORT, &mut each).unwrap();
        }
        reported
    }

    #[test]
    fn events() {
        let mut kernel = set_up();
        assert_eq!(reported(&mut kernel), ["true 2 python3"]);
        let one = element("192.0.2.9", Some(1_000), "tcpparser v1");
        assert_eq!(add(&mut kernel, &one), good());
        assert_eq!(reported(&mut kernel), ["true 3 python3"]);
        assert!(kernel.delete_element(one.set, one.source));
        assert!(!kernel.delete_element(one.set, one.source), "it is gone");
        assert_eq!(reported(&mut kernel), ["deleted", "false 4 nft"]);
        assert!(kernel.add_element(&one));
        assert_eq!(reported(&mut kernel), ["changed", "false 5 nft"]);
        kernel.load_other(200);
        assert_eq!(kernel.events.len(), 5);
        assert_eq!(reported(&mut kernel), ["false 6 nft"]);
        assert!(kernel.flush_table());
        assert_eq!(reported(&mut kernel).len(), 12 + 1);
        assert!(kernel.delete_table());
        let expected = [vec!["deleted"; 7 + 2 + 1], vec!["false 8 nft"]].concat();
        assert_eq!(reported(&mut kernel), expected);
        let request = request_for(Question::Generation, INET, 7);
        let answers = ask(&mut kernel, request.as_bytes());
        assert_eq!(generation_answer(&answers[0], 7), Ok(8));
        kernel.generation = u32::MAX;
        kernel.load_other(0);
        assert_eq!(reported(&mut kernel), ["false 1 nft"], "never 0");
    }

    /// As many datagrams as it takes, none of which a receive would cut.
    #[test]
    fn long_listings() {
        let mut kernel = set_up();
        for number in 0..300u32 {
            let source = Network::single(IpAddr::from(number.to_be_bytes()));
            let comment = "x".repeat(60);
            let one = element("192.0.2.9", Some(1_000_000), &comment);
            assert!(kernel.add_element(&Element { source, ..one }));
        }
        let request = request_for(Question::Elements(Set::Drop4), INET, 7);
        let answers = ask(&mut kernel, request.as_bytes());
        // The lengths that Linux 6.18 had for the same.
        let lengths: Vec<_> = answers.iter().map(Vec::len).collect();
        assert_eq!(lengths, [8_152, 8_152, 8_152, 8_152, 72]);
        let answers = answers.concat();
        assert_eq!(count_rules(&answers, 7, &mut 0), Progress::Done);
        let elements = Elements::new(&answers, 7);
        assert_eq!(elements.filter(Result::is_ok).count(), 300);
        let request = request_for(Question::Elements(Set::Drop4), TableFamily::Ip, 7);
        let absent = ask(&mut kernel, request.as_bytes());
        let refused = Progress::Failed(Failure::Refused(Errno::ENOENT));
        assert_eq!(count_rules(&absent[0], 7, &mut 0), refused);
    }
}
