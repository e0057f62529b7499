"""Traffic for the tests of evidence: services, scans, floods, forged packets,
and a stopwatch that sees packets and firewall rules on one clock.

As a program it is what has to be a process of its own:
    traffic.py serve PORT…              accepts and closes at end of file
    traffic.py flood ADDRESS PORT COUNT connects and resets, as fast as it can
    traffic.py many ADDRESS COUNT       listens on so many ports from 10000 on
    traffic.py sources HOST RATE PORT…  touches the ports from each address it reads
    traffic.py rows COUNT               holds so many connections over loopback
    traffic.py forge DEVICE HOST RATE COUNT PORT…  SYNs and guessed acknowledgements
    traffic.py deaf HOW COMMAND…        runs it where netlink lacks something
"""

import contextlib
import ctypes
import errno
import os
import platform
import random
import resource
import selectors
import socket
import struct
import subprocess
import sys
import threading
import time
from unittest import SkipTest

import harness
from harness import wait_for

TEN = (21, 22, 25, 80, 110, 143, 443, 993, 3306, 8080)  # all among nmap's default 1000
RESET = struct.pack("ii", 1, 0)  # struct linger: on, 0 s
PROGRAM = os.path.abspath(__file__)


# ------------------------------------------------------------------ services


class AbortService(harness.EchoService):
    """Aborts each connection as soon as it has accepted it."""

    def handle(self, sock, role):
        if role == "listener":
            client, _ = sock.accept()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            client.close()


class ClosingService(harness.EchoService):
    """Closes first, so that TIME_WAIT stays on its side."""

    def handle(self, sock, role):
        if role == "listener":
            sock.accept()[0].close()


class ReadingService(harness.EchoService):
    """Reads once, then closes first."""

    def handle(self, sock, role):
        if role != "client":
            return super().handle(sock, role)
        with contextlib.suppress(OSError):
            sock.recv(65536)
        self.selector.unregister(sock)
        sock.close()


class BusyService(harness.EchoService):
    """Accepts nothing: its backlog fills."""

    def handle(self, sock, role):
        if role == "listener":
            self.selector.unregister(sock)


class SlowService(harness.EchoService):
    """Accepts and keeps, whatever the peer does, until it is to close."""

    def __init__(self):
        self.kept = []
        super().__init__()

    def handle(self, sock, role):
        if role == "listener":
            self.kept.append(sock.accept()[0])

    def close_kept(self):
        for client in self.kept:
            client.close()

    def stop(self):
        super().stop()
        self.close_kept()


SERVICES = {"echo": harness.EchoService, "abort": AbortService, "closing": ClosingService,
            "reading": ReadingService, "busy": BusyService, "slow": SlowService}


def serve(space, *ports, kind="echo", address="0.0.0.0"):
    """Services of one kind; one kind a namespace."""
    space.service = space.service or SERVICES[kind]()
    return space.listen(*ports, address=address)


# --------------------------------------------------------------- connections


def end(connection, how):
    """Closes it by FIN or by RST."""
    if how == "rst":
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    connection.close()


def touch(space, address, *ports, how="rst", source=None, data=b"", times=1):
    """Short connections, one after the other; how many came about. The last one
    of a scan may be reset before connect(2) returns: that is ECONNRESET once it
    was established, else ECONNREFUSED (net/ipv4/tcp_input.c, tcp_reset)."""
    count = 0
    for port in ports * times:
        try:
            connection = space.connect(address, port, source, 2)
        except OSError as error:
            count += isinstance(error, ConnectionResetError)
            continue
        count += 1
        with contextlib.suppress(OSError):
            if data:
                connection.sendall(data)
                connection.recv(1)
            end(connection, how)
    return count


