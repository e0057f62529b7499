//! Bytes of nf_tables (NETLINK_NETFILTER, linux/netfilter/nf_tables.h) <->
//! our table: batches that set it up, put sources into its sets and take them
//! out, listings, the kernel's answers, and events that tell who changed it.
//!
//! ```text
//! table inet tcpparser {
//!   set drop4 { type ipv4_addr; size 65536; flags timeout; }   a set each `Set`
//!   chain input   { type filter hook input priority filter - 10; ip saddr @drop4 drop; … }
//!   chain forward { type filter hook forward priority filter - 10; … }
//! }
//! ```
//!
//! Headers are in the host's byte order, and so is one number in a set's user
//! data; all other numbers are big-endian, keys in network byte order.

use core::net::IpAddr;
use core::ops::Range;

use heapless::Vec;

use crate::address::Network;
use crate::kernel::Errno;
use crate::netlink::{
    self, Attributes, HEADER, Malformed, Message, Messages, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST,
    NLMSG_ERROR, Progress, address_of, find, header, u32_at, walk_dump,
};
use crate::text::{Text, TextView, split};

// linux/netfilter/nfnetlink.h
const NFNL_SUBSYS_NFTABLES: u16 = 10;
/// Added to NFT_MSG_*.
const SUBSYSTEM: u16 = NFNL_SUBSYS_NFTABLES << 8;
const NFNL_MSG_BATCH_BEGIN: u16 = 16;
const NFNL_MSG_BATCH_END: u16 = 17;
/// sizeof(struct nfgenmsg).
const FIXED: usize = 4;

// NFT_MSG_* of linux/netfilter/nf_tables.h
const NEWTABLE: u16 = 0;
const GETTABLE: u16 = 1;
const DELTABLE: u16 = 2;
const NEWCHAIN: u16 = 3;
const DELCHAIN: u16 = 5;
const NEWRULE: u16 = 6;
const GETRULE: u16 = 7;
const DELRULE: u16 = 8;
const NEWSET: u16 = 9;
const DELSET: u16 = 11;
const NEWSETELEM: u16 = 12;
const GETSETELEM: u16 = 13;
const DELSETELEM: u16 = 14;
const NEWGEN: u16 = 15;
const GETGEN: u16 = 16;
/// Since Linux 6.3. Events call it DELSETELEM.
const DESTROYSETELEM: u16 = 30;

// linux/netlink.h
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_APPEND: u16 = 0x800;
const NLA_F_NESTED: u16 = 0x8000;

// NFTA_*. Where the comment names none, the attribute has that number in
// every message or nest we write or read.
/// NFTA_TABLE_NAME, and the table's name in all other messages.
const TABLE: u16 = 1;
const TABLE_FLAGS: u16 = 2;
const TABLE_USE: u16 = 3;
const TABLE_USERDATA: u16 = 6;
const DATA_VALUE: u16 = 1;
/// NFTA_SET_ELEM_LIST_SET, then the list itself.
const ELEMENTS_SET: u16 = 2;
const ELEMENTS: u16 = 3;
const ELEM_KEY: u16 = 1;
const ELEM_EXPIRATION: u16 = 5;
const ELEM_USERDATA: u16 = 6;
const GEN_ID: u16 = 1;
const GEN_PROC_NAME: u16 = 3;

/// Type of user data, which is nft's own (libnftnl, include/libnftnl/udata.h).
const UDATA_COMMENT: u8 = 0;

/// The table's name.
const NAME: &[u8] = b"tcpparser";
const TABLE_COMMENT: &[u8] = b"port scan sources; tcpparser --unblock all lifts them";

/// The longest comment: nft reads 128 bytes with its NUL
/// (NFTNL_UDATA_COMMENT_MAXLEN).
const COMMENT_MAX: usize = 127;

/// The shortest timeout. 0 is for ever, and what is less than a jiffy became 0.
const TIMEOUT_MIN_MS: u64 = 10;
/// The longest: 24 days, as of --block-time. In 31 bits, which is what kernels
/// before 4.16 take.
const TIMEOUT_MAX_MS: u64 = 24 * 24 * 3_600_000;

/// Address families a table can be of (NFPROTO_*).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableFamily {
    /// Both IPv4 and IPv6.
    Inet = 1,
    /// IPv4 alone: kernels without IPv6 have no inet.
    Ip = 2,
}

impl TableFamily {
    /// The sets of such a table.
    pub const fn sets(self) -> &'static [Set] {
        match self {
            Self::Inet => &Set::ALL,
            Self::Ip => &[Set::Drop4, Set::Host4],
        }
    }

    /// How many sets and chains such a table has.
    pub const fn objects(self) -> usize {
        self.sets().len() + Chain::ALL.len()
    }
}

/// The sets: what is in one is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Set {
    /// IPv4 addresses.
    Drop4,
    /// IPv6 addresses.
    Drop6,
    /// IPv6 networks of 64 bits, a set by themselves: as an address in
    /// `Drop6`, 2001:db8:: would block 2001:db8::/64.
    Net64,
    /// IPv6 networks of 56 bits.
    Net56,
    /// IPv6 networks of 48 bits.
    Net48,
    /// IPv4 addresses, dropped towards this host only.
    Host4,
    /// IPv6 addresses, the same. Never ICMPv6, by which the kernel asks for
    /// their link address (RFC 4861 section 7.2): unanswered, it would route
    /// nothing to them.
    Host6,
}

impl Set {
    /// All of them, in the order of the rules.
    pub const ALL: [Self; 7] = [
        Self::Drop4,
        Self::Drop6,
        Self::Net64,
        Self::Net56,
        Self::Net48,
        Self::Host4,
        Self::Host6,
    ];

    /// The one for `source`; `None` where there is none.
    pub fn of(source: Network, is_to_host_only: bool) -> Option<Self> {
        Self::ALL.into_iter().find(|set| {
            set.is_ipv6() == source.is_ipv6()
                && set.prefix_length() == source.prefix_length()
                && set.is_forwarded() != is_to_host_only
        })
    }

    /// Its name, as nft(8) prints it.
    #[inline(never)]
    pub fn name(self) -> &'static [u8] {
        let mut names = split(b"drop4 drop6 net6 net56 net48 host4 host6", b' ');
        names.nth(self as usize).unwrap_or_default()
    }

    fn named(name: &[u8]) -> Option<Self> {
        let name = string(name);
        Self::ALL.into_iter().find(|set| set.name() == name)
    }

    const fn comment(self) -> &'static [u8] {
        if self.is_forwarded() {
            b"sources dropped here and in what is forwarded"
        } else {
            b"neighbours, dropped towards this host only"
        }
    }

    const fn is_ipv6(self) -> bool {
        !matches!(self, Self::Drop4 | Self::Host4)
    }

    /// Leading bits of an address that count.
    const fn prefix_length(self) -> u8 {
        match self {
            Self::Drop4 | Self::Host4 => 32,
            Self::Drop6 | Self::Host6 => 128,
            Self::Net64 => 64,
            Self::Net56 => 56,
            Self::Net48 => 48,
        }
    }

    /// Whether the forward chain looks it up, too.
    const fn is_forwarded(self) -> bool {
        !matches!(self, Self::Host4 | Self::Host6)
    }

    /// The bits that count of an address's second four bytes, where the first
    /// four count whole and the rest not at all: of a network.
    const fn mask(self) -> u32 {
        match self {
            Self::Net64 => 0xffff_ffff,
            Self::Net56 => 0xffff_ff00,
            Self::Net48 => 0xffff_0000,
            _ => 0,
        }
    }
}

/// The base chains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chain {
    /// What is addressed to this host; its number is NF_INET_LOCAL_IN.
    Input = 1,
    /// What this host forwards; NF_INET_FORWARD.
    Forward = 2,
}

impl Chain {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Input, Self::Forward];

    const fn name(self) -> &'static [u8] {
        match self {
            Self::Input => b"input",
            Self::Forward => b"forward",
        }
    }

    const fn looks_up(self, set: Set) -> bool {
        matches!(self, Self::Input) || set.is_forwarded()
    }

    /// How many rules of ours it has.
    pub const fn rules(self, family: TableFamily) -> usize {
        let sets = family.sets().len();
        match (self, family) {
            (Self::Input, _) => sets,
            (Self::Forward, TableFamily::Inet) => sets - 2,
            (Self::Forward, TableFamily::Ip) => sets - 1,
        }
    }
}

/// A blocked source, as an element of a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Element<'a> {
    /// The set it is in.
    pub set: Set,
    /// What it blocks.
    pub source: Network,
    /// Milliseconds until the kernel removes it by itself; `None`: never.
    pub left_ms: Option<u64>,
    /// Its comment; other programs may add elements with any bytes.
    pub comment: &'a [u8],
}

