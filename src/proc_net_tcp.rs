//! Rows of /proc/net/tcp and tcp6 (proc_pid_net(5)) into `Socket`s, and the
//! splitter that finds the rows in chunks of read(2).
//!
//! A row as `get_tcp4_sock`, `get_openreq4` and `get_timewait4_sock` of
//! net/ipv4/tcp_ipv4.c print it (net/ipv6/tcp_ipv6.c: 32 digits an address):
//!
//! ```text
//!   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
//!    0: 0100007F:0016 0200007F:D02C 01 00000000:00000000 02:000001F7 00000000  1000        0 46153 2 …
//! ```
//!
//! `sl` is `%4d` and grows from 10,000 on, `tm->when` is `%08lX`, `uid` is
//! `%5u`, `timeout` `%8d` and the inode unpadded; all other columns have a
//! fixed width. tcp pads its rows to 150 bytes, tcp6 does not. What follows
//! the inode differs between kernels and states and is not read.

use core::mem;
use core::net::IpAddr;

use crate::address::{Endpoint, fold_mapped};
use crate::label::label;
use crate::limits::READ_BUFFER;
use crate::text::{before, trim};

/// State of a TCP socket, numbered as in the kernel's include/net/tcp_states.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum TcpState {
    /// The handshake is complete, neither side has closed.
    Established = 1,
    /// We sent a SYN.
    SynSent,
    /// A SYN came; nothing proves yet that its sender exists. Also
    /// TCP_NEW_SYN_RECV, which the kernel prints so (net/ipv4/tcp_ipv4.c,
    /// get_openreq4).
    SynRecv,
    /// We closed.
    FinWait1,
    /// We closed and the peer acknowledged it.
    FinWait2,
    /// Both closed; the 4-tuple rests.
    TimeWait,
    /// No connection.
    Close,
    /// The peer closed.
    CloseWait,
    /// The peer closed, then we did.
    LastAck,
    /// Waits for connections.
    Listen,
    /// Both closed at once.
    Closing,
}

label!(
    TcpState,
    "state",
    1,
    [
        "established",
        "syn_sent",
        "syn_recv",
        "fin_wait1",
        "fin_wait2",
        "time_wait",
        "close",
        "close_wait",
        "last_ack",
        "listen",
        "closing",
    ]
);

/// TCP_NEW_SYN_RECV.
const NEW_SYN_RECV: u32 = 12;

impl TcpState {
    /// Every state, in the order of the kernel's numbers from 1 on.
    pub const ALL: [Self; 11] = [
        Self::Established,
        Self::SynSent,
        Self::SynRecv,
        Self::FinWait1,
        Self::FinWait2,
        Self::TimeWait,
        Self::Close,
        Self::CloseWait,
        Self::LastAck,
        Self::Listen,
        Self::Closing,
    ];

    /// The state with the kernel's `number`, 1 to 12.
    pub fn from_number(number: u32) -> Option<Self> {
        if number == NEW_SYN_RECV {
            return Some(Self::SynRecv);
        }
        let index = number.checked_sub(1)?;
        Self::ALL.get(index as usize).copied()
    }

    /// Whether both sides know of it; the handshake is another question.
    pub const fn is_connection(self) -> bool {
        !matches!(
            self,
            Self::SynSent | Self::SynRecv | Self::Close | Self::Listen
        )
    }

    /// Whether only an acknowledgement of our SYN-ACK leads to it. Fast Open
    /// without a cookie makes a socket of a forged SYN, which goes from SYN_RECV
    /// to FIN_WAIT1 when the service closes (net/ipv4/tcp.c, new_state), and on
    /// to CLOSING and LAST_ACK by what else is forged.
    pub const fn proves_handshake(self) -> bool {
        match self {
            Self::Established | Self::FinWait2 | Self::TimeWait | Self::CloseWait => true,
            Self::SynSent
            | Self::SynRecv
            | Self::FinWait1
            | Self::Close
            | Self::LastAck
            | Self::Listen
            | Self::Closing => false,
        }
    }
}

/// One row: a TCP socket of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Socket {
    /// Our end.
    pub local: Endpoint,
    /// The peer's end; unspecified and port 0 for a listener.
    pub remote: Endpoint,
    /// The state.
    pub state: TcpState,
    /// The inode of the socket's file, 0 where it has none or the row does not
    /// show it. Numbers above 32 bits are folded, never to 0.
    pub inode: u32,
}

impl Socket {
    /// A place for one.
    const BLANK: Self = Self {
        local: Endpoint::BLANK,
        remote: Endpoint::BLANK,
        state: TcpState::Close,
        inode: 0,
    };
}

/// The width of a port, with the colon before and the blank behind it.
const PORT: usize = 6;

