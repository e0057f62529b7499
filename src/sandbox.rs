//! What the process still needs once everything is open: capabilities, files and
//! system calls, in two tiers. Code that takes it over afterwards has no more.

use heapless::Vec;

use crate::kernel::{CAP_NET_ADMIN, Instruction, Sandbox, bpf};
use crate::label::label;

/// How much is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier {
    /// No program will be run any more.
    Sealed,
    /// iptables has to run, with what it inherits from us.
    Confined,
    /// Nothing: not yet, or `--sandbox none`.
    None,
}

label!(Tier, "tier", 0, ["sealed", "confined", "none"]);

/// What the kernel does its part with; it may lack any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    /// capabilities(7), and the user.
    Capabilities,
    /// PR_SET_NO_NEW_PRIVS of prctl(2).
    NoNewPrivs,
    /// landlock(7).
    Landlock,
    /// seccomp(2).
    Seccomp,
}

label!(
    Layer,
    "layer",
    0,
    ["capabilities", "no_new_privs", "landlock", "seccomp"]
);

impl Layer {
    /// In the order of their labels.
    pub const ALL: [Self; 4] = [
        Self::Capabilities,
        Self::NoNewPrivs,
        Self::Landlock,
        Self::Seccomp,
    ];

    /// Its bit in a set of them.
    pub const fn bit(self) -> u8 {
        1 << self as u8
    }
}

// Capabilities: bits of linux/capability.h.

/// nf_tables asks for it at each send(2), of the process that opened the socket and
/// of the one that sends (net/netfilter/nfnetlink.c); SOCK_DESTROY and conntrack
/// likewise.
const NET_ADMIN: u32 = CAP_NET_ADMIN as u32;
/// For a listener below 1024 that is still to come.
const NET_BIND_SERVICE: u32 = 1 << 10;
/// iptables-legacy opens a raw socket.
const NET_RAW: u32 = 1 << 13;
/// chroot(2) before iptables, with --exec-root.
const SYS_CHROOT: u32 = 1 << 18;

// Files, each behind a letter: of folders `r` is what may be read below, `x` what
// may be run as well; of files `f` may be read, and `w` written. The lock of
// iptables is one of those, and is made (`m`).

/// Below the folders the resolver's files, which rename(2) replaces, so that a rule
/// on one of them would go with the file it was; our own name; rows and counters.
/// File modes keep secrets from nobody. The device is a descriptor in reserve.
const SEALED_FILES: &[u8] = b"r/etc:r/run:r/var/run:r/proc:f/dev/null";
/// Where systems keep programs and libraries, the folders of PATH apart; and the
/// device that scripts write to.
const CONFINED_FILES: &[u8] = b"r/etc:r/run:r/var/run:r/proc:w/dev/null:\
    x/usr:x/bin:x/sbin:x/lib:x/lib32:x/lib64:x/opt:x/nix:x/gnu";

/// What is kept; `root` is where programs are to run in, and `awaits_port`: a
/// listener that needs a right is still to come.
pub fn sandbox<'a>(
    tier: Tier,
    root: &'a [u8],
    awaits_port: bool,
    calls: &'a mut Filter,
) -> Sandbox<'a> {
    let is_sealed = tier == Tier::Sealed;
    put_filter(calls, is_sealed);
    let port = if awaits_port { NET_BIND_SERVICE } else { 0 };
    let chroot = if root.is_empty() { 0 } else { SYS_CHROOT };
    let programs = if is_sealed { 0 } else { NET_RAW | chroot };
    Sandbox {
        is_sealed,
        capabilities: NET_ADMIN | port | programs,
        files: if is_sealed {
            SEALED_FILES
        } else {
            CONFINED_FILES
        },
        root: if is_sealed { b"" } else { root },
        proc_directory: b"",
        beside: b"",
        calls,
    }
}

// System calls.

/// Numbers of the libc crate, which fit 16 bits on all processors.
macro_rules! calls {
    ($($name:ident)*) => {
        [$(libc::$name as u16),*]
    };
}

/// All that a turn makes while no program is run, most frequent first.
const NEEDED: [u16; 25] = calls![
    SYS_read SYS_recvfrom SYS_clock_gettime SYS_lseek SYS_recvmsg SYS_sendto
    SYS_write SYS_openat SYS_close SYS_fstat
    SYS_accept4 SYS_getsockname SYS_shutdown SYS_ioctl
    // Netlink sockets that failed, a listener that comes later, the self-test of
    // destroy events, the init system's socket.
    SYS_socket SYS_bind SYS_connect SYS_listen SYS_setsockopt
    // Packets that were lost.
    SYS_getsockopt
    // The process_* metrics.
    SYS_getdents64 SYS_prlimit64
    // Orphans that PID 1 collects.
    SYS_wait4
    // poll(2) after SIGSTOP and SIGCONT.
    SYS_restart_syscall
    SYS_exit_group
];

