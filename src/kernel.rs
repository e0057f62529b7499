//! What the daemon asks of the operating system: syscall-shaped verbs without
//! policy. `linux.rs` implements them for real, `testing/fake_kernel.rs` fails
//! on purpose.

use core::num::NonZeroI32;

use crate::address::Endpoint;
use crate::label::label;
use crate::table::HashKey;
use crate::text::{Text, split_once};
use crate::time::{Calendar, Duration};

/// The error number of a failed system call, errno(3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(pub i32);

impl Errno {
    /// Operation not permitted.
    pub const EPERM: Self = Self(libc::EPERM);
    /// The kernel knows it under that name, but as something else.
    pub const EEXIST: Self = Self(libc::EEXIST);
    /// In use.
    pub const EBUSY: Self = Self(libc::EBUSY);
    /// The kernel lacks the protocol.
    pub const EPROTONOSUPPORT: Self = Self(libc::EPROTONOSUPPORT);
    /// No such file or directory.
    pub const ENOENT: Self = Self(libc::ENOENT);
    /// Interrupted by a signal: try again.
    pub const EINTR: Self = Self(libc::EINTR);
    /// Nothing there yet: wait for poll.
    pub const EAGAIN: Self = Self(libc::EAGAIN);
    /// Permission denied.
    pub const EACCES: Self = Self(libc::EACCES);
    /// Address in use.
    pub const EADDRINUSE: Self = Self(libc::EADDRINUSE);
    /// No socket listens there.
    pub const ECONNREFUSED: Self = Self(libc::ECONNREFUSED);
    /// No answer in time.
    pub const ETIMEDOUT: Self = Self(libc::ETIMEDOUT);
    /// Address not there (yet).
    pub const EADDRNOTAVAIL: Self = Self(libc::EADDRNOTAVAIL);
    /// The kernel lacks the address family.
    pub const EAFNOSUPPORT: Self = Self(libc::EAFNOSUPPORT);
    /// Too many open files in this process.
    pub const EMFILE: Self = Self(libc::EMFILE);
    /// Too many open files in the system.
    pub const ENFILE: Self = Self(libc::ENFILE);
    /// The kernel lacks the operation.
    pub const EOPNOTSUPP: Self = Self(libc::EOPNOTSUPP);
    /// The client closed before it was accepted.
    pub const ECONNABORTED: Self = Self(libc::ECONNABORTED);
    /// A network error that waited for accept(2).
    pub const EPROTO: Self = Self(libc::EPROTO);
    /// Netlink lost messages (netlink(7)).
    pub const ENOBUFS: Self = Self(libc::ENOBUFS);
    /// The reader is gone.
    pub const EPIPE: Self = Self(libc::EPIPE);
    /// A symbolic link where it is refused.
    pub const ELOOP: Self = Self(libc::ELOOP);
    /// Not something to read rows from.
    pub const EINVAL: Self = Self(libc::EINVAL);
}

/// An open file descriptor. The complement of its number is kept, so that an
/// `Option` of it is as small, and `None` all zero bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    complement: NonZeroI32,
}

impl Descriptor {
    /// `None` for -1, by which system calls say that there is none.
    pub const fn new(number: i32) -> Option<Self> {
        match NonZeroI32::new(!number) {
            Some(complement) => Some(Self { complement }),
            None => None,
        }
    }

    /// As system calls take it.
    pub const fn number(self) -> i32 {
        !self.complement.get()
    }
}

/// A path without its terminating NUL; longer ones are refused by the options.
pub type Path = Text<{ PATH_MAX_LENGTH + 1 }>;

/// Longest path the options accept, in bytes.
pub const PATH_MAX_LENGTH: usize = 255;

/// What poll(2) shall wait for on one descriptor, and what it found.
#[derive(Clone, Copy, Debug)]
pub struct Interest {
    /// `None`: nothing is ever found.
    pub descriptor: Option<Descriptor>,
    /// Wait until it can be read.
    pub readable: bool,
    /// Wait until it can be written.
    pub writable: bool,
    /// Found: something can be read, or the other side hung up or failed.
    pub is_readable: bool,
    /// Found: something can be written, or the other side hung up or failed.
    pub is_writable: bool,
}

