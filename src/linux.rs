//! The Linux kernel for real: one system call, one small function, one reason
//! why it is sound. The only module with `unsafe`.
//!
//! Socket addresses and directory entries are built and read as bytes, since
//! their layout is the kernel's and the libc crate may describe another C
//! library's structs (gnu target linked with musl-gcc).

use core::cell::UnsafeCell;
use core::ffi::{CStr, c_char, c_int, c_ulong, c_void};
use core::mem::{self, MaybeUninit};
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use core::panic::PanicInfo;
use core::ptr;
use core::sync::atomic::{AtomicBool, Ordering};

use crate::address::{Endpoint, Family, fold_mapped};
use crate::kernel::{
    Accepted, Child, Claim, Clock, Descriptor, Errno, Exit, File, HOOK_RECORD, HookRun,
    Instruction, Interest, Invocation, Kernel, Link, More, Netlink, PATH_MAX_LENGTH, Path,
    ProcessStatus, Sandbox, Screen, Signal, StartUp, Stream,
};
use crate::limits;
use crate::sandbox::Layer;
use crate::table::HashKey;
use crate::text::{Text, before, has_byte, parse_decimal, split, trim};
use crate::time::{Calendar, Duration};
use crate::time_zone;

/// Interests one `poll` looks at; those behind are left unmet. The HTTP
/// clients and some room for listeners, netlink, signals, child and output.
pub const INTERESTS: usize = limits::HTTP_CLIENTS + 64;

/// The longest files of the time zone database have less than 4 KiB.
const TIME_ZONE: usize = 8 << 10;
/// Words of one child's argv.
const WORDS: usize = 64;
/// PATH of a child where ours is unset.
const DEFAULT_PATH: &CStr = c"PATH=/usr/sbin:/usr/bin:/sbin:/bin";
const PATH_NAME: usize = b"PATH=".len();
/// Receive buffer asked for on events: thousands of messages.
const EVENTS_BUFFER: c_int = 4 << 20;
/// Receive buffer asked for on packets: some hundred SYNs between two looks. The
/// kernel takes net.core.rmem_max where that is less.
const PACKET_BUFFER: c_int = 256 << 10;
/// Connections the kernel queues for accept(2); it takes less where
/// net.core.somaxconn says so. Where the queue is full a client's handshake is
/// dropped and tried again a second later.
const BACKLOG: c_int = 4096;
/// linux/sock_diag.h: SKNLGRP_INET_TCP_DESTROY and SKNLGRP_INET6_TCP_DESTROY.
const DESTROY_GROUPS: [c_int; 2] = [1, 3];
/// Links, IPv4 addresses, IPv4 routes, IPv6 addresses, IPv6 routes: RTNLGRP_* of
/// linux/rtnetlink.h.
const ROUTE_GROUPS: [c_int; 5] = [1, 5, 7, 9, 11];
const RTNLGRP_NEXTHOP: c_int = 32;
/// linux/netfilter/nfnetlink.h.
const NFNLGRP_NFTABLES: c_int = 7;
/// linux/memfd.h; kernels before 6.3 do not know it and say EINVAL.
const MFD_NOEXEC_SEAL: u32 = 8;
/// linux/capability.h: two 32-bit words a set.
const LINUX_CAPABILITY_VERSION_3: u32 = 0x2008_0522;
/// Signals go from 1 to 64 (signal(7)); mips has 128, whose upper half is
/// unused.
const SIGNALS: c_int = 64;
const IS_MIPS: bool = cfg!(any(target_arch = "mips", target_arch = "mips64"));
/// Bytes of a kernel's sigset_t.
const SIGNAL_SET: usize = if IS_MIPS { 16 } else { 8 };
/// One: words, the first with the bit of signal 1 lowest (asm/signal.h).
type SignalSet = [usize; SIGNAL_SET / mem::size_of::<usize>()];
/// The highest descriptor closed by hand where close_range(2) is missing.
const DESCRIPTORS_BY_HAND: c_int = 65_536;

/// A value in a static that is handed out once: calls have no need to hand its
/// address on, since it is a constant. The flag shares the first page of a large
/// value; behind it, it would take one of its own.
#[repr(C)]
pub struct Single<T> {
    taken: AtomicBool,
    value: UnsafeCell<T>,
}

// SAFETY: `take` gives the only reference to the first caller, so sharing
// a `Single` is no more than sending its value.
unsafe impl<T: Send> Sync for Single<T> {}

impl<T> Single<T> {
    /// A value not taken yet.
    pub const fn new(value: T) -> Self {
        Self {
            taken: AtomicBool::new(false),
            value: UnsafeCell::new(value),
        }
    }

    /// The value, for the first caller only.
    #[allow(clippy::mut_from_ref)]
    pub fn take(&'static self) -> Option<&'static mut T> {
        if self.taken.swap(true, Ordering::AcqRel) {
            return None;
        }
        // SAFETY: the flag was false, and turns true once only: there is no
        // other reference to the value and never will be.
        Some(unsafe { &mut *self.value.get() })
    }
}

impl<T> Single<mem::MaybeUninit<T>> {
    /// The place for a value that is made when the process runs, with it.
    pub fn hold(&'static self, value: T) -> Option<&'static mut T> {
        Some(self.take()?.write(value))
    }
}

/// The second argument of C's `main`. Safe code cannot make one, so it is
/// always the C runtime's: a NULL-terminated array of strings that live as
/// long as the process (C11 section 5.1.2.2.1).
#[repr(transparent)]
pub struct ArgumentVector(*const *const c_char);

impl ArgumentVector {
    /// The arguments after the program's name.
    pub fn after_name(&self) -> impl Iterator<Item = &'static [u8]> + use<> {
        let mut all = Strings(self.0);
        all.next();
        all.map(CStr::to_bytes)
    }
}

/// Walks a NULL-terminated array of C strings.
struct Strings(*const *const c_char);

impl Iterator for Strings {
    type Item = &'static CStr;

    #[inline(never)]
    fn next(&mut self) -> Option<&'static CStr> {
        if self.0.is_null() {
            return None;
        }
        // SAFETY: only argv and environ are walked; both end with NULL, where
        // the walk stops, and their strings live as long as the process.
        unsafe {
            let string = *self.0;
            if string.is_null() {
                return None;
            }
            self.0 = self.0.add(1);
            Some(CStr::from_ptr(string))
        }
    }
}

/// How bytes reach standard output or error without ever waiting.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    /// write(2): a description of our own that does not block, or a regular
    /// file, which never does.
    Write,
    /// poll(2), then write(2) of at most PIPE_BUF bytes: what could not be
    /// opened anew.
    PollThenWrite,
    /// send(2) with MSG_DONTWAIT.
    Send,
}

/// Standard output or error.
struct Channel {
    descriptor: c_int,
    way: Way,
}

impl Channel {
    /// O_NONBLOCK belongs to the open file description, which we share with the
    /// shell and others (open(2)): setting it there would break them. So FIFOs
    /// and devices get a description of our own in the same place.
    fn open(descriptor: c_int) -> Self {
        let way = match file_type(descriptor) {
            Ok(libc::S_IFSOCK) => Way::Send,
            Ok(libc::S_IFIFO | libc::S_IFCHR) => match reopen(descriptor) {
                Ok(()) => Way::Write,
                Err(_) => Way::PollThenWrite,
            },
            _ => Way::Write,
        };
        Self { descriptor, way }
    }

    fn write(&self, bytes: &[u8]) -> Result<usize, Errno> {
        match self.way {
            Way::Write => write(self.descriptor, bytes),
            Way::Send => send(self.descriptor, bytes, 0),
            Way::PollThenWrite => {
                if !becomes_ready(self.descriptor, libc::POLLOUT, Some(Duration::ZERO)) {
                    return Err(Errno::EAGAIN);
                }
                let whole = bytes.get(..libc::PIPE_BUF).unwrap_or(bytes);
                write(self.descriptor, whole)
            }
        }
    }
}

/// Puts a non-blocking description of the same FIFO or device in place of
/// `descriptor`.
fn reopen(descriptor: c_int) -> Result<(), Errno> {
    let flags = libc::O_WRONLY | libc::O_NONBLOCK | libc::O_NOCTTY;
    let anew = open_in(b"", link_to(descriptor).as_bytes(), flags)?;
    duplicate(anew.number(), descriptor)
}

/// The link to what a descriptor stands for.
#[inline(never)]
fn link_to(descriptor: c_int) -> Text<32> {
    let mut path = Text::from_bytes(b"/proc/self/fd/");
    path.put_decimal(descriptor.unsigned_abs().into());
    path
}

/// Room for a string with its terminating NUL.
struct Terminated([u8; PATH_MAX_LENGTH + 2]);

impl Terminated {
    const fn new() -> Self {
        Self([0; PATH_MAX_LENGTH + 2])
    }

    /// ENAMETOOLONG where it does not fit; a NUL inside is refused.
    #[inline(never)]
    fn hold(&mut self, path: &[u8]) -> Result<&CStr, Errno> {
        if path.len() >= self.0.len() || has_byte(path, 0) {
            return Err(Errno(libc::ENAMETOOLONG));
        }
        put_at(&mut self.0, 0, path);
        put_at(&mut self.0, path.len(), &[0]);
        // SAFETY: a NUL stands behind the path, which leaves room for it.
        Ok(unsafe { CStr::from_ptr(self.0.as_ptr().cast()) })
    }
}

/// A descriptor that is closed when it goes out of use.
struct Owned(Descriptor);

impl Owned {
    /// What a system call returned; -1 stands for an error.
    fn new(result: c_int) -> Result<Self, Errno> {
        Descriptor::new(result).map(Self).ok_or_else(errno)
    }

    fn number(&self) -> c_int {
        self.0.number()
    }

    /// Hands the descriptor over to the caller, to be closed later.
    fn release(self) -> Descriptor {
        let descriptor = self.0;
        mem::forget(self);
        descriptor
    }
}

impl Drop for Owned {
    #[inline(never)]
    fn drop(&mut self) {
        close(self.number());
    }
}

/// The running system.
pub struct Linux {
    signals: Option<Descriptor>,
    output: Channel,
    errors: Channel,
    /// Where records for the hook's launcher are written; -1: there is none.
    hook: c_int,
    /// What `notify` is connected with; 0: nothing yet.
    notified: c_int,
    /// The child that `spawn` started last.
    child: i32,
    /// How that child ended, where `reap_all` saw it first.
    ended: Option<Exit>,
    /// See `time_zone::offset`.
    time_zone: &'static [u8],
}

impl Linux {
    /// Prepares the process: descriptors 0 to 2 are open, SIGPIPE is ignored,
    /// SIGTERM, SIGINT and SIGCHLD arrive through a descriptor, the time zone
    /// is known, and output does not block.
    pub fn start() -> (Self, StartUp<'static>) {
        fill_standard_descriptors();
        let signals = take_signals();
        let kernel = Self {
            signals,
            output: Channel::open(libc::STDOUT_FILENO),
            errors: Channel::open(libc::STDERR_FILENO),
            hook: -1,
            notified: 0,
            child: 0,
            ended: None,
            time_zone: read_time_zone(),
        };
        let start_up = StartUp {
            signals,
            output: Descriptor::new(libc::STDOUT_FILENO),
            output_file: file_status(libc::STDOUT_FILENO)
                .ok()
                .map(|status| (status.st_dev, status.st_ino)),
            screen: screen(libc::STDOUT_FILENO).ok(),
            capabilities: effective_capabilities(),
            hash_key: hash_key(),
            environment: &environment,
        };
        (kernel, start_up)
    }

    /// Reaps whatever ended: the hook's launcher, and as PID 1 the orphans of our
    /// PID namespace (pid_namespaces(7)).
    fn reap_all(&mut self) {
        while let Ok(Some((process, exit))) = wait(-1) {
            if process == self.child {
                self.ended = Some(exit);
            }
        }
    }
}

impl Kernel for Linux {
    #[inline(never)]
    fn clock(&mut self, clock: Clock) -> Duration {
        read_clock(match clock {
            Clock::Boottime => libc::CLOCK_BOOTTIME,
            Clock::Realtime => libc::CLOCK_REALTIME,
            Clock::ProcessCpu => libc::CLOCK_PROCESS_CPUTIME_ID,
        })
    }

    fn calendar(&mut self, unix_seconds: u64) -> Calendar {
        let seconds = unix_seconds as i64;
        Calendar::at(seconds + time_zone::offset(self.time_zone, seconds))
    }

    fn process_status(&mut self) -> ProcessStatus {
        let page = u64::from(auxiliary(libc::AT_PAGESZ));
        let mut buffer = [0; 128];
        let text = read_file(c"/proc/self/statm", &mut buffer);
        let mut pages = split(text, b' ').map(|number| parse_decimal(number).unwrap_or(0));
        ProcessStatus {
            cpu_time: self.clock(Clock::ProcessCpu),
            open_descriptors: count_descriptors(),
            max_descriptors: resource_limit(libc::RLIMIT_NOFILE as c_int),
            virtual_bytes: pages.next().unwrap_or(0).saturating_mul(page),
            max_virtual_bytes: resource_limit(libc::RLIMIT_AS as c_int),
            resident_bytes: pages.next().unwrap_or(0).saturating_mul(page),
        }
    }

    #[inline(never)]
    fn poll(&mut self, interests: &mut [Interest], timeout: Option<Duration>) -> Result<(), Errno> {
        let mut table = [NOTHING; INTERESTS];
        let count = interests.len().min(INTERESTS);
        for (slot, interest) in table.iter_mut().zip(interests.iter()) {
            *slot = request(interest);
        }
        let found = poll(table.get_mut(..count).unwrap_or_default(), timeout);
        for interest in interests.iter_mut() {
            (interest.is_readable, interest.is_writable) = (false, false);
        }
        found?;
        for (interest, slot) in interests.iter_mut().zip(&table) {
            interest.is_readable = slot.revents & (libc::POLLIN | BROKEN) != 0;
            interest.is_writable = slot.revents & (libc::POLLOUT | BROKEN) != 0;
        }
        Ok(())
    }