/// What the C library makes of others: on 32 bits first a call that knows time of
/// 64 bits, then the one of older kernels.
#[cfg(target_arch = "x86_64")]
const NEEDED_HERE: [u16; 2] = calls![SYS_poll SYS_fstatfs];
#[cfg(all(target_pointer_width = "64", not(target_arch = "x86_64")))]
const NEEDED_HERE: [u16; 2] = calls![SYS_ppoll SYS_fstatfs];
#[cfg(target_pointer_width = "32")]
const NEEDED_HERE: [u16; 7] = {
    let [poll, statfs, seek, status, statx] =
        calls![SYS_poll SYS_fstatfs64 SYS__llseek SYS_fstat64 SYS_statx];
    [
        poll,
        statfs,
        seek,
        status,
        statx,
        CLOCK_GETTIME64,
        SOCKETCALL,
    ]
};
#[cfg(target_pointer_width = "32")]
const CLOCK_GETTIME64: u16 = 403 + FIRST_CALL;
/// Newer calls have the same number everywhere (include/uapi/asm-generic/unistd.h),
/// on mips behind this.
const FIRST_CALL: u16 = if cfg!(target_arch = "mips") { 4_000 } else { 0 };
/// Before Linux 4.3 all calls of sockets are this one (socketcall(2)).
#[cfg(target_arch = "x86")]
const SOCKETCALL: u16 = libc::SYS_socketcall as u16;
#[cfg(all(target_pointer_width = "32", not(target_arch = "x86")))]
const SOCKETCALL: u16 = CLOCK_GETTIME64;

const _: () = assert!(NEEDED.len() + NEEDED_HERE.len() <= 32);

/// What makes programs, other processes, other namespaces or the kernel one's own:
/// none of it is ever ours, but for the first three, which run iptables.
const DANGEROUS: [u16; 50] = calls![
    SYS_execve SYS_execveat SYS_chroot
    SYS_ptrace SYS_process_vm_readv SYS_process_vm_writev SYS_pidfd_getfd SYS_kcmp
    SYS_mount SYS_umount2 SYS_pivot_root SYS_fsopen SYS_fsconfig SYS_fsmount
    SYS_open_tree SYS_move_mount SYS_mount_setattr SYS_open_by_handle_at
    SYS_init_module SYS_finit_module SYS_delete_module SYS_kexec_load SYS_reboot
    SYS_bpf SYS_perf_event_open SYS_userfaultfd SYS_setns SYS_unshare
    SYS_io_uring_setup SYS_io_uring_enter SYS_io_uring_register
    SYS_keyctl SYS_add_key SYS_request_key SYS_syslog SYS_quotactl SYS_acct
    SYS_swapon SYS_swapoff SYS_settimeofday SYS_clock_settime SYS_personality
    // Landlock minds no mode, owner or ACL: root's own files could be opened to
    // others, or a shell made set-user-ID. truncate(2) it minds since Linux 6.2.
    SYS_fchmod SYS_fchmodat SYS_fchown SYS_fchownat
    SYS_setxattr SYS_lsetxattr SYS_fsetxattr SYS_truncate
];
const RUNS_PROGRAMS: usize = 3;

/// fchmodat2 and setxattrat of later kernels.
const DANGEROUS_NEW: [u16; 2] = [452 + FIRST_CALL, 463 + FIRST_CALL];
/// The same by older numbers.
#[cfg(any(target_arch = "x86_64", target_arch = "s390x"))]
const DANGEROUS_HERE: [u16; 3] = calls![SYS_chmod SYS_chown SYS_lchown];
#[cfg(target_arch = "mips")]
const DANGEROUS_HERE: [u16; 4] = calls![SYS_chmod SYS_chown SYS_lchown SYS_truncate64];
#[cfg(any(target_arch = "x86", target_arch = "arm"))]
const DANGEROUS_HERE: [u16; 7] = calls![
    SYS_chmod SYS_chown SYS_lchown SYS_chown32 SYS_fchown32 SYS_lchown32 SYS_truncate64
];
#[cfg(not(any(
    target_arch = "x86_64",
    target_arch = "s390x",
    target_arch = "mips",
    target_arch = "x86",
    target_arch = "arm"
)))]
const DANGEROUS_HERE: [u16; 0] = [];

