//! Addresses and networks: parse, print, compare. Built on `core::net`, whose
//! own Display is avoided because it pulls in core::fmt.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::label::label;
use crate::text::{Text, TextView, has_byte, parse_decimal, split, split_once};

/// The IP version; IPv4-mapped IPv6 (RFC 4291 section 2.5.5.2) is IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

label!(Family, "family", 0, ["4", "6"]);

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// That of an address.
    pub const fn of(address: IpAddr) -> Self {
        if address.is_ipv6() {
            Self::V6
        } else {
            Self::V4
        }
    }

    /// AF_INET or AF_INET6.
    pub const fn number(self) -> u8 {
        match self {
            Self::V4 => libc::AF_INET as u8,
            Self::V6 => libc::AF_INET6 as u8,
        }
    }

    /// The family with this number.
    #[inline(never)]
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.iter().copied().find(|one| one.number() == number)
    }

    /// Bits of an address: the longest prefix.
    pub const fn bits(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }
}

/// One value for each family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PerFamily<T> {
    /// That of IPv4.
    pub v4: T,
    /// That of IPv6.
    pub v6: T,
}

impl<T> PerFamily<T> {
    /// IPv4's and IPv6's.
    pub const fn new(v4: T, v6: T) -> Self {
        Self { v4, v6 }
    }

    /// What `value` says for each, IPv4 first.
    pub fn from_fn(mut value: impl FnMut(Family) -> T) -> Self {
        let [v4, v6] = Family::ALL.map(&mut value);
        Self { v4, v6 }
    }

    /// That of one family.
    pub const fn get(&self, family: Family) -> &T {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }

    /// That of one family, to be changed.
    pub const fn get_mut(&mut self, family: Family) -> &mut T {
        match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        }
    }

    /// Each family with its own, IPv4 first.
    #[cfg(test)]
    pub fn iter(&self) -> impl Iterator<Item = (Family, &T)> {
        Family::ALL
            .into_iter()
            .map(|family| (family, self.get(family)))
    }
}

/// One end of a TCP connection.
#[derive(Clone, Copy, Debug, Eq)]
pub struct Endpoint {
    /// The address; IPv4-mapped IPv6 is folded to IPv4.
    pub address: IpAddr,
    /// The port, 0 to 65535.
    pub port: u16,
}

impl PartialEq for Endpoint {
    #[inline(never)]
    fn eq(&self, other: &Self) -> bool {
        self.port == other.port && self.address == other.address
    }
}

/// The unspecified IPv4 address, also the filler of unused slots.
pub const UNSPECIFIED: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

/// An address block in CIDR notation (RFC 4632, RFC 4291 section 2.3). Host
/// bits are zero.
#[derive(Clone, Copy, Debug, Eq)]
pub struct Network {
    address: IpAddr,
    /// The number of its last bits that addresses do not share.
    host_bits: u8,
}

impl PartialEq for Network {
    #[inline(never)]
    fn eq(&self, other: &Self) -> bool {
        self.host_bits == other.host_bits && self.address == other.address
    }
}

impl Network {
    /// Filler for unused slots: 0.0.0.0 never stands in a live slot.
    pub const BLANK: Self = Self::single(UNSPECIFIED);

