"""What the end-to-end tests and the programs beside them stand on: network
namespaces with real sockets, and the real binary under watch.

A test takes `t`, a `Case` (conftest.py): it makes what the test needs and takes
it all away again, also when the test fails. Namespaces are entered by one thread
at a time with setns(2); a socket stays where it was made, so that tests hold
both ends of a connection in plain Python.
"""

import atexit
import contextlib
import ctypes
import errno
import glob
import http.client
import ipaddress
import itertools
import json
import os
import re
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import typing
from unittest import SkipTest

DEADLINE = 15.0  # seconds for what normally takes a fraction of one
HTTP_FRESH = 0.015  # seconds within which the same metrics are sent again, and a margin
CLONE_NEWNET = 0x40000000
LIBC = ctypes.CDLL(None, use_errno=True)
HOME = {**os.environ, "LC_ALL": "C"}
NAMESPACE_NUMBERS = itertools.count(1)
FOLDER = os.path.join(tempfile.gettempdir(), "tcpparser-test-")


def wait_for(predicate, what, seconds=DEADLINE):
    """The first true answer of `predicate`, or a failure that says `what`."""
    end = time.monotonic() + seconds
    while True:
        answer = predicate()
        if answer:
            return answer
        assert time.monotonic() < end, f"waited {seconds} s in vain for {what}"
        time.sleep(0.02)


def run(*command, env=None, seconds=20, input=None):
    """Runs a tool to its end; its status, output and errors as text."""
    return subprocess.run(
        command, env=env or HOME, timeout=seconds, input=input,
        stdin=None if input is not None else subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, errors="replace")


def must(*command, **options):
    """Runs a tool of the test itself that has to succeed."""
    done = run(*command, **options)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr.strip()}"
    return done.stdout


def need(*tools):
    for tool in tools:
        if shutil.which(tool) is None:
            raise SkipTest(f"{tool} is not installed")


# ---------------------------------------------------------------- namespaces


class EchoService:
    """Accepts on any number of listeners and returns what it is sent."""

    def __init__(self):
        self.selector = selectors.DefaultSelector()
        self.waker, wakee = socket.socketpair()
        self.selector.register(wakee, selectors.EVENT_READ, "stop")
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def add(self, listener):
        listener.setblocking(False)
        self.selector.register(listener, selectors.EVENT_READ, "listener")
        self.waker.send(b"+")

    def remove(self, listener):
        self.selector.unregister(listener)
        listener.close()

    def serve(self):
        while True:
            for key, _ in self.selector.select(1.0):
                if key.data == "stop" and key.fileobj.recv(1) != b"+":
                    return
                with contextlib.suppress(OSError, KeyError, ValueError):
                    self.handle(key.fileobj, key.data)

    def handle(self, sock, role):
        if role == "listener":
            client, _ = sock.accept()
            client.setblocking(False)
            self.selector.register(client, selectors.EVENT_READ, "client")
        elif role == "client":
            try:
                data = sock.recv(65536)
                if data:
                    sock.send(data)
                    return
            except BlockingIOError:
                return
            except OSError:
                pass
            self.selector.unregister(sock)
            sock.close()

    def stop(self):
        self.waker.close()
        self.thread.join(3)
        for key in list(self.selector.get_map().values()):
            key.fileobj.close()
        self.selector.close()


class Namespace:
    """A network namespace of our own, named by our process number."""

    living = {}

    def __init__(self, role, apart=False):
        """`apart`: it belongs to a user namespace of its own, as those of
        containers without privileges."""
        self.name = f"tcpp-{os.getpid()}-{next(NAMESPACE_NUMBERS)}-{role}"
        made = attach_apart(self.name) if apart else run("ip", "netns", "add", self.name)
        if made.returncode != 0:
            raise SkipTest(f"ip netns: {made.stderr.strip()}")
        Namespace.living[self.name] = self
        self.service = None
        self.sockets = []
        self.ip("link set lo up")

    @contextlib.contextmanager
    def entered(self):
        """This thread's new sockets and children live in the namespace."""
        with open("/proc/thread-self/ns/net") as home, \
                open(f"/run/netns/{self.name}") as inside:
            set_namespace(inside)
            try:
                yield
            finally:
                set_namespace(home)

    def ip(self, *lines):
        """Lines of `ip -batch`, run inside."""
        must("ip", "-n", self.name, "-batch", "-", input="\n".join(lines) + "\n")

    def run(self, *command, **options):
        with self.entered():
            return run(*command, **options)

    def must(self, *command, **options):
        with self.entered():
            return must(*command, **options)

    def sysctl(self, *settings):
        need("sysctl")
        self.must("sysctl", "-qw", *settings)

    def socket(self, address):
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with self.entered():
            made = socket.socket(family, socket.SOCK_STREAM)
        self.sockets.append(made)
        return made

    def listen(self, *ports, address="0.0.0.0"):
        """Echo services; "::" is dual-stack."""
        self.service = self.service or EchoService()
        listeners = []
        for port in ports:
            listener = self.socket(address)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if address == "::":
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            wait_for(lambda: binds(listener, address, port), f"port {port} to be free")
            listener.listen(512)
            self.service.add(listener)
            listeners.append(listener)
        return listeners

    def connect(self, address, port, source=None, seconds=5):
        """A connection; an OSError where none comes about in time. It may have ended:
        a blocked one can be reset before connect(2) has told of its handshake."""
        made = self.socket(address)
        if source:
            made.bind((source, 0))
        made.settimeout(seconds)
        with contextlib.suppress(ConnectionResetError):
            made.connect((address, port))
        return made

    def connects(self, address, port, source=None, seconds=1):
        """Whether a connection comes about and carries data."""
        try:
            with self.connect(address, port, source, seconds) as made:
                return carries_data(made, seconds)
        except OSError:
            return False

    def listens_at(self, address, port):
        """Whether a connection comes about, whatever it serves."""
        try:
            self.connect(address, port, seconds=1).close()
            return True
        except OSError:
            return False

    def destroy(self):
        if self.name not in Namespace.living:
            return
        del Namespace.living[self.name]
        if self.service:
            self.service.stop()
        for held in self.sockets:
            held.close()
        destroy_namespace(self.name)


