//! Which handshakes are proven. A forged SYN with data makes a full socket where
//! Fast Open asks for no cookie: by net.ipv4.tcp_fastopen, by the socket option
//! TCP_FASTOPEN_NO_COOKIE, or by a route with fastopen_no_cookie. The socket
//! itself shows it; a row does not, so the kernel is asked for it.

use crate::address::Endpoint;
use crate::kernel::{Descriptor, Errno, Kernel, More, Netlink};
use crate::limits::HANDSHAKES_ASKED;
use crate::proc_net_tcp::Socket;
use crate::sock_diag::{Handshake, lookup_answer, lookup_request};

use super::procfs::read_setting;

/// TFO_SERVER_WO_COOKIE of net/tcp.h (ip-sysctl.rst on tcp_fastopen).
const WITHOUT_COOKIE: u64 = 0x200;

/// Tries of a system call that signals interrupt; none waits.
const TRIES: usize = 16;

/// Bytes of an answer about one socket: some 400 were measured.
const ANSWER: usize = 2_048;

/// All bytes zero when new.
pub(super) struct Handshakes {
    /// Kept for one reading: opening it costs two questions.
    socket: Option<Descriptor>,
    sequence: u32,
    /// Questions left in this reading.
    left: usize,
    /// The sockets are those of our own network namespace.
    can_ask: bool,
    /// A connection that is gone has a destroy event, which shows it.
    expects_events: bool,
    /// net.ipv4.tcp_fastopen accepts data without a cookie.
    is_forgeable: bool,
}

impl Handshakes {
    pub(super) const fn new() -> Self {
        Self {
            socket: None,
            sequence: 0,
            left: 0,
            can_ask: false,
            expects_events: false,
            is_forgeable: false,
        }
    }

    /// Reads net.ipv4.tcp_fastopen, which decides where sockets do not;
    /// where it cannot be read the last value stays.
    #[inline(never)]
    pub(super) fn read_setting(&mut self, kernel: &mut impl Kernel, proc_directory: &[u8]) {
        let name = b"/sys/net/ipv4/tcp_fastopen";
        let [value, _] = read_setting(kernel, proc_directory, name);
        if let Some(value) = value {
            self.is_forgeable = value & WITHOUT_COOKIE != 0;
        }
    }

    pub(super) fn begin_reading(&mut self, can_ask: bool, expects_events: bool) {
        self.left = HANDSHAKES_ASKED;
        (self.can_ask, self.expects_events) = (can_ask, expects_events);
    }

    pub(super) fn end_reading(&mut self, kernel: &mut impl Kernel) {
        if let Some(socket) = self.socket.take() {
            kernel.close(socket);
        }
    }

    /// Whether what a socket shows of its handshake is proof.
    pub(super) fn is_proof(&self, shown: Handshake) -> bool {
        match shown {
            Handshake::Unknown => !self.is_forgeable,
            Handshake::Proven => true,
            Handshake::Unproven => false,
        }
    }

    /// What is known of the handshake of a row's connection: by its state, by
    /// what was `noted` before, else by its socket. `Unknown` where too many
    /// were asked for in this reading.
    pub(super) fn of_row(
        &mut self,
        kernel: &mut impl Kernel,
        row: &Socket,
        noted: Handshake,
    ) -> Handshake {
        if row.state.proves_handshake() {
            return Handshake::Proven;
        }
        if noted != Handshake::Unknown {
            return noted;
        }
        let mut shown = Handshake::Unknown;
        if self.can_ask {
            let Some(left) = self.left.checked_sub(1) else {
                return Handshake::Unknown;
            };
            self.left = left;
            shown = self.lookup(kernel, row);
        }
        if self.is_proof(shown) {
            Handshake::Proven
        } else {
            Handshake::Unproven
        }
    }

    /// What its socket shows. ENOENT says that it is gone, or that the kernel
    /// lacks tcp_diag (net/core/sock_diag.c), which then sends no events either.
    #[inline(never)]
    fn lookup(&mut self, kernel: &mut impl Kernel, row: &Socket) -> Handshake {
        match self.ask(kernel, row.local, row.remote) {
            Ok(shown) => shown,
            Err(Errno::ENOENT) if self.expects_events => Handshake::Unproven,
            Err(Errno::ENOENT) => Handshake::Unknown,
            Err(_) => {
                // An answer that comes yet is not to be taken for the next one.
                self.end_reading(kernel);
                Handshake::Unknown
            }
        }
    }

    fn ask(
        &mut self,
        kernel: &mut impl Kernel,
        local: Endpoint,
        remote: Endpoint,
    ) -> Result<Handshake, Errno> {
        let socket = match self.socket {
            Some(socket) => socket,
            None => kernel.netlink(Netlink::SockDiag)?,
        };
        self.socket = Some(socket);
        self.sequence = self.sequence.wrapping_add(1);
        let request = lookup_request(local, remote, self.sequence);
        uninterrupted(|| kernel.send(socket, &request, More::No))?;
        // The kernel answers while it takes the request.
        let mut buffer = [0; ANSWER];
        let count = uninterrupted(|| kernel.receive(socket, &mut buffer))?;
        let answer = buffer.get(..count).unwrap_or_default();
        lookup_answer(answer, self.sequence, local, remote)
    }
}

fn uninterrupted(mut call: impl FnMut() -> Result<usize, Errno>) -> Result<usize, Errno> {
    let mut results = (0..TRIES).map(|_| call());
    let result = results.find(|result| *result != Err(Errno::EINTR));
    result.unwrap_or(Err(Errno::EINTR))
}