class Nmap:
    """A running nmap in a namespace."""

    def __init__(self, space, *arguments):
        harness.need("nmap")
        with space.entered():
            self.process = subprocess.Popen(
                ["nmap", "-n", *arguments], env=harness.HOME, stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def wait(self, seconds=60):
        return self.process.communicate(timeout=seconds)[0].decode(errors="replace")

    def is_over(self):
        return self.process.poll() is not None

    def close(self):
        self.process.kill()
        self.process.communicate()


class ConnectScan:
    """Connects to all ports at once; ends each connection after `hold`
    seconds, by FIN or by RST."""

    def __init__(self, space, address, ports, how, hold=0.0):
        self.hold, self.how, self.address = hold, how, address
        self.stopped, self.over = threading.Event(), threading.Event()
        self.sockets = [(space.socket(address), port) for port in ports]
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        opened = []
        for made, port in self.sockets:
            with contextlib.suppress(OSError):
                made.settimeout(2)
                made.connect((self.address, port))
                opened.append(made)
                if not self.hold:
                    end(made, self.how)
        if self.hold:
            self.stopped.wait(self.hold)
            for made in opened:
                end(made, self.how)
        self.over.set()

    def is_over(self):
        return self.over.is_set()

    def close(self):
        self.stopped.set()
        self.thread.join(5)


def start_scan(kind, lan, ports=TEN):
    """The scans people run, by name."""
    address, listed = lan.host_v4, ",".join(map(str, ports))
    if kind == "nmap -sT -T4":
        return Nmap(lan.peer, "-sT", "-T4", address)
    if kind == "nmap -sT":
        return Nmap(lan.peer, "-sT", "-p", listed, address)
    if kind == "nmap -sT -T2":
        return Nmap(lan.peer, "-sT", "-T2", "-p", listed, address)
    how, hold = {"connect, FIN": ("fin", 0), "connect, RST": ("rst", 0),
                 "connect, aborted": ("fin", 0), "connect, held 1 s": ("fin", 1),
                 "connect, held 15 s": ("fin", 15)}[kind]
    return ConnectScan(lan.peer, address, ports, how, hold)


SCANS = ("nmap -sT -T4", "nmap -sT", "nmap -sT -T2", "connect, FIN", "connect, RST",
         "connect, aborted", "connect, held 1 s", "connect, held 15 s")


def service_for(kind):
    return "abort" if kind == "connect, aborted" else "echo"


class Attack:
    """One scan of a guarded host with ten services, and what came of it."""

    device = "lan0"

    def __init__(self, case, kind, interval="10s", before=(), delay=0.0, wait_budget=1.5,
                 backend="iptables-nft", arguments=()):
        self.kind = kind
        host = self.prepare(case)
        self.firewall = case.backend(host, backend)
        self.guard = case.guard(host, "--show", "scans", *arguments, env=self.firewall.env,
                                interval=interval, before=before).ready()
        # Whether destroy events arrive is known when the self-test is over, 5 s at most.
        wait_for(lambda: has_events(self.guard) or self.guard.error_output(), "the self-test", 10)
        self.watch = Stopwatch(host, self.device)
        time.sleep(delay)
        scan = self.start()
        try:
            end_of_scan = until(lambda: self.watch.dropped or scan.is_over(), 60)
            assert end_of_scan, f"{kind} goes on and on"
            until(lambda: self.watch.dropped, wait_budget)
        finally:
            scan.close()
            time.sleep(0.05)  # what was captured is still to be taken in
            self.watch.close()
        self.is_detected = bool(self.guard.matching("Port scan detected"))

    def prepare(self, case):
        """The host under guard."""
        self.lan = case.lan()
        serve(self.lan.host, *TEN, kind=service_for(self.kind))
        return self.lan.host

    def start(self):
        return start_scan(self.kind, self.lan)

    def after(self):
        """Seconds from the end of the fourth connection to the DROP; where
        connections are held, from its handshake. `None` without a block."""
        times = self.watch.starts() if "held" in self.kind else self.watch.ends()
        if self.watch.dropped is None:
            return None
        assert len(times) > 3, f"blocked after {len(times)} connections"
        return self.watch.dropped - times[3]


class Flood:
    """A guarded host with four services, and a peer with 8 million addresses."""

    ports = (22, 25, 80, 443)

    def __init__(self, case, *arguments, interval="10s"):
        self.lan, self.made = case.lan(), 0
        serve(self.lan.host, *self.ports)
        self.lan.peer.ip("route add local 10.128.0.0/9 dev lo")
        self.lan.host.ip(f"route add 10.128.0.0/9 via {self.lan.peer_v4}")
        env = case.backend(self.lan.host, "nft").env
        self.guard = case.guard(self.lan.host, *arguments, env=env, interval=interval).ready()
        wait_for(lambda: has_events(self.guard), "destroy events")

    def scan(self, count, how="rst", rate=None):
        """Scans of so many sources, each from another one, at most `rate` a
        second; how many there were so far."""
        began = time.monotonic()
        for number in range(count):
            if rate:
                time.sleep(max(0, began + number / rate - time.monotonic()))
            high, low = divmod(self.made, 250)
            source = f"10.{128 + high // 250}.{high % 250}.{low + 1}"
            touch(self.lan.peer, self.lan.host_v4, *self.ports, how=how, source=source)
            self.lan.peer.sockets.clear()
            self.made += 1
        return self.made

    def wait_scans(self, count):
        found = lambda: self.guard.metric("tcpparser_port_scans_total") >= count
        wait_for(found, f"{count} scans")


def has_events(guard):
    return guard.metric('tcpparser_evidence_source_up{source="destroy_events"}') == 1


def until(predicate, seconds, every=0.01):
    """Waits for a true answer; the last one."""
    deadline = time.monotonic() + seconds
    while not (answer := predicate()) and time.monotonic() < deadline:
        time.sleep(every)
    return answer


# ----------------------------------------------------------------- stopwatch

ETH_P_ALL = 3  # only so are outgoing packets seen
NETLINK_NETFILTER = 12
SOL_NETLINK, NETLINK_ADD_MEMBERSHIP = 270, 1
NETLINK_FLAGS = socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
NFNLGRP_NFTABLES = 7
DELRULE = struct.pack("H", 10 << 8 | 8)  # what a flushed ruleset is told with first
SO_TIMESTAMPNS = 35
FIN, SYN, RST, ACK = 1, 2, 4, 16


class Stopwatch:
    """Notes the packets of a host's device by the kernel's time stamps,
    and when a block came to stand (not in legacy tables; the kernel reports it once
    it is in force), and when rules of the sets' table were deleted. All times are
    seconds of CLOCK_MONOTONIC."""

    def __init__(self, host, device="lan0"):
        with host.entered():
            self.packets = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM,
                                         socket.htons(ETH_P_ALL))
            self.rules = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
        self.packets.bind((device, ETH_P_ALL))
        self.packets.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        self.rules.bind((0, 0))
        self.rules.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, NFNLGRP_NFTABLES)
        for watched in (self.packets, self.rules):
            watched.setsockopt(socket.SOL_SOCKET, 33, 1 << 23)  # SO_RCVBUFFORCE
        self.seen, self.drops, self.deleted = [], [], None
        self.waker, self.wakee = socket.socketpair()
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()

    def watch(self):
        with selectors.DefaultSelector() as selector:
            for watched in (self.rules, self.packets, self.wakee):
                selector.register(watched, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    if key.fileobj is self.wakee:
                        return
                    if key.fileobj is self.rules:
                        self.take_rules()
                    else:
                        self.take_packet()

    def take_rules(self):
        message = self.rules.recv(1 << 16)
        if b"tcpparser v1 b=" in message:
            self.drops.append(time.monotonic())
        if self.deleted is None and message[4:6] == DELRULE and b"tcpparser\0" in message:
            self.deleted = time.monotonic()

    @property
    def dropped(self):
        """When the first block came to stand."""
        return next(iter(self.drops), None)

    def take_packet(self):
        packet, extra, _, _ = self.packets.recvmsg(64, 64)
        for level, kind, value in extra:
            if (level, kind) == (socket.SOL_SOCKET, SO_TIMESTAMPNS):
                self.seen.append((struct.unpack("qq", value), packet))

    def flows(self):
        """What happened to each connection, by (peer port, host port)."""
        offset = time.time() - time.monotonic()
        found = {}
        for (seconds, nanoseconds), packet in sorted(self.seen):
            is_v6 = packet[0] >> 4 == 6
            words = packet[40 if is_v6 else (packet[0] & 15) * 4:]
            if packet[6 if is_v6 else 9] != socket.IPPROTO_TCP or len(words) < 14:
                continue
            source, target = struct.unpack("!HH", words[:4])
            found_key = (source, target) if (source, target) in found else (target, source)
            if words[13] & (SYN | ACK) == SYN:
                found_key = (source, target)
                found[found_key] = Flow()
            if found_key in found:
                at = seconds + nanoseconds / 1e9 - offset
                found[found_key].note(found_key[0] == source, words[13], at)
        return found

    def ends(self):
        """When the first connection to each port ended, in order of time."""
        return self.first("ended")

    def starts(self):
        return self.first("opened")

    def first(self, what):
        times = {}
        for (_, port), flow in self.flows().items():
            at = getattr(flow, what)
            if at is not None and flow.opened is not None:
                times[port] = min(at, times.get(port, at))
        return sorted(times.values())

    def close(self):
        self.waker.close()
        self.thread.join(3)
        for held in (self.packets, self.rules, self.wakee):
            held.close()


class Flow:
    """One connection, as its packets show."""

    def __init__(self):
        self.opened, self.ended = None, None
        self.answered, self.finished = False, set()

    def note(self, is_peer, flags, at):
        if flags & SYN and flags & ACK:
            self.answered = True
        elif self.answered and self.opened is None and is_peer and not flags & RST:
            self.opened = at
        if self.ended is None and self.opened is not None:
            # By a reset, or by the acknowledgement of the second FIN.
            if flags & RST or (len(self.finished) == 2 and not flags & FIN):
                self.ended = at
            elif flags & FIN:
                self.finished.add(is_peer)


# ------------------------------------------------------------- forged packets


def checksum(data):
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xffff) + (total >> 16)
    return ~(total + (total >> 16)) & 0xffff


