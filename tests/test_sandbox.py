"""The sandbox: what the running product gave up, and what it cannot do any more.
Calls are made in its place by ptrace(2), as whoever took it over would make them.
"""

import ctypes
import errno
import os
import platform
import re
import signal
import subprocess
import time

import pytest

from harness import BACKENDS, SkipTest, need, real_tool, wait_for
from test_blocking import PORTS, Scene

NOBODY = 65534
NET_ADMIN, NET_RAW, BIND = 1 << 12, 1 << 13, 1 << 10
LAYERS = ("capabilities", "no_new_privs", "landlock", "seccomp")
HOME = "/root"


def status(pid):
    with open(f"/proc/{pid}/status") as file:
        return dict(line.rstrip("\n").split(":\t", 1) for line in file)


def tier(guard):
    return [name for name in ("sealed", "confined", "none")
            if guard.metric(f'tcpparser_sandbox_info{{tier="{name}"}}') == 1]


def layers(guard):
    return [name for name in LAYERS if guard.metric(f'tcpparser_sandbox{{layer="{name}"}}') == 1]


def enters(guard, wanted):
    wait_for(lambda: tier(guard.ready()) == [wanted], f"the tier {wanted}")
    return guard


# ------------------------------------------------------------- what is given up


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_left_while_it_blocks_and_unblocks(t, backend):
    is_sealed = backend == "nft"
    scene = Scene(t, backend)
    guard = enters(scene.start("--block-time", "2s"), "sealed" if is_sealed else "confined")
    assert layers(guard) == list(LAYERS), "layers"
    left = status(guard.pid)
    user = "\t".join([str(NOBODY if is_sealed else 0)] * 4)
    kept = f"{NET_ADMIN | (0 if is_sealed else NET_RAW):016x}"
    none = f"{0:016x}"
    wanted = {"Uid": user, "Gid": user, "CapInh": none, "CapPrm": kept, "CapEff": kept,
              "CapBnd": kept, "CapAmb": none, "NoNewPrivs": "1", "Seccomp": "2"}
    if is_sealed:
        wanted["Groups"] = " "
    assert {name: left[name] for name in wanted} == wanted, "/proc/PID/status"
    with open(f"/proc/{guard.pid}/limits") as limits:
        assert re.search(r"^Max core file size +0 +0 ", limits.read(), re.M), "core"
    scene.scan()
    scene.wait_blocked(guard)
    guard.wait_line(" Unblocked: ")
    assert guard.metric("tcpparser_sockets_destroyed_total") > 0, "sockets destroyed"
    assert guard.metric("process_open_fds") > 5, "open_fds"
    assert guard.error_output() == [], "stderr"
    guard.signal(signal.SIGTERM)
    assert guard.wait_exit() == 0, "exit status"


def test_a_user_without_rights_gives_up_what_there_is(t):
    need("setpriv")
    guard = t.guard(t.lan().host, "--dry-run", before=(
        "setpriv", "--reuid=1000", "--regid=1000", "--clear-groups"))
    enters(guard, "sealed")
    left = status(guard.pid)
    assert left["Uid"].split() == ["1000"] * 4 and left["CapEff"] == f"{0:016x}", "user"
    assert (left["NoNewPrivs"], left["Seccomp"]) == ("1", "2"), "the rest"
    assert layers(guard) == list(LAYERS), "layers"


def test_groups_go_with_the_user(t):
    """Those it was started with, of which root mostly has none."""
    need("setpriv")
    guard = t.guard(t.lan().host, "--dry-run", before=("setpriv", "--groups=4,20"))
    enters(guard, "sealed")
    assert status(guard.pid)["Groups"].split() == [], "groups"


def test_one_capability_and_its_user_stay(t):
    """As in a container that was given just one."""
    need("setpriv")
    scene = Scene(t, "nft", before=("setpriv", "--bounding-set=-all,+net_admin"))
    guard = scene.start()
    enters(guard, "sealed")
    left = status(guard.pid)
    assert left["Uid"].split() == ["0"] * 4, "user"
    assert left["CapEff"] == left["CapPrm"] == f"{NET_ADMIN:016x}", "capabilities"
    scene.scan()
    scene.wait_blocked(guard)


def test_none_gives_nothing_up(t):
    guard = t.guard(t.lan().host, "--dry-run", "--sandbox", "none").ready()
    guard.wait_readings(2)
    left = status(guard.pid)
    assert (left["Uid"].split()[0], left["NoNewPrivs"], left["Seccomp"]) == ("0", "0", "0")
    assert tier(guard) == ["none"] and layers(guard) == [], "metrics"