impl Element<'_> {
    /// For commands about no element.
    const BLANK: Self = Self {
        set: Set::Drop4,
        source: Network::BLANK,
        left_ms: None,
        comment: &[],
    };
}

/// How to take elements out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    /// Those that are gone do no harm. Kernels before 6.3 refuse with EINVAL.
    Destroy,
    /// One that is gone vetoes its batch with ENOENT.
    Delete,
}

/// A transaction, written into a buffer: all of it comes into force, or
/// nothing. send(2) returns when it is done and its answers can be received;
/// `Answer` reads them.
pub struct Batch<'a> {
    out: &'a mut TextView,
    family: TableFamily,
    first: u32,
    sequence: u32,
    /// Where the last command starts.
    last: usize,
    chain: Chain,
    id: u32,
}

/// The struct nfgenmsg of the messages around a batch names the subsystem.
const BOUNDARY: [u8; FIXED] = [0, 0, 0, NFNL_SUBSYS_NFTABLES as u8];
/// Bytes of the message that ends a batch.
const END: usize = HEADER + FIXED;
/// Bytes of a message with one element at most, without its comment.
const ELEMENT: usize = HEADER + FIXED + 16 + 12 + 4 + 4 + 24 + 12 + 4 + 3 + 3;

impl<'a> Batch<'a> {
    /// Starts one in `out`, whose older content goes. Messages are numbered
    /// from `sequence` on; this first one's number is also that of errors that
    /// concern the whole batch, such as EOPNOTSUPP: no nf_tables.
    #[inline(never)]
    pub fn begin(out: &'a mut TextView, family: TableFamily, sequence: u32) -> Self {
        out.clear();
        put_head(out, END, NFNL_MSG_BATCH_BEGIN, BOUNDARY, sequence);
        let mut batch = Self::new(out, family, sequence);
        batch.sequence = sequence.wrapping_add(1);
        batch
    }

    fn new(out: &'a mut TextView, family: TableFamily, sequence: u32) -> Self {
        Self {
            out,
            family,
            first: sequence,
            sequence,
            last: 0,
            chain: Chain::Input,
            id: 0,
        }
    }

    /// The number of the next command.
    pub fn sequence(&self) -> u32 {
        self.sequence
    }

    /// Makes what is absent of the table, its sets and chains, and all rules
    /// anew: they are added, never replaced. Elements stay.
    ///
    /// A chain of our name with another hook or priority is refused with
    /// EOPNOTSUPP, a set without timeouts with EEXIST (before Linux 5.9 EBUSY):
    /// then `delete_table` before it helps, if the table is ours.
    pub fn set_up(&mut self) {
        self.put_table(self.family.sets());
    }

    fn put_table(&mut self, sets: &[Set]) {
        let mut values = Element {
            comment: TABLE_COMMENT,
            ..Element::BLANK
        };
        self.command(NEWTABLE, NEW_TABLE, &values);
        for set in sets {
            self.id += 1;
            values.set = *set;
            values.comment = set.comment();
            self.command(NEWSET, NEW_SET, &values);
        }
        for chain in &Chain::ALL {
            self.chain = *chain;
            self.command(NEWCHAIN, NEW_CHAIN, &values);
            self.command(DELRULE, OF_CHAIN, &values);
            for set in sets.iter().filter(|set| chain.looks_up(**set)) {
                values.set = *set;
                self.command(NEWRULE, NEW_RULE, &values);
            }
        }
    }

    /// Puts an element in, or in the place of one with the same key; false,
    /// and nothing done, where the buffer is full. Errors that concern it have
    /// the number that `sequence` returned before.
    ///
    /// Adding what is there leaves the old comment, before Linux 6.12 the old
    /// timeout, too, and says so nowhere: hence add, delete and add.
    pub fn add(&mut self, element: &Element) -> bool {
        if !self.has_room(3 * (ELEMENT + element.comment.len())) {
            return false;
        }
        let sequence = self.sequence;
        self.command(NEWSETELEM, NEW_ELEMENT, element);
        self.sequence = sequence;
        self.command(DELSETELEM, OLD_ELEMENT, element);
        self.sequence = sequence;
        self.command(NEWSETELEM, NEW_ELEMENT, element);
        true
    }

    /// Takes an element out; false, and nothing done, where the buffer is full.
    pub fn remove(&mut self, set: Set, source: Network, removal: Removal) -> bool {
        if !self.has_room(ELEMENT) {
            return false;
        }
        let kind = match removal {
            Removal::Destroy => DESTROYSETELEM,
            Removal::Delete => DELSETELEM,
        };
        let element = Element {
            set,
            source,
            ..Element::BLANK
        };
        self.command(kind, OLD_ELEMENT, &element);
        true
    }

    /// Deletes the table and all in it. `set_up` may follow: there is no moment
    /// without a table.
    #[inline(never)]
    pub fn delete_table(&mut self) {
        self.command(DELTABLE, OF_TABLE, &Element::BLANK);
    }

    /// Ends the batch and asks for an acknowledgement of its last command
    /// alone: many would not fit the socket's buffer, and before Linux 6.10
    /// the end itself is not acknowledged. Returns the numbers of all messages.
    pub fn end(&mut self) -> Range<u32> {
        // struct nlmsghdr: length, type, flags. NLM_F_REQUEST is all there is in
        // their lower byte.
        let at = self.last + 6 + usize::from(cfg!(target_endian = "big"));
        let flags = NLM_F_REQUEST | NLM_F_ACK;
        self.out.overwrite(at, &[flags as u8]);
        put_head(self.out, END, NFNL_MSG_BATCH_END, BOUNDARY, self.sequence);
        self.first..self.sequence.wrapping_add(1)
    }

    /// Whether an element more can be put in, and one taken out, whatever their
    /// comments are.
    pub fn takes_more(&self) -> bool {
        self.has_room(3 * (ELEMENT + COMMENT_MAX) + ELEMENT)
    }

    fn has_room(&self, length: usize) -> bool {
        self.out.room() >= length + END
    }

    /// One message about our table; of one element, so that errors name the
    /// guilty ones.
    #[inline(never)]
    fn command(&mut self, kind: u16, template: &str, values: &Element) {
        let start = self.out.as_bytes().len();
        let fixed = [self.family as u8, 0, 0, 0];
        put_head(self.out, 0, SUBSYSTEM | kind, fixed, self.sequence);
        self.fill(template, values);
        let length = self.out.as_bytes().len().saturating_sub(start) as u32;
        self.out.overwrite(start, &length.to_ne_bytes());
        self.last = start;
        self.sequence = self.sequence.wrapping_add(1);
    }

    /// Writes the attributes that `template` describes, of `values`.
    #[inline(never)]
    fn fill(&mut self, template: &str, values: &Element) {
        let mut template = template.bytes();
        let mut starts: Vec<usize, NESTS> = Vec::new();
        let mut number = 0;
        while let Some(byte) = template.next() {
            if byte.is_ascii_digit() || byte >= b'a' {
                number = match byte {
                    b'g'.. => self.number(byte, values),
                    // The value of a hexadecimal digit.
                    _ => number << 4 | (u32::from(byte & 15) + u32::from(byte >> 6) * 9),
                };
                continue;
            }
            match byte {
                b'(' | b'+' => {
                    let nested = if byte == b'(' { NLA_F_NESTED } else { 0 };
                    let _ = starts.push(self.out.as_bytes().len());
                    let [first, last] = (nested | number as u16).to_ne_bytes();
                    self.out.put(&[0, 0, first, last]);
                }
                b')' => close(self.out, starts.pop().unwrap_or(0)),
                b',' => self.out.put(&number.to_be_bytes()),
                b'-' => self.out.put_byte(number as u8),
                b'*' if number == 0 => {
                    let _ = template.by_ref().find(|byte| *byte == b'/');
                }
                b'\'' => {
                    while let Some(byte) = template.next()
                        && byte != b'\''
                    {
                        self.out.put_byte(byte);
                    }
                    self.out.put_byte(0);
                }
                _ => self.put_value(byte, values),
            }
            number = 0;
        }
    }