impl Interest {
    /// Waits for something to read.
    pub const fn read(descriptor: Option<Descriptor>) -> Self {
        Self {
            descriptor,
            readable: true,
            writable: false,
            is_readable: false,
            is_writable: false,
        }
    }

    /// Waits for room to write.
    pub const fn write(descriptor: Option<Descriptor>) -> Self {
        Self {
            descriptor,
            readable: false,
            writable: true,
            is_readable: false,
            is_writable: false,
        }
    }

    /// Whether anything was found.
    pub const fn is_met(&self) -> bool {
        self.is_readable || self.is_writable
    }
}

/// Clocks of clock_gettime(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// Since boot, CLOCK_BOOTTIME: what is decided by.
    Boottime,
    /// Since 1970, CLOCK_REALTIME: to be printed only.
    Realtime,
    /// User and system time of this process, CLOCK_PROCESS_CPUTIME_ID.
    ProcessCpu,
}

/// A symbolic link at the end of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// It is followed.
    Follow,
    /// It is refused, O_NOFOLLOW.
    Refuse,
}

/// An open file, by fstat(2) and fstatfs(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct File {
    /// Read without blocking.
    pub descriptor: Descriptor,
    /// Type and rights, inode(7).
    pub mode: u32,
    /// Its user.
    pub owner: u32,
    /// No other hard link leads to it.
    pub is_linked_once: bool,
    /// Its number on its file system.
    pub inode: u64,
    /// That is procfs.
    pub is_procfs: bool,
}

/// Standard streams that are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Output,
    /// Standard error.
    Error,
    /// The pipe to the hook's launcher: it takes one record whole or not at all.
    Hook,
}

/// What follows the bytes of a `send`, as far as is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum More {
    /// Nothing: they leave at once.
    No,
    /// The end, by `shutdown_sending`: MSG_MORE (send(2)) lets them and the FIN
    /// be one segment.
    Fin,
}

/// Signals the daemon reacts to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM or SIGINT: end.
    Terminate,
    /// SIGCHLD: a child ended.
    Child,
}

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// exit(3) with this status; 127 where the program could not be started.
    Status(u8),
    /// Ended by this signal.
    Signal(u8),
}

/// A program to run: words of an argv, separated by NUL bytes, and what it
/// reads from its standard input. A plain value of fixed size, so that it can
/// be handed to a privileged helper through a pipe.
#[derive(Clone)]
pub struct Invocation {
    /// The program's name and arguments, each ended by NUL. The program is
    /// looked up in PATH.
    pub arguments: Text<ARGUMENTS>,
    /// The root directory it is looked up in and lives in; empty: ours.
    pub root: Path,
    /// Bytes for its standard input.
    pub input: Text<CHILD_INPUT>,
}

/// Bytes of all arguments of one child together.
pub const ARGUMENTS: usize = 512;
/// Bytes of a child's standard input: what a pipe takes without waiting
/// (pipe(7): 65,536), so that writing it never blocks the loop.
pub const CHILD_INPUT: usize = 32_768;

impl Invocation {
    /// No program yet; all bytes zero.
    pub const fn new() -> Self {
        Self {
            arguments: Text::new(),
            root: Path::new(),
            input: Text::new(),
        }
    }
}

/// Bytes of one record for the hook's launcher: words, each ended by NUL, then
/// blanks. Pipes take so few in one piece (PIPE_BUF of pipe(7)).
pub const HOOK_RECORD: usize = 512;

/// What became of a run of the hook. The launcher answers each record by a byte,
/// the number of one of the first three.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HookRun {
    /// Exit status 0.
    Ok,
    /// Another exit status, a signal, or it could not be started.
    Failed,
    /// It was ended past its deadline.
    Timeout,
    /// It never came to that: too many waited, or the launcher is gone.
    Dropped,
}

label!(HookRun, "result", 0, ["ok", "failed", "timeout", "dropped"]);

/// A running child in a process group of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Child {
    /// Its process (and group) number.
    pub process: i32,
    /// Its standard output, readable without blocking.
    pub output: Descriptor,
    /// Its standard error, readable without blocking.
    pub errors: Descriptor,
}