def test_a_low_port_may_come_later(t):
    host = t.lan().host
    (taken,) = host.listen(80, address="127.0.0.1")
    guard = t.guard(host, "--dry-run", "--listen", "127.0.0.1:80")
    wait_for(lambda: status(guard.pid)["Seccomp"] == "2", "the sandbox")
    assert status(guard.pid)["CapEff"] == f"{NET_ADMIN | BIND:016x}", "CapEff"
    taken.close()
    wait_for(lambda: any("listening on" in line for line in guard.error_output()), "it listens")


# ------------------------------------------------------------- layers that lack


@pytest.mark.parametrize("fault, lacks", [
    ("landlock_create_ruleset:error=ENOSYS", "landlock"),
    ("landlock_restrict_self:error=E2BIG", "landlock"),
    ("seccomp:error=EINVAL", "seccomp"),
    ("capset:error=EPERM", "capabilities"),
    # Without it seccomp(2) would take a capability that is gone.
    ("prctl:error=EINVAL", "no_new_privs seccomp"),
])
def test_a_layer_that_is_refused_is_said_and_counted(t, fault, lacks):
    need("strace")
    name = fault.partition(":")[0]
    guard = t.guard(t.lan().host, "--dry-run", before=(
        "strace", "-qq", "-o", "/dev/null", "-e", f"trace={name}", "-e", f"inject={fault}"))
    enters(guard, "sealed")
    assert layers(guard) == [layer for layer in LAYERS if layer not in lacks.split()], "layers"
    said = [line for line in guard.error_output() if "sandbox" in line]
    assert [line.rpartition(": ")[2] for line in said] == lacks.split(), f"stderr {said}"
    guard.wait_readings(2)


def test_it_stays_who_it_is_where_that_would_take_its_rights(t):
    """Another user has none in effect without capset(2)."""
    need("strace")
    scene = Scene(t, "nft", before=("strace", "-qq", "-o", "/dev/null", "-e", "trace=capset",
                                    "-e", "inject=capset:error=EPERM"))
    guard = enters(scene.start(), "sealed")
    assert "capabilities" not in layers(guard), "layers"
    scene.scan()
    scene.wait_blocked(guard)


# ------------------------------------------------------------- what is read


def test_nameservers_that_rename_puts_there_are_protected(t):
    """/etc/resolv.conf is a link into a folder of its own, as on OpenWrt."""
    need("unshare")
    etc, folder = t.folder("etc"), t.folder("resolver")
    mount = f'{real_tool("mount")} --bind {etc} /etc && exec "$@"'
    scene = Scene(t, "nft", before=("unshare", "--mount", real_tool("sh"), "-c", mount, "sh"))

    def name(server):
        with open(f"{folder}/new", "w") as file:
            file.write(f"nameserver {server}\n")
        os.rename(f"{folder}/new", f"{folder}/resolv.conf")

    name("192.0.2.53")
    os.symlink(f"{folder}/resolv.conf", f"{etc}/resolv.conf")
    guard = enters(scene.start(), "sealed")
    name(scene.family.peer)
    guard.wait_readings(2)  # each of which reads it
    scene.scan()
    line = guard.wait_line(" Not blocked: ")
    assert "nameserver" in line, line


# ------------------------------------------------------------- calls in its place


class Registers(ctypes.Structure):
    """struct user_regs_struct of sys/user.h on x86_64."""

    _fields_ = [(name, ctypes.c_ulonglong) for name in (
        "r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax rip cs eflags rsp ss "
        "fs_base gs_base ds es fs gs").split()]


LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
LIBC.ptrace.restype = ctypes.c_long
POKEDATA, SINGLESTEP, GETREGS, SETREGS, ATTACH, DETACH = 5, 9, 12, 13, 16, 17
SYSCALL = b"\x0f\x05"


