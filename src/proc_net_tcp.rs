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
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::address::{Endpoint, fold_mapped};
use crate::label::label;
use crate::limits::READ_BUFFER;
use crate::text::trim;

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

/// The order in which a machine keeps the bytes of a word. The kernel prints
/// addresses (`__be32`) with `%08X`, as if they were numbers of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ByteOrder {
    /// Least significant byte first: x86, ARM.
    Little,
    /// Most significant byte first: s390x, many MIPS routers.
    Big,
}

impl ByteOrder {
    /// That of the machine the program runs on.
    pub const HOST: Self = if cfg!(target_endian = "big") {
        Self::Big
    } else {
        Self::Little
    };

    /// The 32 bits of an address, in network order, from a printed `word`.
    const fn address_bits(self, word: u32) -> u32 {
        match self {
            Self::Little => word.swap_bytes(),
            Self::Big => word,
        }
    }
}

/// Parses the row at the start of `text`; what stands behind the columns that
/// were read is returned, too, and no column holds a newline. `None` where
/// `sl`, an address, a port or the state is missing, torn or unknown. What
/// follows the state never makes a row malformed: where it is torn, or a column
/// of an old kernel is wider than usual (`tm->when` of a timer that is late),
/// the inode is 0, which claims nothing about the connection.
pub fn parse_row(text: &[u8], order: ByteOrder) -> Option<(Socket, &[u8])> {
    let text = skip_slot(text)?;
    match text.get(8)? {
        b':' => row_of_width::<1, 30>(text, order),
        _ => row_of_width::<4, 78>(text, order),
    }
}

/// A row behind its `sl`: the first `WIDTH` bytes are addresses, ports and the
/// state, `WORDS` is the number of 32-bit words in an address.
fn row_of_width<const WORDS: usize, const WIDTH: usize>(
    text: &[u8],
    order: ByteOrder,
) -> Option<(Socket, &[u8])> {
    // One look at the length: the compiler sees that each column is there.
    let (columns, text) = text.split_first_chunk::<WIDTH>()?;
    let mut columns = Columns(columns);
    let local = columns.endpoint::<WORDS>(order)?;
    columns.expect(b' ')?;
    let remote = columns.endpoint::<WORDS>(order)?;
    columns.expect(b' ')?;
    let state = TcpState::from_number(columns.hex2()?)?;
    let (inode, text) = match inode_behind_state(text) {
        Some(found) => found,
        // The state is whole where a blank or the end follows.
        None if matches!(text.first(), None | Some(b' ' | b'\n')) => (0, text),
        None => return None,
    };
    let socket = Socket {
        local,
        remote,
        state,
        inode: fold_inode(inode),
    };
    Some((socket, text))
}

/// The inode behind queues and timers, and what follows it.
#[inline(always)]
fn inode_behind_state(text: &[u8]) -> Option<(u64, &[u8])> {
    let (columns, text) = text.split_first_chunk()?;
    if !are_queues_and_timers(columns) {
        return None;
    }
    inode_column(text)
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

/// What is left of the columns of fixed width.
struct Columns<'a>(&'a [u8]);

impl Columns<'_> {
    #[inline(always)]
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (column, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*column)
    }

    #[inline(always)]
    fn expect(&mut self, byte: u8) -> Option<()> {
        let [first] = self.take()?;
        (first == byte).then_some(())
    }

    #[inline(always)]
    fn hex8(&mut self) -> Option<u32> {
        hex_word(u64::from_be_bytes(self.take()?))
    }

    #[inline(always)]
    fn hex4(&mut self) -> Option<u32> {
        let digits = u32::from_be_bytes(self.take()?);
        hex_word(0x3030_3030 << 32 | u64::from(digits))
    }

    #[inline(always)]
    fn hex2(&mut self) -> Option<u32> {
        let digits = u16::from_be_bytes(self.take()?);
        hex_word(0x3030_3030_3030 << 16 | u64::from(digits))
    }

    #[inline(always)]
    fn endpoint<const WORDS: usize>(&mut self, order: ByteOrder) -> Option<Endpoint> {
        let mut bits: u128 = 0;
        for _ in 0..WORDS {
            bits = bits << 32 | u128::from(order.address_bits(self.hex8()?));
        }
        self.expect(b':')?;
        let port = self.hex4()? as u16;
        let address = address_of(WORDS, bits);
        Some(Endpoint { address, port })
    }
}