/// Netlink protocols (netlink(7)) the daemon opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Netlink {
    /// NETLINK_ROUTE: addresses and routes are asked for.
    Route,
    /// The same, joined to the groups that report changes of addresses, routes,
    /// nexthop objects and links.
    RouteEvents,
    /// NETLINK_SOCK_DIAG joined to the destroy groups of TCP and TCP over IPv6.
    DestroyEvents,
    /// The same, of all network namespaces that have a number in ours
    /// (NETLINK_LISTEN_ALL_NSID of netlink(7)); needs CAP_NET_BROADCAST.
    ForeignEvents,
    /// NETLINK_SOCK_DIAG to ask for sockets and to destroy them.
    SockDiag,
    /// NETLINK_NETFILTER: nf_tables is asked and changed.
    Netfilter,
    /// The same, joined to the group that reports changes of nf_tables.
    NetfilterEvents,
}

/// One instruction of a socket's filter: struct sock_filter of linux/filter.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Instruction {
    /// What is done, of linux/bpf_common.h.
    pub code: u16,
    /// So many instructions are skipped where a comparison holds.
    pub if_true: u8,
    /// So many where it does not.
    pub if_false: u8,
    /// An offset, or what is compared with.
    pub operand: u32,
}

/// Instructions of classic BPF (linux/bpf_common.h). Numbers are in network byte
/// order.
pub mod bpf {
    use super::Instruction;

    /// Loads a byte at an offset.
    pub const LDB: u16 = 0x30;
    /// Loads a half word.
    pub const LDH: u16 = 0x28;
    /// Loads a word.
    pub const LDW: u16 = 0x20;
    /// Loads a byte that many bytes behind X.
    pub const LDB_X: u16 = 0x50;
    /// Loads the length of an IPv4 header into X.
    pub const LDX_HEADER: u16 = 0xb1;
    /// Keeps these bits.
    pub const AND: u16 = 0x54;
    /// Whether it is equal.
    pub const JEQ: u16 = 0x15;
    /// Whether one of these bits is set.
    pub const JSET: u16 = 0x45;
    /// Lets so many bytes through.
    pub const RET: u16 = 0x06;

    /// An instruction with one operand.
    pub const fn load(code: u16, operand: u32) -> Instruction {
        jump(code, operand, 0, 0)
    }

    /// A comparison.
    pub const fn jump(code: u16, operand: u32, if_true: u8, if_false: u8) -> Instruction {
        Instruction {
            code,
            if_true,
            if_false,
            operand,
        }
    }
}

/// The bit of CAP_NET_ADMIN in a capability set (linux/capability.h).
pub const CAP_NET_ADMIN: u64 = 1 << 12;

/// What this process keeps, with all it starts later: the rest is given up for
/// good.
pub struct Sandbox<'a> {
    /// It runs no program any more, and becomes nobody where it may.
    pub is_sealed: bool,
    /// The capabilities that stay where they are there; none has a number above 31.
    pub capabilities: u32,
    /// Paths with colons between, each behind the letter of its rights.
    pub files: &'a [u8],
    /// Where that is so as well; empty for nowhere. Programs are run in it.
    pub root: &'a [u8],
    /// One more folder below which files may be read.
    pub proc_directory: &'a [u8],
    /// Files, with blanks between, in whose folders, wherever links lead, all may be
    /// read.
    pub beside: &'a [u8],
    /// The filter of system calls.
    pub calls: &'a [Instruction],
}

/// What the kernel says about this process, for the process_* metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProcessStatus {
    /// User and system time used, getrusage(2).
    pub cpu_time: Duration,
    /// Open descriptors; 0 where unknown.
    pub open_descriptors: u64,
    /// Limit of open descriptors (RLIMIT_NOFILE); `None` for unlimited.
    pub max_descriptors: Option<u64>,
    /// Virtual memory in bytes, from /proc/self/statm.
    pub virtual_bytes: u64,
    /// Limit of virtual memory (RLIMIT_AS) in bytes; `None` for unlimited.
    pub max_virtual_bytes: Option<u64>,
    /// Resident memory in bytes, from /proc/self/statm.
    pub resident_bytes: u64,
}