    /// All of a family.
    pub const fn any(family: Family) -> Self {
        match family {
            Family::V4 => Self::new(UNSPECIFIED, 0),
            Family::V6 => Self::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 0),
        }
    }

    /// The block of `prefix_length` bits around `address`; longer prefixes
    /// than the family has are cut to a single address.
    pub const fn new(address: IpAddr, prefix_length: u8) -> Self {
        let bits = Family::of(address).bits();
        Self::of_size(address, bits.saturating_sub(prefix_length))
    }

    /// The block around `address` in which `host_bits` differ.
    #[inline(never)]
    pub const fn of_size(address: IpAddr, host_bits: u8) -> Self {
        let others = mask(host_bits);
        let address = match address {
            IpAddr::V4(v4) => IpAddr::V4(Ipv4Addr::from_bits(v4.to_bits() & !(others as u32))),
            IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !others)),
        };
        Self { address, host_bits }
    }

    /// The block that holds just `address`.
    pub const fn single(address: IpAddr) -> Self {
        Self {
            address,
            host_bits: 0,
        }
    }

    /// The lowest address.
    pub const fn address(self) -> IpAddr {
        self.address
    }

    /// The number of leading bits that all addresses share.
    pub const fn prefix_length(self) -> u8 {
        self.family().bits() - self.host_bits
    }

    /// The number of bits behind them.
    pub const fn host_bits(self) -> u8 {
        self.host_bits
    }

    /// That of its addresses.
    pub const fn family(self) -> Family {
        Family::of(self.address)
    }

    /// Whether the block is one of IPv6 addresses.
    pub const fn is_ipv6(self) -> bool {
        matches!(self.address, IpAddr::V6(_))
    }

    /// Whether the block holds just one address.
    pub const fn is_single(self) -> bool {
        self.host_bits == 0
    }

    /// Whether `address` lies in the block.
    pub fn contains(&self, address: IpAddr) -> bool {
        let host_bits = self.host_bits.into();
        match (self.address, address) {
            (IpAddr::V4(a), IpAddr::V4(b)) => {
                let differing = a.to_bits() ^ b.to_bits();
                differing.checked_shr(host_bits).unwrap_or(0) == 0
            }
            (IpAddr::V6(a), IpAddr::V6(b)) => {
                let differing = a.to_bits() ^ b.to_bits();
                differing.checked_shr(host_bits).unwrap_or(0) == 0
            }
            _ => false,
        }
    }

    /// Whether the two blocks share an address.
    pub fn overlaps(&self, other: Self) -> bool {
        if self.host_bits >= other.host_bits {
            self.contains(other.address)
        } else {
            other.contains(self.address)
        }
    }

    /// Whether it is one of many IPv6 /64s.
    pub const fn is_wide(self) -> bool {
        self.host_bits > 64
    }

    /// The network of which an IPv6 /64 or /56 is one of 256 parts, as providers
    /// delegate them (RFC 6177 section 2).
    pub fn wider(&self) -> Option<Self> {
        let is_delegated = matches!(self.host_bits, 64 | 72);
        is_delegated.then(|| Self::of_size(self.address, self.host_bits + 8))
    }

    /// One of the 256 parts of a `wider` network.
    #[inline(never)]
    pub fn part(&self, number: u8) -> Self {
        let IpAddr::V6(v6) = self.address else {
            return *self;
        };
        let host_bits = self.host_bits.saturating_sub(8);
        let bits = v6.to_bits() | u128::from(number) << (host_bits & 127);
        Self::of_size(IpAddr::V6(Ipv6Addr::from_bits(bits)), host_bits)
    }

    /// The block of so many bits around it, for either family. An address that
    /// NAT64 made of an IPv4 address counts as that.
    #[inline(never)]
    pub fn around(&self, v4_length: u8, v6_length: u8) -> Self {
        match self.address {
            IpAddr::V6(v6) => {
                let bits = v6.to_bits();
                // Both begin like that: nearly no other address needs the search.
                let may_be = bits >> 112 == 0x64;
                if may_be && NAT64.iter().any(|prefix| prefix.contains(self.address)) {
                    let v4 = Ipv4Addr::from_bits(bits as u32);
                    return Self::new(IpAddr::V4(v4), v4_length);
                }
                Self::new(self.address, v6_length)
            }
            IpAddr::V4(_) => Self::new(self.address, v4_length),
        }
    }

    /// Parses `192.0.2.0/24`, `2001:db8::/32` or a single address. Host bits
    /// are cleared. An IPv4-mapped IPv6 address is folded to IPv4 when single.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let (before, digits) = split_once(text, b'/');
        let address = parse_address(before)?;
        if before.len() == text.len() {
            return Some(Self::single(fold_mapped(address)));
        }
        let bits = Family::of(address).bits();
        let length = parse_decimal(digits).filter(|_| digits.len() <= 3)?;
        let host_bits = u64::from(bits).checked_sub(length)?;
        Some(Self::of_size(address, host_bits as u8))
    }

    /// Appends the block: a single address without its length, else CIDR.
    pub fn write(&self, out: &mut TextView) {
        write_address(out, self.address);
        if !self.is_single() {
            out.put_byte(b'/');
            out.put_decimal(u64::from(self.prefix_length()));
        }
    }

    /// Appends the block always with its length, as iptables-save prints it.
    pub fn write_cidr(&self, out: &mut TextView) {
        write_address(out, self.address);
        out.put_byte(b'/');
        out.put_decimal(u64::from(self.prefix_length()));
    }
}