fn address_of(words: usize, bits: u128) -> IpAddr {
    match words {
        1 => IpAddr::V4(Ipv4Addr::from_bits(bits as u32)),
        _ => fold_mapped(IpAddr::V6(Ipv6Addr::from_bits(bits))),
    }
}

/// What stands behind `%4d: `.
fn skip_slot(line: &[u8]) -> Option<&[u8]> {
    skip_number(line)?.strip_prefix(b": ")
}

/// The inode in `%5u %8d %lu `, behind uid and timeout, and what follows it.
fn inode_column(text: &[u8]) -> Option<(u64, &[u8])> {
    let text = skip_number(text)?;
    // The timeout is zero but for window probes.
    let text = match text.strip_prefix(b"        0") {
        Some(text) => text,
        None => skip_number(text.strip_prefix(b" ")?)?,
    };
    let text = text.strip_prefix(b" ")?;
    let mut inode: u64 = 0;
    let mut rest = text;
    while let [digit @ b'0'..=b'9', tail @ ..] = rest {
        inode = inode.wrapping_mul(10).wrapping_add((digit - b'0').into());
        rest = tail;
    }
    rest.strip_prefix(b" ")?;
    // 19 digits always fit.
    let length = text.len() - rest.len();
    (1..20).contains(&length).then_some((inode, rest))
}

/// What stands behind blanks and decimal digits.
#[inline(always)]
fn skip_number(text: &[u8]) -> Option<&[u8]> {
    let mut digits = text;
    while let [b' ', tail @ ..] = digits {
        digits = tail;
    }
    let mut rest = digits;
    while let [b'0'..=b'9', tail @ ..] = rest {
        rest = tail;
    }
    (rest.len() < digits.len()).then_some(rest)
}

/// The number written as eight upper-case hexadecimal digits, the first digit
/// in the most significant byte of `ascii`. All eight bytes at once (SWAR).
#[inline(always)]
const fn hex_word(ascii: u64) -> Option<u32> {
    const ONES: u64 = 0x0101_0101_0101_0101;
    // Letters (0x41 to 0x46) have bit 6 and their value less nine below.
    let nibbles = (ascii & (0x0f * ONES)) + 9 * (ascii >> 6 & ONES);
    // Writing the nibbles again shows whether they were digits: `A` stands
    // seven behind `9` + 1, and adding six carries into bit 4 from ten on.
    let is_letter = (nibbles + 6 * ONES) >> 4 & ONES;
    let written = nibbles + 0x30 * ONES + 7 * is_letter;
    if written != ascii || nibbles & (0xf0 * ONES) != 0 {
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

/// What a line of the file was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Row {
    /// A valid row.
    Socket(Socket),
    /// A line that is no row: to be counted.
    Malformed,
}

/// What the kernel writes first into tcp and tcp6, behind two blanks.
const HEADER: &[u8] = b"sl  local_address";

/// Finds the rows in chunks of read(2), wherever these are split. A file is
/// read as: `begin`; `space`, read(2), `filled`, rows until `None`, again and
/// again; at the end of the file `end`.
///
/// Lines of `N` bytes and more are malformed and skipped to their newline, so
/// memory is bounded. Empty lines are ignored, and so is the header where it
/// is the first line.
#[repr(C)]
pub struct RowReader<const N: usize = READ_BUFFER> {
    /// Unread bytes stand in `start..end`.
    start: usize,
    end: usize,
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
            start: 0,
            end: 0,
            is_past_first_line: false,
            is_skipping: false,
        }
    }

    /// Starts a file; forgets what was left of the last one.
    pub fn begin(&mut self) {
        self.start = 0;
        self.end = 0;
        self.is_past_first_line = false;
        self.is_skipping = false;
    }

    /// Room for the next read(2), never empty once `next` returned `None`.
    pub fn space(&mut self) -> &mut [u8] {
        if self.start > 0 && self.start <= self.end && self.end <= N {
            self.bytes.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        self.bytes.get_mut(self.end..).unwrap_or_default()
    }

    /// read(2) wrote `count` bytes into the front of `space`.
    pub fn filled(&mut self, count: usize) {
        self.end = self.end.saturating_add(count).min(N);
    }

    /// The file is over: what its last line was, where it had no newline. The
    /// last field of such a line may be torn and is not trusted.
    pub fn end(&mut self) -> Option<Row> {
        let line = self.bytes.get(self.start..self.end).unwrap_or_default();
        let row = if self.is_skipping {
            None
        } else {
            torn_line_row(line, !self.is_past_first_line)
        };
        self.begin();
        row
    }

    /// No newline among the unread bytes: they wait for more, unless they fill
    /// the buffer or belong to a line that did.
    fn unfinished_line(&mut self) -> Option<Row> {
        let is_too_long = self.end - self.start >= N;
        let was_skipping = self.is_skipping;
        if is_too_long || was_skipping {
            self.start = 0;
            self.end = 0;
            self.is_skipping = true;
            self.is_past_first_line = true;
        }
        (is_too_long && !was_skipping).then_some(Row::Malformed)
    }
}