def segment(source, from_port, target, port, flags, sequence, acknowledged=0, data=b""):
    """A TCP segment with its IP header, of either family."""
    is_v6 = ":" in source
    family = socket.AF_INET6 if is_v6 else socket.AF_INET
    ends = socket.inet_pton(family, source) + socket.inet_pton(family, target)
    head = struct.pack("!HHIIBBHHH", from_port, port, sequence & 0xffffffff,
                       acknowledged & 0xffffffff, 5 << 4, flags, 64240, 0, 0)
    length = len(head) + len(data)
    pseudo = ends + struct.pack("!II" if is_v6 else "!HH", *(
        (length, socket.IPPROTO_TCP) if is_v6 else (socket.IPPROTO_TCP, length)))
    sum_ = struct.pack("!H", checksum(pseudo + head + data))
    words = head[:16] + sum_ + head[18:] + data
    if is_v6:
        return struct.pack("!IHBB", 6 << 28, length, socket.IPPROTO_TCP, 64) + ends + words
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + length, 0, 0, 64, socket.IPPROTO_TCP, 0)
    sum_ = struct.pack("!H", checksum(ip + ends))
    return ip[:10] + sum_ + ends + words


class Forger:
    """Sends TCP segments with any source address (raw(7))."""

    def __init__(self, space):
        with space.entered():
            self.raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
            self.raw6 = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW)

    def send(self, source, target, port, flags, data=b"", count=1, sequence=None):
        for _ in range(count):
            number = random.getrandbits(32) if sequence is None else sequence
            acknowledged = random.getrandbits(32) if flags & ACK else 0
            self.put(segment(source, random.randint(1024, 65535), target, port, flags, number,
                             acknowledged, data))

    def put(self, packet):
        if packet[0] >> 4 == 6:
            self.raw6.sendto(packet, (socket.inet_ntop(socket.AF_INET6, packet[24:40]), 0))
        else:
            self.raw.sendto(packet, (socket.inet_ntoa(packet[16:20]), 0))

    def close(self):
        self.raw.close()
        self.raw6.close()