    /// What a sign stands for: `@` the address, the others a string or, with
    /// its length before it, the comment, of which nft reads 128 bytes with its
    /// NUL (NFTNL_UDATA_COMMENT_MAXLEN).
    #[inline(never)]
    fn put_value(&mut self, sign: u8, values: &Element) {
        let text = match sign {
            b'@' => {
                return match values.source.address() {
                    IpAddr::V4(address) => self.out.put(&address.octets()),
                    IpAddr::V6(address) => self.out.put(&address.octets()),
                };
            }
            b'"' => {
                let comment = values.comment.get(..COMMENT_MAX);
                let comment = comment.unwrap_or(values.comment);
                self.out.put_byte(comment.len() as u8 + 1);
                comment
            }
            b'#' => NAME,
            b'%' => self.chain.name(),
            b'$' => values.set.name(),
            _ => return,
        };
        self.out.put(text);
        self.out.put_byte(0);
    }

    /// What a letter stands for.
    #[inline(never)]
    fn number(&self, letter: u8, values: &Element) -> u32 {
        let set = values.set;
        match letter {
            b'h' => self.chain as u32,
            b'i' => self.id,
            b'm' => set.mask(),
            b'n' => u32::from(set == Set::Host6),
            b't' => {
                let left = values.left_ms;
                let left = left.map(|left| left.clamp(TIMEOUT_MIN_MS, TIMEOUT_MAX_MS));
                left.unwrap_or(0) as u32
            }
            b'u' => u32::from(self.family == TableFamily::Inet),
            _ => {
                let pair = usize::from(letter.wrapping_sub(b'w')) * 2;
                let at = pair + usize::from(set.is_ipv6());
                PAIRS.get(at).copied().unwrap_or(0).into()
            }
        }
    }
}

/// What w, x, y and z stand for, IPv4 and IPv6: AF_INET and AF_INET6; where a
/// packet has its source address; the length of one; nft's numbers of their
/// types (include/datatype.h), for its listing.
const PAIRS: [u8; 8] = [
    libc::AF_INET as u8,
    libc::AF_INET6 as u8,
    12,
    8,
    4,
    16,
    7,
    8,
];

// Attributes as text, which `Batch::fill` writes as bytes: one line instead of
// a call for each. `2(…)` is a nest of type 2, `2+…)` another attribute. In one
// stand numbers, of four bytes (`f,`) or one (`3a-`), strings (`'meta'`, with its
// NUL), and what `put_value` puts in place of a sign. Types and numbers are
// hexadecimal; a letter behind f stands for a number, see `number`. `u*…/` is
// left out where that is 0.

/// The deepest nesting.
const NESTS: usize = 8;

const OF_TABLE: &str = "1+#)";
const OF_SET: &str = "1+#)2+$)";
const OF_CHAIN: &str = "1+#)2+%)";

/// NFTA_TABLE_FLAGS, NFTA_TABLE_USERDATA.
const NEW_TABLE: &str = "1+#)2+0,)6+0-\")";

/// NFTA_SET_FLAGS (NFT_SET_TIMEOUT), NFTA_SET_KEY_TYPE, NFTA_SET_KEY_LEN,
/// NFTA_SET_ID, NFTA_SET_DESC (the size), NFTA_SET_USERDATA: the key's byte
/// order, big-endian, as a number in the host's, and a comment. 65,536 elements:
/// those that timed out count until the kernel's collector ran, about a second
/// later.
const NEW_SET: &str = if cfg!(target_endian = "big") {
    "1+#)2+$)3+10,)4+z,)5+y,)a+i,)9(1+10000,))d+0-4-0-0-0-2-7-\")"
} else {
    "1+#)2+$)3+10,)4+z,)5+y,)a+i,)9(1+10000,))d+0-4-2-0-0-0-7-\")"
};

/// NFTA_CHAIN_HOOK: its number, and the priority of filter less 10: before
/// everybody's filter. NFTA_CHAIN_POLICY (NF_ACCEPT), NFTA_CHAIN_TYPE.
const NEW_CHAIN: &str = "1+#)3+%)4(1+h,)2+fffffff6,))5+1,)7+'filter')";

/// NFTA_RULE_CHAIN, NFTA_RULE_EXPRESSIONS: each has a name and data.
const NEW_RULE: &str = concat!(
    "1+#)2+%)4(",
    // Both families' packets come along. In a table of one, nft(8) 1.0.6
    // aborts when it is to list such a comparison. NFT_META_NFPROTO; NFT_CMP_EQ
    // to AF_INET or AF_INET6.
    "u*1(1+'meta')2(1+1,)2+f,)))",
    "1(1+'cmp')2(1+1,)2+0,)3(1+w-))))/",
    // The source address, into NFT_REG_1: NFT_PAYLOAD_NETWORK_HEADER, offset,
    // length.
    "1(1+'payload')2(1+1,)2+1,)3+x,)4+y,)))",
    // From the register to the register: length, mask, nothing to xor.
    "m*1(1+'bitwise')2(1+1,)2+1,)3+10,)4(1+ffffffff,m,0,0,))5(1+0,0,0,0,))))/",
    "1(1+'lookup')2(1+$)2+1,)))",
    // NFT_META_L4PROTO; NFT_CMP_NEQ to IPPROTO_ICMPV6.
    "n*1(1+'meta')2(1+1,)2+10,)))",
    "1(1+'cmp')2(1+1,)2+1,)3(1+3a-))))/",
    // Register 0 takes the verdict, NF_DROP 0.
    "1(1+'immediate')2(1+0,)2(2(1+0,)))))",
    ")",
);

/// NFTA_SET_ELEM_LIST_SET, NFTA_SET_ELEM_LIST_ELEMENTS: one element of
/// NFTA_SET_ELEM_KEY, NFTA_SET_ELEM_TIMEOUT and NFTA_SET_ELEM_USERDATA.
const NEW_ELEMENT: &str = "1+#)2+$)3(1(1(1+@))4+0,t,)6+0-\")))";
/// The key is enough.
const OLD_ELEMENT: &str = "1+#)2+$)3(1(1(1+@))))";

/// Ends the attribute that starts there.
fn close(out: &mut TextView, start: usize) {
    let length = out.as_bytes().len().saturating_sub(start);
    out.overwrite(start, &(length as u16).to_ne_bytes());
    for _ in 0..length.wrapping_neg() % 4 {
        out.put_byte(0);
    }
}

/// A message's struct nlmsghdr and struct nfgenmsg.
#[inline(never)]
fn put_head(out: &mut TextView, length: usize, kind: u16, fixed: [u8; FIXED], sequence: u32) {
    let flags = match kind.wrapping_sub(SUBSYSTEM) {
        NEWTABLE | NEWCHAIN | NEWSET | NEWSETELEM => NLM_F_CREATE,
        NEWRULE => NLM_F_CREATE | NLM_F_APPEND,
        GETRULE | GETSETELEM => NLM_F_DUMP,
        _ => 0,
    };
    out.put(&header(length, kind, flags, sequence));
    out.put(&fixed);
}

/// What the kernel says of a batch; made for each batch that was sent, and fed
/// with all that can be received then. Where that fails with ENOBUFS nothing
/// is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    is_acknowledged: bool,
    has_failed: bool,
}

impl Answer {
    /// Nothing was received; all bytes zero.
    pub const NONE: Self = Self {
        is_acknowledged: false,
        has_failed: false,
    };

    /// Reads one datagram of the answer to the messages numbered `sequences`;
    /// hands number and error of each refused one to `each`.
    pub fn read(&mut self, bytes: &[u8], sequences: &Range<u32>, each: &mut dyn FnMut(u32, Errno)) {
        let count = sequences.end.wrapping_sub(sequences.start);
        for message in Messages::new(bytes) {
            let Ok(message) = message else {
                self.has_failed = true;
                return;
            };
            let is_of_it = message.sequence.wrapping_sub(sequences.start) < count;
            if message.kind != NLMSG_ERROR || !is_of_it {
                continue;
            }
            match u32_at(message.payload, 0).map(|bits| bits as i32) {
                Some(0) => self.is_acknowledged = true,
                error => {
                    self.has_failed = true;
                    let error = error.unwrap_or(-libc::EINVAL);
                    each(message.sequence, Errno(error.saturating_neg()));
                }
            }
        }
    }

    /// Whether the batch is in force. In one that is not, good commands are
    /// acknowledged all the same.
    pub fn is_success(self) -> bool {
        self.is_acknowledged && !self.has_failed
    }
}

/// What can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// The generation, which is that of all families.
    Generation,
    /// Our table.
    Table,
    /// All rules of a chain.
    Rules(Chain),
    /// All elements of a set.
    Elements(Set),
}