    fn next_signal(&mut self) -> Option<Signal> {
        match take_signal(self.signals?.number())? {
            libc::SIGCHLD => {
                self.reap_all();
                Some(Signal::Child)
            }
            _ => Some(Signal::Terminate),
        }
    }

    #[inline(never)]
    fn open(&mut self, path: &Path, link: Link) -> Result<File, Errno> {
        let flags = match link {
            Link::Follow => READ_ONLY,
            Link::Refuse => READ_ONLY | libc::O_NOFOLLOW,
        };
        let file = open_in(b"", path.as_bytes(), flags)?;
        let status = file_status(file.number())?;
        Ok(File {
            is_procfs: file_system(file.number())? == libc::PROC_SUPER_MAGIC as u64,
            descriptor: file.release(),
            mode: status.st_mode,
            owner: status.st_uid,
            is_linked_once: status.st_nlink == 1,
            inode: status.st_ino,
        })
    }

    fn read(&mut self, descriptor: Descriptor, buffer: &mut [u8]) -> Result<usize, Errno> {
        read(descriptor.number(), buffer)
    }

    fn rewind(&mut self, descriptor: Descriptor) -> Result<(), Errno> {
        rewind(descriptor.number())
    }

    #[inline(never)]
    fn close(&mut self, descriptor: Descriptor) {
        close(descriptor.number());
    }

    fn write(&mut self, stream: Stream, bytes: &[u8]) -> Result<usize, Errno> {
        match stream {
            Stream::Output => self.output.write(bytes),
            Stream::Error => self.errors.write(bytes),
            Stream::Hook => write(self.hook, bytes),
        }
    }

    fn claim(&mut self, name: &str) -> Result<Claim, Errno> {
        let address = unix_address(b"\0", name.as_bytes());
        let socket = socket(libc::AF_UNIX, libc::SOCK_STREAM, 0)?;
        match bind(socket.number(), address.as_bytes()) {
            Ok(()) => {
                listen(socket.number())?;
                Ok(Claim::Ours(socket.release()))
            }
            Err(Errno::EADDRINUSE) if connect(socket.number(), address.as_bytes()).is_ok() => {
                Ok(Claim::Held {
                    user: peer_user(socket.number())?,
                    own: own_user(),
                })
            }
            Err(Errno::EADDRINUSE) => Ok(Claim::Silent),
            Err(error) => Err(error),
        }
    }

    fn notify(&mut self, address: &[u8], message: &[u8]) -> Result<(), Errno> {
        let address = match address {
            [b'@', name @ ..] => unix_address(b"\0", name),
            [b'/', ..] => unix_address(b"", address),
            _ => return Err(Errno::EAFNOSUPPORT),
        };
        if address.is_truncated() {
            return Err(Errno(libc::ENAMETOOLONG));
        }
        let sent = match self.notified {
            0 => Err(Errno(libc::ENOTCONN)),
            socket => send(socket, message, 0).map(drop),
        };
        if !sent.is_err_and(|error| error != Errno::EAGAIN) {
            return sent;
        }
        let socket = socket(libc::AF_UNIX, libc::SOCK_DGRAM, 0)?;
        connect(socket.number(), address.as_bytes())?;
        if self.notified != 0 {
            close(self.notified);
        }
        self.notified = socket.release().number();
        if message.is_empty() {
            return Ok(());
        }
        send(self.notified, message, 0).map(drop)
    }

    fn listen(&mut self, address: Endpoint) -> Result<Descriptor, Errno> {
        let socket = stream_socket(address)?;
        set_option(socket.number(), libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
        if address.address.is_ipv6() {
            set_option(socket.number(), libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 0)?;
        }
        bind_to(socket.number(), address)?;
        listen(socket.number())?;
        Ok(socket.release())
    }

    fn accept(&mut self, listener: Descriptor) -> Result<Accepted, Errno> {
        let (socket, remote) = accept(listener.number())?;
        let local = own_name(socket.number()).map_or(Endpoint::BLANK, |name| endpoint_of(&name));
        Ok(Accepted {
            descriptor: socket.release(),
            local,
            remote: endpoint_of(&remote),
        })
    }

    fn connect(&mut self, address: Endpoint) -> Result<Descriptor, Errno> {
        let socket = stream_socket(address)?;
        bind_to(socket.number(), Endpoint { port: 0, ..address })?;
        match connect_to(socket.number(), address) {
            Ok(()) | Err(Errno(libc::EINPROGRESS)) => Ok(socket.release()),
            Err(error) => Err(error),
        }
    }

    fn receive(&mut self, socket: Descriptor, buffer: &mut [u8]) -> Result<usize, Errno> {
        receive(socket.number(), buffer)
    }

    fn receive_from(
        &mut self,
        socket: Descriptor,
        buffer: &mut [u8],
    ) -> Result<(usize, u32), Errno> {
        receive_from(socket.number(), buffer)
    }

    fn send(&mut self, socket: Descriptor, bytes: &[u8], more: More) -> Result<usize, Errno> {
        let flags = match more {
            More::No => 0,
            More::Fin => libc::MSG_MORE,
        };
        send(socket.number(), bytes, flags)
    }

    fn shutdown_sending(&mut self, socket: Descriptor) -> bool {
        shutdown_sending(socket.number());
        unsent(socket.number()).is_ok_and(|bytes| bytes > 0)
    }

    fn netlink(&mut self, kind: Netlink) -> Result<Descriptor, Errno> {
        let protocol = match kind {
            Netlink::Route | Netlink::RouteEvents => libc::NETLINK_ROUTE,
            Netlink::DestroyEvents | Netlink::ForeignEvents | Netlink::SockDiag => {
                libc::NETLINK_SOCK_DIAG
            }
            Netlink::Netfilter | Netlink::NetfilterEvents => libc::NETLINK_NETFILTER,
        };
        let socket = socket(libc::AF_NETLINK, libc::SOCK_RAW, protocol)?;
        // struct sockaddr_nl (netlink(7)): family, padding, port 0 for "you
        // choose", no groups of the first 32.
        let mut address = [0; 12];
        put_family(&mut address, libc::AF_NETLINK);
        bind(socket.number(), &address)?;
        match kind {
            Netlink::DestroyEvents => join_groups(socket.number(), &DESTROY_GROUPS)?,
            Netlink::ForeignEvents => {
                let (level, option) = (libc::SOL_NETLINK, libc::NETLINK_LISTEN_ALL_NSID);
                set_option(socket.number(), level, option, 1)?;
                join_groups(socket.number(), &DESTROY_GROUPS)?;
            }
            Netlink::RouteEvents => {
                join_groups(socket.number(), &ROUTE_GROUPS)?;
                // Before 5.3 there are no nexthop objects and no such group.
                let _ = join_groups(socket.number(), &[RTNLGRP_NEXTHOP]);
            }
            Netlink::NetfilterEvents => join_groups(socket.number(), &[NFNLGRP_NFTABLES])?,
            // An error repeats the header of what it refuses, not all of it
            // (before Linux 4.3 it does).
            Netlink::Netfilter => {
                let (level, option) = (libc::SOL_NETLINK, libc::NETLINK_CAP_ACK);
                let _ = set_option(socket.number(), level, option, 1);
            }
            Netlink::Route | Netlink::SockDiag => {}
        }
        Ok(socket.release())
    }

    fn packet_socket(&mut self) -> Result<Descriptor, Errno> {
        let socket = socket(libc::AF_PACKET, libc::SOCK_DGRAM, 0)?;
        let _ = set_option(
            socket.number(),
            libc::SOL_SOCKET,
            libc::SO_RCVBUF,
            PACKET_BUFFER,
        );
        Ok(socket.release())
    }

    fn bind_packets(&mut self, socket: Descriptor, ethertype: u16) -> Result<(), Errno> {
        // struct sockaddr_ll (packet(7)): family, protocol, interface 0 for all.
        let mut address = [0; 20];
        put_family(&mut address, libc::AF_PACKET);
        put_at(&mut address, 2, &ethertype.to_be_bytes());
        bind(socket.number(), &address)
    }

    fn lost_packets(&mut self, socket: Descriptor) -> u32 {
        packet_statistics(socket.number()).map_or(0, |[_, lost]| lost)
    }

    fn attach_filter(&mut self, socket: Descriptor, filter: &[Instruction]) -> Result<(), Errno> {
        attach_filter(socket.number(), filter)
    }

    fn refused_connect(&mut self) -> Result<u16, Errno> {
        let loopback = Endpoint {
            address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            port: 0,
        };
        let target = stream_socket(loopback)?;
        bind_to(target.number(), loopback)?;
        let source = stream_socket(loopback)?;
        bind_to(source.number(), loopback)?;
        let address = Endpoint {
            port: endpoint_of(&own_name(target.number())?).port,
            ..loopback
        };
        let port = endpoint_of(&own_name(source.number())?).port;
        match connect_to(source.number(), address) {
            Err(Errno(libc::ECONNREFUSED | libc::EINPROGRESS)) => Ok(port),
            Err(error) => Err(error),
            // No socket listens: what answered is not the kernel's loopback.
            Ok(()) => Err(Errno::EINVAL),
        }
    }

    fn spawn(&mut self, invocation: &Invocation) -> Result<Child, Errno> {
        let child = spawn(invocation)?;
        (self.child, self.ended) = (child.process, None);
        Ok(child)
    }

    #[inline(never)]
    fn start_launcher(&mut self, file: &Path) -> Result<Descriptor, Errno> {
        let (records, to_launcher) = pipe()?;
        set_non_blocking(to_launcher.number())?;
        let child = start_piped(&records, &|| launch(file.as_bytes()))?;
        close(child.errors.number());
        self.hook = to_launcher.release().number();
        Ok(child.output)
    }

    fn reap(&mut self, process: i32) -> Option<Exit> {
        if process == self.child && self.ended.is_some() {
            return self.ended.take();
        }
        reap(process)
    }

    fn kill_group(&mut self, process: i32, force: bool) {
        let signal = if force { libc::SIGKILL } else { libc::SIGTERM };
        kill_group(process, signal);
    }

    /// In this order each step still may do what it does: a filter of system calls
    /// refuses all the others, and without a capability only a process that gains
    /// no privileges may set one (seccomp(2), landlock(7)).
    #[inline(never)]
    fn enter_sandbox(&mut self, sandbox: &Sandbox) -> u8 {
        forbid_core_dumps();
        let mut layers = 0;
        let mut note = |layer: Layer, result: Result<(), Errno>| {
            layers |= if result.is_ok() { layer.bit() } else { 0 };
        };
        note(
            Layer::NoNewPrivs,
            control_process(libc::PR_SET_NO_NEW_PRIVS, 1),
        );
        note(Layer::Landlock, restrict_files(sandbox));
        note(Layer::Capabilities, drop_capabilities(sandbox));
        note(Layer::Seccomp, filter_calls(sandbox.calls));
        layers
    }
}

/// Flags for anything that is read: neither a FIFO without writer nor a
/// terminal may hold us or become ours.
const READ_ONLY: c_int = libc::O_RDONLY | libc::O_NONBLOCK | libc::O_NOCTTY;

// --- start-up ---------------------------------------------------------------

/// Otherwise the next file opened would become standard output. Each open(2)
/// takes the lowest free number, and lower ones are open by then.
fn fill_standard_descriptors() {
    for descriptor in 0..3 {
        if is_open(descriptor) {
            continue;
        }
        if let Ok(filler) = open_null() {
            filler.release();
        }
    }
}

/// A bare container may lack /dev/null; the root directory holds the place as
/// well, and writing to it just fails.
#[inline(never)]
fn open_null() -> Result<Owned, Errno> {
    open(c"/dev/null", libc::O_RDWR).or_else(|_| open(c"/", libc::O_RDONLY))
}

/// A closed pipe (SIGPIPE) or a terminal that forbids background output
/// (SIGTTOU, termios(3)) must not stop us.
/// SIGCHLD must not be ignored, or children vanish without a status (wait(2)).
/// Blocked signals are queued even where PID 1 would not get them by default.
fn take_signals() -> Option<Descriptor> {
    set_disposition(libc::SIGPIPE, libc::SIG_IGN);
    set_disposition(libc::SIGTTOU, libc::SIG_IGN);
    set_disposition(libc::SIGCHLD, libc::SIG_DFL);
    let mask = signal_set([libc::SIGTERM, libc::SIGINT, libc::SIGCHLD]);
    let signals = signal_descriptor(mask).ok()?;
    set_signal_mask(mask);
    Some(signals.release())
}

/// The time zone as tzset(3) looks for it, once; /etc/TZ is where OpenWrt keeps
/// its own.
fn read_time_zone() -> &'static [u8] {
    static BYTES: Single<[u8; TIME_ZONE]> = Single::new([0; TIME_ZONE]);
    let mut line = [0; 128];
    let zone = environment_value(b"TZ").unwrap_or_else(|| {
        let line = before(read_file(c"/etc/TZ", &mut line), b'\n');
        match trim(line) {
            b"" => b"/etc/localtime",
            zone => zone,
        }
    });
    BYTES
        .take()
        .map(|bytes| zone_of(zone, bytes))
        .unwrap_or_default()
}