# ----------------------------------------------------- processes of their own


@contextlib.contextmanager
def helper(space, *arguments):
    """A process of this program, in a namespace."""
    with space.entered():
        process = subprocess.Popen([sys.executable, "-B", PROGRAM, *map(str, arguments)],
                                   stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "ready\n", f"{arguments}: did not start"
        yield process
    finally:
        process.kill()
        process.communicate()


def deaf(how="join"):
    """A wrapping command under which no destroy event arrives: joining a
    netlink group succeeds and does nothing ("join"), or is refused ("groups"), or
    NETLINK_SOCK_DIAG is not to be had at all ("socket"). Or NETLINK_ROUTE is not
    ("route"), or NETLINK_NETFILTER ("netfilter")."""
    if platform.machine() not in MACHINES:
        raise SkipTest(f"no seccomp filter for {platform.machine()} here")
    return (sys.executable, "-B", PROGRAM, "deaf", how)


def serve_forever(*ports):
    """Accepts, and closes what the peer closed."""
    with selectors.DefaultSelector() as selector:
        for port in map(int, ports):
            listener = socket.socket()
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("0.0.0.0", port))
            listener.listen(4096)
            listener.setblocking(False)
            selector.register(listener, selectors.EVENT_READ, True)
        print("ready", flush=True)
        while True:
            for key, _ in selector.select():
                if not key.data:
                    selector.unregister(key.fileobj)
                    key.fileobj.close()
                    continue
                with contextlib.suppress(OSError):
                    while True:
                        selector.register(key.fileobj.accept()[0], selectors.EVENT_READ, False)