impl Question {
    /// What a whole listing asks for, one after the other.
    pub fn of_listing(family: TableFamily) -> &'static [Self] {
        const ALL: [Question; 11] = [
            Question::Generation,
            Question::Table,
            Question::Rules(Chain::Input),
            Question::Rules(Chain::Forward),
            Question::Elements(Set::Drop4),
            Question::Elements(Set::Host4),
            // A table of IPv4 has no more.
            Question::Elements(Set::Drop6),
            Question::Elements(Set::Net64),
            Question::Elements(Set::Net56),
            Question::Elements(Set::Net48),
            Question::Elements(Set::Host6),
        ];
        let [of_ipv4 @ .., _, _, _, _, _] = &ALL;
        match family {
            TableFamily::Inet => &ALL,
            TableFamily::Ip => of_ipv4,
        }
    }

    /// Writes the request into `out`, whose older content goes.
    #[inline(never)]
    pub fn put(self, out: &mut TextView, family: TableFamily, sequence: u32) {
        out.clear();
        let mut batch = Batch::new(out, family, sequence);
        let mut values = Element::BLANK;
        let (kind, template) = match self {
            Self::Generation => (GETGEN, ""),
            Self::Table => (GETTABLE, OF_TABLE),
            Self::Rules(chain) => {
                batch.chain = chain;
                (GETRULE, OF_CHAIN)
            }
            Self::Elements(set) => {
                values.set = set;
                (GETSETELEM, OF_SET)
            }
        };
        batch.command(kind, template, &values);
    }
}

/// Reads a part of the answer about rules or elements: adds the rules to
/// `count`. There are none where there is no such chain; no such table or set is
/// refused with ENOENT.
pub fn count_rules(bytes: &[u8], sequence: u32, count: &mut usize) -> Progress {
    walk_dump(bytes, sequence, &mut |kind, _| {
        *count += usize::from(kind == SUBSYSTEM | NEWRULE);
        Ok(())
    })
}

/// What carries a table's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// It has our comment.
    Ours,
    /// It has none: kernels before 5.10 keep none.
    Unknown,
    /// It has another one.
    Other,
}

/// A table with our name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableState {
    /// Who made it.
    pub owner: Owner,
    /// How many chains, sets and other objects it has.
    pub objects: u32,
    /// Its flags: 1 where it is dormant, none of its rules being in force.
    pub flags: u32,
}

impl TableState {
    /// Whether it has what `Batch::set_up` makes of all its sets, and no more.
    #[cfg(test)]
    pub fn is_complete(self, family: TableFamily) -> bool {
        self.flags == 0 && self.objects as usize == family.objects()
    }
}

/// What the answer about our table says; ENOENT where there is none.
pub fn table_answer(bytes: &[u8], sequence: u32) -> Result<TableState, Errno> {
    let table = only(bytes, sequence, NEWTABLE)?;
    let owner = match find(table, TABLE_USERDATA) {
        [] => Owner::Unknown,
        userdata if comment_of(userdata) == TABLE_COMMENT => Owner::Ours,
        _ => Owner::Other,
    };
    Ok(TableState {
        owner,
        objects: number(table, TABLE_USE),
        flags: number(table, TABLE_FLAGS),
    })
}

/// The number of the generation that an answer tells.
pub fn generation_answer(bytes: &[u8], sequence: u32) -> Result<u32, Errno> {
    only(bytes, sequence, NEWGEN).map(|attributes| number(attributes, GEN_ID))
}

/// The attributes of the one object of an answer.
#[inline(never)]
fn only(bytes: &[u8], sequence: u32, kind: u16) -> Result<&[u8], Errno> {
    let payload = netlink::only(bytes, sequence, SUBSYSTEM | kind)?;
    attributes_of(payload).map_err(|Malformed| Errno::EINVAL)
}

/// Those behind the struct nfgenmsg.
fn attributes_of(payload: &[u8]) -> Result<&[u8], Malformed> {
    payload.get(FIXED..).ok_or(Malformed)
}

/// The number that it has; 0 where there is none.
#[inline(never)]
fn number(attributes: &[u8], kind: u16) -> u32 {
    let number = u32_at(find(attributes, kind), 0);
    number.map(u32::from_be).unwrap_or(0)
}

/// The elements in a part of the answer about a set, save those that
/// no rule of ours can match. Not handed to a closure: the compiler would not
/// know whose code that runs.
pub struct Elements<'a> {
    messages: Messages<'a>,
    sequence: u32,
    set: Set,
    /// Those of the last message that are still to come.
    rest: Attributes<'a>,
}

impl<'a> Elements<'a> {
    /// Those in one datagram.
    pub fn new(bytes: &'a [u8], sequence: u32) -> Self {
        Self {
            messages: Messages::new(bytes),
            sequence,
            set: Set::Drop4,
            rest: Attributes::new(&[]),
        }
    }

    fn open(&mut self, payload: &'a [u8]) -> Result<(), Malformed> {
        let attributes = attributes_of(payload)?;
        if let Some(set) = Set::named(find(attributes, ELEMENTS_SET)) {
            self.set = set;
            self.rest = Attributes::new(find(attributes, ELEMENTS));
        }
        Ok(())
    }

    fn try_next(&mut self) -> Result<Option<Element<'a>>, Malformed> {
        loop {
            for attribute in self.rest.by_ref() {
                let element = parse_element(self.set, attribute?.value);
                if element.is_some() {
                    return Ok(element);
                }
            }
            let Some(message) = self.messages.next() else {
                return Ok(None);
            };
            let message = message?;
            if message.kind == SUBSYSTEM | NEWSETELEM && message.sequence == self.sequence {
                self.open(message.payload)?;
            }
        }
    }
}

impl<'a> Iterator for Elements<'a> {
    type Item = Result<Element<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        self.try_next().transpose()
    }
}

fn parse_element(set: Set, attributes: &[u8]) -> Option<Element<'_>> {
    let key = find(find(attributes, ELEM_KEY), DATA_VALUE);
    let address = address_of(key).ok()?;
    let source = Network::new(address, set.prefix_length());
    if source.is_ipv6() != set.is_ipv6() || source.address() != address {
        return None;
    }
    let left = find(attributes, ELEM_EXPIRATION).first_chunk();
    Some(Element {
        set,
        source,
        left_ms: left.map(|bytes| u64::from_be_bytes(*bytes)),
        comment: comment_of(find(attributes, ELEM_USERDATA)),
    })
}

/// A string without the NUL that ends it.
#[inline(never)]
fn string(value: &[u8]) -> &[u8] {
    value.strip_suffix(b"\0").unwrap_or(value)
}

/// The comment in a table's or an element's user data; nothing where there is
/// none, or where it does not add up: any program may have written it.
#[inline(never)]
fn comment_of(mut userdata: &[u8]) -> &[u8] {
    while let [kind, length, rest @ ..] = userdata {
        let Some((value, rest)) = rest.split_at_checked(usize::from(*length)) else {
            break;
        };
        if *kind == UDATA_COMMENT {
            return string(value);
        }
        userdata = rest;
    }
    &[]
}

/// The state of all tables of a network namespace, and who made the change
/// that led to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generation {
    /// Another one after each transaction.
    pub id: u32,
    /// The name of the process's program (TASK_COMM_LEN), in printable ASCII;
    /// in an answer that of the one that asked.
    pub program: Text<15>,
}

fn parse_generation(attributes: &[u8]) -> Generation {
    let mut program = Text::new();
    program.put_printable(string(find(attributes, GEN_PROC_NAME)));
    Generation {
        id: number(attributes, GEN_ID),
        program,
    }
}

/// What the kernel reports of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Another program deleted our table, or a chain, set, rule or element in
    /// it. Not reported of elements that time out.
    Deleted,
    /// Another program changed something else in our table.
    Changed,
    /// The transaction's end: what was reported before, maybe in other
    /// datagrams, is part of it. Of any table, also with nothing reported.
    Committed {
        /// What it led to.
        generation: Generation,
        /// Whether our own socket sent it.
        is_own: bool,
    },
}

/// Walks one datagram of the group NFNLGRP_NFTABLES: what others did to our
/// table, and all transactions' ends. Our own messages come from `own_port`,
/// the port of the socket that sends batches, as any answer names it.
#[inline(never)]
pub fn walk_events(
    bytes: &[u8],
    family: TableFamily,
    own_port: u32,
    each: &mut dyn FnMut(Event),
) -> Result<(), Malformed> {
    for message in Messages::new(bytes) {
        let message = message?;
        let is_own = message.port == own_port;
        let Some(kind) = kind_of(&message) else {
            continue;
        };
        let attributes = attributes_of(message.payload)?;
        if kind == NEWGEN {
            let generation = parse_generation(attributes);
            each(Event::Committed { generation, is_own });
            continue;
        }
        let is_ours = message.payload.first() == Some(&(family as u8))
            && string(find(attributes, TABLE)) == NAME;
        if is_ours && !is_own {
            each(match kind {
                DELTABLE | DELCHAIN | DELRULE | DELSET | DELSETELEM => Event::Deleted,
                _ => Event::Changed,
            });
        }
    }
    Ok(())
}