/// Who has the name that `Kernel::claim` asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// This process, by this listening socket.
    Ours(Descriptor),
    /// A process that listens there.
    Held {
        /// Its effective user at its listen(2): SO_PEERCRED of unix(7), where
        /// users that our user namespace does not know are 65534.
        user: u32,
        /// Ours, geteuid(2).
        own: u32,
    },
    /// A process that takes no connection: it does not listen, or those that it
    /// has not accepted fill its queue.
    Silent,
}

/// A client that accept4(2) handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// Its socket, non-blocking.
    pub descriptor: Descriptor,
    /// Our end, as a row of /proc/net/tcp names it; port 0 where getsockname(2)
    /// is refused.
    pub local: Endpoint,
    /// The client's end.
    pub remote: Endpoint,
}

/// The size of a terminal in characters, 0 where it is not known: TIOCGWINSZ of
/// ioctl_tty(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Screen {
    /// Its height.
    pub rows: u16,
    /// Its width.
    pub columns: u16,
}

/// What the system hands over once, to the start.
#[derive(Clone, Copy)]
pub struct StartUp<'a> {
    /// Becomes readable when a signal arrived, signalfd(2); `None` where the
    /// kernel refused: signals keep their defaults.
    pub signals: Option<Descriptor>,
    /// To poll for room on standard output.
    pub output: Option<Descriptor>,
    /// Its device and inode, fstat(2); `None` where that failed.
    pub output_file: Option<(u64, u64)>,
    /// `None` where it is no terminal.
    pub screen: Option<Screen>,
    /// The effective capability set, capget(2).
    pub capabilities: u64,
    /// A secret: getrandom(2) with GRND_NONBLOCK, else the AT_RANDOM bytes of
    /// getauxval(3).
    pub hash_key: HashKey,
    /// The entry of environ(7) at an index, `NAME=value`; `None` past the last.
    pub environment: &'a dyn Fn(usize) -> Option<&'a [u8]>,
}

impl<'a> StartUp<'a> {
    /// Every entry of the environment.
    pub fn variables(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        (0..).map_while(self.environment)
    }

    /// The value of an environment variable, getenv(3).
    #[inline(never)]
    pub fn variable(&self, name: &[u8]) -> Option<&'a [u8]> {
        for entry in self.variables() {
            let (own, value) = split_once(entry, b'=');
            if own == name {
                return Some(value);
            }
        }
        None
    }
}

/// The operating system. Each verb is one system call or a fixed handful; none
/// waits except `poll`, none retries, none decides.
pub trait Kernel {
    /// What a clock shows, since its start.
    fn clock(&mut self, clock: Clock) -> Duration;
    /// Local calendar time of `unix_seconds`.
    fn calendar(&mut self, unix_seconds: u64) -> Calendar;
    /// What the process_* metrics show; reads /proc/self.
    fn process_status(&mut self) -> ProcessStatus;

    /// Waits until an interest is met, a signal arrives or `timeout` passed
    /// (`None`: for ever); fills in what was found.
    fn poll(&mut self, interests: &mut [Interest], timeout: Option<Duration>) -> Result<(), Errno>;
    /// The next signal that arrived, if any.
    fn next_signal(&mut self) -> Option<Signal>;

    /// Opens a file for reading, without blocking.
    fn open(&mut self, path: &Path, link: Link) -> Result<File, Errno>;
    /// read(2).
    fn read(&mut self, descriptor: Descriptor, buffer: &mut [u8]) -> Result<usize, Errno>;
    /// lseek(2) to the start.
    fn rewind(&mut self, descriptor: Descriptor) -> Result<(), Errno>;
    /// close(2).
    fn close(&mut self, descriptor: Descriptor);
    /// Writes without ever blocking; EAGAIN where the stream is full.
    fn write(&mut self, stream: Stream, bytes: &[u8]) -> Result<usize, Errno>;