def many(address, count):
    """Listens on ports from 10000 on: at one address, or at all of both
    families where it is "wildcard"; accepts and closes."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 20_000), most))
    held = []
    kinds = ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::"))
    for port in range(10_000, 10_000 + int(count)):
        for family, any_address in kinds if address == "wildcard" else kinds[:1]:
            listener = socket.socket(family)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((any_address if address == "wildcard" else address, port))
            listener.listen(16)
            listener.setblocking(False)
            held.append(listener)
    print("ready", flush=True)
    with selectors.DefaultSelector() as selector:
        for listener in held:
            selector.register(listener, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                with contextlib.suppress(OSError):
                    key.fileobj.accept()[0].close()


def flood(address, port, count):
    """Connects and resets; prints how many connections came about."""
    print("ready", flush=True)
    opened = 0
    for _ in range(int(count)):
        with socket.socket() as made:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            with contextlib.suppress(OSError):
                made.connect((address, int(port)))
                opened += 1
    print(opened, flush=True)


def sources(host, rate, *ports):
    """Short connections from each address on standard input, so many addresses a
    second at most; a line for each address is how many came about."""
    print("ready", flush=True)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    began = time.monotonic()
    for number, address in enumerate(sys.stdin):
        time.sleep(max(0, began + number / float(rate) - time.monotonic()))
        opened = 0
        for port in ports:
            with socket.socket(family) as made, contextlib.suppress(OSError):
                made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                made.settimeout(0.05)
                made.bind((address.strip(), 0))
                made.connect((host, int(port)))
                opened += 1
        print(opened, flush=True)


def rows(count):
    """Both ends of each connection are rows of this host."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    listener, held = socket.socket(), []
    listener.bind(("127.0.0.1", 0))
    listener.listen(64)
    for number in range(int(count)):
        made = socket.socket()
        made.bind((f"127.0.{1 + number % 200}.1", 0))
        made.connect(listener.getsockname())
        held += [made, listener.accept()[0]]
    print("ready", flush=True)
    sys.stdin.read()


