//! Which handshakes are proven. A forged SYN with data makes a full socket where
//! Fast Open asks for no cookie: by net.ipv4.tcp_fastopen, by the socket option
//! TCP_FASTOPEN_NO_COOKIE, or by a route with fastopen_no_cookie. The socket
//! itself shows it; a row does not, so the kernel is asked for it.

use crate::address::Endpoint;
use crate::kernel::{Errno, Kernel, Netlink, Path};
use crate::limits::HANDSHAKES_ASKED;
use crate::proc_net_tcp::Socket;
use crate::sock_diag::{DiagSocket, Handshake, lookup_answer, lookup_request};

use super::procfs::read_setting;
use super::questions::{ANSWER, Questions};

/// TFO_SERVER_WO_COOKIE of net/tcp.h (ip-sysctl.rst on tcp_fastopen).
const WITHOUT_COOKIE: u64 = 0x200;

/// All bytes zero when new.
pub(super) struct Handshakes {
    questions: Questions,
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
            questions: Questions::new(),
            left: 0,
            can_ask: false,
            expects_events: false,
            is_forgeable: false,
        }
    }

    /// Reads net.ipv4.tcp_fastopen, which decides where sockets do not;
    /// where it cannot be read the last value stays.
    #[inline(never)]
    pub(super) fn read_setting(&mut self, kernel: &mut impl Kernel, proc_directory: &Path) {
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

    /// ENOENT says that a socket is gone, or that the kernel lacks tcp_diag
    /// (net/core/sock_diag.c), which then sends no events either.
    pub(super) fn is_gone(&self, error: Errno) -> bool {
        error == Errno::ENOENT && self.expects_events
    }

    /// What its socket shows.
    #[inline(never)]
    fn lookup(&mut self, kernel: &mut impl Kernel, row: &Socket) -> Handshake {
        match self.ask(kernel, row.local, row.remote) {
            Ok(socket) => socket.handshake,
            Err(error) if self.is_gone(error) => Handshake::Unproven,
            Err(_) => Handshake::Unknown,
        }
    }

    /// What the kernel says of a connection's socket; ENOENT where it has none.
    #[inline(never)]
    pub(super) fn ask(
        &mut self,
        kernel: &mut impl Kernel,
        local: Endpoint,
        remote: Endpoint,
    ) -> Result<DiagSocket, Errno> {
        let sequence = self.questions.next_sequence();
        let request = lookup_request(local, remote, sequence);
        let mut buffer = [0; ANSWER];
        let answer = self
            .questions
            .ask(kernel, Netlink::SockDiag, &request, &mut buffer)?;
        lookup_answer(answer, sequence, local, remote)
    }
}