/// `None` means that more bytes are needed; after the next `filled` there may
/// be rows again.
impl<const N: usize> Iterator for RowReader<N> {
    type Item = Row;

    fn next(&mut self) -> Option<Row> {
        loop {
            let unread = self.bytes.get(self.start..self.end)?;
            let row = parse_row(unread, ByteOrder::HOST);
            let behind = row.map_or(unread, |(_, behind)| behind);
            let Some(to_newline) = find_newline(behind) else {
                return self.unfinished_line();
            };
            let length = unread.len() - behind.len() + to_newline;
            self.start += length + 1;
            let is_first = !mem::replace(&mut self.is_past_first_line, true);
            if mem::take(&mut self.is_skipping) {
                continue;
            }
            if let Some((socket, _)) = row {
                return Some(Row::Socket(socket));
            }
            if let Some(row) = other_line(unread.get(..length)?, is_first) {
                return Some(row);
            }
        }
    }
}

/// What a line without newline at the end of the file was.
fn torn_line_row(line: &[u8], is_first: bool) -> Option<Row> {
    let last_blank = line.iter().rposition(|byte| *byte == b' ').unwrap_or(0);
    match parse_row(line.get(..last_blank)?, ByteOrder::HOST) {
        Some((socket, _)) => Some(Row::Socket(socket)),
        None => other_line(line, is_first),
    }
}

fn other_line(line: &[u8], is_first: bool) -> Option<Row> {
    let text = trim(line);
    let is_header = is_first && text.starts_with(HEADER);
    (!is_header && !text.is_empty()).then_some(Row::Malformed)
}

/// The index of the first newline, found in eight bytes at once.
fn find_newline(bytes: &[u8]) -> Option<usize> {
    const ONES: u64 = 0x0101_0101_0101_0101;
    let mut rest = bytes;
    let mut index = 0;
    while let Some((word, tail)) = rest.split_first_chunk::<8>() {
        // A newline becomes a zero byte; borrowing from a zero sets bit 7. The
        // lowest such bit is exact, higher ones may come from the borrow.
        let zeros = u64::from_le_bytes(*word) ^ (b'\n' as u64 * ONES);
        let found = zeros.wrapping_sub(ONES) & !zeros & (0x80 * ONES);
        if found != 0 {
            return Some(index + (found.trailing_zeros() / 8) as usize);
        }
        rest = tail;
        index += 8;
    }
    let in_tail = rest.iter().position(|byte| *byte == b'\n')?;
    Some(index + in_tail)
}