/// A rule as it stands, or what is in the file of that name. What cannot be read
/// is empty, which is UTC.
fn zone_of<'a>(zone: &[u8], bytes: &'a mut [u8]) -> &'a [u8] {
    if time_zone::is_rule(zone) {
        put_at(bytes, 0, zone);
        return bytes.get(..zone.len()).unwrap_or_default();
    }
    let name = zone.strip_prefix(b":").unwrap_or(zone);
    let folders: &[u8] = match name {
        [b'/' | b'.', ..] => b"",
        _ => b"/usr/share/zoneinfo/:/share/zoneinfo/:/etc/zoneinfo/",
    };
    for folder in split(folders, b':') {
        let mut path = Path::from_bytes(folder);
        path.put(name);
        let mut terminated = Terminated::new();
        let path = terminated.hold(path.as_bytes());
        if let Ok(length @ 1..) = path.map(|path| read_file(path, bytes).len()) {
            return bytes.get(..length).unwrap_or_default();
        }
    }
    b""
}

/// Never waits.
fn hash_key() -> HashKey {
    let bytes = random_bytes().unwrap_or_else(start_up_random_bytes);
    let key = u128::from_ne_bytes(bytes);
    HashKey {
        k0: key as u64,
        k1: (key >> 64) as u64,
    }
}

// --- the sandbox ------------------------------------------------------------

/// Access rights of linux/landlock.h.
const EXECUTE: u64 = 1;
const WRITE_FILE: u64 = 1 << 1;
const READ_FILE: u64 = 1 << 2;
const READ_FOLDER: u64 = 1 << 3;
/// All that Linux 6.10 knows of files, and of which 5.13 knows three fewer.
const ALL_RIGHTS: u64 = 0xffff;
const FIRST_RIGHTS: u64 = 0x1fff;

/// Whatever is not named cannot be opened any more.
fn restrict_files(sandbox: &Sandbox) -> Result<(), Errno> {
    let ruleset = landlock_ruleset()?;
    allow_path(&ruleset, b'r', b"", sandbox.proc_directory);
    for file in split(sandbox.beside, b' ') {
        let _ = allow_folder_of(&ruleset, file);
    }
    for root in [b"", sandbox.root] {
        for path in split(sandbox.files, b':') {
            if let [letter, path @ ..] = path {
                allow_path(&ruleset, *letter, root, path);
            }
        }
        if !sandbox.is_sealed {
            for folder in split(environment_value(b"PATH").unwrap_or_default(), b':') {
                // No tool is looked for in others; an empty one would be `root`.
                if folder.first() == Some(&b'/') {
                    allow_path(&ruleset, b'x', root, folder);
                }
            }
            let lock = environment_value(b"XTABLES_LOCKFILE");
            allow_path(&ruleset, b'm', root, lock.unwrap_or(b"/run/xtables.lock"));
        }
    }
    restrict_self(&ruleset)
}

/// What is not there needs no rule; a lock that programs would make is made, but no
/// device.
#[inline(never)]
fn allow_path(ruleset: &Owned, letter: u8, root: &[u8], path: &[u8]) {
    let (rights, flags) = match letter {
        b'r' => (READ_FILE | READ_FOLDER, libc::O_PATH),
        b'x' => (READ_FILE | READ_FOLDER | EXECUTE, libc::O_PATH),
        b'w' => (READ_FILE | WRITE_FILE, libc::O_PATH),
        b'm' => (READ_FILE | WRITE_FILE, READ_ONLY | libc::O_CREAT),
        _ => (READ_FILE, libc::O_PATH),
    };
    if let Ok(place) = open_in(root, path, flags) {
        let _ = add_rule(ruleset, &place, rights);
    }
}

#[inline(never)]
fn open_in(root: &[u8], path: &[u8], flags: c_int) -> Result<Owned, Errno> {
    let mut whole = Path::from_bytes(root);
    whole.put(path);
    open(Terminated::new().hold(whole.as_bytes())?, flags)
}

/// The folder of the file that a path leads to.
fn allow_folder_of(ruleset: &Owned, path: &[u8]) -> Result<(), Errno> {
    let file = open_in(b"", path, libc::O_PATH)?;
    let mut buffer = [0; crate::kernel::PATH_MAX_LENGTH];
    let real = read_link(link_to(file.number()).as_bytes(), &mut buffer)?;
    let end = real.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
    allow_path(ruleset, b'r', b"", real.get(..end).unwrap_or_default());
    Ok(())
}

/// Without the capability to change users the user stays.
fn drop_capabilities(sandbox: &Sandbox) -> Result<(), Errno> {
    let kept = sandbox.capabilities;
    for number in 0..u64::BITS {
        if u64::from(kept) >> number & 1 == 0 {
            let _ = control_process(libc::PR_CAPBSET_DROP, number as usize);
        }
    }
    // Another user has none in effect until that works.
    keep_capabilities(kept | CHANGE_USER)?;
    let may_change = capability_sets()[0] & CHANGE_USER == CHANGE_USER;
    if sandbox.is_sealed && may_change && control_process(libc::PR_SET_KEEPCAPS, 1).is_ok() {
        become_nobody();
    }
    keep_capabilities(kept)
}

// --- children ---------------------------------------------------------------

/// A NULL-terminated array for execve(2) and the strings it points to.
struct Vector<'a, const N: usize> {
    pointers: [*const c_char; N],
    count: usize,
    strings: core::marker::PhantomData<&'a CStr>,
}

impl<'a, const N: usize> Vector<'a, N> {
    fn new() -> Self {
        Self {
            pointers: [ptr::null(); N],
            count: 0,
            strings: core::marker::PhantomData,
        }
    }

    /// E2BIG where no place is left before the final NULL.
    fn push(&mut self, string: &'a CStr) -> Result<(), Errno> {
        if self.count + 1 >= N {
            return Err(Errno(libc::E2BIG));
        }
        if let Some(pointer) = self.pointers.get_mut(self.count) {
            *pointer = string.as_ptr();
        }
        self.count += 1;
        Ok(())
    }
}

/// All a child needs to become its program.
struct Program<'a> {
    name: &'a CStr,
    arguments: Vector<'a, { WORDS + 1 }>,
    environment: Vector<'a, 4>,
    path: &'a [u8],
    /// Another root directory; empty: ours.
    root: &'a [u8],
}

impl<'a> Program<'a> {
    /// Of words that NUL ends, its name first.
    #[inline(never)]
    fn new(words: &'a [u8], root: &'a [u8]) -> Result<Self, Errno> {
        let mut arguments = Vector::new();
        let mut name = None;
        let mut rest = words;
        while !rest.is_empty() {
            let length = rest.iter().position(|byte| *byte == 0).map(|at| at + 1);
            let parts = length.and_then(|length| rest.split_at_checked(length));
            let word;
            (word, rest) = parts.ok_or(Errno::EINVAL)?;
            // SAFETY: its only NUL is at its end.
            let word = unsafe { CStr::from_bytes_with_nul_unchecked(word) };
            arguments.push(word)?;
            name = name.or(Some(word));
        }
        let path = environment_entry(b"PATH")
            .filter(|entry| entry.count_bytes() > PATH_NAME)
            .unwrap_or(DEFAULT_PATH);
        let mut environment = Vector::new();
        environment.push(path)?;
        environment.push(c"LC_ALL=C")?;
        if let Some(lock_file) = environment_entry(b"XTABLES_LOCKFILE") {
            environment.push(lock_file)?;
        }
        Ok(Self {
            name: name.ok_or(Errno::EINVAL)?,
            arguments,
            environment,
            path: folders(path),
            root,
        })
    }

    /// Makes the root directory ours. The working folder would stay outside
    /// (chroot(2)).
    fn enter_root(&self) -> Result<(), Errno> {
        if self.root.is_empty() {
            return Ok(());
        }
        change_root(Terminated::new().hold(self.root)?)?;
        change_folder(c"/")
    }

    /// Becomes the program. Else says why there is none in another root, and
    /// returns the exit status.
    fn run(&self) -> c_int {
        let (status, words): (_, &[u8]) = match self.enter_root() {
            Ok(()) => match self.execute() {
                127 => (127, b"it is not in"),
                status => (status, b"it cannot be run in"),
            },
            Err(Errno::EPERM) => (126, b"CAP_SYS_CHROOT is missing for"),
            Err(Errno::EACCES) => (126, b"permission denied for"),
            Err(_) => (126, b"there is no directory"),
        };
        if !self.root.is_empty() {
            let mut line = Path::from_bytes(words);
            line.put(b" --exec-root ");
            line.put(self.root);
            let _ = write(libc::STDERR_FILENO, line.as_bytes());
        }
        status
    }

    /// Looks the program up in PATH as execvp(3) does and becomes it; returns
    /// the exit status for failure, as shells have it. Relative folders in
    /// PATH are skipped: the working folder is not to be trusted.
    fn execute(&self) -> c_int {
        if has_byte(self.name.to_bytes(), b'/') {
            return exit_status(self.execute_at(self.name));
        }
        let mut status = 127;
        // Our PATH may be a container's and lead nowhere in its host's root.
        let fallback = if self.root.is_empty() {
            &[]
        } else {
            folders(DEFAULT_PATH)
        };
        for folder in split(self.path, b':').chain(split(fallback, b':')) {
            if folder.first() != Some(&b'/') {
                continue;
            }
            let mut file: Text<{ PATH_MAX_LENGTH }> = Text::new();
            file.put(folder);
            file.put_byte(b'/');
            file.put(self.name.to_bytes());
            let mut terminated = Terminated::new();
            let path = terminated.hold(file.as_bytes());
            if let (false, Ok(path)) = (file.is_truncated(), path) {
                status = status.min(exit_status(self.execute_at(path)));
            }
        }
        status
    }

    fn execute_at(&self, file: &CStr) -> Errno {
        execute(file, &self.arguments, &self.environment)
    }
}

/// The value of a PATH entry.
fn folders(path: &CStr) -> &[u8] {
    path.to_bytes().get(PATH_NAME..).unwrap_or(&[])
}

/// 127: not there; 126: there, but could not be run (POSIX, section 2.8.2 of
/// the shell).
fn exit_status(error: Errno) -> c_int {
    match error.0 {
        libc::ENOENT | libc::ENOTDIR => 127,
        _ => 126,
    }
}

fn spawn(invocation: &Invocation) -> Result<Child, Errno> {
    let words = &invocation.arguments;
    if words.is_truncated() {
        return Err(Errno(libc::E2BIG));
    }
    let program = Program::new(words.as_bytes(), invocation.root.as_bytes())?;
    let input = input_file(invocation.input.as_bytes())?;
    start_piped(&input, &|| program.run())
}

/// A child whose output and errors come back by pipes.
#[inline(never)]
fn start_piped(input: &Owned, main: &dyn Fn() -> c_int) -> Result<Child, Errno> {
    let (output, child_output) = pipe()?;
    let (errors, child_errors) = pipe()?;
    set_non_blocking(output.number())?;
    set_non_blocking(errors.number())?;
    let standard = [input.number(), child_output.number(), child_errors.number()];
    Ok(Child {
        process: start_child(standard, main)?,
        output: output.release(),
        errors: errors.release(),
    })
}

/// A child with these standard descriptors, default signals, no other descriptors
/// and a process group of its own; it runs `main` and exits with its result.
#[inline(never)]
fn start_child(standard: [c_int; 3], main: &dyn Fn() -> c_int) -> Result<i32, Errno> {
    let process = fork()?;
    // Both sides do this, so that neither a signal to the group nor the
    // program comes too early (setpgid(2)).
    set_group(process);
    if process == 0 {
        for signal in 1..=SIGNALS {
            set_disposition(signal, libc::SIG_DFL);
        }
        set_signal_mask(signal_set([]));
        keep_only(standard);
        exit_now(main());
    }
    Ok(process)
}

/// Makes these the standard descriptors, and closes all others. They stand above
/// 2, since `start` filled the first three: none is overwritten before it was
/// copied.
fn keep_only(standard: [c_int; 3]) {
    for (number, descriptor) in (0..).zip(standard) {
        if duplicate(descriptor, number).is_err() {
            exit_now(126);
        }
    }
    close_above_standard();
}

/// A descriptor from which exactly `input` is read. A pipe, since security
/// modules let every program read one; a memory file where the pipe is too
/// small, as it is when the user's pipe quota is spent (pipe(7)).
fn input_file(input: &[u8]) -> Result<Owned, Errno> {
    let (reader, writer) = pipe()?;
    set_non_blocking(writer.number())?;
    if input.is_empty() || write(writer.number(), input) == Ok(input.len()) {
        return Ok(reader);
    }
    let file = memory_file()?;
    if write(file.number(), input)? != input.len() {
        return Err(Errno(libc::ENOSPC));
    }
    rewind(file.number())?;
    Ok(file)
}

/// Without MFD_NOEXEC_SEAL newer kernels warn or, as configured, refuse.
fn memory_file() -> Result<Owned, Errno> {
    let flags = libc::MFD_CLOEXEC;
    memfd(flags | MFD_NOEXEC_SEAL).or_else(|_| memfd(flags))
}

fn close_above_standard() {
    if close_range(3).is_ok() {
        return;
    }
    let limit = resource_limit(libc::RLIMIT_NOFILE as c_int);
    let limit = limit.and_then(|limit| c_int::try_from(limit).ok());
    for descriptor in 3..limit
        .unwrap_or(DESCRIPTORS_BY_HAND)
        .min(DESCRIPTORS_BY_HAND)
    {
        close(descriptor);
    }
}

// --- the hook's launcher ----------------------------------------------------