/// AUDIT_ARCH_* of linux/audit.h: numbers mean other calls to a kernel that is
/// called the way of another processor. 0 where that is not known: no filter.
const ARCHITECTURE: u32 = if cfg!(target_arch = "x86_64") {
    0xc000_003e
} else if cfg!(target_arch = "x86") {
    0x4000_0003
} else if cfg!(target_arch = "aarch64") {
    0xc000_00b7
} else if cfg!(target_arch = "arm") {
    0x4000_0028
} else if cfg!(target_arch = "riscv64") {
    0xc000_00f3
} else if cfg!(all(target_arch = "mips", target_endian = "little")) {
    0x4000_0008
} else if cfg!(target_arch = "mips") {
    8
} else if cfg!(target_arch = "s390x") {
    0x8000_0016
} else {
    0
};

const NEEDED_COUNT: usize = NEEDED.len() + NEEDED_HERE.len();
const COUNT: usize = NEEDED_COUNT + DANGEROUS.len() + DANGEROUS_NEW.len() + DANGEROUS_HERE.len();
// A jump of a filter reaches so far (struct sock_filter of linux/filter.h).
const _: () = assert!(COUNT < u8::MAX as usize);
const CALLS: [u16; COUNT] = calls();

/// All of them in one.
const fn calls() -> [u16; COUNT] {
    let mut calls = [0; COUNT];
    let lists: [&[u16]; 5] = [
        &NEEDED,
        &NEEDED_HERE,
        &DANGEROUS,
        &DANGEROUS_NEW,
        &DANGEROUS_HERE,
    ];
    let (mut rest, mut index) = (lists, 0);
    while index < COUNT {
        let [first, second, third, fourth, fifth] = rest;
        if let [call, others @ ..] = first {
            calls[index] = *call;
            rest = [others, second, third, fourth, fifth];
            index += 1;
        } else {
            rest = [second, third, fourth, fifth, first];
        }
    }
    calls
}

/// Room for a filter.
const FILTER_MAX: usize = HEAD.len() + COUNT + 3;

/// Instructions of a filter.
pub type Filter = Vec<Instruction, FILTER_MAX>;

// What a filter returns: linux/seccomp.h.
const KILL_PROCESS: u32 = 0x8000_0000;
const ERRNO: u32 = 0x0005_0000;
const ALLOW: u32 = 0x7fff_0000;

// Offsets in struct seccomp_data; of an argument, which has 64 bits, the low half.
const NUMBER: u32 = 0;
const PROCESSOR: u32 = 4;
const LOW_HALF: u32 = if cfg!(target_endian = "big") { 4 } else { 0 };
const FIRST_ARGUMENT: u32 = 16 + LOW_HALF;
const SECOND_ARGUMENT: u32 = 24 + LOW_HALF;

/// x86_64 has a second set of calls with this bit (asm/unistd.h, __X32_SYSCALL_BIT);
/// elsewhere no number has it.
const SECOND_SET: u32 = 0x4000_0000;
/// TIOCSTI and TIOCLINUX put input into our terminal (asm/ioctls.h).
const TYPE: u32 = if cfg!(target_arch = "mips") {
    0x5472
} else {
    0x5412
};
const PASTE: u32 = if cfg!(target_arch = "mips") {
    0x5483
} else {
    0x541c
};
/// FIOASYNC has SIGIO sent to whoever is named as owner: the same user's processes.
const ASYNC: u32 = if cfg!(target_arch = "mips") {
    0x667d
} else {
    0x5452
};
/// clone(2) has its flags second on s390x.
const CLONE_FLAGS: u32 = if cfg!(target_arch = "s390x") {
    SECOND_ARGUMENT
} else {
    FIRST_ARGUMENT
};
/// CLONE_NEW* of linux/sched.h: in a user namespace of its own every process has all
/// capabilities.
const NEW_NAMESPACES: u32 = 0x7e02_0000;
/// A bit that kinds of Unix sockets other than SOCK_DGRAM have: what listens there
/// (a bus, an engine of containers) does for root whatever it asks. The init system
/// is told by datagrams.
const CONNECTED: u32 = if cfg!(target_arch = "mips") { 2 } else { 1 };
const EPERM: u32 = ERRNO | libc::EPERM as u32;
const ENOSYS: u32 = ERRNO | libc::ENOSYS as u32;