/// Where NAT64 makes IPv6 addresses of IPv4 ones (RFC 6052 section 2.1, RFC 8215
/// section 5).
pub const NAT64: [Network; 2] = [
    Network::new(IpAddr::V6(Ipv6Addr::from_bits(0x0064_ff9b << 96)), 96),
    Network::new(IpAddr::V6(Ipv6Addr::from_bits(0x0064_ff9b_0001 << 80)), 48),
];

/// So many bits, from the last one on.
#[inline(never)]
pub const fn below(count: u8) -> u128 {
    mask(count)
}

/// The same where each row of a reading comes.
const fn mask(count: u8) -> u128 {
    match u128::MAX.checked_shl(count as u32) {
        Some(above) => !above,
        None => u128::MAX,
    }
}

/// `address`, with ::ffff:a.b.c.d (RFC 4291 section 2.5.5.2) turned into IPv4.
#[inline(never)]
pub fn fold_mapped(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(v6) => {
            let bits = v6.to_bits();
            if bits >> 32 == 0xffff {
                IpAddr::V4(Ipv4Addr::from_bits(bits as u32))
            } else {
                address
            }
        }
        IpAddr::V4(_) => address,
    }
}

/// Whether `address` is of 127.0.0.0/8 or ::1.
pub fn is_loopback(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_loopback(),
        IpAddr::V6(v6) => v6.is_loopback(),
    }
}

/// Parses a numeric address: dotted IPv4 or RFC 4291 text, without brackets,
/// zone or blanks.
pub fn parse_address(text: &[u8]) -> Option<IpAddr> {
    if has_byte(text, b':') {
        parse_ipv6(text).map(IpAddr::V6)
    } else {
        parse_ipv4(text).map(IpAddr::V4)
    }
}

fn parse_ipv4(text: &[u8]) -> Option<Ipv4Addr> {
    let mut bits: u32 = 0;
    let mut count = 0;
    for part in split(text, b'.') {
        // A leading zero means octal to some tools: refused as ambiguous.
        if part.len() > 3 || (part.len() > 1 && part.first() == Some(&b'0')) || count == 4 {
            return None;
        }
        let number = parse_decimal(part).filter(|number| *number <= 255)?;
        bits = bits << 8 | number as u32;
        count += 1;
    }
    (count == 4).then_some(Ipv4Addr::from_bits(bits))
}

fn parse_ipv6(text: &[u8]) -> Option<Ipv6Addr> {
    let mut octets = Text::<16>::new();
    let gap = text.windows(2).position(|pair| pair == b"::");
    if let Some(gap) = gap {
        let (head, tail) = (text.get(..gap)?, text.get(gap + 2..)?);
        let mut behind = Text::<16>::new();
        put_groups(&mut behind, tail)?;
        put_groups(&mut octets, head)?;
        let gap = octets.room().checked_sub(behind.as_bytes().len())?;
        if gap == 0 || has_byte(head, b'.') {
            return None;
        }
        for _ in 0..gap {
            octets.put_byte(0);
        }
        octets.put(behind.as_bytes());
    } else {
        put_groups(&mut octets, text)?;
    }
    let octets: [u8; 16] = octets.as_bytes().try_into().ok()?;
    Some(octets.into())
}

/// Appends the 16-bit groups between colons, the last of which may be IPv4's.
#[inline(never)]
fn put_groups(out: &mut TextView, text: &[u8]) -> Option<()> {
    let mut rest = text;
    while !rest.is_empty() {
        let (part, behind) = split_once(rest, b':');
        let is_last = part.len() == rest.len();
        if is_last && has_byte(part, b'.') {
            out.put(&parse_ipv4(part)?.octets());
        } else {
            if part.is_empty() || part.len() > 4 || !is_last && behind.is_empty() {
                return None;
            }
            let mut group: u16 = 0;
            for byte in part {
                group = group << 4 | u16::from(hex_digit(*byte)?);
            }
            out.put(&group.to_be_bytes());
        }
        rest = behind;
    }
    (!out.is_truncated()).then_some(())
}