/// The launcher: runs the hook once for each record, and ends with the process
/// that writes them, whatever ends that: then its next read ends, or SIGPIPE comes
/// of its next answer.
fn launch(file: &[u8]) -> c_int {
    lower_priority();
    let mut words = [0; PATH_MAX_LENGTH + 1 + HOOK_RECORD];
    put_at(&mut words, 0, file);
    let (start, end) = (file.len() + 1, file.len() + 1 + HOOK_RECORD);
    let mask = signal_set([libc::SIGCHLD]);
    set_signal_mask(mask);
    if let (Ok(ended), Ok(null)) = (signal_descriptor(mask), open_null()) {
        while let Some(record) = words.get_mut(start..end)
            && read(libc::STDIN_FILENO, record) == Ok(HOOK_RECORD)
        {
            let words = trim(words.get(..end).unwrap_or_default());
            // Whoever took over the other end is not to choose words of a shell.
            let is_plain = words
                .get(start..)
                .is_some_and(|words| words.iter().all(|byte| is_plain(*byte)));
            let run = if is_plain {
                run_hook(words, null.number(), ended.number())
            } else {
                HookRun::Failed
            };
            let _ = write(libc::STDOUT_FILENO, &[run as u8]);
        }
    }
    0
}

/// Of an address, a number, a list of them or a word of ours, or its end.
fn is_plain(byte: u8) -> bool {
    matches!(byte, b'a'..=b'z' | b'+'..=b':' | 0)
}

/// Runs the hook to its end.
fn run_hook(words: &[u8], null: c_int, ended: c_int) -> HookRun {
    let process =
        Program::new(words, b"").and_then(|program| start_child([null; 3], &|| program.run()));
    let Ok(process) = process else {
        return HookRun::Failed;
    };
    match await_end(process, ended, Some(limits::CHILD_DEADLINE)) {
        Some(Exit::Status(0)) => return HookRun::Ok,
        Some(_) => return HookRun::Failed,
        None => kill_group(process, libc::SIGTERM),
    }
    becomes_ready(ended, libc::POLLIN, Some(limits::CHILD_GRACE));
    // It is not reaped yet: the group's number is no other's.
    kill_group(process, libc::SIGKILL);
    await_end(process, ended, None);
    HookRun::Timeout
}

/// How a child ended, if it does before the timeout. `ended` becomes readable by
/// SIGCHLD, which says that it stopped or went on as well.
#[inline(never)]
fn await_end(process: i32, ended: c_int, timeout: Option<Duration>) -> Option<Exit> {
    while becomes_ready(ended, libc::POLLIN, timeout) {
        take_signal(ended);
        let exit = reap(process);
        if exit.is_some() {
            return exit;
        }
    }
    None
}

// --- socket addresses as bytes ----------------------------------------------

/// struct sockaddr_in (ip(7)) or sockaddr_in6 (ipv6(7)) and its length.
fn socket_address(endpoint: Endpoint) -> ([u8; 28], usize) {
    let mut bytes = [0; 28];
    let length = match endpoint.address {
        IpAddr::V4(v4) => {
            put_family(&mut bytes, libc::AF_INET);
            put_at(&mut bytes, 4, &v4.octets());
            16
        }
        IpAddr::V6(v6) => {
            put_family(&mut bytes, libc::AF_INET6);
            put_at(&mut bytes, 8, &v6.octets());
            28
        }
    };
    put_at(&mut bytes, 2, &endpoint.port.to_be_bytes());
    (bytes, length)
}

/// struct sockaddr_un (unix(7)): family and a path, or a NUL for the abstract
/// namespace and a name, up to the given length.
fn unix_address(start: &[u8], name: &[u8]) -> Text<110> {
    let mut address = Text::new();
    address.put(&(libc::AF_UNIX as u16).to_ne_bytes());
    address.put(start);
    address.put(name);
    address
}

#[inline(never)]
fn stream_socket(endpoint: Endpoint) -> Result<Owned, Errno> {
    let family = Family::of(endpoint.address);
    socket(family.number().into(), libc::SOCK_STREAM, 0)
}

fn bind_to(socket: c_int, endpoint: Endpoint) -> Result<(), Errno> {
    let (address, length) = socket_address(endpoint);
    bind(socket, address.get(..length).unwrap_or(&address))
}

fn connect_to(socket: c_int, endpoint: Endpoint) -> Result<(), Errno> {
    let (address, length) = socket_address(endpoint);
    connect(socket, address.get(..length).unwrap_or(&address))
}

/// The family stands first, in the host's byte order.
fn put_family(bytes: &mut [u8], family: c_int) {
    put_at(bytes, 0, &(family as u16).to_ne_bytes());
}

fn put_at(bytes: &mut [u8], offset: usize, value: &[u8]) {
    for (to, from) in bytes.iter_mut().skip(offset).zip(value) {
        *to = *from;
    }
}

/// The address in a sockaddr_in or sockaddr_in6; mapped ones are folded.
fn endpoint_of(bytes: &[u8; 28]) -> Endpoint {
    let family = c_int::from(u16::from_ne_bytes([bytes[0], bytes[1]]));
    let port = u16::from_be_bytes([bytes[2], bytes[3]]);
    let (_, after_port) = bytes.split_at(4);
    let address = if family == libc::AF_INET6 {
        let octets = after_port.split_at(4).1.first_chunk::<16>();
        let octets = octets.copied().unwrap_or_default();
        fold_mapped(IpAddr::V6(Ipv6Addr::from_bits(u128::from_be_bytes(octets))))
    } else {
        let octets = after_port.first_chunk::<4>().copied().unwrap_or_default();
        IpAddr::V4(Ipv4Addr::from_bits(u32::from_be_bytes(octets)))
    };
    Endpoint { address, port }
}

/// The groups are joined after bind: an unbound socket joins and receives
/// nothing. A small buffer is no failure, it loses events, which are counted.
fn join_groups(socket: c_int, groups: &[c_int]) -> Result<(), Errno> {
    for group in groups {
        set_option(
            socket,
            libc::SOL_NETLINK,
            libc::NETLINK_ADD_MEMBERSHIP,
            *group,
        )?;
    }
    let larger = |option| set_option(socket, libc::SOL_SOCKET, option, EVENTS_BUFFER);
    let _ = larger(libc::SO_RCVBUFFORCE).or_else(|_| larger(libc::SO_RCVBUF));
    Ok(())
}

// --- /proc and the environment ----------------------------------------------

/// The start of a small file; empty where it cannot be read.
fn read_file<'a>(path: &CStr, buffer: &'a mut [u8]) -> &'a [u8] {
    let length = open(path, READ_ONLY).and_then(|file| read(file.number(), buffer));
    buffer.get(..length.unwrap_or(0)).unwrap_or(&[])
}

/// The kernel stores 64-bit numbers into it.
#[repr(align(8))]
struct DirectoryBuffer([u8; 1024]);

/// How many descriptors /proc/self/fd lists; 0 where it cannot be read.
fn count_descriptors() -> u64 {
    let Ok(folder) = open(c"/proc/self/fd", libc::O_RDONLY | libc::O_DIRECTORY) else {
        return 0;
    };
    let mut buffer = DirectoryBuffer([0; 1024]);
    let mut count: u64 = 0;
    while let Ok(length @ 1..) = directory_entries(folder.number(), &mut buffer) {
        count += count_entries(buffer.0.get(..length).unwrap_or(&[]));
    }
    // Without `.`, `..` and the folder's own descriptor.
    count.saturating_sub(3)
}

/// Entries of struct linux_dirent64 (getdents64(2)): the length of each stands
/// in its bytes 16 and 17.
fn count_entries(entries: &[u8]) -> u64 {
    let mut rest = entries;
    let mut count = 0;
    while let Some(&[low, high]) = rest.get(16..18) {
        let length = usize::from(u16::from_ne_bytes([low, high]));
        rest = rest.get(length.max(1)..).unwrap_or(&[]);
        count += 1;
    }
    count
}

unsafe extern "C" {
    /// environ(7).
    static mut environ: *const *const c_char;
}

fn environment_entries() -> Strings {
    // SAFETY: a plain load of a pointer, which nothing changes.
    Strings(unsafe { environ })
}

/// The whole `NAME=value` of an environment variable.
fn environment_entry(name: &[u8]) -> Option<&'static CStr> {
    environment_entries().find(|entry| {
        let value = entry.to_bytes().strip_prefix(name);
        value.is_some_and(|value| value.first() == Some(&b'='))
    })
}

/// The value of an environment variable.
#[inline(never)]
fn environment_value(name: &[u8]) -> Option<&'static [u8]> {
    environment_entry(name)?.to_bytes().get(name.len() + 1..)
}

/// For `StartUp`.
fn environment(index: usize) -> Option<&'static [u8]> {
    environment_entries().nth(index).map(CStr::to_bytes)
}

// --- system calls -----------------------------------------------------------

/// What musl does around old kernels and other layouts takes a kilobyte, of which
/// these machines need nothing: their first kernels had all these calls, whose
/// structs are those of the C library.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod plain {
    use core::ffi::c_int;

    pub unsafe fn fstat(descriptor: c_int, status: *mut libc::stat) -> c_int {
        // SAFETY: as fstat(2) says, which is what the caller keeps to.
        unsafe { libc::syscall(libc::SYS_fstat, descriptor, status) as c_int }
    }

    /// Without the code that finds the kernel's own in the vDSO: the clock is read
    /// a few times a turn.
    pub unsafe fn clock_gettime(id: libc::clockid_t, time: *mut libc::timespec) -> c_int {
        // SAFETY: as clock_gettime(2) says, which is what the caller keeps to.
        unsafe { libc::syscall(libc::SYS_clock_gettime, id, time) as c_int }
    }

    pub unsafe fn socket(family: c_int, kind: c_int, protocol: c_int) -> c_int {
        // SAFETY: no memory is passed.
        unsafe { libc::syscall(libc::SYS_socket, family, kind, protocol) as c_int }
    }

    pub unsafe fn recvmsg(socket: c_int, message: *mut libc::msghdr, flags: c_int) -> isize {
        // SAFETY: as recvmsg(2) says, which is what the caller keeps to.
        unsafe { libc::syscall(libc::SYS_recvmsg, socket, message, flags) as isize }
    }

    pub unsafe fn accept4(
        listener: c_int,
        address: *mut libc::sockaddr,
        length: *mut libc::socklen_t,
        flags: c_int,
    ) -> c_int {
        // SAFETY: as accept(2) says, which is what the caller keeps to.
        unsafe { libc::syscall(libc::SYS_accept4, listener, address, length, flags) as c_int }
    }
}
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
use libc as plain;

#[inline(never)]
fn errno() -> Errno {
    // SAFETY: the C library keeps one valid errno for each thread.
    Errno(unsafe { *libc::__errno_location() })
}

#[inline(never)]
fn check(result: c_int) -> Result<c_int, Errno> {
    if result < 0 { Err(errno()) } else { Ok(result) }
}

fn check_length(result: isize) -> Result<usize, Errno> {
    usize::try_from(result).map_err(|_| errno())
}

fn open(path: &CStr, flags: c_int) -> Result<Owned, Errno> {
    let flags = flags | libc::O_CLOEXEC | libc::O_LARGEFILE;
    let folder = libc::AT_FDCWD;
    // What is made is root's alone.
    let mode = 0o600;
    // SAFETY: the path ends with NUL. Not open(3): musl's sets O_CLOEXEC by a second
    // call.
    let result = unsafe { libc::syscall(libc::SYS_openat, folder, path.as_ptr(), flags, mode) };
    Owned::new(result as c_int)
}

/// What a symbolic link says.
fn read_link<'a>(path: &[u8], buffer: &'a mut [u8]) -> Result<&'a [u8], Errno> {
    let mut terminated = Terminated::new();
    let path = terminated.hold(path)?.as_ptr();
    let (bytes, room) = (buffer.as_mut_ptr(), buffer.len());
    // SAFETY: the path ends with NUL, and the kernel writes at most as many bytes as
    // the buffer has.
    let result = unsafe { libc::syscall(libc::SYS_readlinkat, libc::AT_FDCWD, path, bytes, room) };
    let length = check_length(result as isize)?;
    Ok(buffer.get(..length).unwrap_or_default())
}

fn read(descriptor: c_int, buffer: &mut [u8]) -> Result<usize, Errno> {
    // SAFETY: the kernel writes at most the buffer's length into it.
    check_length(unsafe { libc::read(descriptor, buffer.as_mut_ptr().cast(), buffer.len()) })
}

fn write(descriptor: c_int, bytes: &[u8]) -> Result<usize, Errno> {
    // SAFETY: the kernel reads at most the slice's length from it.
    check_length(unsafe { libc::write(descriptor, bytes.as_ptr().cast(), bytes.len()) })
}

fn rewind(descriptor: c_int) -> Result<(), Errno> {
    // SAFETY: no memory is passed.
    let position = unsafe { libc::lseek(descriptor, 0, libc::SEEK_SET) };
    if position < 0 { Err(errno()) } else { Ok(()) }
}

#[inline(never)]
fn close(descriptor: c_int) {
    // SAFETY: no memory is passed, and no C stream stands on our descriptors.
    unsafe { libc::close(descriptor) };
}

fn is_open(descriptor: c_int) -> bool {
    control(descriptor, libc::F_GETFD, 0).is_ok()
}

/// Only for descriptions that no other process shares.
#[inline(never)]
fn set_non_blocking(descriptor: c_int) -> Result<(), Errno> {
    control(descriptor, libc::F_SETFL, libc::O_NONBLOCK)
}

/// fcntl(2), for commands that take an int or nothing.
fn control(descriptor: c_int, command: c_int, argument: c_int) -> Result<(), Errno> {
    // SAFETY: the commands used take no memory.
    let result = unsafe { libc::syscall(libc::SYS_fcntl, descriptor, command, argument) };
    check(result as c_int).map(drop)
}

fn duplicate(from: c_int, to: c_int) -> Result<(), Errno> {
    // SAFETY: no memory is passed; `to` is one of the standard descriptors,
    // which are never owned.
    check(unsafe { libc::dup2(from, to) }).map(drop)
}

