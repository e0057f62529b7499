//! The comment that makes a rule ours and carries all state that survives.

use crate::detector::{Data, Ports};
use crate::table::Blank;
use crate::text::{Text, TextView, parse_decimal, split};
use crate::time::Instant;

/// Longest comment, in bytes: nft takes 128 with its terminating NUL
/// (NFTNL_UDATA_COMMENT_MAXLEN), iptables 256 (XT_MAX_COMMENT_LEN).
pub const COMMENT_MAX: usize = 120;

/// How every comment of ours starts.
pub const OURS: &[u8] = b"tcpparser ";

/// A comment as it stands in the kernel, to the letter: `-D` needs it exactly.
#[derive(Clone, Copy, Debug, Eq)]
pub struct Comment {
    length: u8,
    bytes: [u8; COMMENT_MAX],
}

impl PartialEq for Comment {
    #[inline(never)]
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Blank for Comment {
    const BLANK: Self = Self {
        length: 0,
        bytes: [0; COMMENT_MAX],
    };
}

impl Comment {
    /// Whether there is none: some kernels have no `comment` match.
    pub fn is_none(&self) -> bool {
        self.length == 0
    }

    /// The bytes.
    #[inline(never)]
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.length)).unwrap_or(&[])
    }

    /// One of at most `COMMENT_MAX` bytes.
    #[inline(never)]
    fn from_bytes(bytes: &[u8]) -> Self {
        let mut comment = Self::BLANK;
        for (to, from) in comment.bytes.iter_mut().zip(bytes) {
            *to = *from;
        }
        comment.length = bytes.len() as u8;
        comment
    }

    /// A comment read from a listing; `None` if it is not one of ours.
    pub fn from_listing(text: &[u8]) -> Option<Self> {
        if !text.starts_with(OURS) || text.len() > COMMENT_MAX {
            return None;
        }
        // What could end the quotes that a restore line puts around it.
        let is_plain =
            |byte: &u8| (b' '..=b'~').contains(byte) && !matches!(byte, b'"' | b'\\' | b'\'');
        text.iter().all(is_plain).then(|| Self::from_bytes(text))
    }
}

/// What a comment says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The first 32 bits of /proc/sys/kernel/random/boot_id: ends are times of
    /// this boot.
    pub boot_id: u32,
    /// CLOCK_BOOTTIME seconds of the end; 0 for ever.
    pub end_seconds: u64,
    /// How many times the source was blocked, this time included.
    pub strikes: u32,
    /// CLOCK_BOOTTIME seconds of the start.
    pub since_seconds: u64,
    /// Whether data was sent.
    pub data: Data,
}

impl Facts {
    /// `tcpparser v1 b=0badcafe e=700 s=1 t=100 d=n p=22,25,80,443`; ports that
    /// don't fit are counted: `p=22,25+9`.
    pub fn write(&self, ports: &Ports) -> Comment {
        let mut text: Text<COMMENT_MAX> = Text::new();
        self.put_head(&mut text);
        put_ports(&mut text, ports);
        Comment::from_bytes(text.as_bytes())
    }

    /// The same with the ports of an older comment.
    pub fn rewrite(&self, older: &Comment) -> Comment {
        let mut text: Text<COMMENT_MAX> = Text::new();
        self.put_head(&mut text);
        text.put(Self::ports(older));
        Comment::from_bytes(text.as_bytes())
    }

    fn put_head(&self, text: &mut TextView) {
        text.put(b"tcpparser v1 b=");
        text.put_hex(u64::from(self.boot_id), 8);
        for (name, value) in [
            (b" e=", self.end_seconds),
            (b" s=", u64::from(self.strikes)),
            (b" t=", self.since_seconds),
        ] {
            text.put(name);
            text.put_decimal(value);
        }
        text.put(match self.data {
            Data::Unknown => b" d=? p=",
            Data::Silent => b" d=n p=",
            Data::Sent => b" d=y p=",
        });
    }

    /// Reads a comment of ours; `None` where a field is missing or odd.
    pub fn read(comment: &Comment) -> Option<Self> {
        let mut words = split(comment.as_bytes(), b' ');
        let _ours = words.next();
        if words.next() != Some(b"v1") {
            return None;
        }
        let mut facts = Self {
            boot_id: 0,
            end_seconds: 0,
            strikes: 0,
            since_seconds: 0,
            data: Data::Unknown,
        };
        let mut found = 0u8;
        for word in words {
            let (name, value) = word.split_at_checked(2)?;
            match name {
                b"b=" => facts.boot_id = parse_hex(value)?,
                b"e=" => facts.end_seconds = parse_decimal(value)?,
                b"s=" => facts.strikes = u32::try_from(parse_decimal(value)?).ok()?,
                b"t=" => facts.since_seconds = parse_decimal(value)?,
                b"d=" => {
                    facts.data = match value {
                        b"y" => Data::Sent,
                        b"n" => Data::Silent,
                        _ => Data::Unknown,
                    }
                }
                _ => continue,
            }
            found += 1;
        }
        (found == 5).then_some(facts)
    }