/// Parses the row at the start of `text` into `socket`. What stands behind the
/// columns that were read is returned; in a row of the kernel none of them holds a
/// newline. `None` where `sl`, an address, a port or the state is missing, torn or
/// unknown. What follows the state never makes a row malformed: where it is torn,
/// or a column of an old kernel is wider than usual (`tm->when` of a timer that is
/// late), the inode is 0, which claims nothing about the connection.
fn parse_row<'a>(text: &'a [u8], socket: &mut Socket) -> Option<&'a [u8]> {
    let (_, text) = number(text)?;
    let mut text = text.strip_prefix(b": ")?;
    let width = match text.get(8)? {
        b':' => 8 + PORT,
        _ => 32 + PORT,
    };
    for end in [&mut socket.local, &mut socket.remote] {
        let (column, behind) = text.split_at_checked(width)?;
        endpoint(column, end)?;
        text = behind;
    }
    let [b'0', digit, text @ ..] = text else {
        return None;
    };
    // 12, TCP_NEW_SYN_RECV, is printed as 3.
    let index = b"123456789AB".iter().position(|one| one == digit)?;
    socket.state = *TcpState::ALL.get(index)?;
    if !matches!(text.first()?, b' ' | b'\n') {
        return None;
    }
    let (inode, text) = inode_behind_state(text).unwrap_or((0, text));
    socket.inode = fold_inode(inode);
    Some(text)
}

/// An address, a port and the blank behind them. The kernel prints the words of
/// an address (`__be32`) with `%08X`, as if they were numbers of the host.
#[inline(never)]
fn endpoint(column: &[u8], end: &mut Endpoint) -> Option<()> {
    let (words, [b':', port @ .., b' ']) = column.split_last_chunk::<PORT>()? else {
        return None;
    };
    let mut octets = [0; 16];
    for (word, octets) in words.chunks_exact(8).zip(octets.chunks_exact_mut(4)) {
        let word = u64::from_be_bytes(word.try_into().ok()?);
        let word = hex::<0x0101_0101_0101_0101>(word)?;
        octets.copy_from_slice(&word.to_ne_bytes());
    }
    let address = match octets {
        [a, b, c, d, ..] if words.len() == 8 => IpAddr::from([a, b, c, d]),
        _ => fold_mapped(octets.into()),
    };
    let port = hex::<0x0101_0101>(u32::from_be_bytes(*port).into())? as u16;
    *end = Endpoint { address, port };
    Some(())
}

/// The inode behind queues and timers, uid and timeout, and what follows it.
#[inline(always)]
fn inode_behind_state(text: &[u8]) -> Option<(u64, &[u8])> {
    let (columns, mut text) = text.split_first_chunk()?;
    if !are_queues_and_timers(columns) {
        return None;
    }
    let mut inode = 0;
    for _ in 0..3 {
        (inode, text) = number(text)?;
    }
    text.starts_with(b" ").then_some((inode, text))
}

/// ` %08X:%08X %02X:%08lX %08X `: only whether each column stands in its place,
/// since none of them is used.
#[inline(always)]
fn are_queues_and_timers(columns: &[u8; 40]) -> bool {
    columns[0] == b' '
        && columns[9] == b':'
        && columns[18] == b' '
        && columns[21] == b':'
        && columns[30] == b' '
        && columns[39] == b' '
}

/// The decimal number behind blanks, and what follows it.
#[inline(always)]
fn number(mut text: &[u8]) -> Option<(u64, &[u8])> {
    while let [b' ', behind @ ..] = text {
        text = behind;
    }
    let (mut number, mut rest) = (0_u64, text);
    while let [digit @ b'0'..=b'9', behind @ ..] = rest {
        number = number.wrapping_mul(10).wrapping_add((digit - b'0').into());
        rest = behind;
    }
    (rest.len() < text.len()).then_some((number, rest))
}

/// The number written as upper-case hexadecimal digits, the last of them in the
/// least significant byte of `ascii`; `ONES` has a one for each. All of them at
/// once (SWAR).
#[inline(always)]
const fn hex<const ONES: u64>(ascii: u64) -> Option<u32> {
    // Digits are 0 to 9 now, letters 0x11 to 0x16; what was less than `0` has a
    // high bit, and no other byte loses one by it.
    let above = ascii.wrapping_sub(0x30 * ONES);
    let nibbles = (above & (0x0f * ONES)) + 9 * (above >> 4 & ONES);
    // Adding six carries into bit 4 from ten on: so letters have to, and digits
    // must not.
    if ((nibbles + 6 * ONES) ^ above | nibbles) & (0xf0 * ONES) != 0 {
        return None;
    }
    let bytes = (nibbles >> 4 | nibbles) & 0x00ff_00ff_00ff_00ff;
    let pairs = (bytes >> 8 | bytes) & 0x0000_ffff_0000_ffff;
    Some((pairs >> 16 | pairs) as u32)
}

/// The kernel's inode numbers are 64 bits wide; ours only have to differ.
fn fold_inode(inode: u64) -> u32 {
    match inode >> 32 {
        0 => inode as u32,
        high => (inode as u32 ^ high as u32).max(1),
    }
}