class Taken:
    """A process that is stopped in a system call and makes others in its place."""

    def __init__(self, pid):
        if platform.machine() != "x86_64":
            raise SkipTest("registers are known of x86_64 only")
        self.pid = pid
        self.ptrace(ATTACH)
        os.waitpid(pid, 0)
        self.kept = Registers()
        self.ptrace(GETREGS, data=ctypes.byref(self.kept))
        with open(f"/proc/{pid}/mem", "rb") as memory:
            memory.seek(self.kept.rip - len(SYSCALL))
            assert memory.read(len(SYSCALL)) == SYSCALL, "it is stopped in a system call"

    def ptrace(self, request, data=None):
        if LIBC.ptrace(request, self.pid, None, data) == -1:
            raise OSError(ctypes.get_errno(), "ptrace")

    def call(self, number, *arguments):
        """0, an errno, or the signal that ended it. Texts lie below its stack."""
        place = self.kept.rsp - 4096
        words = []
        with open(f"/proc/{self.pid}/mem", "r+b", buffering=0) as memory:
            for argument in arguments:
                if isinstance(argument, str):
                    memory.seek(place)
                    memory.write(argument.encode() + b"\0")
                    argument, place = place, place + 256
                words.append(argument & 0xffffffffffffffff)
        registers = Registers.from_buffer_copy(self.kept)
        registers.rip -= len(SYSCALL)
        registers.rax, registers.orig_rax = number, 0xffffffffffffffff
        for name, word in zip(("rdi", "rsi", "rdx", "r10", "r8", "r9"), words + [0] * 6):
            setattr(registers, name, word)
        self.ptrace(SETREGS, data=ctypes.byref(registers))
        self.ptrace(SINGLESTEP)
        _, ended = os.waitpid(self.pid, 0)
        if os.WIFSIGNALED(ended):
            return signal.Signals(os.WTERMSIG(ended)).name
        assert os.WIFSTOPPED(ended) and os.WSTOPSIG(ended) == signal.SIGTRAP, f"status {ended:x}"
        self.ptrace(GETREGS, data=ctypes.byref(registers))
        result = ctypes.c_longlong(registers.rax).value
        return errno.errorcode[-result] if -4096 < result < 0 else 0

    def release(self):
        self.ptrace(SETREGS, data=ctypes.byref(self.kept))
        self.ptrace(DETACH)


AT_FDCWD = -100
# asm/unistd_64.h.
EXECVE, PTRACE, MOUNT, INIT_MODULE, BPF, SETNS, UNSHARE = 59, 101, 165, 175, 321, 308, 272
IO_URING_SETUP, PROCESS_VM_READV, CHROOT, KEYCTL, PERF_EVENT_OPEN = 425, 310, 161, 250, 298
OPENAT, SOCKET, IOCTL, KILL, CLONE, MMAP, SETUID, UNLINK = 257, 41, 16, 62, 56, 9, 105, 87
CHMOD, FCHMODAT, FCHMODAT2, CHOWN, FCHOWNAT, SETXATTR = 90, 268, 452, 92, 260, 188
TRUNCATE, CLONE3, PRLIMIT, FIOASYNC, NEW_USER = 76, 435, 302, 0x5452, 0x10000000
TIOCSTI, GETPID, X32 = 0x5412, 39, 0x40000000
DANGEROUS = {
    "execve": (EXECVE, "/bin/true", 0, 0), "ptrace": (PTRACE, 16, 1),
    "mount": (MOUNT, "none", "/mnt", "tmpfs", 0, 0), "init_module": (INIT_MODULE, 0, 0, 0),
    "bpf": (BPF, 0, 0, 0), "setns": (SETNS, 0, 0), "unshare": (UNSHARE, 0x10000000),
    "io_uring_setup": (IO_URING_SETUP, 1, 0), "chroot": (CHROOT, "/"),
    "process_vm_readv": (PROCESS_VM_READV, 1, 0, 0, 0, 0, 0), "keyctl": (KEYCTL, 0, 0),
    "perf_event_open": (PERF_EVENT_OPEN, 0, 0, 0, 0, 0),
    "chmod": (CHMOD, "/etc/passwd", 0o644), "chown": (CHOWN, "/etc/passwd", 0, 0),
    "fchmodat": (FCHMODAT, -100, "/etc/passwd", 0o644),
    "fchmodat2": (FCHMODAT2, -100, "/etc/passwd", 0o644, 0),
    "fchownat": (FCHOWNAT, -100, "/etc/passwd", 0, 0, 0),
    "setxattr": (SETXATTR, "/etc/passwd", "user.a", "b", 1, 0),
    "truncate": (TRUNCATE, "/none", 0),
}
# What else is refused in both tiers: a kind of socket that others' servers, as root's
# buses and engines of containers, listen at; processes of the same user.
REFUSED = {
    "packets": (SOCKET, 17, 3, 0), "AF_ALG": (SOCKET, 38, 5, 0), "typing": (IOCTL, 0, TIOCSTI, 0),
    "SIGIO": (IOCTL, 0, FIOASYNC, 0), "x32": (X32 | GETPID,), "unix": (SOCKET, 1, 1, 0),
    "limits": (PRLIMIT, os.getpid(), 7, 0, 0), "namespace": (CLONE, NEW_USER | signal.SIGCHLD, 0),
}


def opening(path, flags=os.O_RDONLY):
    return OPENAT, AT_FDCWD, path, flags, 0o600


def results(taken, calls):
    return {name: taken.call(*words) for name, words in calls.items()}