    /// When it ends, in this boot; `None` for never.
    #[inline(never)]
    pub fn end(&self) -> Option<Instant> {
        (self.end_seconds != 0).then(|| Instant::from_secs(self.end_seconds))
    }

    /// The ports as the comment lists them.
    pub fn ports(comment: &Comment) -> &[u8] {
        split(comment.as_bytes(), b' ')
            .filter_map(|word| word.strip_prefix(b"p="))
            .next()
            .unwrap_or(b"")
    }
}

/// Appends ports with commas; those that do not fit are counted.
pub fn put_ports(text: &mut TextView, ports: &Ports) {
    // `,+NN`; the comma before the next port is counted with it.
    const RESERVE: usize = 4;
    for (index, port) in ports.iter().enumerate() {
        let is_last = index + 1 == ports.len();
        let needed = 6 + if is_last { 0 } else { RESERVE };
        if text.room() < needed {
            text.put(b",+");
            text.put_decimal((ports.len() - index) as u64);
            return;
        }
        if index > 0 {
            text.put_byte(b',');
        }
        text.put_decimal(u64::from(*port));
    }
}

/// The value of one to eight lower-case hexadecimal digits.
pub fn parse_hex(digits: &[u8]) -> Option<u32> {
    if digits.is_empty() || digits.len() > 8 {
        return None;
    }
    let mut number = 0;
    for digit in digits {
        number = number << 4 | u32::from(crate::address::hex_digit(*digit)?);
    }
    Some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FACTS: Facts = Facts {
        boot_id: 0x0bad_cafe,
        end_seconds: 700,
        strikes: 1,
        since_seconds: 100,
        data: Data::Silent,
    };

    #[test]
    fn written_and_read_again() {
        let comment = FACTS.write(&Ports::from_slice(&[22, 25, 80, 443]).unwrap());
        assert_eq!(
            comment.as_bytes(),
            b"tcpparser v1 b=0badcafe e=700 s=1 t=100 d=n p=22,25,80,443"
        );
        assert_eq!(Facts::read(&comment), Some(FACTS));
        assert_eq!(Facts::ports(&comment), b"22,25,80,443");
        assert_eq!(Comment::from_listing(comment.as_bytes()), Some(comment));
    }

    #[test]
    fn the_longest_fits_and_counts_what_does_not() {
        let facts = Facts {
            boot_id: u32::MAX,
            end_seconds: u64::MAX,
            strikes: u32::MAX,
            since_seconds: u64::MAX,
            data: Data::Unknown,
        };
        for count in 1..=64u16 {
            let mut ports = Ports::new();
            for port in 0..count {
                ports.push(65_000 + port).unwrap();
            }
            for facts in [facts, FACTS] {
                let comment = facts.write(&ports);
                assert_eq!(Facts::read(&comment), Some(facts));
                let listed = std::str::from_utf8(Facts::ports(&comment)).unwrap();
                let (shown, more) = listed.split_once('+').unwrap_or((listed, "0"));
                let shown = shown.split(',').filter(|port| !port.is_empty()).count();
                assert_eq!(
                    shown + more.parse::<usize>().unwrap(),
                    usize::from(count),
                    "{listed}"
                );
            }
        }
    }

    #[test]
    fn foreign_and_torn_comments_are_refused() {
        for text in [
            "",
            "tcpparser",
            "fail2ban",
            "tcpparserv1 b=1",
            "tcpparser v1 \"; rm",
            "tcpparser \\",
        ] {
            assert_eq!(Comment::from_listing(text.as_bytes()), None, "{text}");
        }
        assert_eq!(
            Comment::from_listing(&[b"tcpparser ".as_slice(), &[b'x'; 111]].concat()),
            None
        );
        for text in [
            "tcpparser v2 b=1 e=1 s=1 t=1 d=?",
            "tcpparser v1 b=1",
            "tcpparser v1 b=x e=1 s=1 t=1 d=?",
        ] {
            let comment = Comment::from_listing(text.as_bytes()).unwrap();
            assert_eq!(Facts::read(&comment), None, "{text}");
        }
    }
}