/// Where the calls of another processor end in it.
const FOREIGN: usize = 2;
/// What comes first in either tier.
const HEAD: [Instruction; 28] = [
    bpf::load(bpf::LDW, PROCESSOR),
    bpf::jump(bpf::JEQ, ARCHITECTURE, 1, 0),
    bpf::load(bpf::RET, KILL_PROCESS),
    bpf::load(bpf::LDW, NUMBER),
    bpf::jump(bpf::JSET, SECOND_SET, 21, 0),
    bpf::jump(bpf::JEQ, libc::SYS_ioctl as u32, 0, 4),
    bpf::load(bpf::LDW, SECOND_ARGUMENT),
    bpf::jump(bpf::JEQ, TYPE, 18, 0),
    bpf::jump(bpf::JEQ, PASTE, 17, 0),
    bpf::jump(bpf::JEQ, ASYNC, 16, 17),
    // Its flags lie in memory; C libraries then call the older one.
    bpf::jump(bpf::JEQ, libc::SYS_clone3 as u32, 0, 1),
    bpf::load(bpf::RET, ENOSYS),
    bpf::jump(bpf::JEQ, libc::SYS_clone as u32, 0, 2),
    bpf::load(bpf::LDW, CLONE_FLAGS),
    bpf::jump(bpf::JSET, NEW_NAMESPACES, 11, 12),
    // Limits of ourselves alone.
    bpf::jump(bpf::JEQ, libc::SYS_prlimit64 as u32, 0, 2),
    bpf::load(bpf::LDW, FIRST_ARGUMENT),
    bpf::jump(bpf::JEQ, 0, 9, 8),
    // The others are rarely used, and so rarely looked at.
    bpf::jump(bpf::JEQ, libc::SYS_socket as u32, 0, 9),
    bpf::load(bpf::LDW, FIRST_ARGUMENT),
    bpf::jump(bpf::JEQ, libc::AF_UNIX as u32, 3, 0),
    bpf::jump(bpf::JEQ, libc::AF_INET as u32, 5, 0),
    bpf::jump(bpf::JEQ, libc::AF_INET6 as u32, 4, 0),
    bpf::jump(bpf::JEQ, libc::AF_NETLINK as u32, 3, 2),
    bpf::load(bpf::LDW, SECOND_ARGUMENT),
    bpf::jump(bpf::JSET, CONNECTED, 0, 1),
    bpf::load(bpf::RET, EPERM),
    bpf::load(bpf::LDW, NUMBER),
];