def forge(device, host, rate, count, *ports):
    """In the names of many sources, each to all ports; at most so many frames a
    second, half of them SYNs. Prints how many there were. They are made before, and
    512 go with each sendmmsg(2): a flood must not spend its time in Python."""
    neighbours = subprocess.run(["ip", "neigh", "show", host], stdout=subprocess.PIPE, text=True)
    head = bytes.fromhex(neighbours.stdout.split()[4].replace(":", "")) + b"\2\0\0\0\0\1\x08\0"
    frames = []
    for number in range(256):
        if number % len(ports) == 0:
            source = f"10.{random.randint(128, 255)}.{random.randint(0, 255)}.{random.randint(1, 254)}"
        ends = (source, random.randint(1024, 65535), host, int(ports[number % len(ports)]))
        sequence = random.getrandbits(32)
        frames += [head + segment(*ends, SYN, sequence),
                   head + segment(*ends, ACK, sequence + 1, random.getrandbits(32))]
    sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    sender.bind((device, 0))
    sender.setsockopt(263, 20, 1)  # SOL_PACKET, PACKET_QDISC_BYPASS
    vector = Vector(frames)
    print("ready", flush=True)
    began, sent = time.monotonic(), 0
    while sent < int(count):
        if sent > (time.monotonic() - began) * float(rate):
            time.sleep(0.002)
        else:
            sent += vector.send(sender)
    print(sent, flush=True)


class Vector:
    """An array of struct mmsghdr, and what its pointers lead to."""

    def __init__(self, frames):
        self.frames = [ctypes.create_string_buffer(frame, len(frame)) for frame in frames]
        self.pieces = [ctypes.create_string_buffer(
            struct.pack("PN", ctypes.addressof(frame), len(frame))) for frame in self.frames]
        self.messages = b"".join(struct.pack("PIxxxxPNPNixxxxIxxxx", 0, 0, ctypes.addressof(piece), 1,
                                             0, 0, 0, 0) for piece in self.pieces)

    def send(self, sender):
        """How many were sent."""
        return max(0, harness.LIBC.sendmmsg(sender.fileno(), self.messages, len(self.frames), 0))


# AUDIT_ARCH_* of linux/audit.h, the numbers of setsockopt(2) and socket(2).
MACHINES = {"x86_64": (0xc000003e, 54, 41), "aarch64": (0xc00000b7, 208, 198)}
NETLINK_SOCK_DIAG = 4


def run_deaf(how, *command):
    """seccomp(2): one system call with two certain arguments does nothing but
    answer."""
    architecture, setsockopt, socket_ = MACHINES[platform.machine()]
    number, first, wanted, error = {
        "join": (setsockopt, 1, (SOL_NETLINK, NETLINK_ADD_MEMBERSHIP), 0),
        "groups": (setsockopt, 1, (SOL_NETLINK, NETLINK_ADD_MEMBERSHIP), errno.EPERM),
        "route": (socket_, 0, (socket.AF_NETLINK, NETLINK_FLAGS, 0), errno.EPERM),
        "netfilter": (socket_, 2, (NETLINK_NETFILTER,), errno.EPROTONOSUPPORT),
        "socket": (socket_, 2, (NETLINK_SOCK_DIAG,), errno.EPROTONOSUPPORT)}[how]
    arguments = [(16 + 8 * (first + at) + (4 if sys.byteorder == "big" else 0), value)
                 for at, value in enumerate(wanted)]
    checks = [(4, architecture), (0, number), *arguments]
    load, equals, answer = 0x20, 0x15, 0x06
    program = []
    for left, (offset, value) in zip(range(len(checks), 0, -1), checks):
        program += [(load, 0, 0, offset), (equals, 0, 2 * left - 1, value)]
    program += [(answer, 0, 0, 0x00050000 | error), (answer, 0, 0, 0x7fff0000)]
    code = b"".join(struct.pack("HBBI", *step) for step in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    filters = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program),
                                                      ctypes.addressof(buffer)))
    pr_set_seccomp, seccomp_mode_filter = 22, 2
    if harness.LIBC.prctl(pr_set_seccomp, seccomp_mode_filter, filters, 0, 0) != 0:
        sys.exit(f"prctl: {os.strerror(ctypes.get_errno())}")
    os.execv(command[0], command)


if __name__ == "__main__":
    {"serve": serve_forever, "flood": flood, "many": many, "sources": sources, "rows": rows,
     "forge": forge, "deaf": run_deaf}[sys.argv[1]](*sys.argv[2:])