/// The value of one hexadecimal digit.
pub fn hex_digit(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        b'A'..=b'F' => Some(byte - b'A' + 10),
        _ => None,
    }
}

/// Appends `address`: dotted IPv4, or IPv6 as RFC 5952 recommends.
pub fn write_address(out: &mut TextView, address: IpAddr) {
    match fold_mapped(address) {
        IpAddr::V4(v4) => {
            if address.is_ipv6() {
                out.put(b"::ffff:");
            }
            write_ipv4(out, &v4.octets());
        }
        IpAddr::V6(v6) => write_ipv6(out, &v6.octets()),
    }
}

fn write_ipv4(out: &mut TextView, octets: &[u8]) {
    for (index, octet) in octets.iter().enumerate() {
        if index > 0 {
            out.put_byte(b'.');
        }
        out.put_decimal(u64::from(*octet));
    }
}

fn write_ipv6(out: &mut TextView, octets: &[u8; 16]) {
    let groups = || octets.chunks_exact(2).zip(0..);
    // RFC 5952 section 4.2: the longest run of at least two zero groups, the
    // first of equals, is written `::`.
    let (mut run, mut longest, mut begin) = (8, 1, 0);
    for (group, index) in groups() {
        if group != [0, 0] {
            begin = index + 1;
        } else if index + 1 - begin > longest {
            (run, longest) = (begin, index + 1 - begin);
        }
    }
    for (group, index) in groups() {
        if index == run {
            out.put(b"::");
        }
        if index < run || index >= run + longest {
            if index > 0 && index != run + longest {
                out.put_byte(b':');
            }
            let octet = |at| group.get(at).copied().map_or(0, u64::from);
            out.put_hex(octet(0) << 8 | octet(1), 1);
        }
    }
}

/// The longest text of an endpoint: `[` 39 bytes `]:65535`.
pub const ENDPOINT_TEXT: usize = 48;

impl Endpoint {
    /// Filler for unused slots.
    pub const BLANK: Self = Self {
        address: UNSPECIFIED,
        port: 0,
    };

    /// Appends `192.0.2.1:80` or `[2001:db8::1]:443`.
    pub fn write(&self, out: &mut TextView) {
        if self.address.is_ipv6() {
            out.put_byte(b'[');
            write_address(out, self.address);
            out.put_byte(b']');
        } else {
            write_address(out, self.address);
        }
        out.put_byte(b':');
        out.put_decimal(u64::from(self.port));
    }