def binds(listener, address, port):
    """False while an accept(2) of another thread still holds the last listener."""
    try:
        listener.bind((address, port))
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        return False
    return True


def attach_apart(name):
    """Names a network namespace made inside a new user namespace."""
    need("unshare")
    with subprocess.Popen(["unshare", "--user", "--map-root-user", "--net", "sh", "-c",
                           "echo; exec sleep 60"], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        made = run("ip", "netns", "attach", name, str(process.pid))
        process.kill()
    return made


def set_namespace(file):
    if LIBC.setns(file.fileno(), CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


def destroy_namespace(name):
    """Takes a namespace of ours away, with the processes left inside and those
    that some of them start as others end."""
    for _ in range(20):
        numbers = run("ip", "netns", "pids", name).stdout.split()
        if not numbers:
            break
        for number in numbers:
            with contextlib.suppress(OSError):
                os.kill(int(number), signal.SIGKILL)
    run("ip", "netns", "del", name)


def carries_data(connection, seconds=1):
    """Whether what is sent comes back within `seconds`."""
    try:
        connection.settimeout(seconds)
        connection.sendall(b"ping")
        answer = b""
        while len(answer) < 4:
            more = connection.recv(4 - len(answer))
            if not more:
                return False
            answer += more
        return answer == b"ping"
    except OSError:
        return False


def endpoint(address, port):
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def name_of(connection):
    """A connection's own end as the product prints it."""
    address, port = connection.getsockname()[:2]
    return endpoint(address, port)


def listed_blocks(text):
    """The lines of --list that are blocks: below the head, above what is never
    blocked."""
    lines = text.splitlines()
    return lines[1:lines.index("")] if "" in lines else []


def link(left, left_device, right, right_device, *pairs):
    """Joins two namespaces by a veth pair. Each pair of addresses, with their
    prefix lengths, goes to the two ends."""
    left.ip(f"link add {left_device} type veth peer name {right_device} netns {right.name}")
    for space, device, side in ((left, left_device, 0), (right, right_device, 1)):
        lines = [f"link set {device} up"]
        for pair in pairs:
            nodad = " nodad" if ":" in pair[side] else ""
            lines.append(f"address add {pair[side]} dev {device}{nodad}")
        space.ip(*lines)


class Lan:
    """A host under guard and a peer on the same link."""

    host_v4, peer_v4, friend_v4 = "10.77.0.1", "10.77.0.2", "10.77.0.3"
    host_v6, peer_v6, friend_v6 = "fd00:77::1", "fd00:77::2", "fd00:77::3"

    def __init__(self, host, peer):
        self.host, self.peer = host, peer
        link(host, "lan0", peer, "lan0",
             (f"{self.host_v4}/24", f"{self.peer_v4}/24"),
             (f"{self.host_v6}/64", f"{self.peer_v6}/64"))
        # Deprecated, so that it is used only where a test binds to it.
        peer.ip(f"address add {self.friend_v4}/24 dev lan0",
                f"address add {self.friend_v6}/64 dev lan0 nodad preferred_lft 0")


class Family:
    """How a client reaches a service: IPv4, IPv6, or IPv4 to a dual-stack
    listener, which has its row in tcp6 alone."""

    def __init__(self, name):
        self.is_v6 = name == "v6"
        self.wildcard = "0.0.0.0" if name == "v4" else "::"
        self.tool = "ip6tables" if self.is_v6 else "iptables"
        suffix = "v6" if self.is_v6 else "v4"
        self.host = getattr(Lan, f"host_{suffix}")
        self.peer = getattr(Lan, f"peer_{suffix}")
        self.friend = getattr(Lan, f"friend_{suffix}")
        self.single = "128" if self.is_v6 else "32"


FAMILIES = ("v4", "v6", "mapped")
FLAVOURS = ("nft", "legacy")  # of iptables
BACKENDS = ("iptables-nft", "iptables-legacy", "nft")  # as --list names them


# ------------------------------------------------------------------ firewall


IPTABLES_NAMES = [family + verb for family in ("iptables", "ip6tables")
                  for verb in ("", "-restore", "-save")]
COMMENT = (r'tcpparser v1 b=(?P<boot>[0-9a-f]{8}) e=(?P<end>\d+) s=(?P<strike>\d+)'
           r' t=(?P<since>\d+) d=(?P<data>[yn?]) p=(?P<ports>[\d,+]+)')
RULE = re.compile(
    r'^-A TCPPARSER -s (?P<source>\S+) '
    r'(?P<local>(?:! -p ipv6-icmp )?-m addrtype --dst-type LOCAL )?'
    rf'-m comment --comment "{COMMENT}" -j DROP$')
TO_HOST = "-m addrtype --dst-type LOCAL "
JUMPS = ["-A INPUT -j TCPPARSER", "-A FORWARD -j TCPPARSER"]


class Entry(typing.NamedTuple):
    """A block as it stands, whatever holds it."""

    source: str  # with its prefix length
    local: object  # true: towards the host only; or an iptables rule's words for it
    boot: str
    end: int
    strike: int
    since: int
    data: str
    ports: str

    @classmethod
    def read(cls, source, local, comment):
        return cls(source, bool(local), comment["boot"], int(comment["end"]),
                   int(comment["strike"]), int(comment["since"]), comment["data"],
                   comment["ports"])

    def comment(self):
        return (f"tcpparser v1 b={self.boot} e={self.end} s={self.strike} t={self.since} "
                f"d={self.data} p={self.ports}")

    def rule(self):
        """As iptables lists it."""
        spared = "! -p ipv6-icmp " if ":" in self.source else ""
        towards = (spared + TO_HOST if self.local is True else self.local) or ""
        return (f'-A TCPPARSER -s {self.source} {towards}-m comment '
                f'--comment "{self.comment()}" -j DROP')

    def element(self):
        """As nft takes it. The kernel's timers stand still in suspend: the
        time of one that ended lies beyond."""
        left = self.end - time.clock_gettime(time.CLOCK_BOOTTIME)
        left = left if left > 0 and self.boot == this_boot() else 3600
        timeout = f" timeout {int(left * 1000)}ms" if self.end else ""
        return f'{self.source.split("/")[0]}{timeout} comment "{self.comment()}"'


def this_boot():
    with open("/proc/sys/kernel/random/boot_id") as boot_id:
        return boot_id.read(8)


def real_tool(name):
    found = shutil.which(name, path=HOME.get("PATH", "") + ":/usr/sbin:/sbin")
    if found is None:
        raise SkipTest(f"{name} is not installed")
    return found


class Firewall:
    """The chain, of one flavour of iptables, chosen by a PATH folder that holds
    no other. `tool` says the family, too."""

    operator = "somebody"  # by whose hand a block is said to have gone
    unblocker = "somebody"  # and what --unblock is called
    only = ("--firewall=iptables",)  # however many blocks there are
    losses = ("flush_all", "delete_ours", "push_down", "reload_without_us")

    def __init__(self, case, flavour):
        self.flavour, self.name = flavour, f"iptables-{flavour}"
        self.binary = case.binary
        self.folder = case.folder(f"path-{flavour}")
        for name in IPTABLES_NAMES:
            family, _, verb = name.partition("-")
            real = real_tool("-".join(filter(None, (family, flavour, verb))))
            link_path = os.path.join(self.folder, name)
            if not os.path.lexists(link_path):
                os.symlink(real, link_path)
        self.env = {"PATH": self.folder, "LC_ALL": "C", "TZ": "UTC0",
                    "XTABLES_LOCKFILE": os.path.join(case.tmp, "xtables.lock")}

    def probe(self, namespace):
        """Skips where the kernel lacks this flavour's tables."""
        for tool in ("iptables", "ip6tables"):
            done = self.run(namespace, tool, "-w", "5", "-S")
            if done.returncode != 0:
                raise SkipTest(f"{tool}-{self.flavour}: {done.stderr.strip()[:100]}")

    def run(self, namespace, tool, *arguments, **options):
        return namespace.run(os.path.join(self.folder, tool), *arguments, env=self.env, **options)

    def must(self, namespace, tool, *arguments, **options):
        done = self.run(namespace, tool, *arguments, **options)
        assert done.returncode == 0, f"{tool} {arguments}: {done.stderr.strip()}"
        return done.stdout

    def product(self, namespace, *arguments):
        """Runs the product to its end beside whatever runs there."""
        return namespace.run(self.binary, *arguments, env=self.env)

    def rules(self, namespace, tool="iptables"):
        """The lines of `iptables -S`."""
        return self.must(namespace, tool, "-w", "5", "-S").splitlines()

    def everything(self, namespace):
        return self.rules(namespace) + self.rules(namespace, "ip6tables")

    def foreign(self, namespace):
        """What is not ours."""
        return [rule for rule in self.everything(namespace) if "TCPPARSER" not in rule]

    def is_untouched(self, namespace):
        return self.foreign(namespace) == self.everything(namespace)

    def entries(self, namespace, tool="iptables"):
        """The rules in the product's own chain."""
        return [rule for rule in self.rules(namespace, tool)
                if rule.startswith("-A TCPPARSER ")]

    def standing(self, namespace, tool="iptables"):
        """The product's blocks."""
        found = filter(None, map(RULE.match, self.entries(namespace, tool)))
        return [Entry.read(rule["source"], rule["local"], rule) for rule in found]

    def blocks(self, namespace, source, tool="iptables"):
        return any(f"-s {source} " in rule for rule in self.entries(namespace, tool))

    def jumps(self, namespace, tool="iptables"):
        return [rule for rule in self.rules(namespace, tool) if rule in JUMPS]

    def first_rules(self, namespace, tool="iptables"):
        """The first rule of INPUT and of FORWARD, where there is one."""
        rules = self.rules(namespace, tool)
        first = ([rule for rule in rules if rule.startswith(f"-A {chain} ")][:1]
                 for chain in ("INPUT", "FORWARD"))
        return sum(first, [])

    def is_whole(self, namespace, tool="iptables"):
        """Whether all that leads packets to the blocks is there, once."""
        return (self.first_rules(namespace, tool) == JUMPS
                and sorted(self.jumps(namespace, tool)) == sorted(JUMPS))

    def feed(self, namespace, tool, *entries):
        """Puts chain, jumps and entries into the kernel, as an earlier run left
        them; other rules as iptables lists them."""
        rules = (one.rule() if isinstance(one, Entry) else one for one in entries)
        lines = ["*filter", "-N TCPPARSER", "-I INPUT 1 -j TCPPARSER", "-I FORWARD 1 -j TCPPARSER",
                 *rules, "COMMIT"]
        self.must(namespace, f"{tool}-restore", "-w", "5", "--noflush",
                  input="\n".join(lines) + "\n")

    # What stands in the chain and is not ours, and what a newer version left.
    not_ours = ("-A TCPPARSER -s 192.0.2.0/24 -j DROP",
                "-A TCPPARSER -s 192.0.2.9/32 -m comment --comment tcpparsers -j DROP",
                '-A TCPPARSER -s 192.0.2.8/32 -p tcp -m comment --comment "tcpparser v1" -j DROP')
    newer = '-A TCPPARSER -s 198.51.100.9/32 -m comment --comment "tcpparser v9 x=1" -j DROP'

    def accept_established(self, namespace, tool="iptables"):
        """A rule of somebody else, by which open connections go on."""
        self.must(namespace, tool, "-w", "5", "-A", "INPUT", "-m", "conntrack", "--ctstate",
                  "ESTABLISHED", "-j", "ACCEPT")

    def accept_services(self, namespace, tool="iptables"):
        """Rules of somebody else in the way of ours."""
        for rule in ("-A INPUT -i lo -j ACCEPT", "-A INPUT -p tcp --dport 22 -j ACCEPT",
                     "-A FORWARD -p udp -j DROP"):
            self.must(namespace, tool, "-w", "5", *rule.split())

    def change(self, namespace, tool, *arguments):
        self.must(namespace, tool, "-w", "5", *arguments)

    def delete(self, namespace, tool, source):
        """By an operator's hand."""
        sources = [one.source for one in self.standing(namespace, tool)]
        self.change(namespace, tool, "-D", "TCPPARSER", str(1 + sources.index(source)))

    def delete_all(self, namespace, tool):
        self.change(namespace, tool, "-F", "TCPPARSER")

    def flush_all(self, namespace, tool):
        self.change(namespace, tool, "-F")

    def delete_ours(self, namespace, tool):
        for chain in ("INPUT", "FORWARD", "TCPPARSER"):
            self.change(namespace, tool, "-F", chain)
        self.change(namespace, tool, "-X", "TCPPARSER")

    def push_down(self, namespace, tool):
        for chain in ("INPUT", "FORWARD"):
            for port in ("1", "2"):
                self.change(namespace, tool, "-I", chain, "-p", "tcp", "--dport", port,
                            "-j", "ACCEPT")

    def save(self, namespace, tool):
        return self.must(namespace, f"{tool}-save")

    def restore(self, namespace, tool, saved):
        """In the place of all that stands."""
        self.must(namespace, f"{tool}-restore", "-w", "5", input=saved or "*filter\nCOMMIT\n")


class Sets:
    """The sets, for a product that finds no tool at all; the test looks on with
    nft. It has the verbs of `Firewall`."""

    name = operator = "nft"
    unblocker = "tcpparser"
    only = ()
    losses = ("flush_all", "delete_ours", "flush_table", "flush_chain", "delete_chain",
              "make_dormant", "reload_without_us")
    # The bits of an address that count in each set.
    lengths = {"drop4": 32, "drop6": 128, "net6": 64, "net56": 56, "net48": 48, "host4": 32,
               "host6": 128}
    forward = ("ip saddr @drop4 drop", "ip6 saddr @drop6 drop",
               "ip6 saddr & ffff:ffff:ffff:ffff:: == @net6 drop",
               "ip6 saddr & ffff:ffff:ffff:ff00:: == @net56 drop",
               "ip6 saddr & ffff:ffff:ffff:: == @net48 drop")
    chains = {"input": ["type filter hook input priority filter - 10; policy accept;", *forward,
                        "ip saddr @host4 drop", "ip6 saddr @host6 meta l4proto != ipv6-icmp drop"],
              "forward": ["type filter hook forward priority filter - 10; policy accept;",
                          *forward]}

    def __init__(self, case):
        self.binary, self.nft = case.binary, real_tool("nft")
        self.env = {"PATH": case.folder("path-empty"), "LC_ALL": "C", "TZ": "UTC0"}

    def probe(self, namespace):
        done = namespace.run(self.nft, "list", "ruleset")
        if done.returncode != 0:
            raise SkipTest(f"nft: {done.stderr.strip()[:100]}")

    def must(self, namespace, *arguments, **options):
        return namespace.must(self.nft, *arguments, **options)

    def load(self, namespace, *lines):
        """One transaction."""
        self.must(namespace, "-f", "-", input="\n".join(lines) + "\n")

    product = Firewall.product

    def objects(self, namespace, *what):
        """Objects as nft lists them; none where there is no such table."""
        done = namespace.run(self.nft, "-j", "list", *(what or ("ruleset",)))
        assert done.returncode == 0 or "No such file" in done.stderr, f"nft: {done.stderr.strip()}"
        return json.loads(done.stdout)["nftables"][1:] if done.returncode == 0 else []

    def everything(self, namespace):
        """All tables, without what changes by itself."""
        lines = []
        for (kind, object), in map(dict.items, self.objects(namespace)):
            table = object["name"] if kind == "table" else object["table"]
            elements = object.pop("elem", [])
            for one in (object, *(one["elem"] for one in elements if "elem" in one)):
                for volatile in ("handle", "expires"):
                    one.pop(volatile, None)
            for one in object.get("expr", []):
                if "counter" in one:
                    one["counter"] = {}
            lines.append(f"{object['family']} {table} {kind} {json.dumps(object)}")
            lines += sorted(f"{object['family']} {table} {object['name']} {json.dumps(one)}"
                            for one in elements)
        return lines

    def foreign(self, namespace):
        return [line for line in self.everything(namespace)
                if not line.startswith("inet tcpparser ")]

    is_untouched = Firewall.is_untouched

    def all_standing(self, namespace):
        """The product's elements, both families'."""
        found = []
        for object in self.objects(namespace, "table", "inet", "tcpparser"):
            made = object.get("set", {})
            for one in made.get("elem", []) if made.get("name") in self.lengths else []:
                one = one["elem"] if isinstance(one, dict) and "elem" in one else {"val": one}
                comment = re.fullmatch(COMMENT, one.get("comment", ""))
                if comment:
                    source = f"{one['val']}/{self.lengths[made['name']]}"
                    found.append(Entry.read(source, made["name"].startswith("host"), comment))
        return sorted(found)

    def standing(self, namespace, tool="iptables"):
        return [one for one in self.all_standing(namespace)
                if (":" in one.source) == tool.startswith("ip6")]

    def blocks(self, namespace, source, tool="iptables"):
        return any(one.source == source for one in self.standing(namespace, tool))

    def is_whole(self, namespace, tool="iptables"):
        """Both chains in their hooks, with each set's rule once, in force."""
        done = namespace.run(self.nft, "-s", "list", "table", "inet", "tcpparser")
        chains = {name: [line.strip() for line in lines.splitlines()]
                  for name, lines in re.findall(r"\tchain (\w+) {\n([^}]*)\t}", done.stdout)}
        return chains == self.chains and "flags dormant" not in done.stdout

    @classmethod
    def table(cls):
        """What the product makes, in nft's language."""
        lines = ["table inet tcpparser {",
                 'comment "port scan sources; tcpparser --unblock all lifts them"']
        for name in cls.lengths:
            kind = "ipv4_addr" if name.endswith("4") else "ipv6_addr"
            lines.append(f"set {name} {{ type {kind}; size 65536; flags timeout; }}")
        for name, rules in cls.chains.items():
            lines += [f"chain {name} {{", *rules, "}"]
        return [*lines, "}"]

    def set_of(self, entry):
        length = entry.source.partition("/")[2]
        return next(name for name, bits in self.lengths.items()
                    if bits == int(length) and name.startswith("host") == bool(entry.local))

    def feed(self, namespace, tool, *entries):
        """Puts the table and entries into the kernel, as an earlier run left
        them; other elements as nft takes them."""
        elements = (f"add element inet tcpparser {self.set_of(one)} {{ {one.element()} }}"
                    if isinstance(one, Entry) else one for one in entries)
        table = [] if self.is_whole(namespace) else self.table()
        self.load(namespace, *table, *elements)

    not_ours = ("add element inet tcpparser drop4 { 192.0.2.7 }",
                "add element inet tcpparser drop4 { 192.0.2.9 timeout 1h comment \"tcpparsers\" }",
                "add set inet tcpparser others { type ipv4_addr; flags interval; }",
                "add element inet tcpparser others { 192.0.2.0/24 }")
    newer = "add element inet tcpparser drop4 { 198.51.100.9 comment \"tcpparser v9 x=1\" }"

    def accept_established(self, namespace, tool="iptables"):
        self.load(namespace, "table inet filter {", "chain input {",
                  "type filter hook input priority filter; policy accept;",
                  "ct state established accept", "}", "}")

    def accept_services(self, namespace, tool="iptables"):
        for hook, rule in (("input", "tcp dport 22 accept"), ("forward", "meta l4proto udp drop")):
            self.load(namespace, "table inet services {", f"chain {hook} {{",
                      f"type filter hook {hook} priority -300; policy accept;", rule, "}", "}")

    def delete(self, namespace, tool, source):
        entry = next(one for one in self.standing(namespace, tool) if one.source == source)
        self.must(namespace, "delete", "element", "inet", "tcpparser", self.set_of(entry),
                  f"{{ {source.split('/')[0]} }}")

    def delete_all(self, namespace, tool):
        self.load(namespace, *(f"flush set inet tcpparser {name}" for name in self.lengths))

    def flush_all(self, namespace, tool):
        self.must(namespace, "flush", "ruleset")

    def delete_ours(self, namespace, tool):
        self.must(namespace, "delete", "table", "inet", "tcpparser")

    def flush_table(self, namespace, tool):
        """Of all rules; elements stay."""
        self.must(namespace, "flush", "table", "inet", "tcpparser")

    def flush_chain(self, namespace, tool):
        self.must(namespace, "flush", "chain", "inet", "tcpparser", "input")

    def delete_chain(self, namespace, tool):
        self.load(namespace, "flush chain inet tcpparser input",
                  "delete chain inet tcpparser input")

    def make_dormant(self, namespace, tool):
        """Its chains are in no hook then."""
        self.load(namespace, "table inet tcpparser { flags dormant; }")

    def save(self, namespace, tool):
        return self.must(namespace, "list", "ruleset")

    def restore(self, namespace, tool, saved):
        self.load(namespace, "flush ruleset", saved)


def wrapped_firewall(case, firewall, script):
    """Runs this shell script before each of the firewall's tools, as `$name`,
    which is `$real`; only shell builtins have no path there."""
    folder = case.folder("path-wrapped")
    for name in IPTABLES_NAMES:
        path = os.path.join(folder, name)
        with open(path, "w") as file:
            file.write(f"#!/bin/sh\nname={name}\nreal={firewall.folder}/{name}\n"
                       f'{script}\nexec "$real" "$@"\n')
        os.chmod(path, 0o755)
    return {**firewall.env, "PATH": folder}


def broken_firewall(case, script):
    """A PATH folder in which every iptables is this shell script."""
    folder = case.folder("path-broken")
    for name in IPTABLES_NAMES:
        path = os.path.join(folder, name)
        with open(path, "w") as file:
            file.write("#!/bin/sh\n" + script)
        os.chmod(path, 0o755)
    return {"PATH": folder, "LC_ALL": "C", "TZ": "UTC0"}


# --------------------------------------------------------- the binary watched


class Guard:
    """A running tcpparser whose lines are collected with their times."""

    def __init__(self, namespace, command, env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE):
        self.namespace = namespace
        self.lines, self.errors, self.scraped = [], [], 0.0
        with namespace.entered():
            self.process = subprocess.Popen(
                command, env=env, stdin=stdin, stdout=stdout, stderr=subprocess.PIPE)
        self.pid = self.process.pid
        self.readers = [self.collect(self.process.stderr, self.errors)]
        if self.process.stdout:
            self.readers.append(self.collect(self.process.stdout, self.lines))

    @staticmethod
    def collect(stream, lines):
        def read():
            # A terminal ends with EIO.
            with contextlib.suppress(OSError):
                for raw in stream:
                    lines.append((time.monotonic(), raw.decode(errors="replace").rstrip("\r\n")))
        thread = threading.Thread(target=read, daemon=True)
        thread.start()
        return thread

    def output(self):
        return [line for _, line in list(self.lines)]

    def error_output(self):
        return [line for _, line in list(self.errors)]

    def matching(self, pattern):
        return [line for line in self.output() if re.search(pattern, line)]

    def wait_line(self, pattern, seconds=DEADLINE):
        """The first line that matches, old ones included."""
        def found():
            ended = self.process.poll() is not None
            lines = self.matching(pattern)
            assert lines or not ended, f"it ended before a line /{pattern}/"
            return lines
        return wait_for(found, f"a line /{pattern}/", seconds)[0]

    def ready(self):
        """Waits for the first reading."""
        self.wait_readings(1, since=0)
        return self

    def scrape(self):
        """All samples by name and labels, and none that was written for the last
        time that they were asked for."""
        time.sleep(max(0, self.scraped + HTTP_FRESH - time.monotonic()))
        client = http.client.HTTPConnection("127.0.0.1", 3021, timeout=5)
        try:
            with self.namespace.entered():
                client.connect()
            client.request("GET", "/metrics")
            return samples(client.getresponse().read().decode())
        except (OSError, http.client.HTTPException) as error:
            raise AssertionError(f"no metrics: {error}") from None
        finally:
            self.scraped = time.monotonic()
            client.close()

    def metric(self, name):
        return self.scrape().get(name, 0.0)

    def readings(self):
        try:
            return self.metric("tcpparser_readings_total")
        except AssertionError:
            assert self.process.poll() is None, f"tcpparser ended: {self.process.returncode}"
            return 0

    def wait_readings(self, count, since=None):
        """Lets `count` more whole readings pass."""
        since = self.readings() + 1 if since is None else since
        wait_for(lambda: self.readings() >= since + count, f"{count} readings")

    def wait_exit(self, seconds=DEADLINE):
        try:
            status = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {seconds} s") from None
        for reader in self.readers:
            reader.join(2)
        return status

    def signal(self, number):
        os.kill(self.pid, number)

    def kill(self):
        """The end of the test: leave nothing behind."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(3)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(3)
        for reader in self.readers:
            reader.join(2)


def samples(text):
    """The samples of a text exposition: name with labels -> value."""
    found = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            found[name] = float(value)
    return found


class Case:
    """One run of one test, and all it made."""

    def __init__(self, binary):
        self.binary = binary
        # Lines of README.md: what this test is to type, and what it did.
        self.to_type, self.typed = set(), set()
        self.has_passed = False
        self.tmp = tempfile.mkdtemp(prefix=f"{FOLDER}{os.getpid()}-")
        os.chmod(self.tmp, 0o755)
        self.namespaces, self.guards, self.firewalls = [], [], {}
        self.closing = []  # what else has to be closed

    def use_quick_binary(self):
        """The one that verifies the firewall each second (see the Makefile)."""
        folder, name = os.path.split(self.binary)
        self.binary = os.path.join(folder, "quick", name)
        if not os.access(self.binary, os.X_OK):
            raise SkipTest(f"`make test` builds {self.binary}")

    def folder(self, name):
        path = os.path.join(self.tmp, name)
        os.makedirs(path, exist_ok=True)
        return path

    def namespace(self, role, apart=False):
        need_namespaces()
        made = Namespace(role, apart)
        self.namespaces.append(made)
        return made

    def lan(self):
        return Lan(self.namespace("host"), self.namespace("peer"))

    def firewall(self, namespace, flavour="nft"):
        return self.probed(namespace, Firewall(self, flavour))

    def backend(self, namespace, name):
        """What holds blocks, as --list names it."""
        _, is_iptables, flavour = name.rpartition("iptables-")
        return self.probed(namespace, Firewall(self, flavour) if is_iptables else Sets(self))

    def probed(self, namespace, made):
        made.probe(namespace)
        self.firewalls[namespace.name] = (made, namespace)
        return made

    def guard(self, namespace, *arguments, env=None, before=(), interval="200ms", **options):
        """Starts the binary inside `namespace`; `before` is a wrapping command."""
        env = env or Firewall(self, "nft").env
        command = [*found(before), self.binary, "--interval", interval, *arguments]
        made = Guard(namespace, command, env, **options)
        self.guards.append(made)
        return made

    def once(self, *arguments, env=None, before=(), seconds=20):
        """Runs the binary to its end, its output in a file that never blocks.
        Whatever goes wrong, this host stays untouched: root runs it in a network
        namespace of its own, and it finds no iptables."""
        path = os.path.join(self.tmp, "stdout")
        environment = {"PATH": self.folder("path-empty"), "TZ": "UTC0", **(env or {})}
        apart = contextlib.nullcontext()
        if os.geteuid() == 0 and shutil.which("ip"):
            self.namespaces.append(Namespace("once"))
            apart = self.namespaces[-1].entered()
        with open(path, "wb") as stdout, apart:
            started = time.monotonic()
            process = subprocess.Popen(
                [*found(before), self.binary, *arguments], env=environment,
                stdin=subprocess.DEVNULL, stdout=stdout, stderr=subprocess.PIPE)
        peak = 0
        try:
            while process.poll() is None:
                peak = max(peak, peak_memory(process.pid))
                assert time.monotonic() - started < seconds, f"hangs: {seconds} s passed"
                time.sleep(0.005)
        finally:
            process.kill()
            errors = process.communicate()[1].decode(errors="replace")
        with open(path, errors="replace") as stdout:
            return Ended(process.returncode, stdout.read(), errors, peak,
                         time.monotonic() - started)

    def report(self):
        """What a failed test's reader wants to see."""
        parts = []
        for number, guard in enumerate(self.guards, 1):
            parts += [f"tcpparser {number}: {' '.join(guard.process.args)}",
                      f"  exit status {guard.process.poll()}"]
            parts += [f"  out: {line}" for line in guard.output()[-15:]]
            parts += [f"  err: {line}" for line in guard.error_output()[-10:]]
        for firewall, namespace in self.firewalls.values():
            with contextlib.suppress(Exception):
                parts += [f"  rule: {rule}" for rule in firewall.everything(namespace)[:30]]
        return parts

    def close(self):
        for guard in self.guards:
            guard.kill()
        for made in reversed(self.closing):
            made.close()
        for namespace in self.namespaces:
            namespace.destroy()
        shutil.rmtree(self.tmp, ignore_errors=True)


class Ended:
    """How a run of the binary ended."""

    def __init__(self, status, stdout, stderr, peak_kib, seconds):
        self.status, self.stdout, self.stderr = status, stdout, stderr
        self.lines, self.errors = stdout.splitlines(), stderr.splitlines()
        self.peak_kib, self.seconds = peak_kib, seconds

    def __repr__(self):
        return f"exit {self.status}, stdout {self.stdout[-400:]!r}, stderr {self.stderr[-400:]!r}"


def found(command):
    """A wrapping command by its full path: PATH is the product's alone."""
    return [shutil.which(command[0]) or command[0], *command[1:]] if command else []


def peak_memory(pid):
    """Most memory ever resident, in KiB, while the process lives. Not from
    wait4(2): that counts the forked copy of ourselves too."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/status") as status:
        for line in status:
            if line.startswith("VmHWM:"):
                return int(line.split()[1])
    return 0


def need_namespaces():
    if os.geteuid() != 0:
        raise SkipTest("network namespaces need root")
    need("ip", "curl")


# -------------------------------------------------------- nothing stays behind


def remove_of(is_wanted):
    """Namespaces, control groups, mounts and folders of the runs whose process
    number is wanted, and the processes left inside."""
    def owned(paths):
        for path in paths:
            owner = re.search(r"/tcpp(?:arser-test)?-(\d+)-", path)
            if owner and is_wanted(int(owner[1])):
                yield path

    for path in owned(glob.glob("/run/netns/tcpp-*")):
        destroy_namespace(os.path.basename(path))
    for path in owned(glob.glob("/sys/fs/cgroup/tcpp-*") + glob.glob("/sys/fs/cgroup/*/tcpp-*")):
        remove_group(path)
    with open("/proc/self/mounts") as mounts:
        points = [line.split()[1].encode().decode("unicode_escape") for line in mounts]
    for point in owned(point for point in reversed(points) if point.startswith(FOLDER)):
        run("umount", "--lazy", point)
    for folder in owned(glob.glob(f"{FOLDER}*")):
        shutil.rmtree(folder, ignore_errors=True)


def remove_group(path, seconds=3):
    """A control group with all below it, as soon as its processes have ended."""
    end = time.monotonic() + seconds
    for folder, _, _ in os.walk(path, topdown=False):
        while os.path.isdir(folder) and time.monotonic() < end:
            with contextlib.suppress(OSError):
                with open(f"{folder}/cgroup.procs") as processes:
                    for number in set(processes.read().split()) - {"0"}:
                        os.kill(int(number), signal.SIGKILL)
                os.rmdir(folder)
                break
            time.sleep(0.02)


def is_alive(pid):
    """Whether a process runs; one that waits to be reaped has no command line."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline") as file:
        return bool(file.read())
    return False


AT_END = []  # functions that take away what the run made beside that


def remove_own():
    for function in reversed(AT_END):
        with contextlib.suppress(Exception):
            function()
    remove_of(lambda number: number == os.getpid())


def end_early(number, _frame):
    """A signal: nothing of ours stays behind."""
    print(f"ended by {signal.Signals(number).name}", flush=True)
    remove_own()
    os._exit(1)


def end_in_time(seconds):
    """Whatever ends the run, or that many seconds, nothing of ours stays
    behind."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGALRM):
        signal.signal(number, end_early)
    signal.alarm(seconds)
    atexit.register(remove_own)


def run_alone(main, seconds):
    """A program that is no test: `main` gets the path of tcpparser and answers
    with the exit status."""
    end_in_time(seconds)
    try:
        if len(sys.argv) != 2 or not os.access(sys.argv[1], os.X_OK):
            sys.exit(f"usage: {os.path.basename(sys.argv[0])} BINARY")
        need_namespaces()
        sys.exit(main(os.path.abspath(sys.argv[1])))
    except SkipTest as reason:
        print(f"SKIPPED {reason}")
    except AssertionError as reason:
        sys.exit(f"FAILED {reason}")


# --------------------------------------------------------- lines of output


STAMP = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"


def line_pattern(label, who, rest):
    """One line of output to the letter, whatever its time."""
    return f"^{STAMP}: " + re.escape(f"{label:>18}: {who:>21} {rest}") + "$"


def connection_pattern(peer, arrow, local):
    return line_pattern("New connection", peer, f"{arrow} {local}")


def scan_pattern(source, local, ports, is_old=False):
    """`is_old`: its connections were there at the first reading."""
    numbers = ",".join(map(str, sorted(ports)))
    end = " (before the start)" if is_old else ""
    return line_pattern("Port scan detected", source, f"-> {local} on ports {numbers}{end}")


def canonical(address):
    return str(ipaddress.ip_address(address))