/// The S_IFMT bits of inode(7).
fn file_type(descriptor: c_int) -> Result<libc::mode_t, Errno> {
    Ok(file_status(descriptor)?.st_mode & libc::S_IFMT)
}

fn file_status(descriptor: c_int) -> Result<libc::stat, Errno> {
    let mut status = MaybeUninit::<libc::stat>::zeroed();
    // SAFETY: fstat(2) fills a struct of the type the C library declares (that
    // of glibc and musl is the kernel's on 64-bit targets); zeroes are valid.
    check(unsafe { plain::fstat(descriptor, status.as_mut_ptr()) })?;
    // SAFETY: every field is a number, for which any bytes are valid.
    Ok(unsafe { status.assume_init() })
}

/// The magic number of statfs(2), 32 bits wide.
fn file_system(descriptor: c_int) -> Result<u64, Errno> {
    let mut status = MaybeUninit::<libc::statfs>::zeroed();
    // SAFETY: as with fstat; the first field is the kernel's everywhere.
    check(unsafe { libc::fstatfs(descriptor, status.as_mut_ptr()) })?;
    // SAFETY: every field is a number, for which any bytes are valid.
    Ok(unsafe { status.assume_init() }.f_type as u64 & 0xffff_ffff)
}

fn directory_entries(folder: c_int, buffer: &mut DirectoryBuffer) -> Result<usize, Errno> {
    let (bytes, length) = (buffer.0.as_mut_ptr(), buffer.0.len());
    // SAFETY: the kernel writes at most `length` bytes into the buffer.
    let result = unsafe { libc::syscall(libc::SYS_getdents64, folder, bytes, length) };
    check_length(result as isize)
}

fn read_clock(id: libc::clockid_t) -> Duration {
    let mut time = MaybeUninit::<libc::timespec>::zeroed();
    // SAFETY: clock_gettime(2) fills the struct; zeroes are valid where it fails.
    let time = unsafe {
        plain::clock_gettime(id, time.as_mut_ptr());
        time.assume_init()
    };
    let nanoseconds = Duration::from_nanos(time.tv_nsec as u64);
    Duration::from_secs(time.tv_sec as u64).saturating_add(nanoseconds)
}

#[inline(never)]
fn resource_limit(resource: c_int) -> Option<u64> {
    let mut limits = [u64::MAX; 2];
    let (new, old) = (ptr::null::<u64>(), limits.as_mut_ptr());
    // SAFETY: prlimit64(2) stores two numbers, or leaves what says "unlimited".
    unsafe { libc::syscall(libc::SYS_prlimit64, 0, resource, new, old) };
    Some(limits[0]).filter(|limit| *limit != u64::MAX)
}

fn auxiliary(entry: c_ulong) -> u32 {
    // SAFETY: getauxval(3) only looks an integer up.
    unsafe { libc::getauxval(entry) as u32 }
}

/// Twice struct __user_cap_data_struct: effective, permitted, inheritable.
type CapabilitySets = [u32; 6];

fn capability_sets() -> CapabilitySets {
    let header = [LINUX_CAPABILITY_VERSION_3, 0];
    let mut data = [0; 6];
    // SAFETY: capget(2) version 3 reads two words and writes six.
    unsafe { libc::syscall(libc::SYS_capget, header.as_ptr(), data.as_mut_ptr()) };
    data
}

fn effective_capabilities() -> u64 {
    let data = capability_sets();
    u64::from(data[3]) << 32 | u64::from(data[0])
}

/// CAP_SETGID and CAP_SETUID.
const CHANGE_USER: u32 = 1 << 6 | 1 << 7;

/// Of those that are permitted; another user has no effective ones to begin with.
fn keep_capabilities(kept: u32) -> Result<(), Errno> {
    let [_, permitted, inherited, ..] = capability_sets();
    let (permitted, inherited) = (permitted & kept, inherited & kept);
    let header = [LINUX_CAPABILITY_VERSION_3, 0];
    let data: CapabilitySets = [permitted, permitted, inherited, 0, 0, 0];
    // SAFETY: capset(2) version 3 reads two words and six.
    let result = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), data.as_ptr()) };
    check(result as c_int).map(drop)
}

/// The kernel's own number for a user that it has no number for (overflowuid of
/// kernel/sys.c).
const NOBODY: u32 = 65_534;

/// User, group and no other groups; by number, since the C library's own looks for
/// threads. All of it can be refused: in a user namespace without that user.
fn become_nobody() {
    // SAFETY: no memory is passed: there are no groups to read.
    unsafe {
        libc::syscall(SET_GROUPS, 0_usize, ptr::null::<u32>());
        libc::syscall(SET_GROUP, NOBODY, NOBODY, NOBODY);
        libc::syscall(SET_USER, NOBODY, NOBODY, NOBODY);
    }
}

#[cfg(not(any(target_arch = "x86", target_arch = "arm")))]
use libc::{SYS_setgroups as SET_GROUPS, SYS_setresgid as SET_GROUP, SYS_setresuid as SET_USER};
/// On these the plain ones are of 16 bits, and not in each kernel.
#[cfg(any(target_arch = "x86", target_arch = "arm"))]
use libc::{
    SYS_setgroups32 as SET_GROUPS, SYS_setresgid32 as SET_GROUP, SYS_setresuid32 as SET_USER,
};

/// prctl(2), for what takes one number.
#[inline(never)]
fn control_process(operation: c_int, value: usize) -> Result<(), Errno> {
    let none = 0_usize;
    // SAFETY: the operations used take no memory.
    let result = unsafe { libc::syscall(libc::SYS_prctl, operation, value, none, none, none) };
    check(result as c_int).map(drop)
}

fn forbid_core_dumps() {
    let (new, old) = ([0_u64; 2], ptr::null::<u64>());
    // SAFETY: prlimit64(2) reads two numbers.
    unsafe { libc::syscall(libc::SYS_prlimit64, 0, libc::RLIMIT_CORE, new.as_ptr(), old) };
}

/// A set of rules about all rights that the kernel knows: each version has one more.
fn landlock_ruleset() -> Result<Owned, Errno> {
    let mut rights = ALL_RIGHTS;
    loop {
        let (place, size) = (&raw const rights, mem::size_of::<u64>());
        // SAFETY: the kernel reads as many bytes as it is told: the first field of
        // struct landlock_ruleset_attr.
        let result =
            unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, place, size, 0_usize) };
        let ruleset = Owned::new(result as c_int);
        if ruleset.is_ok() || rights == FIRST_RIGHTS {
            return ruleset;
        }
        rights >>= 1;
    }
}

/// struct landlock_path_beneath_attr.
#[repr(C, packed)]
struct Beneath {
    rights: u64,
    place: c_int,
}

fn add_rule(ruleset: &Owned, place: &Owned, rights: u64) -> Result<(), Errno> {
    const PATH_BENEATH: usize = 1;
    let rule = Beneath {
        rights,
        place: place.number(),
    };
    let (rule, number) = (&raw const rule, libc::SYS_landlock_add_rule);
    // SAFETY: the kernel reads one struct of this kind.
    let result = unsafe { libc::syscall(number, ruleset.number(), PATH_BENEATH, rule, 0_usize) };
    check(result as c_int).map(drop)
}

fn restrict_self(ruleset: &Owned) -> Result<(), Errno> {
    let number = libc::SYS_landlock_restrict_self;
    // SAFETY: no memory is passed.
    let result = unsafe { libc::syscall(number, ruleset.number(), 0_usize) };
    check(result as c_int).map(drop)
}

fn filter_calls(calls: &[Instruction]) -> Result<(), Errno> {
    let program = socket_program(calls);
    let (mode, none) = (libc::SECCOMP_SET_MODE_FILTER, 0_usize);
    // SAFETY: Instruction is a struct sock_filter, and the kernel copies as many as
    // the slice has.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, mode, none, &raw const program) };
    check(result as c_int).map(drop)
}

fn socket_program(filter: &[Instruction]) -> libc::sock_fprog {
    libc::sock_fprog {
        len: filter.len() as _,
        filter: filter.as_ptr().cast_mut().cast(),
    }
}

fn random_bytes() -> Option<[u8; 16]> {
    let mut bytes = [0; 16];
    // SAFETY: the kernel writes at most 16 bytes into the array.
    let length =
        unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), libc::GRND_NONBLOCK) };
    (length == 16).then_some(bytes)
}

/// The 16 random bytes each process gets from the kernel at execve(2).
fn start_up_random_bytes() -> [u8; 16] {
    // SAFETY: AT_RANDOM is the address of 16 bytes on the initial stack, which
    // lives as long as the process (getauxval(3)), or 0.
    unsafe {
        let bytes = libc::getauxval(libc::AT_RANDOM) as *const [u8; 16];
        if bytes.is_null() { [0; 16] } else { *bytes }
    }
}

const NOTHING: libc::pollfd = libc::pollfd {
    fd: -1,
    events: 0,
    revents: 0,
};

/// Set by poll(2) unasked. Reading or writing then shows what happened.
const BROKEN: i16 = libc::POLLHUP | libc::POLLERR | libc::POLLNVAL;

fn request(interest: &Interest) -> libc::pollfd {
    let mut events = 0;
    if interest.readable {
        events |= libc::POLLIN;
    }
    if interest.writable {
        events |= libc::POLLOUT;
    }
    libc::pollfd {
        // poll(2) skips negative descriptors.
        fd: interest.descriptor.map_or(-1, Descriptor::number),
        events,
        revents: 0,
    }
}

fn poll(table: &mut [libc::pollfd], timeout: Option<Duration>) -> Result<(), Errno> {
    let milliseconds = match timeout {
        Some(timeout) => c_int::try_from(timeout.as_millis_rounded_up()).unwrap_or(c_int::MAX),
        None => -1,
    };
    // SAFETY: the kernel reads and writes as many entries as the slice has.
    check(unsafe { libc::poll(table.as_mut_ptr(), table.len() as _, milliseconds) }).map(drop)
}

/// Whether poll(2) sees such an event, or an error, before the timeout.
#[inline(never)]
fn becomes_ready(descriptor: c_int, events: i16, timeout: Option<Duration>) -> bool {
    let mut table = [libc::pollfd {
        fd: descriptor,
        events,
        revents: 0,
    }];
    poll(&mut table, timeout).is_ok() && table[0].revents != 0
}

/// Of the first word's signals.
const fn signal_set<const N: usize>(signals: [c_int; N]) -> SignalSet {
    let mut set: SignalSet = [0; SIGNAL_SET / mem::size_of::<usize>()];
    let mut rest: &[c_int] = &signals;
    while let [signal, others @ ..] = rest {
        set[0] |= 1 << (*signal - 1);
        rest = others;
    }
    set
}

/// Signals by number: the C library brings handlers and locks along.
fn set_signal_mask(mask: SignalSet) {
    let (how, old) = (libc::SIG_SETMASK, ptr::null::<usize>());
    let number = libc::SYS_rt_sigprocmask;
    // SAFETY: the set is of the size given, and the old one is not asked for.
    unsafe { libc::syscall(number, how, mask.as_ptr(), old, SIGNAL_SET) };
}

#[inline(never)]
fn set_disposition(signal: c_int, disposition: libc::sighandler_t) {
    // The kernel's struct sigaction; on mips flags come first.
    let (first, second) = if IS_MIPS {
        (0, disposition)
    } else {
        (disposition, 0)
    };
    let action = [first, second, 0, 0, 0, 0, 0, 0];
    let (action, old) = (action.as_ptr(), ptr::null::<usize>());
    // SAFETY: only SIG_IGN and SIG_DFL are set, no handler ever runs, and the
    // array is no shorter than the struct.
    unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, action, old, SIGNAL_SET) };
}

fn signal_descriptor(mask: SignalSet) -> Result<Owned, Errno> {
    let (mask, flags) = (mask.as_ptr(), libc::SFD_NONBLOCK | libc::SFD_CLOEXEC);
    // SAFETY: the set is of the size given; -1 asks for a new descriptor.
    let result = unsafe { libc::syscall(libc::SYS_signalfd4, -1, mask, SIGNAL_SET, flags) };
    Owned::new(result as c_int)
}

/// The next signal that such a descriptor holds.
#[inline(never)]
fn take_signal(descriptor: c_int) -> Option<c_int> {
    // signalfd_siginfo is 128 bytes and starts with the number.
    let mut message = [0; 128];
    read(descriptor, &mut message).ok()?;
    message.first_chunk().copied().map(c_int::from_ne_bytes)
}

fn socket(family: c_int, kind: c_int, protocol: c_int) -> Result<Owned, Errno> {
    let kind = kind | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: no memory is passed.
    Owned::new(unsafe { plain::socket(family, kind, protocol) })
}

#[inline(never)]
fn set_option(socket: c_int, level: c_int, option: c_int, value: c_int) -> Result<(), Errno> {
    let value = (&raw const value).cast();
    let length = mem::size_of::<c_int>() as libc::socklen_t;
    // SAFETY: every option used takes an int, which is what `value` points to.
    check(unsafe { libc::setsockopt(socket, level, option, value, length) }).map(drop)
}

fn bind(socket: c_int, address: &[u8]) -> Result<(), Errno> {
    let length = address.len() as libc::socklen_t;
    // SAFETY: the kernel copies `length` bytes and asks for no alignment.
    check(unsafe { libc::bind(socket, address.as_ptr().cast(), length) }).map(drop)
}

fn connect(socket: c_int, address: &[u8]) -> Result<(), Errno> {
    let length = address.len() as libc::socklen_t;
    // SAFETY: the kernel reads at most the slice's length from it.
    check(unsafe { libc::connect(socket, address.as_ptr().cast(), length) }).map(drop)
}