/// What the kernel writes first into tcp and tcp6, behind two blanks.
const HEADER: &[u8] = b"sl  local_address";

/// Finds the rows in chunks of read(2), wherever these are split. A file is
/// read as: `begin`; `space`, read(2), `filled`, again and again.
///
/// Lines of `N` bytes and more are malformed and skipped to their newline, so
/// memory is bounded. Empty lines are ignored, and so is the header where it
/// is the first line.
#[repr(C)]
pub struct RowReader<const N: usize = READ_BUFFER> {
    /// Unread bytes, all of one line.
    unread: usize,
    is_past_first_line: bool,
    /// The newline of a line longer than the buffer was not seen yet.
    is_skipping: bool,
    bytes: [u8; N],
}

impl<const N: usize> RowReader<N> {
    /// A reader at the start of a file; all bytes zero.
    pub const fn new() -> Self {
        Self {
            bytes: [0; N],
            unread: 0,
            is_past_first_line: false,
            is_skipping: false,
        }
    }

    /// Starts a file; forgets what was left of the last one.
    pub fn begin(&mut self) {
        self.unread = 0;
        self.is_past_first_line = false;
        self.is_skipping = false;
    }

    /// Room for the next read(2), never empty.
    pub fn space(&mut self) -> &mut [u8] {
        self.bytes.get_mut(self.unread..).unwrap_or_default()
    }

    /// read(2) wrote `count` bytes into the front of `space`, none at the end of
    /// the file. Hands the rows whose lines are whole to `visit`, `None` for a
    /// line that is no row.
    pub fn filled(&mut self, count: usize, mut visit: impl FnMut(Option<&Socket>)) {
        if let (0, Some(newline)) = (count, self.space().first_mut()) {
            // The last line may lack it.
            *newline = b'\n';
        }
        let end = (self.unread + count.max(1)).min(N);
        let mut unread = self.bytes.get(..end).unwrap_or_default();
        let mut socket = Socket::BLANK;
        loop {
            let row = parse_row(unread, &mut socket);
            let Some(next) = behind_newline(row.unwrap_or(unread)) else {
                break;
            };
            let is_first = !mem::replace(&mut self.is_past_first_line, true);
            if !mem::take(&mut self.is_skipping) {
                if row.is_some() {
                    visit(Some(&socket));
                } else if !is_ignored(unread, is_first) {
                    visit(None);
                }
            }
            unread = next;
        }
        // What has no newline yet waits for more, unless it fills the buffer or
        // belongs to a line that did.
        self.unread = unread.len();
        if self.unread >= N || self.is_skipping {
            if !mem::replace(&mut self.is_skipping, true) {
                visit(None);
            }
            self.is_past_first_line = true;
            self.unread = 0;
        }
        let start = end.saturating_sub(self.unread);
        self.bytes.copy_within(start..end, 0);
    }
}

/// Whether a line that is no row is none of those that count.
fn is_ignored(unread: &[u8], is_first: bool) -> bool {
    let line = trim(before(unread, b'\n'));
    line.is_empty() || is_first && line.starts_with(HEADER)
}

/// What follows the first newline, found in eight bytes at once.
fn behind_newline(bytes: &[u8]) -> Option<&[u8]> {
    const ONES: u64 = 0x0101_0101_0101_0101;
    let mut rest = bytes;
    while let Some((word, tail)) = rest.split_first_chunk::<8>() {
        // A newline becomes a zero byte; borrowing from a zero sets bit 7. The
        // lowest such bit is exact, higher ones may come from the borrow.
        let zeros = u64::from_le_bytes(*word) ^ (b'\n' as u64 * ONES);
        let found = zeros.wrapping_sub(ONES) & !zeros & (0x80 * ONES);
        if found != 0 {
            return rest.get(found.trailing_zeros() as usize / 8 + 1..);
        }
        rest = tail;
    }
    let in_tail = rest.iter().position(|byte| *byte == b'\n')?;
    rest.get(in_tail + 1..)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each byte at each place, beside the least and the greatest of digits.
    #[test]
    fn hexadecimal_digits_are_those_the_kernel_prints() {
        for rest in [*b"00000000", *b"FFFFFFFF", *b"9A9A9A9A"] {
            for (place, byte) in
                (0..8).flat_map(|place| (0..=u8::MAX).map(move |byte| (place, byte)))
            {
                let mut digits = rest;
                digits[place] = byte;
                let is_digit = matches!(byte, b'0'..=b'9' | b'A'..=b'F');
                let expected = std::str::from_utf8(&digits)
                    .ok()
                    .filter(|_| is_digit)
                    .and_then(|digits| u32::from_str_radix(digits, 16).ok());
                let number = hex::<0x0101_0101_0101_0101>(u64::from_be_bytes(digits));
                assert_eq!(number, expected, "{digits:?}");
            }
        }
    }
}