/// NFT_MSG_*; `None` of another subsystem.
fn kind_of(message: &Message) -> Option<u16> {
    let kind = message.kind.checked_sub(SUBSYSTEM)?;
    (kind < 0x100).then_some(kind)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::Failure;
    use core::net::Ipv6Addr;
    use std::format;
    use std::string::{String, ToString};

    type List<T> = std::vec::Vec<T>;

    const INET: TableFamily = TableFamily::Inet;
    const SET_USERDATA: u16 = 13;
    /// Enough for any batch of these tests.
    type Buffer = Text<32_768>;

    fn batch(family: TableFamily, sequence: u32, fill: impl FnOnce(&mut Batch)) -> List<u8> {
        let mut buffer = std::boxed::Box::new(Buffer::new());
        let mut batch = Batch::begin(&mut buffer, family, sequence);
        fill(&mut batch);
        batch.end();
        assert!(!buffer.is_truncated());
        buffer.as_bytes().to_vec()
    }

    fn net(text: &str) -> Network {
        Network::parse(text.as_bytes()).unwrap()
    }

    fn element<'a>(source: &str, left_ms: Option<u64>, comment: &'a str) -> Element<'a> {
        let source = net(source);
        Element {
            set: Set::of(source, false).unwrap(),
            source,
            left_ms,
            comment: comment.as_bytes(),
        }
    }

    fn hex(text: &str) -> List<u8> {
        let digits: List<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
        let pairs = digits
            .chunks(2)
            .map(|pair| core::str::from_utf8(pair).unwrap());
        pairs
            .map(|pair| u8::from_str_radix(pair, 16).unwrap())
            .collect()
    }

    /// Messages of a little-endian host as a big-endian one has them.
    fn swapped(little: &[u8]) -> List<u8> {
        let mut bytes = little.to_vec();
        let mut rest = &mut bytes[..];
        while !rest.is_empty() {
            let length = u32::from_le_bytes(rest[..4].try_into().unwrap()) as usize;
            let (message, behind) = rest.split_at_mut(length.next_multiple_of(4));
            rest = behind;
            let kind = u16::from_le_bytes([message[4], message[5]]);
            let (head, payload) = message.split_at_mut(HEADER);
            swap_header(head);
            if kind == NLMSG_ERROR {
                payload[..4].reverse();
                swap_header(&mut payload[4..]);
            } else {
                swap_attributes(&mut payload[FIXED..], kind, &mut List::new());
            }
        }
        bytes
    }

    fn swap_header(bytes: &mut [u8]) {
        for field in [0..4, 4..6, 6..8, 8..12, 12..16] {
            bytes[field].reverse();
        }
    }

    fn swap_attributes(mut bytes: &mut [u8], message: u16, path: &mut List<u16>) {
        while !bytes.is_empty() {
            let length = usize::from(u16::from_le_bytes([bytes[0], bytes[1]]));
            let kind = u16::from_le_bytes([bytes[2], bytes[3]]);
            let padded = length.next_multiple_of(4).min(bytes.len());
            let (attribute, behind) = bytes.split_at_mut(padded);
            bytes = behind;
            attribute[..2].reverse();
            attribute[2..4].reverse();
            path.push(kind & !NLA_F_NESTED);
            let value = &mut attribute[4..length];
            // The kernel does not mark its nests.
            let is_elements = matches!(message, 0xa0c | 0xa0e | 0xa1e)
                && [&[3][..], &[3, 1], &[3, 1, 1]].contains(&&path[..]);
            if kind & NLA_F_NESTED != 0 || is_elements {
                swap_attributes(value, message, path);
            } else if message == 0xa09 && path[..] == [SET_USERDATA] {
                value[2..6].reverse();
            }
            path.pop();
        }
    }

    /// A recording of a little-endian host, as this one has it.
    fn host_order(little: &[u8]) -> List<u8> {
        if cfg!(target_endian = "big") {
            swapped(little)
        } else {
            little.to_vec()
        }
    }

    /// One element in a batch, as Linux 6.18 acknowledged it.
    const ONE_ELEMENT: &str = "
        14000000 10000100 01000000 00000000 0000000a
        68000000 0c0a0504 02000000 00000000 01000000 0e000100 74637070 61727365
        72000000 0a000200 64726f70 34000000 38000380 34000180 0c000180 08000100
        c0000209 0c000400 00000000 000927c0 15000600 000f7463 70706172 73657220
        76312078 00000000
        14000000 11000100 03000000 00000000 0000000a";
    const ONE_ELEMENT_BIG_ENDIAN: &str = "
        00000014 00100001 00000001 00000000 0000000a
        00000068 0a0c0405 00000002 00000000 01000000 000e0001 74637070 61727365
        72000000 000a0002 64726f70 34000000 00388003 00348001 000c8001 00080001
        c0000209 000c0004 00000000 000927c0 00150006 000f7463 70706172 73657220
        76312078 00000000
        00000014 00110001 00000003 00000000 0000000a";

    #[test]
    fn one_element() {
        let added = element("192.0.2.9", Some(600_000), "tcpparser v1 x");
        let bytes = batch(INET, 1, |batch| {
            batch.command(NEWSETELEM, NEW_ELEMENT, &added);
        });
        let expected = if cfg!(target_endian = "big") {
            ONE_ELEMENT_BIG_ENDIAN
        } else {
            ONE_ELEMENT
        };
        assert_eq!(bytes, hex(expected));
        assert_eq!(swapped(&hex(ONE_ELEMENT)), hex(ONE_ELEMENT_BIG_ENDIAN));
    }

    /// The first is what another program wrote, but for the sets' comments and
    /// the order of the chains; Linux 6.18 took all of them, and nft listed the
    /// sets and rules.
    #[test]
    fn set_ups() {
        let five = [Set::Drop4, Set::Drop6, Set::Net64, Set::Host4, Set::Host6];
        let recorded = include_bytes!("testing/nf_tables/five_sets.bin");
        let bytes = batch(INET, 1, |batch| batch.put_table(&five));
        assert_eq!(bytes, host_order(recorded));
        let recorded = include_bytes!("testing/nf_tables/seven_sets.bin");
        let bytes = batch(INET, 1, |batch| batch.set_up());
        assert_eq!(bytes, host_order(recorded));
        let recorded = include_bytes!("testing/nf_tables/ip.bin");
        let bytes = batch(TableFamily::Ip, 1, |batch| batch.set_up());
        assert_eq!(bytes, host_order(recorded));
        // The one number of user data is in the host's order.
        let twin = swapped(recorded);
        let byte_order = |bytes: &[u8], order: [u8; 4]| {
            let userdata = [&[0, 4][..], &order, &[7, 46], b"sources"].concat();
            bytes.windows(userdata.len()).any(|part| part == userdata)
        };
        assert!(byte_order(recorded, [2, 0, 0, 0]) && byte_order(&twin, [0, 0, 0, 2]));
    }

    fn messages(bytes: &[u8]) -> List<Message<'_>> {
        Messages::new(bytes).map(Result::unwrap).collect()
    }

    fn kinds(bytes: &[u8]) -> List<u16> {
        let kind = |message: &Message| kind_of(message).unwrap_or(message.kind);
        messages(bytes).iter().map(kind).collect()
    }

    /// The set-up may be sent again and again: chains are emptied before rules
    /// are added.
    #[test]
    fn rules_replace_older_ones() {
        let bytes = batch(INET, 1, |batch| batch.set_up());
        let kinds = kinds(&bytes);
        let first = kinds.iter().position(|kind| *kind == NEWRULE).unwrap();
        let chain = [NEWCHAIN, DELRULE];
        let expected = [&chain[..], &[NEWRULE; 7], &chain, &[NEWRULE; 5]].concat();
        assert_eq!(kinds[first - 2..kinds.len() - 1], expected);
        let rules = |family| Chain::ALL.map(|chain| chain.rules(family));
        assert_eq!((rules(INET), rules(TableFamily::Ip)), ([7, 5], [2, 1]));
    }

    /// What the kernel refuses to change goes first, in the same transaction.
    #[test]
    fn a_table_built_anew() {
        let bytes = batch(INET, 1, |batch| {
            batch.delete_table();
            batch.set_up();
        });
        let expected = [NFNL_MSG_BATCH_BEGIN, DELTABLE, NEWTABLE];
        assert_eq!(kinds(&bytes)[..3], expected);
        let bytes = batch(INET, 1, |batch| batch.delete_table());
        assert_eq!(bytes.len(), 20 + 36 + 20);
    }

    /// One acknowledgement a batch, never that of the end.
    #[test]
    fn the_last_command_is_acknowledged() {
        let added = element("192.0.2.9", None, "tcpparser v1");
        let batches = [
            batch(INET, 7, |batch| batch.set_up()),
            batch(INET, 7, |batch| batch.delete_table()),
            batch(INET, 7, |batch| {
                batch.set_up();
                assert!(batch.add(&added));
            }),
            batch(INET, 7, |batch| {
                assert!(batch.add(&added));
                assert!(batch.remove(added.set, added.source, Removal::Delete));
            }),
        ];
        for bytes in batches {
            let messages = messages(&bytes);
            let asks = |message: &&Message| message.flags & NLM_F_ACK != 0;
            let asking: List<_> = messages.iter().filter(asks).collect();
            assert_eq!(asking.len(), 1);
            assert_eq!(*asking[0], messages[messages.len() - 2]);
            assert!(messages.iter().all(|message| message.flags & 1 == 1));
            let ends = [messages[0], messages[messages.len() - 1]];
            assert_eq!(ends.map(|end| end.kind), [16, 17]);
            assert_eq!(ends.map(|end| end.payload), [[0, 0, 0, 10]; 2]);
        }
    }

    /// Adding what is there would leave its comment, before Linux 6.12 its
    /// timeout, too. Whatever fails has the number of its element.
    #[test]
    fn an_element_replaces_an_older_one() {
        let sources = ["192.0.2.9", "2001:db8::9", "2001:db8:1:2::/64"];
        let bytes = batch(INET, 50, |batch| {
            for (source, sequence) in sources.into_iter().zip(51..) {
                assert_eq!(batch.sequence(), sequence);
                assert!(batch.add(&element(source, Some(600_000), "tcpparser v1")));
            }
        });
        let messages = messages(&bytes);
        let commands = &messages[1..messages.len() - 1];
        for (three, sequence) in commands.chunks(3).zip(51..) {
            let kinds: List<_> = three.iter().map(|message| message.kind & 0xff).collect();
            assert_eq!(kinds, [NEWSETELEM, DELSETELEM, NEWSETELEM]);
            assert!(three.iter().all(|message| message.sequence == sequence));
            assert_eq!(three[0].payload, three[2].payload);
            assert_eq!(three[0].flags & !NLM_F_ACK, NLM_F_REQUEST | NLM_F_CREATE);
            assert_eq!(three[1].flags, NLM_F_REQUEST);
        }
        assert_eq!(commands.len(), 9);
    }

    type Found = (Set, String, Option<u64>, String);

    fn found(element: Element) -> Found {
        let comment = String::from_utf8_lossy(element.comment).into_owned();
        let mut source: Text<64> = Text::new();
        element.source.write(&mut source);
        let source = String::from_utf8_lossy(source.as_bytes()).into_owned();
        (element.set, source, element.left_ms, comment)
    }

    /// The elements that `bytes` add, read as a listing of them would be.
    fn added(bytes: &[u8]) -> List<Found> {
        let mut elements = List::new();
        for message in messages(bytes) {
            if kind_of(&message) == Some(NEWSETELEM) {
                // A listing tells what is left of a timeout.
                let mut payload = message.payload.to_vec();
                let timeout = host_order_attribute(4, &[], 12);
                let left = host_order_attribute(ELEM_EXPIRATION, &[], 12);
                let at = payload.windows(4).position(|part| part == timeout);
                payload[at.unwrap()..][..4].copy_from_slice(&left);
                let mut added = Elements::new(&[], 0);
                added.open(&payload).unwrap();
                elements.extend(added.map(|element| found(element.unwrap())));
            }
        }
        elements
    }

    /// 0 would be for ever, and 1,000 years are ERANGE.
    #[test]
    fn timeouts() {
        for (left, expected) in [
            // For ever.
            (None, Some(0)),
            (Some(0), Some(10)),
            (Some(10), Some(10)),
            (Some(600_000), Some(600_000)),
            (Some(2_073_600_000), Some(2_073_600_000)),
            (Some(2_073_600_001), Some(2_073_600_000)),
            (Some(u64::MAX), Some(2_073_600_000)),
        ] {
            let one = element("192.0.2.9", left, "tcpparser v1");
            let bytes = batch(INET, 1, |batch| assert!(batch.add(&one)));
            let read: Found = (
                Set::Drop4,
                "192.0.2.9".into(),
                expected,
                "tcpparser v1".into(),
            );
            assert_eq!(added(&bytes), [read.clone(), read], "{left:?}");
        }
    }

    /// Longer ones are cut where nft would cut them; 254 bytes are ERANGE.
    #[test]
    fn comments() {
        for (length, expected) in [
            (0, 0),
            (1, 1),
            (120, 120),
            (127, 127),
            (128, 127),
            (300, 127),
        ] {
            let comment = "x".repeat(length);
            let bytes = batch(INET, 1, |batch| {
                assert!(batch.add(&element("192.0.2.9", None, &comment)));
            });
            assert_eq!(added(&bytes)[0].3, comment[..expected]);
        }
        for (userdata, expected) in [
            (&b"\0\x03ab\0"[..], &b"ab"[..]),
            (b"\0\x02ab", b"ab"),
            (b"\x01\x01x\0\x03ab\0\x07\x01x", b"ab"),
            (b"\0\x04ab\0", b""),
            (b"\x01\x01x", b""),
            (b"\0", b""),
            (b"\0\0", b""),
            (b"", b""),
        ] {
            assert_eq!(comment_of(userdata), expected, "{userdata:?}");
        }
    }

    #[test]
    fn removals() {
        for (removal, kind) in [(Removal::Destroy, 0xa1e), (Removal::Delete, 0xa0e)] {
            for (source, length) in [("192.0.2.9", 68), ("2001:db8:1::/48", 80)] {
                let source = net(source);
                let set = Set::of(source, false).unwrap();
                let bytes = batch(INET, 1, |batch| {
                    assert!(batch.remove(set, source, removal));
                    assert_eq!(batch.sequence(), 3);
                });
                assert_eq!(messages(&bytes)[1].kind, kind);
                assert_eq!(bytes.len(), 20 + length + 20);
            }
        }
    }

    #[test]
    fn the_set_of_a_source() {
        for (source, everything, to_host) in [
            ("192.0.2.9", Some(Set::Drop4), Some(Set::Host4)),
            ("2001:db8::9", Some(Set::Drop6), Some(Set::Host6)),
            ("2001:db8:1:2::/64", Some(Set::Net64), None),
            ("2001:db8:1::/56", Some(Set::Net56), None),
            ("2001:db8:1::/48", Some(Set::Net48), None),
            ("192.0.2.0/24", None, None),
            ("2001:db8::/32", None, None),
            ("2001:db8::/96", None, None),
        ] {
            let sets = [false, true].map(|is_to_host| Set::of(net(source), is_to_host));
            assert_eq!(sets, [everything, to_host], "{source}");
            for set in sets.into_iter().flatten() {
                assert_eq!(set.prefix_length(), net(source).prefix_length());
                assert_eq!(set.is_ipv6(), net(source).is_ipv6());
                let name = [set.name(), b"\0"].concat();
                assert_eq!(Set::named(&name), Some(set));
                assert_eq!(Set::named(&[set.name(), b"x\0"].concat()), None);
            }
        }
    }

    /// What does not fit is refused whole, and what did fit is a batch.
    #[test]
    fn a_full_buffer() {
        let mut buffer = std::boxed::Box::new(Buffer::new());
        let comment = "x".repeat(120);
        let mut count = 0u32;
        let mut batch = Batch::begin(&mut buffer, INET, 1);
        loop {
            let source = Network::new(IpAddr::V6(Ipv6Addr::from_bits(count.into())), 64);
            let one = Element {
                source,
                ..element("2001:db8::/64", Some(1), &comment)
            };
            if !batch.add(&one) {
                break;
            }
            count += 1;
        }
        assert_eq!(batch.end(), 1..65);
        assert!(!buffer.is_truncated());
        assert_eq!(count, 62);
        assert_eq!(added(buffer.as_bytes()).len(), 124);

        // Whatever the buffer has left.
        fn fill<const N: usize>(comment: &str) {
            let mut buffer: Text<N> = Text::new();
            let mut batch = Batch::begin(&mut buffer, INET, 1);
            let one = element("2001:db8::9", Some(1), comment);
            let is_added = batch.add(&one);
            while batch.remove(one.set, one.source, Removal::Destroy) {}
            batch.end();
            assert!(!buffer.is_truncated());
            let kinds = kinds(buffer.as_bytes());
            assert_eq!(kinds.contains(&NEWSETELEM), is_added);
            assert_eq!(kinds.last(), Some(&NFNL_MSG_BATCH_END));
        }
        for length in 0..200 {
            let comment = "x".repeat(length);
            fill::<40>(&comment);
            fill::<500>(&comment);
            fill::<501>(&comment);
            fill::<503>(&comment);
            fill::<700>(&comment);
        }
    }

    fn answer(datagrams: &[&[u8]], sequences: Range<u32>) -> (bool, List<(u32, i32)>) {
        let mut answer = Answer::default();
        let mut errors = List::new();
        for bytes in datagrams {
            let mut each = |sequence, error: Errno| errors.push((sequence, error.0));
            answer.read(bytes, &sequences, &mut each);
        }
        (answer.is_success(), errors)
    }

    /// As the kernel writes it where NETLINK_CAP_ACK is set.
    fn error(sequence: u32, code: i32) -> List<u8> {
        let head = header(36, NLMSG_ERROR, 0x100, sequence);
        let request = header(100, 0xa0c, 0, sequence);
        [&head[..], &code.to_ne_bytes(), &request].concat()
    }

    #[test]
    fn answers() {
        let acknowledged = host_order(&hex("24000000 02000001 02000000 bf100000 00000000
            68000000 0c0a0504 02000000 00000000"));
        assert_eq!(answer(&[&acknowledged], 1..4), (true, List::new()));
        // Nothing says that it worked.
        assert_eq!(answer(&[], 1..4), (false, List::new()));
        // One of another batch.
        assert_eq!(answer(&[&acknowledged], 3..9), (false, List::new()));
        assert_eq!(answer(&[&acknowledged], 0..2), (false, List::new()));
        let exists = host_order(&hex("24000000 02000001 02000000 bf100000 efffffff
            68000000 0c0a0506 02000000 00000000"));
        assert_eq!(
            answer(&[&exists], 1..4),
            (false, std::vec![(2, libc::EEXIST)])
        );
        let last = error(u32::MAX, -libc::ENOENT);
        let expected = (false, std::vec![(u32::MAX, libc::ENOENT)]);
        let (start, end) = (u32::MAX - 1, 2);
        assert_eq!(
            answer(&[&last, &error(0, 0)], Range { start, end }),
            expected
        );
        for cut in 1..36 {
            assert!(
                !answer(&[&acknowledged[..cut], &acknowledged], 1..4).0,
                "{cut}"
            );
        }
        let odd = header(HEADER, NLMSG_ERROR, 0, 2);
        assert!(!answer(&[&odd, &acknowledged], 1..4).0);
    }

    /// An acknowledgement does not say that anything is in force: good, bad,
    /// good, bad and good, all of which went.
    #[test]
    fn one_error_spoils_the_batch() {
        let recorded = host_order(&hex("
            24000000 02000001 66000000 792d0000 feffffff 44000000 0e0a0100 66000000 00000000
            24000000 02000001 68000000 792d0000 feffffff 44000000 0e0a0100 68000000 00000000
            24000000 02000001 69000000 792d0000 00000000 a0000000 0c0a0504 69000000 00000000"));
        let expected = std::vec![(102, libc::ENOENT), (104, libc::ENOENT)];
        assert_eq!(answer(&[&recorded], 100..106), (false, expected.clone()));
        let parts: List<_> = recorded.chunks(36).rev().collect();
        let backwards = expected.into_iter().rev().collect();
        assert_eq!(answer(&parts, 100..106), (false, backwards));
        let all = [error(101, 0), error(102, -libc::ENOENT), error(103, 0)].concat();
        assert_eq!(
            answer(&[&all], 100..105),
            (false, std::vec![(102, libc::ENOENT)])
        );
    }

    /// A full set (ENFILE) refuses both additions of each element that is too
    /// many.
    #[test]
    fn errors_name_the_elements() {
        let of = |sequence| error(sequence, -libc::ENFILE);
        let recorded = [of(6), of(6), of(7), of(7)].concat();
        let (is_success, errors) = answer(&[&recorded], 1..9);
        assert!(!is_success);
        assert_eq!(
            errors,
            [6, 6, 7, 7].map(|sequence| (sequence, libc::ENFILE))
        );
        // All of the batch: no privilege, no nf_tables.
        for code in [libc::EPERM, libc::EOPNOTSUPP] {
            let expected = (false, std::vec![(1, code)]);
            assert_eq!(answer(&[&error(1, -code)], 1..9), expected);
        }
    }

    #[test]
    fn requests() {
        let ask = |kind: u16, flags, length, family| {
            let head = header(length, 0xa00 | kind, flags, 7).to_vec();
            [&head[..], &[family, 0, 0, 0]].concat()
        };
        let name = host_order_attribute(1, b"tcpparser\0\0\0", 14);
        let request = |question: Question, family| {
            let mut out: Text<72> = Text::from_bytes(b"older");
            question.put(&mut out, family, 7);
            out
        };
        let elements = request(Question::Elements(Set::Net56), INET);
        let set = host_order_attribute(2, b"net56\0\0\0", 10);
        let expected = [ask(13, 0x300, 48, 1), name.clone(), set].concat();
        assert_eq!(elements.as_bytes(), expected);
        let rules = request(Question::Rules(Chain::Forward), INET);
        let chain = host_order_attribute(2, b"forward\0", 12);
        let expected = [ask(7, 0x300, 48, 1), name.clone(), chain].concat();
        assert_eq!(rules.as_bytes(), expected);
        let expected = [ask(1, 0, 36, 2), name].concat();
        let table = request(Question::Table, TableFamily::Ip);
        assert_eq!(table.as_bytes(), expected);
        let generation = request(Question::Generation, INET);
        assert_eq!(generation.as_bytes(), ask(16, 0, 20, 1));
    }

    fn host_order_attribute(kind: u16, padded: &[u8], length: u16) -> List<u8> {
        [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), padded].concat()
    }

    fn listed(bytes: &[u8]) -> (List<Found>, Progress) {
        let progress = count_rules(bytes, 7, &mut 0);
        let is_sound = !matches!(progress, Progress::Failed(_));
        let elements = Elements::new(bytes, 7).filter(|_| is_sound);
        (
            elements.map_while(Result::ok).map(found).collect(),
            progress,
        )
    }

    /// Of Linux 6.18: two elements, a message without any, and the end.
    const LISTING: &str = "
        b4000000 0c0a0200 07000000 792d0000 01000007 0e000100 74637070 61727365
        72000000 0a000200 686f7374 34000000 84000300 40000100 0c000100 08000100
        c000020b 0c000400 00000000 004c4b40 0c000500 00000000 004c4b28 17000600
        00117463 70706172 73657220 7631206e 65770000 40000100 0c000100 08000100
        c000020a 0c000400 00000000 004c4b40 0c000500 00000000 004c4b28 17000600
        00117463 70706172 73657220 7631206e 65770000
        34000000 0c0a0200 07000000 792d0000 01000007 0e000100 74637070 61727365
        72000000 0a000200 686f7374 34000000 04000300
        14000000 03000200 07000000 792d0000 00000000";

    #[test]
    fn listings() {
        let bytes = host_order(&hex(LISTING));
        let one = |source: &str| {
            let comment = String::from("tcpparser v1 new");
            (Set::Host4, source.to_string(), Some(4_999_976), comment)
        };
        let expected = std::vec![one("192.0.2.11"), one("192.0.2.10")];
        assert_eq!(listed(&bytes), (expected.clone(), Progress::Done));
        assert_eq!(
            listed(&bytes[..bytes.len() - 20]),
            (expected, Progress::More)
        );
        // Somebody changed something meanwhile: ask again.
        let mut interrupted = bytes.clone();
        let flags = u16::from_ne_bytes([bytes[6], bytes[7]]) | 0x10;
        interrupted[6..8].copy_from_slice(&flags.to_ne_bytes());
        let failed = Progress::Failed(Failure::Interrupted);
        assert_eq!(listed(&interrupted), (List::new(), failed));
        // No such table, or no such set.
        let absent = host_order(&hex("24000000 02000001 07000000 792d0000 feffffff
            30000000 0d0a0103 07000000 00000000"));
        let refused = Progress::Failed(Failure::Refused(Errno::ENOENT));
        assert_eq!(listed(&absent), (List::new(), refused));
    }

    /// What others may put into our sets, or make beside them.
    #[test]
    fn odd_elements() {
        let read = |set: Set, source: &str, comment: &str| {
            let source = Network::single(source.parse().unwrap());
            let one = Element {
                set,
                source,
                left_ms: None,
                comment: comment.as_bytes(),
            };
            added(&batch(INET, 1, |batch| assert!(batch.add(&one))))
        };
        // The look-up masks the packet's address, not the key.
        assert_eq!(read(Set::Net64, "2001:db8::1", "").len(), 0);
        assert_eq!(read(Set::Net48, "2001:db8:0:1::", "").len(), 0);
        // IPv4-mapped.
        assert_eq!(read(Set::Drop6, "::ffff:192.0.2.9", "").len(), 0);
        let expected: Found = (Set::Drop4, "192.0.2.9".into(), Some(0), "\u{1b}[2J".into());
        assert_eq!(read(Set::Drop4, "192.0.2.9", "\u{1b}[2J")[0], expected);
        let mut listing = hex(LISTING);
        let at = listing
            .windows(5)
            .position(|name| name == b"host4")
            .unwrap();
        listing[at] = b'g';
        assert_eq!(listed(&host_order(&listing)), (List::new(), Progress::Done));
    }

    #[test]
    fn rules_are_counted() {
        let recorded = host_order(include_bytes!("testing/nf_tables/rules.bin"));
        let mut count = 0;
        assert_eq!(count_rules(&recorded, 7, &mut count), Progress::Done);
        assert_eq!(count, Chain::Input.rules(INET));
        // No such chain, no such table.
        let none = host_order(&hex("14000000 03000200 07000000 792d0000 00000000"));
        assert_eq!(count_rules(&none, 7, &mut count), Progress::Done);
        assert_eq!(count, 7);
    }

    #[test]
    fn tables() {
        let ours = "7c000000 000a0000 07000000 792d0000 01000007 0e000100 74637070 61727365
            72000000 08000300 00000009 0c000400 00000000 00000001 08000200 00000000
            3c000600 0036706f 72742073 63616e20 736f7572 6365733b 20746370 70617273
            6572202d 2d756e62 6c6f636b 20616c6c 206c6966 74732074 68656d00";
        let bare = "40000000 000a0000 07000000 792d0000 0100001a 0e000100 74637070 61727365
            72000000 08000300 00000000 0c000400 00000000 00000003 08000200 00000000";
        let mine = "4c000000 000a0000 07000000 792d0000 0100001f 0e000100 74637070 61727365
            72000000 08000300 00000009 0c000400 00000000 00000006 08000200 00000000
            0b000600 00056d69 6e650000";
        // `nft add table inet tcpparser { flags dormant; }`
        let dormant = ours.replace("08000200 00000000", "08000200 00000001");
        for (recorded, owner, is_complete) in [
            (ours, Owner::Ours, true),
            (&ours.replace("00000009", "0000000a"), Owner::Ours, false),
            (&dormant, Owner::Ours, false),
            (bare, Owner::Unknown, false),
            (mine, Owner::Other, true),
        ] {
            let bytes = host_order(&hex(recorded));
            let table = table_answer(&bytes, 7).unwrap();
            assert_eq!(table.owner, owner);
            assert_eq!(table.is_complete(INET), is_complete);
            assert!(!table.is_complete(TableFamily::Ip));
            assert_eq!(table_answer(&bytes, 8), Err(Errno::EINVAL));
        }
        assert_eq!(
            table_answer(&error(7, -libc::ENOENT), 7),
            Err(Errno::ENOENT)
        );
    }

    const GENERATION: &str = "30000000 0f0a0000 07000000 792d0000 00000007
        08000100 00000007 08000200 00002d79 0c000300 70797468 6f6e3300";

    /// The name is whatever that process calls itself.
    #[test]
    fn generations() {
        let read = |text: &str| {
            let bytes = host_order(&hex(text));
            let generation = parse_generation(only(&bytes, 7, NEWGEN).unwrap());
            assert_eq!(generation_answer(&bytes, 7), Ok(generation.id));
            let name = generation.program.as_bytes().to_vec();
            (generation.id, String::from_utf8(name).unwrap())
        };
        assert_eq!(read(GENERATION), (7, "python3".into()));
        let odd = GENERATION.replace("70797468 6f6e3300", "1b5b324a 0a0dff00");
        assert_eq!(read(&odd).1, " [2J ");
        let unended = GENERATION.replace("6f6e3300", "6f6e3333");
        assert_eq!(read(&unended).1, "python33");
        assert_eq!(generation_answer(&[], 7), Err(Errno::EINVAL));
        let refused = error(7, -libc::EINVAL);
        assert_eq!(generation_answer(&refused, 7), Err(Errno::EINVAL));
    }

    const OWN_PORT: u32 = 0x2d79;

    /// What is reported of a datagram, in short.
    fn reported(bytes: &[u8]) -> List<String> {
        let mut reported = List::new();
        walk_events(bytes, INET, OWN_PORT, &mut |event| {
            reported.push(match event {
                Event::Deleted => "deleted".into(),
                Event::Changed => "changed".into(),
                Event::Committed { generation, is_own } => {
                    let program =
                        String::from_utf8_lossy(generation.program.as_bytes()).into_owned();
                    let who = if is_own { "own" } else { "foreign" };
                    format!("{who} {} {program}", generation.id)
                }
            });
        })
        .unwrap();
        reported
    }

    /// `nft delete element inet tcpparser drop4 '{ 192.0.2.9 }'`
    const OPERATOR: &str = "
        a0000000 0e0a0000 00000000 a72d0000 0100000c 0e000100 74637070 61727365
        72000000 0a000200 64726f70 34000000 70000300 6c000100 0c000100 08000100
        c0000209 0c000400 00000000 000927c0 0c000500 00000000 000927bc 41000600
        003b7463 70706172 73657220 76312062 3d306261 64636166 6520653d 37303020
        733d3120 743d3130 3020643d 6e20703d 32322c32 352c3830 2c343433 00000000
        2c000000 0f0a0000 01000000 a72d0000 0000000c 08000100 0000000c 08000200
        00002da7 08000300 6e667400";

    #[test]
    fn an_operator_unblocks() {
        let reported_of = |text: &str| reported(&host_order(&hex(text)));
        assert_eq!(reported_of(OPERATOR), ["deleted", "foreign 12 nft"]);
        // Our own changes are reported, too.
        let own = OPERATOR.replace("a72d0000", "792d0000");
        assert_eq!(reported_of(&own), ["own 12 nft"]);
        // Another table, another family.
        let other = OPERATOR.replace("74637070", "75637070");
        assert_eq!(reported_of(&other), ["foreign 12 nft"]);
        let other = OPERATOR.replace("0100000c", "0200000c");
        assert_eq!(reported_of(&other), ["foreign 12 nft"]);
        // Added by hand.
        let added = OPERATOR.replace("0e0a0000", "0c0a0004");
        assert_eq!(reported_of(&added), ["changed", "foreign 12 nft"]);
        // Of another subsystem, such as conntrack's.
        let other = OPERATOR.replace("0e0a0000", "0e010000");
        assert_eq!(reported_of(&other), ["foreign 12 nft"]);
    }

    /// `nft flush ruleset`: 12 rules, 7 sets, 2 chains, the table.
    #[test]
    fn a_flush_of_all() {
        let recorded = include_bytes!("testing/nf_tables/flush_ruleset.bin");
        let reported = reported(&host_order(recorded));
        assert_eq!(reported.len(), 23);
        assert!(reported[..22].iter().all(|event| event == "deleted"));
        assert!(reported[22].starts_with("foreign ") && reported[22].ends_with(" nft"));
    }

    /// Every cut of what was recorded, and every byte of it set to odd values,
    /// ends without a panic.
    #[test]
    fn damaged_messages_end() {
        let read = |bytes: &[u8]| {
            let mut count = 0;
            count += Elements::new(bytes, 7).count();
            count_rules(bytes, 7, &mut count);
            let mut each = |_: Event| count += 1;
            let _ = walk_events(bytes, INET, OWN_PORT, &mut each);
            Answer::default().read(bytes, &(0..9), &mut |_, _| count += 1);
            let _ = (table_answer(bytes, 7), generation_answer(bytes, 7));
            assert!(count <= 4 * bytes.len());
        };
        let rules = include_bytes!("testing/nf_tables/rules.bin");
        for whole in [
            host_order(&hex(LISTING)),
            host_order(&hex(GENERATION)),
            host_order(&hex(OPERATOR)),
            host_order(rules)[..292].to_vec(),
            error(7, -libc::ENOENT),
        ] {
            for end in 0..whole.len() {
                read(&whole[..end]);
                for odd in [0, 1, 3, 5, 0x7f, 0xff] {
                    let mut bytes = whole.clone();
                    bytes[end] = odd;
                    read(&bytes);
                }
            }
        }
    }
}