/// The address of a bound socket: struct sockaddr_in or sockaddr_in6.
fn own_name(socket: c_int) -> Result<[u8; 28], Errno> {
    let mut address = [0; 28];
    let mut length = address.len() as libc::socklen_t;
    let bytes = address.as_mut_ptr().cast();
    // SAFETY: the kernel writes at most `length` bytes, the array's size.
    check(unsafe { libc::getsockname(socket, bytes, &raw mut length) })?;
    Ok(address)
}

fn listen(socket: c_int) -> Result<(), Errno> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::listen(socket, BACKLOG) }).map(drop)
}

/// The effective user of the process at the other end of a unix(7) connection.
fn peer_user(socket: c_int) -> Result<u32, Errno> {
    let mut peer = libc::ucred {
        pid: 0,
        uid: 0,
        gid: 0,
    };
    let mut length = mem::size_of::<libc::ucred>() as libc::socklen_t;
    let (level, option) = (libc::SOL_SOCKET, libc::SO_PEERCRED);
    let bytes = (&raw mut peer).cast();
    // SAFETY: the kernel writes at most `length` bytes, the size of `peer`.
    check(unsafe { libc::getsockopt(socket, level, option, bytes, &raw mut length) })?;
    Ok(peer.uid)
}

fn own_user() -> u32 {
    // SAFETY: no memory is passed, and it cannot fail.
    unsafe { libc::geteuid() }
}

fn accept(listener: c_int) -> Result<(Owned, [u8; 28]), Errno> {
    let mut address = [0; 28];
    let mut length = address.len() as libc::socklen_t;
    let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    let bytes = address.as_mut_ptr().cast();
    // SAFETY: the kernel writes at most `length` bytes, the array's size.
    let socket = Owned::new(unsafe { plain::accept4(listener, bytes, &raw mut length, flags) })?;
    Ok((socket, address))
}

fn receive(socket: c_int, buffer: &mut [u8]) -> Result<usize, Errno> {
    let (bytes, length) = (buffer.as_mut_ptr().cast(), buffer.len());
    // SAFETY: the kernel writes at most the buffer's length into it.
    check_length(unsafe { libc::recv(socket, bytes, length, libc::MSG_DONTWAIT) })
}

/// Bytes of a control message of one number: struct cmsghdr and it, padded.
const CONTROL: usize = 64;

/// Aligned for a struct cmsghdr.
#[repr(C, align(8))]
struct Control([u8; CONTROL]);

/// The first control message is the only one that is asked for: the number of a
/// network namespace. The name is that of the sender's end.
#[inline(never)]
fn receive_from(socket: c_int, buffer: &mut [u8]) -> Result<(usize, u32), Errno> {
    let (mut name, mut control) = ([0; 32], Control([0; CONTROL]));
    let mut part = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    // SAFETY: a struct of numbers and pointers, for which all zero bytes are valid.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_name = name.as_mut_ptr().cast::<c_void>();
    message.msg_namelen = mem::size_of_val(&name) as _;
    message.msg_iov = &mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = CONTROL as _;
    // SAFETY: name, part and control live, and the kernel writes at most their
    // lengths into them.
    let result = unsafe { plain::recvmsg(socket, &mut message, libc::MSG_DONTWAIT) };
    let count = check_length(result)?;
    let word = |bytes: &[u8], offset: usize| {
        let (_, rest) = bytes.split_at_checked(offset)?;
        rest.first_chunk().map(|bytes| i32::from_ne_bytes(*bytes))
    };
    // struct cmsghdr: length, level, type, then the data (linux/socket.h).
    let head = mem::size_of::<usize>();
    let is_namespace = word(&control.0, head) == Some(libc::SOL_NETLINK)
        && word(&control.0, head + 4) == Some(libc::NETLINK_LISTEN_ALL_NSID);
    let is_packet = name.starts_with(&(libc::AF_PACKET as u16).to_ne_bytes());
    let origin = if is_packet {
        word(&name, 4).unwrap_or(0)
    } else if is_namespace {
        // Numbers begin with 0, which is ours here.
        word(&control.0, head + 8).unwrap_or(0).wrapping_add(1)
    } else {
        0
    };
    Ok((count, origin as u32))
}

/// Packets that passed the filter, and how many of them were lost: struct
/// tpacket_stats of linux/if_packet.h.
fn packet_statistics(socket: c_int) -> Result<[u32; 2], Errno> {
    let mut statistics = [0; 2];
    let mut length = mem::size_of_val(&statistics) as libc::socklen_t;
    let value = statistics.as_mut_ptr().cast();
    // SAFETY: the kernel writes at most `length` bytes into the array.
    let result = unsafe {
        libc::getsockopt(
            socket,
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            value,
            &mut length,
        )
    };
    check(result)?;
    Ok(statistics)
}

#[inline(never)]
fn attach_filter(socket: c_int, filter: &[Instruction]) -> Result<(), Errno> {
    let program = socket_program(filter);
    let length = mem::size_of_val(&program) as libc::socklen_t;
    let value = (&raw const program).cast();
    let (level, option) = (libc::SOL_SOCKET, libc::SO_ATTACH_FILTER);
    // SAFETY: Instruction is a struct sock_filter, and the kernel copies as many
    // as the slice has.
    check(unsafe { libc::setsockopt(socket, level, option, value, length) })?;
    Ok(())
}

#[inline(never)]
fn send(socket: c_int, bytes: &[u8], flags: c_int) -> Result<usize, Errno> {
    let flags = flags | libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the kernel reads at most the slice's length from it.
    check_length(unsafe { libc::send(socket, bytes.as_ptr().cast(), bytes.len(), flags) })
}

fn shutdown_sending(socket: c_int) {
    // SAFETY: no memory is passed.
    unsafe { libc::shutdown(socket, libc::SHUT_WR) };
}

/// SIOCOUTQNSD of linux/sockios.h.
const UNSENT: u16 = 0x894b;

fn unsent(socket: c_int) -> Result<c_int, Errno> {
    let mut bytes: c_int = 0;
    // SAFETY: the kernel writes one int.
    check(unsafe { libc::ioctl(socket, UNSENT.into(), &raw mut bytes) })?;
    Ok(bytes)
}

fn screen(terminal: c_int) -> Result<Screen, Errno> {
    let mut size = MaybeUninit::<libc::winsize>::zeroed();
    // SAFETY: the kernel writes one struct of this type.
    check(unsafe { libc::ioctl(terminal, libc::TIOCGWINSZ, size.as_mut_ptr()) })?;
    // SAFETY: every field is a number, for which any bytes are valid.
    let size = unsafe { size.assume_init() };
    Ok(Screen {
        rows: size.ws_row,
        columns: size.ws_col,
    })
}

/// The reading and the writing end.
fn pipe() -> Result<(Owned, Owned), Errno> {
    let mut ends = [0; 2];
    // SAFETY: pipe2(2) writes two descriptors.
    let result = unsafe { libc::syscall(libc::SYS_pipe2, ends.as_mut_ptr(), libc::O_CLOEXEC) };
    check(result as c_int)?;
    Ok((Owned::new(ends[0])?, Owned::new(ends[1])?))
}

fn memfd(flags: u32) -> Result<Owned, Errno> {
    let name = c"input".as_ptr();
    // SAFETY: the name ends with NUL. By number, since old C libraries lack it.
    let result = unsafe { libc::syscall(libc::SYS_memfd_create, name, flags) };
    Owned::new(result as c_int)
}

/// By number, without the locks and handlers of fork(3).
fn fork() -> Result<i32, Errno> {
    let (flags, none) = (libc::SIGCHLD as usize, 0_usize);
    // clone(2): on s390 the stack comes first.
    let (first, second) = if cfg!(target_arch = "s390x") {
        (none, flags)
    } else {
        (flags, none)
    };
    // SAFETY: without a stack of its own the child goes on with a copy of ours;
    // it only makes system calls and never returns (start_child).
    let result = unsafe { libc::syscall(libc::SYS_clone, first, second, none, none, none) };
    check(result as c_int)
}

/// A group of its own for `process` (0: the caller), so that what it starts
/// can be ended with it.
fn set_group(process: i32) {
    // SAFETY: no memory is passed. Failure means that the other side was first.
    unsafe { libc::setpgid(process, 0) };
}

/// For this process and its children (setpriority(2)), so that the one that wakes it
/// keeps its processor.
fn lower_priority() {
    let (process, own, nice) = (libc::PRIO_PROCESS, 0, 10);
    // SAFETY: no memory is passed.
    unsafe { libc::syscall(libc::SYS_setpriority, process, own, nice) };
}

fn close_range(first: c_int) -> Result<(), Errno> {
    // SAFETY: no memory is passed. By number: Linux 5.9, newer than many a
    // C library.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, c_int::MAX, 0) };
    check(result as c_int).map(drop)
}

fn execute<const A: usize, const E: usize>(
    file: &CStr,
    arguments: &Vector<A>,
    environment: &Vector<E>,
) -> Errno {
    let arguments = arguments.pointers.as_ptr();
    // SAFETY: the path ends with NUL, both arrays with NULL, since `push` never
    // fills the last place, and their strings outlive them.
    unsafe { libc::execve(file.as_ptr(), arguments, environment.pointers.as_ptr()) };
    errno()
}

fn change_root(directory: &CStr) -> Result<(), Errno> {
    // SAFETY: the path ends with NUL.
    check(unsafe { libc::chroot(directory.as_ptr()) }).map(drop)
}

fn change_folder(directory: &CStr) -> Result<(), Errno> {
    // SAFETY: the path ends with NUL.
    check(unsafe { libc::chdir(directory.as_ptr()) }).map(drop)
}

fn exit_now(status: c_int) -> ! {
    // SAFETY: ends this process at once, without the parent's exit handlers.
    unsafe { libc::_exit(status) }
}

/// Which child ended and how, if any did; -1 asks for any.
fn wait(process: i32) -> Result<Option<(i32, Exit)>, Errno> {
    let mut status = 0;
    // SAFETY: waitpid(2) writes one int.
    let ended = check(unsafe { libc::waitpid(process, &raw mut status, libc::WNOHANG) })?;
    if ended == 0 {
        return Ok(None);
    }
    let exit = if libc::WIFEXITED(status) {
        Exit::Status(libc::WEXITSTATUS(status) as u8)
    } else {
        Exit::Signal(libc::WTERMSIG(status) as u8)
    };
    Ok(Some((ended, exit)))
}

/// How that child ended, if it did.
fn reap(process: i32) -> Option<Exit> {
    match wait(process) {
        Ok(ended) => ended.map(|(_, exit)| exit),
        // ECHILD: it is gone, and how is lost.
        Err(_) => Some(Exit::Status(255)),
    }
}

/// kill(2) has meanings of its own for 0 and -1, both catastrophic here.
#[inline(never)]
fn kill_group(process: i32, signal: c_int) {
    if process > 1 {
        // SAFETY: no memory is passed.
        unsafe { libc::kill(-process, signal) };
    }
}

