//! A small model of the kernel's nf_tables: batches and requests in; answers,
//! listings and events out, as Linux 6.18 writes them to sockets with
//! NETLINK_CAP_ACK. Packets run through the rules that stand.
//!
//! Not modelled: socket buffers (ENOBUFS, EMSGSIZE), dumps during which
//! something changes, NLM_F_EXCL, acknowledgements of a batch's end, handles,
//! and what else the kernel adds to the attributes a set, chain or rule was
//! made with.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::fake_proc::{self, NLMSG_DONE, octets};
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

fn attribute(kind: u16, value: &[u8]) -> Bytes {
    let length = 4 + value.len() as u16;
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

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
        found
            .collect::<Result<_, _>>()
            .map(Self)
            .or(Err(Errno::EINVAL))
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
    Attributes::new(bytes)
        .map(|one| Fields::of(one.or(Err(Errno::EINVAL))?.value))
        .collect()
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
        // The first `length` bytes of a register.
        let load = |packet: &Self, register: u32, length: usize| {
            let loaded = packet.registers.get(&register).ok_or(Errno::EINVAL)?;
            loaded
                .get(..length)
                .map(<[u8]>::to_vec)
                .ok_or(Errno::EINVAL)
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
                let result = loaded
                    .iter()
                    .zip(mask)
                    .zip(xor)
                    .map(|((a, b), c)| a & b ^ c);
                self.registers.insert(number(2)?, result.collect());
            }
            b"lookup\0" => {
                let set = &table.objects[table.find(NEWSET, data.get(1)?)?];
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

/// A set or a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Object {
    /// NEWSET or NEWCHAIN.
    kind: u16,
    name: Bytes,
    /// What cannot change: flags, type and length of a set's keys; number and
    /// priority of a chain's hook.
    shape: Vec<u32>,
    size: usize,
    elements: BTreeMap<Bytes, Member>,
    /// When those timed out that the collector has not removed.
    ended: Vec<Instant>,
    /// The expressions of each.
    rules: Vec<Bytes>,
}

impl Object {
    fn key_length(&self) -> usize {
        self.shape[2] as usize
    }

    /// Whether that changed anything.
    fn add(&mut self, element: &Fields, now: Instant, lacks: Lacks) -> Outcome<bool> {
        let key = element.nested(1)?.get(1)?;
        let userdata = element.get(6).unwrap_or_default().to_vec();
        let timeout = element.get(4).unwrap_or(&[0; 8]).try_into();
        let timeout = u64::from_be_bytes(timeout.or(Err(Errno::EINVAL))?);
        let takes_timeouts = self.shape[0] & NFT_SET_TIMEOUT != 0;
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
        let member = Member {
            timeout_ms,
            end,
            userdata,
        };
        // One too many is there, too, for a deletion in the same batch.
        self.elements.insert(key.to_vec(), member);
        let is_full = self.elements.len() + self.ended.len() > self.size;
        if is_full {
            Err(Errno::ENFILE)
        } else {
            Ok(true)
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Table {
    family: u8,
    /// As all names here, with its NUL.
    name: Bytes,
    flags: u32,
    userdata: Option<Bytes>,
    objects: Vec<Object>,
}

impl Table {
    fn find(&self, kind: u16, name: &[u8]) -> Outcome<usize> {
        let is_it = |object: &Object| object.kind == kind && object.name == name;
        self.objects.iter().position(is_it).ok_or(Errno::ENOENT)
    }

    fn chains(&self) -> impl Iterator<Item = &Object> {
        self.objects.iter().filter(|object| object.kind == NEWCHAIN)
    }

    fn write(&self) -> Bytes {
        let mut attributes = vec![attribute(1, &self.name)];
        attributes.push(be32(3, self.objects.len() as u32));
        attributes.push(be32(2, self.flags));
        attributes.extend(self.userdata.iter().map(|userdata| attribute(6, userdata)));
        attributes.concat()
    }

    /// The table, the set or chain, and that.
    fn write_in(&self, name: &[u8], rest: &[Bytes]) -> Bytes {
        let names = [attribute(1, &self.name), attribute(2, name)].concat();
        [names, rest.concat()].concat()
    }

    fn write_rules(&self, chain: &Object) -> Vec<Bytes> {
        let rule = |rule: &Bytes| self.write_in(&chain.name, &[attribute(4, rule)]);
        chain.rules.iter().map(rule).collect()
    }

    fn new_object(&mut self, kind: u16, fields: &Fields, creates: bool) -> Outcome<bool> {
        let (name, shape, clash) = if kind == NEWSET {
            // An identity is demanded.
            fields.number(10)?;
            let shape = [3, 4, 5].map(|kind| fields.number(kind));
            (fields.get(2)?, shape.to_vec(), Errno(libc::EEXIST))
        } else {
            let hook = fields.nested(4)?;
            let shape = [1, 2].map(|kind| hook.number(kind));
            (fields.get(3)?, shape.to_vec(), Errno::EOPNOTSUPP)
        };
        let shape = shape.into_iter().collect::<Outcome<Vec<u32>>>()?;
        match self.find(kind, name) {
            Ok(at) if self.objects[at].shape == shape => return Ok(true),
            Ok(_) => return Err(clash),
            Err(absent) if !creates => return Err(absent),
            Err(_) => {}
        }
        let size = fields
            .nested(9)
            .and_then(|description| description.number(1));
        self.objects.push(Object {
            kind,
            name: name.to_vec(),
            shape,
            size: size.unwrap_or(u32::MAX) as usize,
            elements: BTreeMap::new(),
            ended: Vec::new(),
            rules: Vec::new(),
        });
        Ok(true)
    }

    fn new_rule(&mut self, fields: &Fields, appends: bool) -> Outcome<bool> {
        let at = self.find(NEWCHAIN, fields.get(2)?)?;
        let rule = fields.get(4)?;
        // Every expression has to make sense behind those before it.
        let mut packet = Packet::new(IpAddr::from([0; 16]), 0);
        for expression in list(rule)? {
            packet.run(&expression, self)?;
        }
        let rules = &mut self.objects[at].rules;
        rules.insert(if appends { rules.len() } else { 0 }, rule.to_vec());
        Ok(true)
    }

    /// Of one chain, or of all. What deletes returns its events.
    fn delete_rules(&mut self, fields: &Fields) -> Outcome<Vec<Event>> {
        let name = fields.get(2).ok();
        if let Some(name) = name {
            self.find(NEWCHAIN, name)?;
        }
        let is_meant = |chain: &Object| name.is_none_or(|name| chain.name == name);
        let chains = self.chains().filter(|chain| is_meant(chain));
        let rules = chains.flat_map(|chain| self.write_rules(chain));
        let events = rules.map(|rule| (DELRULE, rule)).collect();
        for chain in self.objects.iter_mut().filter(|chain| is_meant(chain)) {
            chain.rules.clear();
        }
        Ok(events)
    }

    fn delete_elements(
        &mut self,
        fields: &Fields,
        must_be: bool,
        now: Instant,
    ) -> Outcome<Vec<Event>> {
        let mut events = Vec::new();
        let name = fields.get(2)?;
        let at = self.find(NEWSET, name)?;
        for element in list(fields.get(3)?)? {
            let key = element.nested(1)?.get(1)?;
            match self.objects[at].elements.remove(key) {
                Some(member) => {
                    let list = nest(3, &[member.write(key, now)]);
                    events.push((DELSETELEM, self.write_in(name, &[list])));
                }
                None if must_be => return Err(Errno::ENOENT),
                None => {}
            }
        }
        Ok(events)
    }

    /// The events of its end and of what ends with it; elements have none.
    fn end(&self) -> Vec<Event> {
        let name = || attribute(1, &self.name);
        let rules = self.chains().flat_map(|chain| self.write_rules(chain));
        let sets = self.objects.iter().filter(|set| set.kind == NEWSET);
        let sets = sets.map(|set| (DELSET, self.write_in(&set.name, &[])));
        let chain = |chain: &Object| [name(), attribute(3, &chain.name)].concat();
        let chains = self.chains().map(|one| (DELCHAIN, chain(one)));
        let rules = rules.map(|rule| (DELRULE, rule));
        rules
            .chain(sets)
            .chain(chains)
            .chain([(DELTABLE, name())])
            .collect()
    }

    /// Whether one of its rules does.
    fn drops(&self, chain: &Object, mut packet: Packet) -> Outcome<bool> {
        for rule in &chain.rules {
            for expression in list(rule)? {
                match packet.run(&expression, self)? {
                    (_, Some(verdict)) => return Ok(verdict == 0),
                    (false, None) => break,
                    (true, None) => {}
                }
            }
        }
        Ok(false)
    }
}

/// Its type and attributes.
type Event = (u16, Bytes);

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
    /// CAP_NET_ADMIN.
    pub permission: bool,
}

/// An element of one of our sets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    pub set: Set,
    pub source: Network,
    pub left_ms: Option<u64>,
    pub comment: String,
}

/// nf_tables of a network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NfTables {
    pub lacks: Lacks,
    tables: Vec<Table>,
    generation: u32,
    events: Vec<Bytes>,
    now: Instant,
}

/// Type, flags, sequence number and port.
type Head = (u16, u16, u32, u32);

impl NfTables {
    /// Without any table.
    pub fn new() -> Self {
        Self {
            lacks: Lacks::default(),
            tables: Vec::new(),
            generation: 1,
            events: Vec::new(),
            now: Instant::from_nanos(0),
        }
    }

    /// What one send(2) does: a batch, or requests. Returns the datagrams that
    /// can be received then.
    pub fn request(&mut self, bytes: &[u8], port: u32, program: &str, now: Instant) -> Vec<Bytes> {
        self.expire(now);
        let messages: Result<Vec<_>, _> = Messages::new(bytes).collect();
        let Ok([first, rest @ ..]) = messages.as_deref() else {
            return Vec::new();
        };
        let is_batch = first.kind == BATCH_BEGIN;
        match self.lacks {
            Lacks {
                permission: true, ..
            } => vec![acknowledgement(first, libc::EPERM, port)],
            Lacks {
                nf_tables: true, ..
            } => {
                let error = if is_batch {
                    libc::EOPNOTSUPP
                } else {
                    libc::EINVAL
                };
                vec![acknowledgement(first, error, port)]
            }
            _ if is_batch => self.batch(rest, port, program),
            _ => self
                .answer(first, port, program)
                .unwrap_or_else(|error| vec![acknowledgement(first, error.0, port)]),
        }
    }

    /// All or nothing. Errors and acknowledgements are of each message, and do
    /// not say which of both it was.
    fn batch(&mut self, messages: &[Message], port: u32, program: &str) -> Vec<Bytes> {
        let mut changed = self.clone();
        changed.generation = self.generation.checked_add(1).unwrap_or(1);
        let (mut answers, mut events) = (Vec::new(), Vec::new());
        let (mut is_good, mut is_ended) = (true, false);
        for message in messages {
            if message.kind == BATCH_END {
                is_ended = true;
                break;
            }
            let result = changed.command(message);
            let error = result.as_ref().err().map_or(0, |error| error.0);
            is_good &= error == 0;
            if error != 0 || message.flags & NLM_F_ACK != 0 {
                answers.push(acknowledgement(message, error, port));
            }
            for (kind, attributes) in result.unwrap_or_default() {
                let is_element = matches!(kind, NEWSETELEM | DELSETELEM);
                let sequence = if is_element { 0 } else { message.sequence };
                let flags = message.flags & (NLM_F_CREATE | NLM_F_APPEND);
                let family = message.payload[0];
                events.push(changed.object((kind, flags, sequence, port), family, &attributes));
            }
        }
        if is_good && is_ended && !events.is_empty() {
            *self = changed;
            self.commit(events, (messages[0].sequence, port), program);
        }
        answers
    }

    fn commit(&mut self, events: Vec<Bytes>, (sequence, port): (u32, u32), program: &str) {
        self.events.extend(datagrams(events, EVENTS));
        let end = self.write_generation((NEWGEN, 0, sequence, port), program);
        self.events.push(end);
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
        let (.., port) = head;
        let attributes = [be32(1, self.generation), be32(2, port), text(3, program)];
        self.object(head, 0, &attributes.concat())
    }

    fn position(&self, family: u8, name: &[u8]) -> Option<usize> {
        let is_it = |table: &Table| table.family == family && table.name == name;
        self.tables.iter().position(is_it)
    }

    fn command(&mut self, message: &Message) -> Outcome<Vec<Event>> {
        let (head, body) = message.payload.split_at_checked(4).ok_or(Errno::EINVAL)?;
        let fields = Fields::of(body)?;
        let (now, lacks) = (self.now, self.lacks);
        let at = self.position(head[0], fields.get(1)?);
        let creates = message.flags & NLM_F_CREATE != 0;
        if message.flags & NLM_F_REQUEST == 0 {
            return Err(Errno::EINVAL);
        }
        if message.kind == NEWTABLE {
            return self.new_table(head[0], &fields, at);
        }
        let at = at.ok_or(Errno::ENOENT)?;
        let table = &mut self.tables[at];
        let is_change = match message.kind {
            DELTABLE => return Ok(self.tables.remove(at).end()),
            DELRULE => return table.delete_rules(&fields),
            DELSETELEM => return table.delete_elements(&fields, true, now),
            DESTROYSETELEM if !lacks.destroy => return table.delete_elements(&fields, false, now),
            NEWSET | NEWCHAIN => table.new_object(message.kind, &fields, creates)?,
            NEWRULE if creates => table.new_rule(&fields, message.flags & NLM_F_APPEND != 0)?,
            NEWSETELEM => {
                let at = table.find(NEWSET, fields.get(2)?)?;
                let set = &mut table.objects[at];
                let mut added = list(fields.get(3)?)?.into_iter();
                added.try_fold(false, |any, one| Ok(set.add(&one, now, lacks)? || any))?
            }
            _ => return Err(Errno::EINVAL),
        };
        // It is reported as it was asked for.
        let event = (message.kind, body.to_vec());
        Ok(is_change.then_some(event).into_iter().collect())
    }

    fn new_table(&mut self, family: u8, fields: &Fields, at: Option<usize>) -> Outcome<Vec<Event>> {
        if self.lacks.inet && family == NFPROTO_INET {
            return Err(Errno::EOPNOTSUPP);
        }
        let flags = fields.number(2)?;
        let table = if let Some(at) = at {
            &mut self.tables[at]
        } else {
            let userdata = fields.get(6).ok().filter(|_| !self.lacks.comments);
            self.tables.push(Table {
                family,
                name: fields.get(1)?.to_vec(),
                flags: !flags,
                userdata: userdata.map(<[u8]>::to_vec),
                objects: Vec::new(),
            });
            self.tables.last_mut().unwrap()
        };
        let is_change = std::mem::replace(&mut table.flags, flags) != flags;
        let event = (NEWTABLE, table.write());
        Ok(is_change.then_some(event).into_iter().collect())
    }

    fn answer(&self, request: &Message, port: u32, program: &str) -> Outcome<Vec<Bytes>> {
        let (head, body) = request.payload.split_at_checked(4).ok_or(Errno::EINVAL)?;
        let fields = Fields::of(body)?;
        let at = fields
            .get(1)
            .ok()
            .and_then(|name| self.position(head[0], name));
        let table = at.map(|at| &self.tables[at]).ok_or(Errno::ENOENT);
        let is_dump = request.flags & NLM_F_DUMP == NLM_F_DUMP;
        let object = |kind, flags, attributes: &[u8]| {
            let head_of_it = (kind, flags, request.sequence, port);
            self.object(head_of_it, head[0], attributes)
        };
        let done = message(NLMSG_DONE, NLM_F_MULTI, request.sequence, port, &[0; 4]);
        match (request.kind, is_dump) {
            (GETGEN, false) => {
                let head = (NEWGEN, 0, request.sequence, port);
                Ok(vec![self.write_generation(head, program)])
            }
            (GETTABLE, false) => Ok(vec![object(NEWTABLE, 0, &table?.write())]),
            (GETRULE, true) => {
                // None where there is no such chain or table.
                let rules = table.and_then(|table| {
                    let at = table.find(NEWCHAIN, fields.get(2)?)?;
                    Ok(table.write_rules(&table.objects[at]))
                });
                let flags = NLM_F_MULTI | NLM_F_APPEND;
                let rules = rules.unwrap_or_default().into_iter();
                let rules = rules.map(|rule| object(NEWRULE, flags, &rule)).collect();
                let mut datagrams = datagrams(rules, RECEIVE_BUFFER);
                datagrams.push(done);
                Ok(datagrams)
            }
            (GETSETELEM, true) => {
                let (table, name) = (table?, fields.get(2)?);
                let elements = table.objects[table.find(NEWSET, name)?].elements.iter();
                let elements = elements.map(|(key, member)| member.write(key, self.now));
                let part = |elements: &[u8]| {
                    let list = table.write_in(name, &[attribute(3, elements)]);
                    object(NEWSETELEM, NLM_F_MULTI, &list)
                };
                let room = RECEIVE_BUFFER - part(&[]).len();
                let parts = datagrams(elements.collect(), room);
                let mut datagrams: Vec<_> = parts.iter().map(|elements| part(elements)).collect();
                // One without any comes last.
                datagrams.push([part(&[]), done].concat());
                Ok(datagrams)
            }
            _ => Err(Errno::EINVAL),
        }
    }

    /// Elements time out; no event says so.
    pub fn expire(&mut self, now: Instant) {
        self.now = now;
        let tables = self.tables.iter_mut();
        for set in tables.flat_map(|table| &mut table.objects) {
            let ended = &mut set.ended;
            set.elements.retain(|_, member| {
                let end = member.end.filter(|end| *end <= now);
                ended.extend(end);
                end.is_none()
            });
            ended.retain(|end| end.after(COLLECTION) > now);
        }
    }

    /// The datagrams for NFNLGRP_NFTABLES since the last call.
    pub fn take_events(&mut self) -> Vec<Bytes> {
        std::mem::take(&mut self.events)
    }

    /// Whether a packet of a connection is dropped.
    pub fn drops(&self, source: IpAddr, is_forwarded: bool) -> bool {
        self.drops_protocol(source, is_forwarded, libc::IPPROTO_TCP)
    }

    pub fn drops_protocol(&self, source: IpAddr, is_forwarded: bool, protocol: i32) -> bool {
        // NF_INET_LOCAL_IN and NF_INET_FORWARD.
        let hook = if is_forwarded { 2 } else { 1 };
        let packet = || Packet::new(source, protocol as u8);
        let sees = |table: &&Table| {
            let is_family = [NFPROTO_INET, packet().family].contains(&table.family);
            is_family && table.flags & NFT_TABLE_F_DORMANT == 0
        };
        self.tables.iter().filter(sees).any(|table| {
            let mut chains = table.chains().filter(|chain| chain.shape[0] == hook);
            chains.any(|chain| table.drops(chain, packet()).unwrap())
        })
    }

    /// The elements of our sets.
    pub fn elements(&self) -> Vec<Listed> {
        let mut elements = Vec::new();
        let tables = self.tables.iter().filter(|table| table.name == NAME);
        for set in tables.flat_map(|table| &table.objects) {
            let mut ours = Set::ALL.into_iter();
            let Some(kind) = ours.find(|kind| terminated(kind.name()) == set.name) else {
                continue;
            };
            let bits = match kind {
                Set::Drop4 | Set::Host4 => 32,
                Set::Drop6 | Set::Host6 => 128,
                Set::Net64 => 64,
                Set::Net56 => 56,
                Set::Net48 => 48,
            };
            elements.extend(set.elements.iter().map(|(key, member)| {
                let comment = member.userdata.get(2..).unwrap_or_default();
                let comment = String::from_utf8_lossy(comment);
                Listed {
                    set: kind,
                    source: Network::new(address_of(key).unwrap(), bits),
                    left_ms: member.left_ms(self.now),
                    comment: comment.trim_end_matches('\0').to_owned(),
                }
            }));
        }
        elements
    }

    pub fn is_there(&self) -> bool {
        self.tables.iter().any(|table| table.name == NAME)
    }
}

/// What other programs do to our table; false where the kernel refuses.
impl NfTables {
    /// A batch of nft(8), with commands' types, flags and attributes.
    fn nft(&mut self, commands: &[(u16, u16, Bytes)], now: Instant) -> bool {
        let boundary = |kind, sequence| message(kind, NLM_F_REQUEST, sequence, 0, &[0, 0, 0, 10]);
        let family = self.tables.first().map(|table| table.family);
        let inet = if self.lacks.inet { 2 } else { NFPROTO_INET };
        let head = [family.unwrap_or(inet), 0, 0, 0];
        let mut bytes = boundary(BATCH_BEGIN, 0);
        for ((kind, flags, attributes), sequence) in commands.iter().zip(1..) {
            let payload = [&head, &attribute(1, NAME)[..], attributes].concat();
            bytes.extend(message(*kind, flags | NLM_F_REQUEST, sequence, 0, &payload));
        }
        bytes.extend(boundary(BATCH_END, 0));
        let lacks = self.lacks;
        self.lacks.permission = false;
        let answers = self.request(&bytes, FOREIGN, "nft", now);
        self.lacks = lacks;
        answers.is_empty()
    }

    /// Also what `nft flush ruleset` does to it.
    pub fn delete_table(&mut self, now: Instant) -> bool {
        self.nft(&[(DELTABLE, 0, Vec::new())], now)
    }

    /// `nft flush table`: its rules.
    pub fn flush_table(&mut self, now: Instant) -> bool {
        self.nft(&[(DELRULE, 0, Vec::new())], now)
    }

    /// Makes it, maybe with a comment, or makes it dormant.
    pub fn add_table(&mut self, comment: Option<&str>, is_dormant: bool, now: Instant) -> bool {
        let mut attributes = be32(2, u32::from(is_dormant));
        if let Some(comment) = comment {
            attributes.extend(attribute(6, &userdata(comment.as_bytes())));
        }
        self.nft(&[(NEWTABLE, NLM_F_CREATE, attributes)], now)
    }

    pub fn add_chain(&mut self, name: &str, hook: u32, priority: i32, now: Instant) -> bool {
        let hook = nest(4, &[be32(1, hook), be32(2, priority as u32)]);
        let attributes = [text(3, name), hook, be32(5, 1), text(7, "filter")].concat();
        self.nft(&[(NEWCHAIN, NLM_F_CREATE, attributes)], now)
    }

    /// A set of IPv4 addresses.
    pub fn add_set(&mut self, name: &str, has_timeouts: bool, now: Instant) -> bool {
        let flags = if has_timeouts { NFT_SET_TIMEOUT } else { 0 };
        let numbers = [be32(3, flags), be32(4, 7), be32(5, 4), be32(10, 1)];
        let attributes = [text(2, name), numbers.concat()].concat();
        self.nft(&[(NEWSET, NLM_F_CREATE, attributes)], now)
    }

    /// A rule that counts packets.
    pub fn add_rule(&mut self, chain: &str, now: Instant) -> bool {
        let counter = nest(1, &[text(1, "counter"), attribute(2, &[])]);
        let attributes = [text(2, chain), nest(4, &[counter])].concat();
        self.nft(&[(NEWRULE, NLM_F_CREATE | NLM_F_APPEND, attributes)], now)
    }

    pub fn add_element(&mut self, element: &Element, now: Instant) -> bool {
        let mut attributes = vec![nest(1, &[attribute(1, &octets(element.source.address()))])];
        attributes.extend(element.left_ms.map(|left| be64(4, left)));
        attributes.push(attribute(6, &userdata(element.comment)));
        self.nft_element(NEWSETELEM, element.set, &attributes, now)
    }

    pub fn delete_element(&mut self, set: Set, source: Network, now: Instant) -> bool {
        let key = nest(1, &[attribute(1, &octets(source.address()))]);
        self.nft_element(DELSETELEM, set, &[key], now)
    }

    fn nft_element(&mut self, kind: u16, set: Set, element: &[Bytes], now: Instant) -> bool {
        let flags = if kind == NEWSETELEM { NLM_F_CREATE } else { 0 };
        let list = nest(3, &[nest(1, element)]);
        let attributes = [attribute(2, &terminated(set.name())), list].concat();
        self.nft(&[(kind, flags, attributes)], now)
    }

    /// Another table's load of that many elements.
    pub fn load_other(&mut self, count: u32) {
        self.generation = self.generation.checked_add(1).unwrap_or(1);
        let event = |number: u32| {
            let element = nest(1, &[nest(1, &[attribute(1, &number.to_be_bytes())])]);
            let attributes = [text(1, "other"), text(2, "list"), nest(3, &[element])];
            let head = (NEWSETELEM, NLM_F_CREATE, 0, FOREIGN);
            self.object(head, NFPROTO_INET, &attributes.concat())
        };
        let events = (0..count).map(event).collect();
        self.commit(events, (1, FOREIGN), "nft");
    }
}

/// A comment in the user data of a table or an element.
fn userdata(comment: &[u8]) -> Bytes {
    let length = comment.len() as u8 + 1;
    [&[0, length], comment, b"\0"].concat()
}

fn terminated(name: &[u8]) -> Bytes {
    [name, b"\0"].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::{Failure, Progress};
    use crate::nf_tables::{
        Answer, Batch, Chain, Event, Owner, Removal, TableFamily, count_rules, elements_request,
        generation_answer, generation_request, rules_request, table_answer, table_request,
        walk_elements, walk_events,
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

    fn send(kernel: &mut NfTables, bytes: &[u8], now: Instant) -> Outcome {
        let (mut answer, mut errors) = (Answer::default(), Vec::new());
        for datagram in kernel.request(bytes, PORT, "tcpparser", now) {
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

    fn add(kernel: &mut NfTables, one: &Element, now: Instant) -> Outcome {
        send(kernel, &batch(INET, |batch| assert!(batch.add(one))), now)
    }

    fn remove(kernel: &mut NfTables, one: &Element, removal: Removal, now: Instant) -> Outcome {
        let fill = |batch: &mut Batch| assert!(batch.remove(one.set, one.source, removal));
        send(kernel, &batch(INET, fill), now)
    }

    fn set_up() -> NfTables {
        let mut kernel = NfTables::new();
        let bytes = batch(INET, |batch| batch.set_up());
        assert_eq!(send(&mut kernel, &bytes, NOW), good());
        kernel
    }

    fn hex(text: &str) -> Bytes {
        let digits: String = text.split_whitespace().collect();
        let pairs = (0..digits.len()).step_by(2).map(|at| &digits[at..at + 2]);
        pairs
            .map(|pair| u8::from_str_radix(pair, 16).unwrap())
            .collect()
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
        let answers = kernel.request(&bytes, PORT, "python3", NOW);
        assert_eq!(answers, [hex(acknowledged)]);
        let request = elements_request(INET, Set::Drop4, 9);
        let listed = "74000000 0c0a0200 09000000 bf100000 0100005f 0e000100 74637070 61727365
            72000000 0a000200 64726f70 34000000 44000300 40000100 0c000100 08000100 c0000209
            0c000400 00000000 000927c0 0c000500 00000000 000927b0 15000600 000f7463 70706172
            73657220 76312078 00000000";
        let end = "34000000 0c0a0200 09000000 bf100000 0100005f 0e000100 74637070 61727365
            72000000 0a000200 64726f70 34000000 04000300 14000000 03000200 09000000 bf100000
            00000000";
        let answers = kernel.request(request.as_bytes(), PORT, "python3", after(16));
        assert_eq!(answers, [hex(listed), hex(end)]);
        let generation = "30000000 0f0a0000 0b000000 bf100000 0000005f 08000100 0000005f
            08000200 000010bf 0c000300 70797468 6f6e3300";
        let request = generation_request(11);
        let answers = kernel.request(request.as_bytes(), PORT, "python3", NOW);
        assert_eq!(answers, [hex(generation)]);
        kernel.take_events();
        assert!(kernel.delete_element(one.set, one.source, after(24)));
        let deleted = "74000000 0e0a0000 00000000 56110000 01000060 0e000100 74637070 61727365
            72000000 0a000200 64726f70 34000000 44000300 40000100 0c000100 08000100 c0000209
            0c000400 00000000 000927c0 0c000500 00000000 000927a8 15000600 000f7463 70706172
            73657220 76312078 00000000";
        let committed = "2c000000 0f0a0000 01000000 56110000 00000060 08000100 00000060
            08000200 00001156 08000300 6e667400";
        assert_eq!(kernel.take_events(), [hex(deleted), hex(committed)]);
        assert!(kernel.delete_table(NOW));
        let absent = "24000000 02000001 0a000000 bf100000 feffffff 30000000 0d0a0103 0a000000
            00000000";
        let request = elements_request(INET, Set::Drop4, 10);
        let answers = kernel.request(request.as_bytes(), PORT, "python3", NOW);
        assert_eq!(answers, [hex(absent)]);
    }

    /// Type, flags, family and first two attributes of each message.
    fn outline(bytes: &[u8]) -> Vec<(u16, u16, u8, Vec<Bytes>)> {
        let messages = Messages::new(bytes).map(Result::unwrap);
        let attributes = |message: &Message| {
            let all = Attributes::new(message.payload.get(4..).unwrap_or_default());
            all.take(2).map(|one| one.unwrap().value.to_vec()).collect()
        };
        messages
            .map(|one| (one.kind, one.flags, one.payload[0], attributes(&one)))
            .collect()
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn recorded_rules_and_events() {
        let mut kernel = set_up();
        let request = rules_request(INET, Chain::Input, 7);
        let answers = kernel.request(request.as_bytes(), PORT, "tcpparser", NOW);
        let recorded = include_bytes!("nf_tables/rules.bin");
        assert_eq!(outline(&answers.concat()), outline(recorded));
        assert_eq!(answers.len(), 2, "the end comes alone");
        kernel.take_events();
        assert!(kernel.delete_table(NOW));
        let events = outline(&kernel.take_events().concat());
        let recorded = outline(include_bytes!("nf_tables/flush_ruleset.bin"));
        let (last, objects) = recorded.split_last().unwrap();
        // Names: sets and chains have them elsewhere, tables only one.
        let names = |(kind, flags, family, attributes): &(u16, u16, u8, Vec<Bytes>)| {
            let count = if *kind == DELTABLE { 1 } else { 2 };
            (*kind, *flags, *family, attributes[..count].to_vec())
        };
        assert_eq!(
            events.iter().take(22).map(names).collect::<Vec<_>>(),
            objects.iter().map(names).collect::<Vec<_>>()
        );
        assert_eq!(
            (events[22].0, events[22].1, events.len()),
            (last.0, last.1, 23)
        );
    }

    fn blocked() -> NfTables {
        let mut kernel = set_up();
        for source in SOURCES {
            assert_eq!(add(&mut kernel, &element(source, None, ""), NOW), good());
        }
        for (set, source) in [(Set::Host4, "192.0.2.7"), (Set::Host6, "2001:db8::7")] {
            let one = Element {
                set,
                ..element(source, None, "")
            };
            assert_eq!(add(&mut kernel, &one, NOW), good());
        }
        kernel
    }

    const SOURCES: [&str; 5] = [
        "192.0.2.9",
        "2001:db8::9",
        "2001:db8:1:2::/64",
        "2001:db8:2:300::/56",
        "2001:db8:3::/48",
    ];
    /// In each of the sets, and just beside them.
    const PACKETS: [&str; 12] = [
        "192.0.2.9",
        "2001:db8::9",
        "2001:db8:1:2::5",
        "2001:db8:2:3ff::5",
        "2001:db8:3:ffff::5",
        "192.0.2.7",
        "2001:db8::7",
        "192.0.2.8",
        "2001:db8::8",
        "2001:db8:1:3::5",
        "2001:db8:2:400::5",
        "2001:db8:4::5",
    ];

    /// How many of `PACKETS` are dropped here, and how many are not forwarded.
    fn dropped(kernel: &NfTables) -> [usize; 2] {
        [false, true].map(|is_forwarded| {
            let drops = |source: &&&str| kernel.drops(source.parse().unwrap(), is_forwarded);
            PACKETS.iter().filter(drops).count()
        })
    }

    #[test]
    fn packets() {
        let mut kernel = blocked();
        for (source, at) in PACKETS.iter().zip(0..) {
            let source = source.parse().unwrap();
            let drops = [false, true].map(|is_forwarded| kernel.drops(source, is_forwarded));
            assert_eq!(drops, [at < 7, at < 5], "{source}");
        }
        let neighbour = "2001:db8::7".parse().unwrap();
        assert!(!kernel.drops_protocol(neighbour, false, libc::IPPROTO_ICMPV6));
        let single = "2001:db8::9".parse().unwrap();
        assert!(kernel.drops_protocol(single, false, libc::IPPROTO_ICMPV6));
        assert!(kernel.add_table(None, true, NOW));
        assert_eq!(dropped(&kernel), [0, 0], "dormant");
        assert!(kernel.add_table(None, false, NOW));
        assert_eq!(dropped(&kernel), [7, 5]);
        assert!(kernel.flush_table(NOW));
        assert_eq!((dropped(&kernel), kernel.elements().len()), ([0, 0], 7));
        let bytes = batch(INET, |batch| batch.set_up());
        assert_eq!(send(&mut kernel, &bytes, NOW), good());
        assert_eq!(dropped(&kernel), [7, 5]);
        assert!(kernel.delete_table(NOW));
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
        for (from, to, expected) in [
            // Offset of the source in an IPv4 header, then in an IPv6 header.
            (be32(3, 12), be32(3, 16), [5, 4]),
            (be32(3, 8), be32(3, 24), [2, 1]),
            (mask(6), mask(7), [6, 4]),
            (family(2), family(10), [5, 4]),
            (attribute(1, b"drop6\0"), attribute(1, b"net48\0"), [6, 4]),
            // NF_ACCEPT.
            (
                nest(0x8002, &[be32(1, 0)]),
                nest(0x8002, &[be32(1, 1)]),
                [0, 0],
            ),
        ] {
            let mut kernel = blocked();
            send(&mut kernel, &replace(&from, &to), NOW);
            assert_eq!(dropped(&kernel), expected, "{to:?}");
        }
    }

    /// Asks for an acknowledgement of every message but the batch's ends.
    fn acknowledged(mut bytes: Bytes) -> Bytes {
        let messages = Messages::new(&bytes).map(Result::unwrap);
        let lengths: Vec<_> = messages
            .map(|one| (one.payload.len() + 16).next_multiple_of(4))
            .collect();
        let mut at = 0;
        for length in lengths {
            bytes[at + 6] |= if length == 20 { 0 } else { NLM_F_ACK as u8 };
            at += length;
        }
        bytes
    }

    /// Good, bad, good, bad, good: nothing is done, all that is bad is named,
    /// and what is good is acknowledged.
    #[test]
    fn all_or_nothing() {
        let mut kernel = set_up();
        let one = element("192.0.2.9", None, "");
        let mut bytes = batch(INET, |batch| {
            for source in ["192.0.2.1", "192.0.2.2"] {
                assert!(batch.add(&one));
                assert!(batch.remove(one.set, element(source, None, "").source, Removal::Delete));
            }
            assert!(batch.add(&one));
        });
        let before = kernel.clone();
        let expected = (false, vec![(3, libc::ENOENT), (5, libc::ENOENT)]);
        assert_eq!(send(&mut kernel, &bytes, NOW), expected);
        assert_eq!(kernel, before);
        bytes = acknowledged(bytes);
        assert_eq!(kernel.request(&bytes, PORT, "tcpparser", NOW).len(), 11);
        assert_eq!(send(&mut kernel, &bytes, NOW), expected);
        // Without its end a good batch is acknowledged, and nothing is done.
        let good_one = batch(INET, |batch| assert!(batch.add(&one)));
        let unended = &good_one[..good_one.len() - 20];
        assert_eq!(send(&mut kernel, unended, NOW), good());
        assert_eq!(kernel, before);
        assert_eq!(send(&mut kernel, &good_one, NOW), good());
        assert_eq!(kernel.elements().len(), 1);
        // The set-up goes again and again, and elements stay.
        let bytes = batch(INET, |batch| batch.set_up());
        for _ in 0..2 {
            assert_eq!(send(&mut kernel, &bytes, NOW), good());
            let mut count = 0;
            let request = rules_request(INET, Chain::Forward, 7);
            for datagram in kernel.request(request.as_bytes(), PORT, "tcpparser", NOW) {
                count_rules(&datagram, 7, &mut count);
            }
            assert_eq!((count, kernel.elements().len()), (5, 1));
        }
    }

    /// To the millisecond, and without an event; then a deletion is an error.
    #[test]
    fn elements_time_out() {
        let mut kernel = set_up();
        let one = element("2001:db8:1:2::/64", Some(10_000), "tcpparser v1");
        assert_eq!(add(&mut kernel, &one, NOW), good());
        let address = "2001:db8:1:2::5".parse().unwrap();
        kernel.take_events();
        kernel.expire(after(9_999));
        let listed = Listed {
            set: Set::Net64,
            source: one.source,
            left_ms: Some(1),
            comment: "tcpparser v1".into(),
        };
        assert_eq!(
            (kernel.drops(address, true), kernel.elements()),
            (true, vec![listed])
        );
        kernel.expire(after(10_000));
        assert_eq!(
            (kernel.drops(address, true), kernel.elements()),
            (false, vec![])
        );
        let generation = kernel.generation;
        let gone = bad(2, libc::ENOENT);
        assert_eq!(
            remove(&mut kernel, &one, Removal::Delete, after(10_000)),
            gone
        );
        assert_eq!(
            remove(&mut kernel, &one, Removal::Destroy, after(10_000)),
            good()
        );
        assert_eq!(
            (kernel.generation, kernel.take_events()),
            (generation, vec![])
        );
        kernel.lacks.destroy = true;
        let unknown = bad(2, libc::EINVAL);
        assert_eq!(
            remove(&mut kernel, &one, Removal::Destroy, after(10_000)),
            unknown
        );
    }

    /// What timed out counts until the collector ran.
    #[test]
    fn a_full_set() {
        let mut kernel = set_up();
        kernel.tables[0].objects[0].size = 2;
        for source in ["192.0.2.1", "192.0.2.2", "192.0.2.2"] {
            let one = element(source, Some(100), "");
            assert_eq!(add(&mut kernel, &one, NOW), good(), "{source}");
        }
        let third = element("192.0.2.3", Some(100), "");
        let full = (false, vec![(2, libc::ENFILE); 2]);
        assert_eq!(add(&mut kernel, &third, NOW), full);
        assert_eq!(add(&mut kernel, &third, after(1_099)), full);
        assert_eq!(add(&mut kernel, &third, after(1_100)), good());
    }

    /// Adding what is there leaves the comment, and before Linux 6.12 the
    /// timeout; with the same timeout it does nothing at all.
    #[test]
    fn elements_added_again() {
        for (timeout_updates, expected) in [(false, [7_000, 7_000]), (true, [5_000, 4_000])] {
            let mut kernel = set_up();
            kernel.lacks.timeout_updates = timeout_updates;
            let old = element("192.0.2.9", Some(5_000), "old");
            let new = element("192.0.2.9", Some(7_000), "new");
            assert!(kernel.add_element(&old, NOW));
            let left = |kernel: &NfTables| {
                let [one] = &kernel.elements()[..] else {
                    panic!("one element")
                };
                (one.left_ms.unwrap(), one.comment.clone())
            };
            assert!(kernel.add_element(&new, NOW));
            assert_eq!(left(&kernel), (expected[0], "old".into()));
            let generation = kernel.generation;
            assert!(kernel.add_element(if timeout_updates { &old } else { &new }, after(1_000)));
            assert_eq!(
                (left(&kernel).0, kernel.generation),
                (expected[0] - 1_000, generation)
            );
            assert_eq!(add(&mut kernel, &new, after(1_000)), good());
            assert_eq!(left(&kernel), (7_000, "new".into()));
        }
        let mut kernel = set_up();
        for (left, comment) in [(1_000 * 365 * 86_400_000, "x".into()), (1, "x".repeat(254))] {
            let odd = element("192.0.2.9", Some(left), &comment);
            assert!(!kernel.add_element(&odd, NOW), "ERANGE");
        }
    }

    /// What cannot be changed, and the cure.
    #[test]
    fn odd_tables() {
        let traps: [(fn(&mut NfTables) -> bool, Outcome); 3] = [
            (
                |kernel| kernel.add_chain("input", 1, 0, NOW),
                bad(10, libc::EOPNOTSUPP),
            ),
            (
                |kernel| kernel.add_chain("input", 2, -10, NOW),
                bad(10, libc::EOPNOTSUPP),
            ),
            (
                |kernel| kernel.add_set("drop4", false, NOW),
                bad(3, libc::EEXIST),
            ),
        ];
        for (trap, refused) in traps {
            let mut kernel = NfTables::new();
            assert!(kernel.add_table(Some("mine"), false, NOW) && trap(&mut kernel));
            let state = |kernel: &mut NfTables| {
                let request = table_request(INET, 7);
                let answers = kernel.request(request.as_bytes(), PORT, "tcpparser", NOW);
                table_answer(&answers[0], 7).map(|table| (table.owner, table.objects))
            };
            assert_eq!(state(&mut kernel), Ok((Owner::Other, 1)));
            let bytes = batch(INET, |batch| batch.set_up());
            assert_eq!(send(&mut kernel, &bytes, NOW), refused);
            let bytes = batch(INET, |batch| {
                batch.delete_table();
                batch.set_up();
            });
            assert_eq!(send(&mut kernel, &bytes, NOW), good());
            assert_eq!(state(&mut kernel), Ok((Owner::Ours, 9)));
            assert!(kernel.add_set("mine", true, NOW) && kernel.add_rule("input", NOW));
            assert_eq!(state(&mut kernel), Ok((Owner::Ours, 10)));
            assert!(!kernel.add_rule("output", NOW));
            assert!(kernel.delete_table(NOW) && !kernel.delete_table(NOW));
            assert_eq!(state(&mut kernel), Err(Errno::ENOENT));
        }
    }

    #[test]
    fn what_kernels_lack() {
        let families = [INET, TableFamily::Ip];
        let outcomes = |lacks| {
            families.map(|family| {
                let mut kernel = NfTables {
                    lacks,
                    ..NfTables::new()
                };
                let result = send(&mut kernel, &batch(family, |batch| batch.set_up()), NOW);
                let request = table_request(family, 7);
                let answers = kernel.request(request.as_bytes(), PORT, "tcpparser", NOW);
                (
                    result.1.first().copied(),
                    table_answer(&answers[0], 7).map(|table| table.owner),
                )
            })
        };
        let none = Lacks::default();
        let all = |error, listing| [(Some((1, error)), Err(listing)); 2];
        let works = |owner| (None, Ok(owner));
        assert_eq!(outcomes(none), [works(Owner::Ours); 2]);
        assert_eq!(
            outcomes(Lacks {
                comments: true,
                ..none
            }),
            [works(Owner::Unknown); 2]
        );
        assert_eq!(
            outcomes(Lacks {
                permission: true,
                ..none
            }),
            all(libc::EPERM, Errno::EPERM)
        );
        assert_eq!(
            outcomes(Lacks {
                nf_tables: true,
                ..none
            }),
            all(libc::EOPNOTSUPP, Errno::EINVAL)
        );
        let no_inet = (Some((2, libc::EOPNOTSUPP)), Err(Errno::ENOENT));
        assert_eq!(
            outcomes(Lacks { inet: true, ..none }),
            [no_inet, works(Owner::Ours)]
        );
        // Of a kernel without IPv6.
        let mut kernel = NfTables {
            lacks: Lacks { inet: true, ..none },
            ..NfTables::new()
        };
        let one = element("192.0.2.9", None, "");
        let bytes = batch(TableFamily::Ip, |batch| {
            batch.set_up();
            assert!(batch.add(&one));
        });
        assert_eq!(send(&mut kernel, &bytes, NOW), good());
        assert_eq!(dropped(&kernel), [1, 1]);
        assert!(kernel.delete_element(one.set, one.source, NOW));
        assert_eq!(dropped(&kernel), [0, 0]);
    }

    /// In short: what was reported of our table, then who.
    fn reported(kernel: &mut NfTables) -> Vec<String> {
        let mut reported = Vec::new();
        for datagram in kernel.take_events() {
            assert!(datagram.len() <= RECEIVE_BUFFER);
            walk_events(&datagram, INET, PORT, &mut |event| {
                reported.push(match event {
                    Event::ElementDeleted(element) => {
                        String::from_utf8_lossy(element.comment).into_owned()
                    }
                    Event::Deleted => "deleted".into(),
                    Event::Changed => "changed".into(),
                    Event::Committed { generation, is_own } => {
                        let program = String::from_utf8_lossy(generation.program.as_bytes());
                        format!("{is_own} {} {program}", generation.id)
                    }
                })
            })
            .unwrap();
        }
        reported
    }

    #[test]
    fn events() {
        let mut kernel = set_up();
        assert_eq!(reported(&mut kernel), ["true 2 tcpparser"]);
        let one = element("192.0.2.9", Some(1_000), "tcpparser v1");
        assert_eq!(add(&mut kernel, &one, NOW), good());
        assert_eq!(reported(&mut kernel), ["true 3 tcpparser"]);
        assert!(kernel.delete_element(one.set, one.source, NOW));
        assert!(
            !kernel.delete_element(one.set, one.source, NOW),
            "it is gone"
        );
        assert_eq!(reported(&mut kernel), ["tcpparser v1", "false 4 nft"]);
        assert!(kernel.add_element(&one, NOW));
        assert_eq!(reported(&mut kernel), ["changed", "false 5 nft"]);
        kernel.load_other(200);
        assert_eq!(kernel.events.len(), 5);
        assert_eq!(reported(&mut kernel), ["false 6 nft"]);
        assert!(kernel.flush_table(NOW));
        assert_eq!(reported(&mut kernel).len(), 12 + 1);
        assert!(kernel.delete_table(NOW));
        let expected = [vec!["deleted"; 7 + 2 + 1], vec!["false 8 nft"]].concat();
        assert_eq!(reported(&mut kernel), expected);
        let request = generation_request(7);
        let answers = kernel.request(request.as_bytes(), PORT, "tcpparser", NOW);
        assert_eq!(generation_answer(&answers[0], 7).unwrap().id, 8);
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
            let one = Element {
                source,
                ..element("192.0.2.9", Some(1_000_000), &comment)
            };
            assert!(kernel.add_element(&one, NOW));
        }
        let request = elements_request(INET, Set::Drop4, 7);
        let answers = kernel.request(request.as_bytes(), PORT, "tcpparser", NOW);
        // The lengths that Linux 6.18 had for the same.
        let lengths: Vec<_> = answers.iter().map(Vec::len).collect();
        assert_eq!(lengths, [8_152, 8_152, 8_152, 8_152, 72]);
        let mut count = 0;
        for (datagram, left) in answers.iter().zip((0..5).rev()) {
            let progress = walk_elements(datagram, 7, &mut |_| count += 1);
            let expected = if left == 0 {
                Progress::Done
            } else {
                Progress::More
            };
            assert_eq!(progress, expected);
        }
        assert_eq!(count, 300);
        let request = elements_request(TableFamily::Ip, Set::Drop4, 7);
        let absent = kernel.request(request.as_bytes(), PORT, "tcpparser", NOW);
        let refused = Progress::Failed(Failure::Refused(Errno::ENOENT));
        assert_eq!(walk_elements(&absent[0], 7, &mut |_| ()), refused);
    }
}