    /// Binds a stream socket to `name` in the abstract namespace of unix(7), one
    /// per network namespace, and listens there; else returns which user does.
    fn claim(&mut self, name: &str) -> Result<Claim, Errno>;
    /// Sends a datagram to a socket of unix(7), a path or `@` and an abstract
    /// name; EAGAIN where it has no room. The connection is kept, since the folder
    /// of a path may be out of reach later; an empty message only makes it.
    fn notify(&mut self, socket: &[u8], message: &[u8]) -> Result<(), Errno>;
    /// A listening, non-blocking TCP socket. `[::]` is dual-stack.
    fn listen(&mut self, address: Endpoint) -> Result<Descriptor, Errno>;
    /// The next client of a listener.
    fn accept(&mut self, listener: Descriptor) -> Result<Accepted, Errno>;
    /// A non-blocking TCP socket on its way to one of our own addresses, which
    /// is its own as well: no other host can answer.
    fn connect(&mut self, address: Endpoint) -> Result<Descriptor, Errno>;
    /// recv(2), MSG_DONTWAIT.
    fn receive(&mut self, socket: Descriptor, buffer: &mut [u8]) -> Result<usize, Errno>;
    /// The same by recvmsg(2), with the origin of what was received: the
    /// interface of a packet (sll_ifindex of packet(7)), or one more than the
    /// number of the network namespace of a message (NETLINK_LISTEN_ALL_NSID of
    /// netlink(7)); 0 where that is our own.
    fn receive_from(
        &mut self,
        socket: Descriptor,
        buffer: &mut [u8],
    ) -> Result<(usize, u32), Errno>;
    /// send(2), MSG_DONTWAIT and MSG_NOSIGNAL.
    fn send(&mut self, socket: Descriptor, bytes: &[u8], more: More) -> Result<usize, Errno>;
    /// shutdown(2) of a TCP socket's sending side; whether it holds bytes that
    /// its peer has no room for yet (SIOCOUTQNSD of linux/sockios.h).
    fn shutdown_sending(&mut self, socket: Descriptor) -> bool;

    /// A bound, non-blocking netlink socket.
    fn netlink(&mut self, kind: Netlink) -> Result<Descriptor, Errno>;
    /// A packet socket (packet(7)) whose packets begin with their network header;
    /// it receives none before `bind_packets`. Needs CAP_NET_RAW.
    fn packet_socket(&mut self) -> Result<Descriptor, Errno>;
    /// Lets it receive what comes in with this ethertype (linux/if_ether.h).
    fn bind_packets(&mut self, socket: Descriptor, ethertype: u16) -> Result<(), Errno>;
    /// How many packets it had no room for since this was asked last
    /// (PACKET_STATISTICS of packet(7)).
    fn lost_packets(&mut self, socket: Descriptor) -> u32;
    /// Lets a socket receive what a classic filter lets through, SO_ATTACH_FILTER
    /// of socket(7).
    fn attach_filter(&mut self, socket: Descriptor, filter: &[Instruction]) -> Result<(), Errno>;
    /// Lets a connect(2) to a bound loopback socket that does not listen be
    /// refused: the destruction of its socket is the event that shows whether
    /// destroy events arrive. Returns the connecting socket's port.
    fn refused_connect(&mut self) -> Result<u16, Errno>;

    /// Starts a program with a clean environment, default signals, no inherited
    /// descriptors and a process group of its own. Where its root cannot be
    /// entered, or does not hold it, its standard error says so.
    fn spawn(&mut self, invocation: &Invocation) -> Result<Child, Errno>;
    /// Starts the process that runs `file`, an absolute path, with the words of each
    /// record written to `Stream::Hook`: one at a time, each for at most
    /// `CHILD_DEADLINE`. Returns the pipe of its answers, which ends with it.
    fn start_launcher(&mut self, file: &Path) -> Result<Descriptor, Errno>;
    /// How the child ended, if it did; waitpid(2) with WNOHANG.
    fn reap(&mut self, process: i32) -> Option<Exit>;
    /// Asks (false, SIGTERM) or forces (true, SIGKILL) a child's group to end.
    fn kill_group(&mut self, process: i32, force: bool);

    /// Gives up all that a sandbox does not name; a set of `Layer` bits, of those
    /// that now hold.
    fn enter_sandbox(&mut self, sandbox: &Sandbox) -> u8;
}