/// What a debug build does about a panic: says where, and ends. Release builds
/// have no panic path.
pub fn abort_at(panic: &PanicInfo) -> ! {
    let mut line: Text<256> = Text::new();
    line.put(b"panic at ");
    if let Some(location) = panic.location() {
        line.put(location.file().as_bytes());
        line.put_byte(b':');
        line.put_decimal(location.line().into());
    }
    line.put_byte(b'\n');
    let _ = write(libc::STDERR_FILENO, line.as_bytes());
    // SAFETY: abort(3) ends the process.
    unsafe { libc::abort() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::files::{open_of_root, open_regular};
    use crate::kernel::ARGUMENTS;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd};
    use std::string::String;
    use std::vec::Vec;
    use std::{env, format, fs, process};

    /// Without `start`, which would change the test runner's own descriptors.
    fn kernel() -> Linux {
        let channel = |descriptor| Channel {
            descriptor,
            way: Way::PollThenWrite,
        };
        Linux {
            signals: None,
            output: channel(1),
            errors: channel(2),
            hook: -1,
            notified: 0,
            child: 0,
            ended: None,
            time_zone: b"",
        }
    }

    fn invocation(words: &[&str], input: &[u8]) -> Invocation {
        let mut invocation = Invocation::new();
        for word in words {
            invocation.arguments.put(word.as_bytes());
            invocation.arguments.put_byte(0);
        }
        invocation.input.put(input);
        invocation
    }

    fn read_to_end(kernel: &mut Linux, descriptor: Descriptor) -> Vec<u8> {
        let mut all = Vec::new();
        let mut buffer = [0; 5000];
        loop {
            match kernel.read(descriptor, &mut buffer) {
                Ok(0) => break,
                Ok(length) => all.extend_from_slice(&buffer[..length]),
                Err(Errno::EAGAIN) => {
                    let mut interests = [Interest::read(Some(descriptor))];
                    let ten_seconds = Some(Duration::from_secs(10));
                    kernel.poll(&mut interests, ten_seconds).unwrap();
                    assert!(interests[0].is_readable, "a child hangs");
                }
                Err(error) => panic!("{error:?}"),
            }
        }
        kernel.close(descriptor);
        all
    }

    #[test]
    fn a_name_has_one_holder_who_is_known_while_it_listens() {
        let mut kernel = kernel();
        let name = format!("tcpparser-test-{}", process::id());
        let bound = socket(libc::AF_UNIX, libc::SOCK_STREAM, 0).unwrap();
        bind(
            bound.number(),
            unix_address(b"\0", name.as_bytes()).as_bytes(),
        )
        .unwrap();
        assert_eq!(kernel.claim(&name), Ok(Claim::Silent));
        drop(bound);
        let socket = claim_when_free(&mut kernel, &name);
        let own = own_user();
        let held = Ok(Claim::Held { user: own, own });
        assert_eq!(kernel.claim(&name), held);
        let accepted = kernel.accept(socket).unwrap();
        kernel.close(accepted.descriptor);
        assert_eq!(kernel.accept(socket), Err(Errno::EAGAIN));
        // What is not accepted stays in the queue, closed or not.
        let full = (0..BACKLOG + 2).find(|_| kernel.claim(&name) != held);
        assert!(full.is_some_and(|count| count > 64), "{full:?}");
        assert_eq!(kernel.claim(&name), Ok(Claim::Silent));
        kernel.close(socket);
        claim_when_free(&mut kernel, &name);
    }

    /// A child that another test forks just then holds what was closed until
    /// its exec.
    fn becomes<T: PartialEq + std::fmt::Debug>(expected: T, mut found: impl FnMut() -> T) {
        for _ in 0..5_000 {
            if found() == expected {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        assert_eq!(found(), expected);
    }

    /// A child that another test forks just then holds the old socket until its
    /// exec.
    fn claim_when_free(kernel: &mut Linux, name: &str) -> Descriptor {
        let claimed = (0..5_000).find_map(|_| match kernel.claim(name) {
            Ok(Claim::Ours(socket)) => Some(socket),
            _ => {
                std::thread::sleep(std::time::Duration::from_millis(1));
                None
            }
        });
        claimed.expect("the name is free")
    }

    /// Waits for the end of a child that has nothing left to do.
    fn reap(kernel: &mut Linux, process: i32) -> Exit {
        // SAFETY: a null siginfo_t is allowed; WNOWAIT leaves the child to `reap`.
        let flags = libc::WEXITED | libc::WNOWAIT;
        unsafe { libc::waitid(libc::P_PID, process as u32, ptr::null_mut(), flags) };
        kernel.reap(process).unwrap()
    }

    fn run(words: &[&str], input: &[u8]) -> (Exit, String) {
        let mut kernel = kernel();
        let child = kernel.spawn(&invocation(words, input)).unwrap();
        let output = read_to_end(&mut kernel, child.output);
        let errors = read_to_end(&mut kernel, child.errors);
        let exit = reap(&mut kernel, child.process);
        assert_eq!(errors, b"", "{words:?}");
        (exit, String::from_utf8(output).unwrap())
    }

    #[test]
    fn children_run_and_are_reaped() {
        let exit = Exit::Status(0);
        assert_eq!(run(&["echo", "a b", ""], b""), (exit, "a b \n".into()));
        assert_eq!(run(&["/bin/echo", "x"], b""), (exit, "x\n".into()));
        assert_eq!(run(&["sh", "-c", "exit 3"], b"").0, Exit::Status(3));
        assert_eq!(run(&["no-such-program"], b"").0, Exit::Status(127));
        assert_eq!(run(&["/no/such/program"], b"").0, Exit::Status(127));
        assert_eq!(run(&["/etc/passwd"], b"").0, Exit::Status(126));
        assert_eq!(run(&["/"], b"").0, Exit::Status(126));
    }

    #[test]
    fn children_get_their_input_and_then_its_end() {
        assert_eq!(run(&["cat"], b""), (Exit::Status(0), String::new()));
        let text: Vec<u8> = (0..32_768_u32).map(|i| b'a' + (i % 26) as u8).collect();
        let (exit, output) = run(&["cat"], &text);
        assert_eq!(exit, Exit::Status(0));
        assert!(output.as_bytes() == text);
    }

    #[test]
    fn input_larger_than_a_pipe_goes_through_memory() {
        let text: Vec<u8> = (0..200_000_u32).map(|i| i as u8).collect();
        let file = input_file(&text).unwrap();
        assert!(read_to_end(&mut kernel(), file.release()) == text);
    }

    #[test]
    fn malformed_arguments_are_refused() {
        let mut kernel = kernel();
        let mut refused = |invocation: &Invocation| kernel.spawn(invocation).err();
        assert_eq!(refused(&Invocation::new()), Some(Errno::EINVAL));
        let mut open_end = invocation(&["echo"], b"");
        open_end.arguments.put(b"no end");
        assert_eq!(refused(&open_end), Some(Errno::EINVAL));
        let too_many = invocation(&["a"; WORDS + 1], b"");
        assert_eq!(refused(&too_many), Some(Errno(libc::E2BIG)));
        let too_long = invocation(&["a"; ARGUMENTS], b"");
        assert_eq!(refused(&too_long), Some(Errno(libc::E2BIG)));
        let most = invocation(&["a"; WORDS], b"");
        assert!(Program::new(most.arguments.as_bytes(), b"").is_ok());
    }

    #[test]
    fn children_inherit_nothing() {
        let leaked = fs::File::open("/").unwrap();
        // SAFETY: plain flags; afterwards the descriptor survives execve(2).
        unsafe { libc::fcntl(leaked.as_raw_fd(), libc::F_SETFD, 0) };
        // The shell opens nothing; `ls` adds the folder it lists.
        assert_eq!(run(&["ls", "/proc/self/fd"], b"").1, "0\n1\n2\n3\n");
        let (_, variables) = run(&["env"], b"");
        let mut names: Vec<&str> = variables
            .lines()
            .map(|line| line.split('=').next().unwrap())
            .collect();
        names.sort();
        names.retain(|name| *name != "XTABLES_LOCKFILE");
        assert_eq!(names, ["LC_ALL", "PATH"]);
        let (_, status) = run(&["cat", "/proc/self/status"], b"");
        for name in ["SigBlk:", "SigIgn:"] {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let signals = u64::from_str_radix(line.unwrap().trim(), 16).unwrap();
            // 32 to 34 belong to the C library, which does not let them be set.
            assert_eq!(signals & !(7 << 31), 0, "{name} {signals:x}");
        }
        let (_, group) = run(
            &["sh", "-c", "read p x x x g x </proc/$$/stat; echo $p $g"],
            b"",
        );
        let (process, group) = group.trim().split_once(' ').unwrap();
        assert_eq!(process, group);
    }

    #[test]
    fn groups_are_ended_by_force_and_otherwise() {
        for (force, signal) in [(false, libc::SIGTERM), (true, libc::SIGKILL)] {
            let mut kernel = kernel();
            let child = kernel.spawn(&invocation(&["sleep", "60"], b"")).unwrap();
            assert_eq!(kernel.reap(child.process), None);
            kernel.kill_group(child.process, force);
            let exit = reap(&mut kernel, child.process);
            assert_eq!(exit, Exit::Signal(signal as u8));
            assert_eq!(kernel.reap(child.process), Some(Exit::Status(255)));
            kernel.close(child.output);
            kernel.close(child.errors);
        }
    }

    /// What a child says that was to live in `root`, and how it ends.
    fn run_in(root: &str, words: &[&str]) -> (Exit, String, String) {
        let mut kernel = kernel();
        let mut invocation = invocation(words, b"from outside");
        invocation.root.put(root.as_bytes());
        let child = kernel.spawn(&invocation).unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        let output = text(read_to_end(&mut kernel, child.output));
        let errors = text(read_to_end(&mut kernel, child.errors));
        (reap(&mut kernel, child.process), output, errors)
    }

    /// linux/capability.h.
    const CAP_SYS_CHROOT: u64 = 1 << 18;

    #[test]
    fn children_live_in_another_root() {
        let empty = scratch("root");
        fs::create_dir(&empty).unwrap();
        let root = empty.to_str().unwrap();
        let failed = |root: &str, words: &[&str]| {
            let (exit, output, errors) = run_in(root, words);
            assert_eq!(output, "");
            (exit, errors)
        };
        let said = |status, words: &str, root| {
            (Exit::Status(status), format!("{words} --exec-root {root}"))
        };
        if effective_capabilities() & CAP_SYS_CHROOT == 0 {
            let expected = said(126, "CAP_SYS_CHROOT is missing for", root);
            assert_eq!(failed(root, &["cat"]), expected);
        } else {
            let nowhere = format!("{root}/nowhere");
            let expected = said(126, "there is no directory", &nowhere);
            assert_eq!(failed(&nowhere, &["cat"]), expected);
            let expected = said(126, "there is no directory", "/etc/passwd");
            assert_eq!(failed("/etc/passwd", &["cat"]), expected);
            assert_eq!(failed(root, &["cat"]), said(127, "it is not in", root));
            let expected = said(126, "it cannot be run in", "/");
            assert_eq!(failed("/", &["/etc"]), expected);
            // Input that stands in a file of the old root comes along.
            let (exit, output, errors) = run_in("/", &["sh", "-c", "pwd; cat"]);
            assert_eq!((exit, errors.as_str()), (Exit::Status(0), ""));
            assert_eq!(output, "/\nfrom outside");
        }
        fs::remove_dir(&empty).unwrap();
    }

    fn scratch(name: &str) -> std::path::PathBuf {
        env::temp_dir().join(format!("tcpparser-{}-{name}", process::id()))
    }

    #[test]
    fn rows_come_from_procfs_and_regular_files_only() {
        let mut kernel = kernel();
        let mut open = |path: &str| {
            let file = open_regular(&mut kernel, &Path::from_bytes(path.as_bytes()))?;
            kernel.close(file.descriptor);
            Ok(file.is_procfs)
        };
        assert_eq!(open("/proc/net/tcp"), Ok(true));
        assert_eq!(open("/etc/passwd"), Ok(false));
        assert_eq!(open("/dev/zero"), Err(Errno::EINVAL));
        assert_eq!(open("/"), Err(Errno::EINVAL));
        assert_eq!(open("/proc"), Err(Errno::EINVAL));
        assert_eq!(open("/no/such/file"), Err(Errno::ENOENT));
        assert_eq!(open("/etc/passwd\0"), Err(Errno(libc::ENAMETOOLONG)));
        let fifo = scratch("fifo");
        let path = fifo.to_str().unwrap();
        assert_eq!(run(&["mkfifo", path], b"").0, Exit::Status(0));
        let result = open(path);
        fs::remove_file(&fifo).unwrap();
        assert_eq!(result, Err(Errno::EINVAL));
    }

    /// A file that another user may have put there, or may change, is refused.
    #[test]
    fn what_is_not_of_root_alone_is_refused() {
        use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
        let above = scratch("of-root");
        let folder = above.join("folder");
        fs::create_dir_all(&folder).unwrap();
        if fs::metadata(&above).unwrap().uid() != 0 {
            return fs::remove_dir_all(&above).unwrap();
        }
        let file = folder.join("file");
        let set_mode = |path: &std::path::Path, mode| {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        };
        let mut kernel = kernel();
        let mut opens = |path: &std::path::Path| {
            let path = Path::from_bytes(path.as_os_str().as_encoded_bytes());
            let file = open_of_root(&mut kernel, &path);
            file.map(|file| kernel.close(file.descriptor)).is_ok()
        };
        fs::write(&file, "").unwrap();
        for (of_folder, of_file, expected) in [
            (0o755, 0o644, true),
            (0o1777, 0o600, true),
            (0o777, 0o644, false),
            (0o775, 0o644, false),
            (0o755, 0o664, false),
            (0o755, 0o646, false),
        ] {
            set_mode(&folder, of_folder);
            set_mode(&file, of_file);
            assert_eq!(opens(&file), expected, "{of_folder:o} {of_file:o}");
        }
        set_mode(&file, 0o644);
        set_mode(&folder, 0o1777);
        for other in [&file, &folder] {
            chown(other, Some(65_534), None).unwrap();
            assert!(!opens(&file), "{}", other.display());
            chown(other, Some(0), None).unwrap();
        }
        let (link, way) = (folder.join("link"), above.join("way"));
        symlink(&file, &link).unwrap();
        symlink(&folder, &way).unwrap();
        assert!(!opens(&link) && !opens(&way.join("file")) && !opens(&folder.join("none")));
        assert!(opens(&file));
        fs::hard_link(&file, folder.join("second")).unwrap();
        assert!(!opens(&file));
        let fifo = folder.join("fifo");
        assert_eq!(
            run(&["mkfifo", fifo.to_str().unwrap()], b"").0,
            Exit::Status(0)
        );
        assert!(!opens(&fifo));
        fs::remove_dir_all(&above).unwrap();
    }

    #[test]
    fn procfs_is_read_again_after_rewinding() {
        let mut kernel = kernel();
        let path = Path::from_bytes(b"/proc/net/tcp");
        let file = kernel.open(&path, Link::Follow).unwrap();
        assert!(file.is_procfs && file.inode != 0);
        let file = file.descriptor;
        let mut buffer = [0; 4096];
        for _ in 0..2 {
            assert!(kernel.read(file, &mut buffer).unwrap() > 0);
            assert!(buffer.starts_with(b"  sl  local_address"));
            kernel.rewind(file).unwrap();
        }
        kernel.close(file);
    }

    #[test]
    fn time_zones_are_rules_or_files() {
        let read = |zone: &str| {
            let mut bytes = [0; TIME_ZONE];
            zone_of(zone.as_bytes(), &mut bytes).to_vec()
        };
        assert_eq!(read("XXX-5:30"), b"XXX-5:30");
        assert_eq!(read("UTC"), b"UTC");
        assert_eq!(read(""), b"");
        assert_eq!(read("No/Such_Zone"), b"");
        let file = fs::read("/etc/localtime").unwrap_or_default();
        assert_eq!(read("/etc/localtime"), file);
        let file = fs::read("/usr/share/zoneinfo/Europe/Berlin").unwrap_or_default();
        assert_eq!(read("Europe/Berlin"), file);
        assert_eq!(read(":Europe/Berlin"), file);
        let beyond = "/".repeat(300) + "usr/share/zoneinfo/Europe/Berlin";
        assert_eq!(read(&beyond), b"");
    }

    #[test]
    fn clocks_agree_with_procfs_and_std() {
        let mut kernel = kernel();
        let uptime = fs::read_to_string("/proc/uptime").unwrap();
        let seconds = uptime.split('.').next().unwrap().parse::<u64>().unwrap();
        let start = Duration::from_secs(seconds);
        let minute = |start: Duration| start..start.saturating_add(Duration::from_secs(60));
        assert!(minute(start).contains(&kernel.clock(Clock::Boottime)));
        let now = std::time::SystemTime::now();
        let now = now.duration_since(std::time::UNIX_EPOCH).unwrap();
        let now = Duration::from_nanos(now.as_nanos() as u64);
        assert!(minute(now).contains(&kernel.clock(Clock::Realtime)));
        let used = kernel.clock(Clock::ProcessCpu);
        assert!(used > Duration::ZERO && kernel.process_status().cpu_time >= used);
    }

    #[test]
    fn the_process_knows_itself() {
        let mut kernel = kernel();
        let status = kernel.process_status();
        assert!(status.open_descriptors >= 3);
        assert!(status.resident_bytes > 100_000);
        assert!(status.virtual_bytes >= status.resident_bytes);
        assert!(status.max_descriptors.is_none_or(|limit| limit >= 64));
        let text = fs::read_to_string("/proc/self/status").unwrap();
        let value = |name| {
            text.lines()
                .find_map(|line| line.strip_prefix(name))
                .unwrap()
        };
        let expected = u64::from_str_radix(value("CapEff:").trim(), 16).unwrap();
        assert_eq!(effective_capabilities(), expected);
        assert_ne!(hash_key(), hash_key());
        assert_ne!(start_up_random_bytes(), [0; 16]);
        let path = env::var("PATH").unwrap();
        let mut entries = (0..).map_while(environment);
        assert!(entries.any(|entry| entry == format!("PATH={path}").as_bytes()));
    }

    #[test]
    fn directory_entries_are_counted_by_their_lengths() {
        let mut entries = [0; 24 + 32];
        entries[16..18].copy_from_slice(&24_u16.to_ne_bytes());
        entries[24 + 16..24 + 18].copy_from_slice(&32_u16.to_ne_bytes());
        assert_eq!(count_entries(&entries), 2);
        assert_eq!(count_entries(&entries[..24]), 1);
        assert_eq!(count_entries(&[]), 0);
        // A length of 0 cannot hold the walk up.
        assert!(count_entries(&[0; 64]) <= 64);
    }

    fn is_non_blocking(descriptor: c_int) -> bool {
        // SAFETY: F_GETFL takes no third argument.
        unsafe { libc::fcntl(descriptor, libc::F_GETFL) & libc::O_NONBLOCK != 0 }
    }

    /// How many bytes a channel takes before it says EAGAIN.
    fn fill(channel: &Channel) -> usize {
        let mut total = 0;
        loop {
            match channel.write(&[b'x'; 10_000]) {
                Ok(length) => total += length,
                Err(error) => {
                    assert_eq!(error, Errno::EAGAIN);
                    return total;
                }
            }
            assert!(total < 1 << 24);
        }
    }

    #[test]
    fn output_to_a_full_pipe_never_blocks_nor_changes_the_shared_description() {
        let (_reader, writer) = pipe().unwrap();
        let shared = fs::File::from(
            // SAFETY: `writer` is open, and the duplicate is ours alone.
            unsafe { std::os::fd::BorrowedFd::borrow_raw(writer.number()) }
                .try_clone_to_owned()
                .unwrap(),
        );
        let channel = Channel::open(writer.number());
        assert_eq!(channel.way, Way::Write);
        assert!(fill(&channel) >= 4096);
        assert!(is_non_blocking(writer.number()));
        assert!(!is_non_blocking(shared.as_raw_fd()));
    }

    #[test]
    fn output_that_cannot_be_opened_anew_is_polled() {
        let (reader, writer) = pipe().unwrap();
        let channel = Channel {
            descriptor: writer.number(),
            way: Way::PollThenWrite,
        };
        assert!(fill(&channel) >= 4096);
        assert!(!is_non_blocking(writer.number()));
        drop(reader);
        // std ignores SIGPIPE in test programs, as `start` does.
        becomes(Err(Errno::EPIPE), || channel.write(b"x"));
    }

    #[test]
    fn output_to_sockets_and_files() {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let channel = Channel::open(ours.as_raw_fd());
        assert_eq!(channel.way, Way::Send);
        assert!(fill(&channel) > 0);
        assert!(!is_non_blocking(ours.as_raw_fd()));
        drop(theirs);
        becomes(Err(Errno::EPIPE), || channel.write(b"x"));

        // A regular file opened anew would start at offset 0.
        let path = scratch("output");
        fs::write(&path, "before ").unwrap();
        let file = fs::File::options().write(true).open(&path).unwrap();
        // SAFETY: no memory is passed.
        unsafe { libc::lseek(file.as_raw_fd(), 0, libc::SEEK_END) };
        assert_eq!(Channel::open(file.as_raw_fd()).write(b"after"), Ok(5));
        let text = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        assert_eq!(text, b"before after");
    }

    #[test]
    fn socket_addresses_have_the_kernel_s_layout() {
        for text in ["192.0.2.1:258", "[2001:db8::1]:65535"] {
            let endpoint = Endpoint::parse(text.as_bytes()).unwrap();
            let (bytes, _) = socket_address(endpoint);
            assert_eq!(endpoint_of(&bytes), endpoint);
        }
        let mapped = Endpoint::parse(b"[::ffff:192.0.2.1]:1").unwrap();
        let folded = endpoint_of(&socket_address(mapped).0);
        assert_eq!(folded, Endpoint::parse(b"192.0.2.1:1").unwrap());
    }

    /// Who connects from `127.0.0.1` is an IPv4 client of either listener.
    #[test]
    fn listeners_accept_without_blocking() {
        let mut kernel = kernel();
        for address in ["127.0.0.1:0", "[::]:0"] {
            let endpoint = Endpoint::parse(address.as_bytes()).unwrap();
            let listener = match kernel.listen(endpoint) {
                Err(Errno::EAFNOSUPPORT) => continue,
                result => result.unwrap(),
            };
            assert_eq!(kernel.accept(listener).err(), Some(Errno::EAGAIN));
            // SAFETY: the descriptor is ours and handed over.
            let owner = unsafe { TcpListener::from_raw_fd(listener.number()) };
            let port = owner.local_addr().unwrap().port();
            let mut client = TcpStream::connect(("127.0.0.1", port)).unwrap();

            let accepted = kernel.accept(listener).unwrap();
            let end = |port| Endpoint::parse(format!("127.0.0.1:{port}").as_bytes()).unwrap();
            let socket = accepted.descriptor;
            assert_eq!(accepted.local, end(port));
            assert_eq!(accepted.remote, end(client.local_addr().unwrap().port()));
            let mut buffer = [0; 8];
            assert_eq!(kernel.receive(socket, &mut buffer), Err(Errno::EAGAIN));
            assert_eq!(kernel.send(socket, b"hello", More::No), Ok(5));
            assert!(!kernel.shutdown_sending(socket));
            let mut text = String::new();
            std::io::Read::read_to_string(&mut client, &mut text).unwrap();
            assert_eq!(text, "hello");
            kernel.close(socket);

            // What is held back for the FIN goes out although a close behind
            // unread input resets.
            let mut client = TcpStream::connect(("127.0.0.1", port)).unwrap();
            let socket = kernel.accept(listener).unwrap().descriptor;
            std::io::Write::write_all(&mut client, b"unread").unwrap();
            assert_eq!(kernel.send(socket, b"hello", More::Fin), Ok(5));
            assert!(!kernel.shutdown_sending(socket));
            kernel.close(socket);
            let mut bytes = [0; 5];
            std::io::Read::read_exact(&mut client, &mut bytes).unwrap();
            assert_eq!(&bytes, b"hello");
            let taken = Endpoint { port, ..endpoint };
            assert_eq!(kernel.listen(taken).err(), Some(Errno::EADDRINUSE));
            assert!(owner.into_raw_fd() == listener.number());
            kernel.close(listener);
        }
        let elsewhere = Endpoint::parse(b"192.0.2.1:0").unwrap();
        assert_eq!(kernel.listen(elsewhere).err(), Some(Errno::EADDRNOTAVAIL));
    }

    #[test]
    fn datagrams_reach_paths_and_abstract_names_and_never_wait() {
        use std::os::linux::net::SocketAddrExt;
        use std::os::unix::net::{SocketAddr, UnixDatagram};
        let mut kernel = kernel();
        let path = scratch("notify");
        let name = format!("tcpparser-test-{}", process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        for (server, address) in [
            (
                UnixDatagram::bind(&path).unwrap(),
                format!("{}", path.display()),
            ),
            (
                UnixDatagram::bind_addr(&address).unwrap(),
                format!("@{name}"),
            ),
        ] {
            let mut buffer = [0; 64];
            assert_eq!(kernel.notify(address.as_bytes(), b"READY=1"), Ok(()));
            let count = server.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..count], b"READY=1");
            let full = (0..100_000).find_map(|_| kernel.notify(address.as_bytes(), b"x").err());
            assert_eq!(full, Some(Errno::EAGAIN));
            drop(server);
            becomes(Err(Errno::ECONNREFUSED), || {
                kernel.notify(address.as_bytes(), b"x")
            });
        }
        fs::remove_file(&path).unwrap();
        let long = "l".repeat(107);
        for (address, error) in [
            (format!("{}", path.display()), Errno::ENOENT),
            (format!("/{long}"), Errno::ENOENT),
            (format!("/{long}l"), Errno(libc::ENAMETOOLONG)),
            (format!("@{long}"), Errno::ECONNREFUSED),
            (format!("@{long}l"), Errno(libc::ENAMETOOLONG)),
            ("vsock:2:1".into(), Errno::EAFNOSUPPORT),
            ("here".into(), Errno::EAFNOSUPPORT),
        ] {
            assert_eq!(
                kernel.notify(address.as_bytes(), b"x"),
                Err(error),
                "{address}"
            );
        }
    }

    #[test]
    fn a_client_reaches_own_addresses_only() {
        let mut kernel = kernel();
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = server.local_addr().unwrap().port();
        let to = |address: &str| Endpoint {
            port,
            ..Endpoint::parse(format!("{address}:1").as_bytes()).unwrap()
        };
        let client = kernel.connect(to("127.0.0.1")).unwrap();
        assert_eq!(kernel.send(client, b"hello", More::No), Ok(5));
        let mut buffer = [0; 5];
        let (mut accepted, peer) = server.accept().unwrap();
        std::io::Read::read_exact(&mut accepted, &mut buffer).unwrap();
        assert_eq!(&buffer, b"hello");
        assert!(peer.ip().is_loopback());
        kernel.close(client);
        drop(server);
        becomes(Err(Errno::ECONNREFUSED), || {
            let client = kernel.connect(to("127.0.0.1"))?;
            let result = kernel.send(client, b"x", More::No);
            kernel.close(client);
            result
        });
        let elsewhere = kernel.connect(to("192.0.2.1"));
        assert_eq!(elsewhere.err(), Some(Errno::EADDRNOTAVAIL));
    }

    /// RTM_GETLINK of all links (rtnetlink(7)) is answered.
    #[test]
    fn netlink_sockets_are_bound() {
        let mut kernel = kernel();
        let socket = kernel.netlink(Netlink::Route).unwrap();
        let mut request = [0; 20];
        request[0..4].copy_from_slice(&20_u32.to_ne_bytes());
        request[4..6].copy_from_slice(&18_u16.to_ne_bytes());
        request[6..8].copy_from_slice(&0x301_u16.to_ne_bytes());
        let mut buffer = [0; 8192];
        assert_eq!(kernel.receive(socket, &mut buffer), Err(Errno::EAGAIN));
        assert_eq!(kernel.send(socket, &request, More::No), Ok(20));
        let mut interests = [Interest::read(Some(socket))];
        kernel
            .poll(&mut interests, Some(Duration::from_secs(10)))
            .unwrap();
        assert!(interests[0].is_readable);
        assert!(kernel.receive(socket, &mut buffer).unwrap() > 16);
        assert_eq!(u16::from_ne_bytes([buffer[4], buffer[5]]), 16);
        kernel.close(socket);
        for kind in [
            Netlink::RouteEvents,
            Netlink::DestroyEvents,
            Netlink::SockDiag,
            Netlink::Netfilter,
        ] {
            let socket = kernel.netlink(kind).unwrap();
            kernel.close(socket);
        }
    }

    #[test]
    fn poll_finds_what_was_asked_for() {
        let mut kernel = kernel();
        let (reader, writer) = pipe().unwrap();
        let mut interests = [
            Interest::read(Some(reader.0)),
            Interest::write(Some(writer.0)),
            Interest::read(None),
        ];
        kernel.poll(&mut interests, Some(Duration::ZERO)).unwrap();
        let found = |interests: &[Interest]| -> Vec<(bool, bool)> {
            let pairs = interests.iter().map(|i| (i.is_readable, i.is_writable));
            pairs.collect()
        };
        let expected = [(false, false), (false, true), (false, false)];
        assert_eq!(found(&interests), expected);
        write(writer.number(), b"x").unwrap();
        kernel.poll(&mut interests, None).unwrap();
        assert!(interests[0].is_readable);
        drop(reader);
        becomes(vec![(true, true)], || {
            kernel.poll(&mut interests[1..2], None).unwrap();
            found(&interests[1..2])
        });
        let mut many = [Interest::write(Some(writer.0)); INTERESTS + 1];
        kernel.poll(&mut many, None).unwrap();
        assert!(many[INTERESTS - 1].is_writable && !many[INTERESTS].is_writable);
    }

    #[test]
    fn a_single_is_handed_out_once() {
        static VALUE: Single<u8> = Single::new(7);
        assert_eq!(VALUE.take(), Some(&mut 7));
        assert_eq!(VALUE.take(), None);
    }
}