def test_a_dangerous_call_ends_what_is_sealed(t):
    host = t.lan().host
    guards = {name: t.guard(host, "--dry-run", "--listen", "none") for name in DANGEROUS}
    for name, guard in guards.items():
        wait_for(lambda: status(guard.pid)["Seccomp"] == "2", "the sandbox")
    ends = {name: Taken(guard.pid).call(*DANGEROUS[name]) for name, guard in guards.items()}
    assert ends == dict.fromkeys(DANGEROUS, "SIGSYS"), "how it ended"


def test_what_is_sealed_reaches_nothing(t):
    scene = Scene(t, "nft")
    guard = enters(scene.start(), "sealed")
    secret = os.path.join(t.folder("secret"), "file")
    with open(secret, "w"):
        os.chmod(secret, 0o644)
    taken = Taken(guard.pid)
    try:
        for calls, wanted in (
            ({"fork": (CLONE, signal.SIGCHLD, 0), "kill": (KILL, os.getpid(), 0),
              "mmap": (MMAP, 0, 4096, 7, 0x22, -1, 0), "setuid": (SETUID, 0),
              "unlink": (UNLINK, secret)}, "ENOSYS"),
            ({"shadow": opening("/etc/shadow"), "a file elsewhere": opening(secret),
              "a program": opening("/bin/sh"), "a folder": opening(HOME),
              "to write": opening("/dev/null", os.O_WRONLY),
              "to make": opening("/run/tcpparser-made", os.O_CREAT | os.O_WRONLY),
              "environment of init": opening("/proc/1/environ")}, "EACCES"),
            (REFUSED, "EPERM"),
            ({"passwd": opening("/etc/passwd"), "rows": opening("/proc/net/tcp"),
              "netlink": (SOCKET, 16, 3, 12), "datagrams": (SOCKET, 1, 2, 0),
              "own limits": (PRLIMIT, 0, 7, 0, 0)}, 0),
        ):
            assert results(taken, calls) == dict.fromkeys(calls, wanted), wanted
    finally:
        taken.release()
    guard.wait_readings(2)
    scene.scan()
    scene.wait_blocked(guard)


def test_what_is_confined_reaches_little(t):
    scene = Scene(t, "iptables-nft")
    # No tool is looked for in a relative folder: nothing is to be read below it.
    scene.firewall.env["PATH"] += ":" + "../" * 20
    guard = enters(scene.start(), "confined")
    refused = {name: words for name, words in DANGEROUS.items() if name not in ("execve", "chroot")}
    taken = Taken(guard.pid)
    try:
        for calls, wanted in (
            ({**refused, **REFUSED, "chroot": DANGEROUS["chroot"]}, "EPERM"),
            # C libraries then call the one whose flags can be seen.
            ({"clone3": (CLONE3, 0, 0)}, "ENOSYS"),
            ({"a folder": opening(HOME), "to write": opening("/etc/passwd", os.O_WRONLY),
              "to make": opening("/run/tcpparser-made", os.O_CREAT | os.O_WRONLY)}, "EACCES"),
            ({"the lock": opening(scene.firewall.env["XTABLES_LOCKFILE"], os.O_RDWR),
              "a program": opening("/bin/sh"), "nothing": opening("/dev/null", os.O_WRONLY),
              "fork's parts": (GETPID,)}, 0),
        ):
            assert results(taken, calls) == dict.fromkeys(calls, wanted), wanted
    finally:
        taken.release()
    scene.scan()
    scene.wait_blocked(guard)


# ------------------------------------------------------------- calls it makes


def test_what_is_sealed_makes_few_calls(t):
    need("strace")
    scene = Scene(t, "nft")
    guard = enters(scene.start("--block-time", "1s"), "sealed")
    trace = os.path.join(t.tmp, "trace")
    strace = subprocess.Popen(["strace", "-qq", "-p", str(guard.pid), "-o", trace],
                              stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: int(status(guard.pid)["TracerPid"]) > 0, "strace")
        scene.scan()
        scene.wait_blocked(guard)
        guard.wait_line(" Unblocked: ")
        guard.signal(signal.SIGSTOP)
        guard.signal(signal.SIGCONT)
        guard.wait_readings(2)
        guard.signal(signal.SIGTERM)
        assert guard.wait_exit() == 0, "exit status"
    finally:
        strace.terminate()
        strace.wait()
    with open(trace) as file:
        text = file.read()
    made = set(re.findall(r"^(\w+)\(", text, re.M))
    assert {"poll", "read", "sendto", "accept4"} <= made, "it is traced"
    assert len(made) <= 32, f"calls {sorted(made)}"
    assert "ENOSYS" not in text, "calls that are refused"