    /// Where this host reaches what listens here. [::] takes IPv4 as well, and is
    /// 0.0.0.0 where the kernel lacks IPv6.
    pub fn local(self) -> Self {
        let is_specified = !self.address.is_unspecified();
        let address = is_specified.then_some(self.address);
        Self {
            address: address.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)),
            port: self.port,
        }
    }

    /// The endpoint as text of its own.
    #[cfg(test)]
    pub fn to_text(self) -> Text<ENDPOINT_TEXT> {
        let mut text = Text::new();
        self.write(&mut text);
        text
    }

    /// Parses `192.0.2.1:80` or `[2001:db8::1]:443`.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let colon = text.iter().rposition(|byte| *byte == b':')?;
        let (address, port) = text.split_at_checked(colon)?;
        let port = parse_decimal(port.get(1..)?).filter(|port| *port <= 65_535)? as u16;
        let address = match address {
            [b'[', inner @ .., b']'] => IpAddr::V6(parse_ipv6(inner)?),
            _ => IpAddr::V4(parse_ipv4(address)?),
        };
        Some(Self { address, port })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(network: Network) -> std::string::String {
        let mut text: Text<64> = Text::new();
        network.write(&mut text);
        std::string::String::from_utf8(text.as_bytes().to_vec()).unwrap()
    }

    /// The standard library is the oracle: what it prints we print, what it
    /// parses we parse.
    #[test]
    fn addresses_agree_with_std() {
        let mut state: u64 = 0x9e37_79b9_7f4a_7c15;
        for round in 0..20_000u32 {
            let mut bits: u128 = 0;
            for _ in 0..8 {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                let group = if state & 0x300 == 0 {
                    0
                } else {
                    (state >> 20) as u16 >> (state % 16)
                };
                bits = bits << 16 | u128::from(if state & 0x30 == 0 { 0 } else { group });
            }
            let address = if round % 4 == 0 {
                IpAddr::V4(Ipv4Addr::from_bits(bits as u32))
            } else {
                IpAddr::V6(Ipv6Addr::from_bits(bits))
            };
            let mut text: Text<64> = Text::new();
            write_address(&mut text, address);
            let expected = std::format!("{address}");
            assert_eq!(std::str::from_utf8(text.as_bytes()).unwrap(), expected);
            assert_eq!(parse_address(expected.as_bytes()), Some(address));
        }
    }

    #[test]
    fn parsing_refuses_what_std_refuses() {
        let bad = "1 1.2.3 1.2.3.4.5 1.2.3.256 01.2.3.4 : ::: 1::2::3 ::1%eth0 12345:: \
            1:2:3:4:5:6:7:8:9 1:2:3:4:5:6:7 g:: 1:2:3:4:5:6:7:8:: ::1.2.3 1: :1 \
            ::ffff:1.2.3.4.5 1:2:3:4:5:6:7:1.2.3.4 1.2.3.4::";
        let good = ":: ::1 1:: ::1.2.3.4 1:2:3:4:5:6:1.2.3.4 1:2:3:4:5:6:7:: 0:0:0::";
        for (texts, is_good) in [(bad, false), (good, true)] {
            for text in texts.split(' ') {
                let expected = text.parse::<IpAddr>().ok();
                assert_eq!(parse_address(text.as_bytes()), expected, "{text}");
                assert_eq!(expected.is_some(), is_good, "{text}");
            }
        }
        for text in ["", "1.2.3.4 "] {
            assert_eq!(parse_address(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn each_family_has_its_own() {
        assert_eq!(Family::ALL.map(Family::number), [2, 10]);
        for (family, address) in [(Family::V4, "192.0.2.1"), (Family::V6, "2001:db8::1")] {
            assert_eq!(Family::of(address.parse().unwrap()), family);
            assert_eq!(Family::from_number(family.number()), Some(family));
            let mut both = PerFamily::from_fn(|one| one == family);
            assert!(*both.get(family));
            let found = both.iter().find(|(_, value)| **value);
            assert_eq!(found, Some((family, &true)));
            *both.get_mut(family) = false;
            assert_eq!(both, PerFamily::new(false, false));
        }
        assert_eq!(Family::from_number(0), None);
    }

    #[test]
    fn networks() {
        let parse = |text: &str| Network::parse(text.as_bytes());
        for (text, expected) in [
            ("10.1.2.3/8", "10.0.0.0/8"),
            ("10.1.2.3", "10.1.2.3"),
            ("2001:db8::1/64", "2001:db8::/64"),
            ("::ffff:10.1.2.3", "10.1.2.3"),
            ("0.0.0.0/0", "0.0.0.0/0"),
        ] {
            assert_eq!(written(parse(text).unwrap()), expected);
        }
        for text in "10.0.0.0/33 ::/129 10.0.0.0/ 10.0.0.0/+8 /8 10.0.0.0/8/8".split(' ') {
            assert_eq!(parse(text), None, "{text}");
        }
        let wide = parse("2001:db8::/32").unwrap();
        let narrow = parse("2001:db8:1:2::/64").unwrap();
        assert!(wide.overlaps(narrow) && narrow.overlaps(wide));
        assert!(!wide.overlaps(parse("2001:db9::/64").unwrap()));
        assert!(!parse("0.0.0.0/0").unwrap().overlaps(narrow));
        assert!(wide.contains("2001:db8:ffff::1".parse().unwrap()));
    }

    #[test]
    fn endpoints() {
        for text in "192.0.2.1:80 [2001:db8::1]:443 0.0.0.0:0 [::]:65535".split(' ') {
            let endpoint = Endpoint::parse(text.as_bytes()).unwrap();
            assert_eq!(endpoint.to_text().as_bytes(), text.as_bytes());
        }
        for text in "1.2.3.4 1.2.3.4: 1.2.3.4:65536 ::1:80 [::1] [1.2.3.4]:80 [::1:80".split(' ') {
            assert_eq!(Endpoint::parse(text.as_bytes()), None, "{text}");
        }
    }
}