/// Puts the filter of a tier into `filter`; none where the processor is not known.
/// Behind the calls stand three ends, for the others, for what is allowed and for
/// what is refused.
#[inline(never)]
fn put_filter(filter: &mut Filter, is_sealed: bool) {
    if ARCHITECTURE == 0 {
        return;
    }
    let (allowed, ends) = if is_sealed {
        (NEEDED_COUNT, [ENOSYS, ALLOW, KILL_PROCESS])
    } else {
        (NEEDED_COUNT + RUNS_PROGRAMS, [ALLOW, ALLOW, EPERM])
    };
    let _ = filter.extend_from_slice(&HEAD);
    // A kernel of 64 bits may have an iptables of 32 beside this program, and the
    // other way round. Not on x86_64, where one program can make the calls of both.
    if !cfg!(target_arch = "x86_64")
        && !is_sealed
        && let Some(end) = filter.get_mut(FOREIGN)
    {
        *end = bpf::load(bpf::RET, ALLOW);
    }
    for (index, call) in CALLS.iter().enumerate() {
        let to_end = COUNT - index + usize::from(index >= allowed);
        let _ = filter.push(bpf::jump(bpf::JEQ, (*call).into(), to_end as u8, 0));
    }
    for end in ends {
        let _ = filter.push(bpf::load(bpf::RET, end));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a filter says of a call (Documentation/userspace-api/seccomp_filter.rst).
    fn run(filter: &[Instruction], number: u32, processor: u32, arguments: [u32; 2]) -> u32 {
        let mut accumulator = 0;
        let mut at = 0;
        loop {
            let Instruction {
                code,
                if_true,
                if_false,
                operand,
            } = filter[at];
            at += 1;
            let is_so = match code {
                bpf::RET => return operand,
                bpf::LDW => {
                    accumulator = match operand {
                        NUMBER => number,
                        PROCESSOR => processor,
                        FIRST_ARGUMENT => arguments[0],
                        SECOND_ARGUMENT => arguments[1],
                        _ => panic!("offset {operand}"),
                    };
                    continue;
                }
                bpf::JEQ => accumulator == operand,
                bpf::JSET => accumulator & operand != 0,
                _ => panic!("code {code}"),
            };
            at += usize::from(if is_so { if_true } else { if_false });
        }
    }

    fn filters() -> [Filter; 2] {
        [true, false].map(|is_sealed| {
            let mut filter = Filter::new();
            put_filter(&mut filter, is_sealed);
            filter
        })
    }

    /// Each number there is, and more.
    #[test]
    fn every_call_has_its_answer() {
        let [sealed, confined] = filters();
        let needed: std::vec::Vec<u32> = NEEDED
            .iter()
            .chain(&NEEDED_HERE)
            .map(|n| u32::from(*n))
            .collect();
        let dangerous: std::vec::Vec<u32> = CALLS[NEEDED_COUNT..]
            .iter()
            .map(|n| u32::from(*n))
            .collect();
        let (clone3, limits) = (libc::SYS_clone3 as u32, libc::SYS_prlimit64 as u32);
        for number in 0..5_000 {
            let is_run = dangerous[..RUNS_PROGRAMS].contains(&number);
            let (in_sealed, in_confined) = if needed.contains(&number) {
                (ALLOW, ALLOW)
            } else if dangerous.contains(&number) {
                (KILL_PROCESS, if is_run { ALLOW } else { EPERM })
            } else {
                (ENOSYS, if number == clone3 { ENOSYS } else { ALLOW })
            };
            let first = if number == limits { 0 } else { libc::AF_INET };
            let arguments = [first as u32, 0];
            assert_eq!(run(&sealed, number, ARCHITECTURE, arguments), in_sealed);
            assert_eq!(run(&confined, number, ARCHITECTURE, arguments), in_confined);
        }
        let foreign = if cfg!(target_arch = "x86_64") {
            KILL_PROCESS
        } else {
            ALLOW
        };
        for (filter, foreign) in [(&sealed, KILL_PROCESS), (&confined, foreign)] {
            let of = |number, arguments| run(filter, number, ARCHITECTURE, arguments);
            let (socket, ioctl) = (libc::SYS_socket as u32, libc::SYS_ioctl as u32);
            for family in 0..64 {
                let is_known = [
                    libc::AF_UNIX,
                    libc::AF_INET,
                    libc::AF_INET6,
                    libc::AF_NETLINK,
                ]
                .contains(&(family as i32));
                let expected = if is_known { ALLOW } else { EPERM };
                let kind = libc::SOCK_DGRAM as u32;
                assert_eq!(of(socket, [family, kind]), expected, "{family}");
            }
            for (kind, expected) in [
                (libc::SOCK_STREAM, EPERM),
                (libc::SOCK_SEQPACKET, EPERM),
                (libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, ALLOW),
            ] {
                assert_eq!(of(socket, [libc::AF_UNIX as u32, kind as u32]), expected);
                assert_eq!(of(socket, [libc::AF_INET as u32, kind as u32]), ALLOW);
            }
            for (request, expected) in [
                (TYPE, EPERM),
                (PASTE, EPERM),
                (ASYNC, EPERM),
                (0x894b, ALLOW),
            ] {
                assert_eq!(of(ioctl, [0, request]), expected);
            }
            assert_eq!(of(limits, [1, 0]), EPERM);
            for bit in 0..u32::BITS {
                // vfork(2), for one, has flags, too.
                let flags = 1 << bit;
                let is_new = [17, 25, 26, 27, 28, 29, 30].contains(&bit);
                let of_clone = of(libc::SYS_clone as u32, [flags; 2]);
                assert_eq!(of_clone == EPERM, is_new, "{flags:#x}");
            }
            assert_eq!(of(SECOND_SET, [0; 2]), EPERM);
            assert_eq!(of(u32::MAX, [0; 2]), EPERM);
            assert_eq!(run(filter, 0, ARCHITECTURE ^ 1, [0; 2]), foreign);
        }
    }

    /// None is dangerous and needed, and none stands twice.
    #[test]
    fn lists_are_apart() {
        let mut all = CALLS.to_vec();
        all.sort();
        all.dedup();
        let repeated = usize::from(cfg!(all(
            target_pointer_width = "32",
            not(target_arch = "x86")
        )));
        assert_eq!(all.len() + repeated, CALLS.len());
    }
}
