"""What must never be blocked, on hosts of every kind: many addresses, stubs in
resolv.conf, changes between two readings, full routing tables. In each run an
ordinary scanner is blocked as well."""

import os
import re
import shutil
import socket
import statistics
import subprocess
import threading
import time

import harness
import pytest

from harness import Lan, must, need, wait_for
from traffic import deaf, end, has_events, touch

PORTS = (22, 25, 80, 443)
UNKNOWN = "own addresses and gateways are not fully known"
TOO_MANY = "more own addresses or gateways than fit; nothing is blocked until they do"
STUB = "nameserver 127.0.0.1\nnameserver ::1\n"
# A machine with files of its own: what is written there is gone with it.
OVERLAYS = """
set -e
mount -t tmpfs tmpfs /mnt
for folder in etc run tmp var; do
    mkdir -p /mnt/$folder/upper /mnt/$folder/work
    mount -t overlay overlay /$folder \
        -o lowerdir=/$folder,upperdir=/mnt/$folder/upper,workdir=/mnt/$folder/work
done
rm -f /etc/resolv.conf
"""


class Scene:
    """A guarded host with four services, a peer and its friend, who scan it."""

    def __init__(self, t, *arguments, prepare=lambda host: None, files=None, quick=False,
                 before=()):
        if quick:
            t.use_quick_binary()
        self.t, self.lan = t, t.lan()
        self.host, self.peer = self.lan.host, self.lan.peer
        self.firewall = t.firewall(self.host)
        self.host.listen(*PORTS)
        prepare(self.host)
        before = before if files is None else with_files(t, files)
        self.guard = t.guard(self.host, *arguments, before=before, env=self.firewall.env).ready()
        wait_for(lambda: has_events(self.guard) or self.guard.error_output(), "the self-test")

    def scan(self, source=Lan.peer_v4):
        assert touch(self.peer, Lan.host_v4, *PORTS, source=source) == 4, "connections"

    def is_not_blocked(self, why, source=Lan.peer_v4):
        self.scan(source)
        self.guard.wait_line(rf": +Not blocked: +{re.escape(source)} .*{why}")
        assert not self.firewall.blocks(self.host, f"{source}/32"), "no rule"

    def is_blocked(self, source=Lan.friend_v4):
        """The control: whatever else is protected, a scanner is blocked."""
        self.scan(source)
        self.guard.wait_line(rf": +Blocked: +{re.escape(source)} ")
        wait_for(lambda: self.firewall.blocks(self.host, f"{source}/32"), "the rule")

    def path(self, name):
        """A file as the guard sees it."""
        return f"/proc/{self.guard.pid}/root{name}"

    def known(self):
        return self.guard.metric("tcpparser_host_facts_known") == 1

    def health(self):
        done = self.host.run("curl", "-s", "--max-time", "5", "-w", " %{http_code}",
                             "http://127.0.0.1:3021/healthz")
        words, _, status = done.stdout.rpartition(" ")
        return int(status or 0), words.strip()


def with_files(t, files):
    need("unshare", "mount", "sh")
    folder = t.folder("files")
    lines = [OVERLAYS]
    for number, (path, text) in enumerate(files.items()):
        with open(os.path.join(folder, str(number)), "w") as file:
            file.write(text)
        lines.append(f"mkdir -p {os.path.dirname(path)}; cp {folder}/{number} {path}")
    lines.append(f'PATH={t.folder("path-nft")}; exec "$@"')
    return ("env", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "unshare", "-m", "sh", "-c",
            "\n".join(lines), "sh")


def batch(space, lines):
    must("ip", "-n", space.name, "-batch", "-", input="\n".join(lines) + "\n", seconds=180)


def numbered(count, template):
    return [template.format(f"10.{100 + n // 65536}.{n // 256 % 256}.{n % 256}")
            for n in range(count)]


# ------------------------------------------------------------- own addresses


@pytest.mark.parametrize("device, count", [("lo", 3000), ("kube-ipvs0", 10_000)])
def test_thousands_of_own_addresses(t, device, count):
    def prepare(host):
        if device != "lo":
            host.ip(f"link add {device} type veth peer name {device}-end")
        batch(host, numbered(count, f"address add {{}}/32 dev {device}"))

    scene = Scene(t, prepare=prepare)
    scene.is_blocked()
    assert scene.known(), "all is known"
    assert scene.guard.error_output() == [], "words"
    assert scene.health() == (200, "ok"), "health"


@pytest.mark.parametrize("when", ["from the start", "later"])
def test_more_own_addresses_than_fit(t, when):
    """Said, shown, and no scan waits for what may never come."""
    routes = numbered(16_500, "route add local {} dev lo table local")
    at_start = (lambda host: batch(host, routes)) if when == "from the start" else (lambda _: None)
    scene = Scene(t, "--window", "5s", prepare=at_start)
    guard = scene.guard
    if when == "later":
        scene.is_blocked(Lan.friend_v4)
        batch(scene.host, routes)
    wait_for(guard.error_output, "words about it")
    assert TOO_MANY in guard.error_output()[0], guard.error_output()
    assert not scene.known(), "the gauge is 0"
    status, words = scene.health()
    assert status == 503 and UNKNOWN in words, f"{status} {words}"
    scene.is_not_blocked("own addresses and gateways not fully known")
    assert guard.metric("tcpparser_blocks_pending") == 0, "blocks_pending"
    assert len(guard.error_output()) == 1, f"lines {guard.error_output()}"
    # What was not blocked then is not blocked afterwards.
    must("ip", "-n", scene.host.name, "route", "flush", "table", "local", "root", "10.100.0.0/16",
         seconds=60)
    wait_for(scene.known, "all is known again")
    wait_for(lambda: scene.health() == (200, "ok"), "health")
    guard.wait_readings(3)
    assert not scene.firewall.blocks(scene.host, f"{Lan.peer_v4}/32"), "no late block"
    # A new scan is. The source was quiet for a window.
    if when == "from the start":
        scene.is_blocked(Lan.friend_v4)
    assert len(guard.error_output()) == 1, f"lines {guard.error_output()}"


@pytest.mark.parametrize("when", ["later", "from the start"])
def test_thousands_of_link_local_gateways(t, when):
    """A host on a link has them added by router advertisements
    (net.ipv6.conf.*.accept_ra is 1): no link-local source is blocked then, every
    other is. Real advertisements would fill the neighbour table, which all
    network namespaces share."""
    ports = (1022, 1025, 1080, 1443)
    routes = [f"route add ::/0 via fe80::1:{number:x} dev lan0 proto ra metric {number}"
              for number in range(1, 4_301)]

    def prepare(host):
        host.ip("address add fe80::77/64 dev lan0 nodad")
        host.listen(*ports, address="::")
        if when == "from the start":
            batch(host, routes)

    scene = Scene(t, prepare=prepare)
    if when == "later":
        batch(scene.host, routes)
    scene.is_blocked()
    scene.peer.ip(*(f"address add {source}/64 dev lan0 nodad" for source in ("fe80::66", "fe80::1:1")))
    with scene.peer.entered():
        link = socket.if_nametoindex("lan0")
    for source, why in (("fe80::66", "own addresses and gateways not fully known"),
                        ("fe80::1:1", "(gateway|own addresses)")):
        for port in ports:
            connection = scene.peer.socket("::")
            connection.settimeout(5)
            connection.bind((source, 0, 0, link))
            connection.connect(("fe80::77", port, 0, link))
            end(connection, "rst")
        scene.guard.wait_line(f": +Not blocked: +{source} +{why}")
    scene.host.ip(f"route add 198.51.100.0/24 via {Lan.peer_v4}")
    scene.is_not_blocked("gateway")
    assert scene.known(), "all is known"
    assert scene.guard.error_output() == [], "words"
    assert scene.health() == (200, "ok"), "health"


# --------------------------------------------------------------- nameservers


FILES = {
    "resolv.conf": {"/etc/resolv.conf": "nameserver 10.77.0.2\n"},
    "systemd-resolved": {"/etc/resolv.conf": "nameserver 127.0.0.53\noptions edns0\n",
                         "/run/systemd/resolve/resolv.conf": "nameserver 10.77.0.2\nsearch .\n"},
    "NetworkManager": {"/etc/resolv.conf": STUB,
                       "/run/NetworkManager/no-stub-resolv.conf": "nameserver 10.77.0.2"},
    "OpenWrt": {"/etc/resolv.conf": STUB + "search lan\n",
                "/tmp/resolv.conf.d/resolv.conf.auto": "# Interface wan\nnameserver 10.77.0.2\n"},
    "OpenWrt's dnsmasq": {"/etc/resolv.conf": STUB,
                          "/var/etc/dnsmasq.conf.cfg01411c": "no-resolv\nserver=10.77.0.2#53\n"},
    "dnsmasq": {"/etc/resolv.conf": "nameserver 10.77.0.1\n",
                "/etc/dnsmasq.conf": "# server=10.77.0.3\nserver=/lan/10.77.0.2\n"},
    "resolvconf": {"/run/dnsmasq/resolv.conf": "nameserver 10.77.0.2\n"},
}


@pytest.mark.parametrize("kind", FILES)
def test_nameservers_behind_a_stub(t, kind):
    scene = Scene(t, files=FILES[kind])
    scene.is_not_blocked("nameserver")
    scene.is_blocked()
    assert scene.guard.error_output() == [], "words"


RESOLVED = FILES["systemd-resolved"]
DOMAINS = "/".join(f"department-{n}.corp.example" for n in range(20))
LINES = {
    "a comment": f"nameserver 10.77.0.2   # {'a, b/c ' * 40}\nnameserver 10.77.0.9\n",
    "domains": f"server=10.77.0.9\nserver=/{DOMAINS}/10.77.0.2#53\n",
    "local": "local=/corp/10.77.0.2\nserver=10.77.0.9\n",
    "rev-server": "rev-server=10.0.0.0/8,10.77.0.2\nserver=10.77.0.9\n",
    "blanks": "server = 10.77.0.2@lan0\n",
}


@pytest.mark.parametrize("kind", LINES)
def test_nameservers_on_lines_of_any_shape(t, kind):
    files = {"/etc/resolv.conf": STUB, "/etc/dnsmasq.conf": LINES[kind]}
    if kind == "a comment":
        files = {"/etc/resolv.conf": LINES[kind]}
    scene = Scene(t, files=files)
    scene.is_not_blocked("nameserver")
    scene.is_blocked()
    assert scene.guard.error_output() == [], "words"


def many_nameservers(line):
    return "".join(line.format(f"203.0.113.{n}" if n < 250 else f"198.51.100.{n - 249}")
                   for n in range(1, 300))


@pytest.mark.parametrize("kind", ["resolv.conf", "dnsmasq"])
def test_more_nameservers_than_fit(t, kind):
    """Said once; scanners are blocked, and those that fit are not."""
    files = {"/etc/resolv.conf": "nameserver 10.77.0.2\n" + many_nameservers("nameserver {}\n")}
    if kind == "dnsmasq":
        files = {"/etc/resolv.conf": STUB,
                 "/etc/dnsmasq.conf": "server=10.77.0.2\n" + many_nameservers("server={}\n")}
    scene = Scene(t, files=files)
    scene.is_blocked()
    scene.is_not_blocked("nameserver")
    scene.guard.wait_readings(2)
    said = scene.guard.error_output()
    assert len(said) == 1 and "more nameservers than fit" in said[0], f"lines {said}"
    assert scene.health() == (200, "ok"), "health"
    assert scene.known(), "no fact is missing"


@pytest.mark.parametrize("limit", [6, 7])
def test_no_descriptor_for_the_resolvers_file(t, limit):
    """That is no file without nameservers. Later there are descriptors."""
    need("prlimit")
    lan = t.lan()
    firewall = t.firewall(lan.host)
    lan.host.listen(*PORTS)
    few = (shutil.which("prlimit"), f"--nofile={limit}:999")
    before = (*with_files(t, FILES["resolv.conf"]), *few)
    guard = t.guard(lan.host, "--listen", "none", before=before, env=firewall.env)
    wait_for(lambda: "too many open files" in " ".join(guard.error_output()), "words about it")
    must("prlimit", "--pid", str(guard.pid), "--nofile=999:999")
    held = [lan.peer.connect(Lan.host_v4, port, source)
            for source in (Lan.friend_v4, Lan.peer_v4) for port in PORTS]
    guard.wait_line(rf": +Blocked: +{Lan.friend_v4} ", 60)
    guard.wait_line(rf": +Not blocked: +{Lan.peer_v4} nameserver", 60)
    assert len(held) == 8, "connections held"
    said = guard.error_output()
    assert not any("no nameserver" in line for line in said), f"lines {said}"


AUTO = "resolv.conf.d/resolv.conf.auto"
BY_OTHERS = {
    "hundreds": "cat > resolv.conf.auto",
    "the scanner": "echo nameserver 10.77.0.3 > resolv.conf.ppp",
    "a folder": f"mkdir resolv.conf.d; echo nameserver 10.77.0.3 > {AUTO}",
    "a link": f"mkdir resolv.conf.d; ln -s /etc/secret {AUTO}",
    "a link to a folder": "ln -s /etc/secrets resolv.conf.d",
    "a pipe": "mkfifo resolv.dnsmasq",
}


@pytest.mark.parametrize("what", BY_OTHERS)
def test_what_other_users_write_decides_nothing(t, what):
    need("nsenter", "setpriv")
    secret = f"nameserver {Lan.friend_v4}\n"
    scene = Scene(t, files={**RESOLVED, "/etc/secret": secret, f"/etc/secrets/{AUTO[14:]}": secret})
    os.chmod(scene.path("/tmp"), 0o1777)
    os.chown(scene.path("/run/systemd/resolve/resolv.conf"), 65_533, 65_533)
    must("nsenter", "-m", "-t", str(scene.guard.pid), "setpriv", "--reuid=65534", "--regid=65534",
         "--clear-groups", "sh", "-c", f"cd /tmp; {BY_OTHERS[what]}",
         input=many_nameservers("nameserver {}\n"))
    scene.guard.wait_readings(2)
    scene.is_blocked(Lan.friend_v4)
    # The file of systemd-resolved is believed: the folder above is root's.
    scene.is_not_blocked("nameserver")
    assert scene.guard.error_output() == [], "words"
    assert scene.health() == (200, "ok"), "health"


@pytest.mark.parametrize("what", ["a stub", "no file"])
def test_unknown_nameservers_are_said_once(t, what):
    files = {"/etc/resolv.conf": STUB} if what == "a stub" else {}
    scene = Scene(t, files=files)
    scene.is_blocked()
    assert len(scene.guard.error_output()) == 1, f"lines {scene.guard.error_output()}"
    said = scene.guard.error_output()[0]
    assert "nameserver" in said and "--allow" in said, said
    assert scene.health() == (200, "ok"), "health"
    assert scene.known(), "no fact is missing"


@pytest.mark.parametrize("how", ["empty", "away"])
def test_nameservers_stay_while_their_file_is_written(t, how):
    scene = Scene(t, files=FILES["OpenWrt"])
    path = scene.path("/tmp/resolv.conf.d/resolv.conf.auto")
    if how == "empty":
        open(path, "w").close()
    else:
        os.unlink(path)
    scene.guard.wait_readings(2)
    scene.is_not_blocked("nameserver")
    scene.is_blocked()


# --------------------------------------------------- between readings an hour


@pytest.mark.parametrize("what", [
    "gateway", "gateway of another table", "nexthop object", "nameserver"])
def test_what_is_protected_since_the_last_reading(t, what):
    """Also a minute before: it is asked for, or was reported, before the block."""
    scene = Scene(t, "--interval", "1h", files=FILES["OpenWrt"] if what == "nameserver" else None)
    readings = scene.guard.metric("tcpparser_scheduled_readings_total")
    if what == "nameserver":
        with open(scene.path("/tmp/resolv.conf.d/resolv.conf.auto"), "w") as file:
            file.write("nameserver 10.77.0.9\nnameserver 10.77.0.8\n")
        # Read again where it was read more than five seconds ago.
        time.sleep(5.5)
        with open(scene.path("/etc/resolv.conf"), "w") as file:
            file.write("nameserver 10.77.0.2\n")
    else:
        scene.host.ip(*{"gateway": ["route add default via 10.77.0.2"],
                        "gateway of another table": ["route add 10.9.0.0/16 via 10.77.0.2 table 7"],
                        "nexthop object": ["nexthop add id 7 via 10.77.0.2 dev lan0"]}[what])
    scene.is_not_blocked(what.split()[0] if what != "nexthop object" else "gateway")
    scene.is_blocked()
    assert scene.guard.metric("tcpparser_scheduled_readings_total") == readings, "readings"


@pytest.mark.parametrize("what", ["gateway", "own address", "nameserver"])
def test_a_block_ends_when_its_source_becomes_protected(t, what):
    files = {"/etc/resolv.conf": "nameserver 10.77.0.9\n"} if what == "nameserver" else None
    # The nameservers are read again as often as the firewall is looked at.
    scene = Scene(t, "--interval", "1h", files=files, quick=what == "nameserver")
    scene.is_blocked(Lan.friend_v4)
    scene.is_blocked(Lan.peer_v4)
    if what == "nameserver":
        with open(scene.path("/etc/resolv.conf"), "w") as file:
            file.write(f"nameserver {Lan.peer_v4}\n")
    else:
        scene.host.ip({"gateway": f"route add default via {Lan.peer_v4}",
                       "own address": f"address add {Lan.peer_v4}/32 dev lo"}[what])
    scene.guard.wait_line(rf": +Unblocked: +{Lan.peer_v4} it holds a protected address now", 30)
    wait_for(lambda: not scene.firewall.blocks(scene.host, f"{Lan.peer_v4}/32"), "no rule")
    assert scene.firewall.blocks(scene.host, f"{Lan.friend_v4}/32"), "the other block stands"


@pytest.mark.parametrize("how", ["notified", "replaced", "with its link"])
def test_what_is_protected_no_longer_is_blocked(t, how):
    """A gateway that has gone, two of the three without a message."""
    def prepare(host):
        host.ip("link add w0 type veth peer name w1", "link set w0 up", "link set w1 up",
                f"route add 10.9.0.0/16 via {Lan.friend_v4} dev w0 onlink",
                f"route add 10.10.0.0/16 via {Lan.peer_v4} dev lan0")

    scene = Scene(t, "--interval", "1h", prepare=prepare)
    scene.host.ip({"notified": "route del 10.9.0.0/16",
                   "replaced": "route replace 10.9.0.0/16 via 10.77.0.9 dev w0 onlink",
                   "with its link": "link set w0 down"}[how])
    time.sleep(2)  # what may be gone is asked for after a moment
    scene.is_blocked(Lan.friend_v4)
    scene.is_not_blocked("gateway", Lan.peer_v4)


@pytest.mark.parametrize("what", ["gateway", "nexthop object"])
def test_a_kernel_that_sends_no_events_is_asked(t, what):
    """Before a block, whatever --interval is. Destroy events are not to be had
    there either, so the scan is held open."""
    scene = Scene(t, "--interval", "1h", before=deaf("groups"))
    scene.host.ip({"gateway": f"route add default via {Lan.peer_v4}",
                   "nexthop object": f"nexthop add id 7 via {Lan.peer_v4} dev lan0"}[what])
    time.sleep(5.5)  # what is younger counts as current
    held = [scene.peer.connect(Lan.host_v4, port, source)
            for source in (Lan.friend_v4, Lan.peer_v4) for port in PORTS]
    scene.guard.wait_line(rf": +Blocked: +{Lan.friend_v4} ")
    scene.guard.wait_line(rf": +Not blocked: +{Lan.peer_v4} gateway")
    assert len(held) == 8, "connections held"
    assert scene.known(), "all is known"


@pytest.mark.idle
@pytest.mark.parametrize("seconds", [0, 8])
def test_facts_that_cannot_be_had_at_all(t, seconds):
    """From the start: said once, shown, and no scan waits."""
    scene = Scene(t, "--window", "5s", before=deaf("route"))
    wait_for(scene.guard.error_output, "words about it")
    time.sleep(seconds)
    scene.is_not_blocked("own addresses and gateways not fully known")
    said = [line for line in scene.guard.error_output() if UNKNOWN in line]
    assert len(said) == 1, f"lines {scene.guard.error_output()}"
    status, words = scene.health()
    assert status == 503 and UNKNOWN in words, f"{status} {words}"
    assert not scene.known(), "the gauge is 0"
    # The control: without that filter the same scan is blocked.
    scene.guard.kill()
    scene.guard = t.guard(scene.host, env=scene.firewall.env).ready()
    wait_for(lambda: has_events(scene.guard), "destroy events")
    scene.is_blocked(Lan.friend_v4)


# --------------------------------------------------------- large and restless


def healthz_times(scene, seconds):
    """How long single answers take, in seconds, connections of their own."""
    times, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        started = time.monotonic()
        with scene.host.connect("127.0.0.1", 3021, seconds=10) as made:
            made.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            while made.recv(4096):
                pass
        times.append(time.monotonic() - started)
        time.sleep(0.005)
    return times


class Flapping:
    """Thousands of routes that come and go, each second."""

    def __init__(self, space, is_v6):
        add = numbered(5_000, "route add {}/32 via 10.77.0.7")
        if is_v6:
            add = [f"route add 2001:db8:9:{n:x}::/64 via fd00:77::7" for n in range(5_000)]
        delete = [line.replace(" add ", " del ") for line in add]
        self.script = "\n".join(add + delete) + "\n"
        self.space, self.rounds = space, 0
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        while not self.stopped.is_set():
            harness.run("ip", "-n", self.space.name, "-batch", "-", input=self.script, seconds=60)
            self.rounds += 1

    def close(self):
        self.stopped.set()
        self.thread.join(60)


def routes_via_three(count, is_v6=False):
    if is_v6:
        return [f"route add 2001:dba:{n // 65536:x}:{n % 65536:x}::/64 via fd00:77::{4 + n % 3}"
                for n in range(count)]
    return [f"route add 1{n // 65536 + 1}.{n // 256 % 256}.{n % 256}.0/24 via 10.77.0.{4 + n % 3}"
            for n in range(count)]


@pytest.mark.alone
@pytest.mark.parametrize("family, count, kind", [
    ("IPv4", 400_000, "quiet"), ("IPv4", 400_000, "flapping"), ("IPv6", 100_000, "flapping")])
def test_a_full_routing_table(t, family, count, kind):
    """Clients are answered, scanners blocked, gateways known. An IPv6 table that
    flaps starts each dump anew again and again, from the start on."""
    is_v6 = family == "IPv6"
    running = []

    def prepare(host):
        batch(host, [*routes_via_three(count, is_v6), f"route add 10.9.0.0/16 via {Lan.peer_v4}"])
        if kind == "flapping":
            running.append(Flapping(host, is_v6))

    try:
        scene = Scene(t, prepare=prepare)
        times = healthz_times(scene, 6)
        scene.is_blocked()
        scene.is_not_blocked("gateway")
    finally:
        for flapping in running:
            flapping.close()
    median, longest = statistics.median(times), max(times)
    rounds = f", {running[0].rounds} rounds of 10,000 changes" if running else ""
    print(f"    {family} {kind}: {len(times)} answers, median {median * 1000:.1f} ms, "
          f"longest {longest * 1000:.1f} ms{rounds}", flush=True)
    assert median < 0.1 and longest < 2, f"median {median:.3f} s, longest {longest:.3f} s"
    assert scene.health() == (200, "ok"), "health"
    assert scene.known(), "all is known"
    assert scene.guard.error_output() == [], "words"


# ---------------------------------------------------------- networks on links


@pytest.mark.parametrize("count", [1_500, 17_000])
def test_many_networks_on_links(t, count):
    """far -- peer -- guard: no block shrinks, however many there are."""
    inner = t.namespace("inner")

    def prepare(host):
        harness.link(host, "in0", inner, "in0", ("10.79.0.1/24", "10.79.0.2/24"))
        batch(host, [*numbered(count, "route add {}/32 dev lan0 scope link"),
                     f"route add 10.98.0.0/24 via {Lan.peer_v4}"])
        host.sysctl("net.ipv4.ip_forward=1")
        inner.ip("route add default via 10.79.0.1")
        inner.listen(22)

    scene = Scene(t, prepare=prepare)
    scene.peer.ip("address add 10.98.0.9/32 dev lo", "route add 10.79.0.0/24 via 10.77.0.1")
    far = "10.98.0.9"
    assert scene.peer.connects("10.79.0.2", 22, far, 5), "it reaches what is behind the host"
    scene.is_blocked(far)
    rule = next(rule for rule in scene.firewall.entries(scene.host) if far in rule)
    assert "dst-type" not in rule, f"a stranger is blocked altogether: {rule}"
    assert not scene.peer.connects("10.79.0.2", 22, far), "it reaches it no more"
    # A neighbour is kept from the host only.
    scene.is_blocked(Lan.friend_v4)
    rule = next(rule for rule in scene.firewall.entries(scene.host) if Lan.friend_v4 in rule)
    assert "dst-type LOCAL" in rule, rule
    said = [line for line in scene.guard.error_output() if "on links" in line]
    assert len(said) == int(count > 16_384), f"words: {scene.guard.error_output()}"


@pytest.mark.parametrize("option", ["--once", "--dry-run"])
def test_watching_says_no_more_than_needed(t, option):
    lan = t.lan()
    batch(lan.host, numbered(16_500, "route add local {} dev lo table local"))
    lan.host.listen(*PORTS)
    held = [lan.peer.connect(Lan.host_v4, port) for port in PORTS]
    with lan.host.entered():
        started = subprocess.Popen([t.binary, option, "--listen", "none", "--interval", "200ms"],
                                   env={"PATH": t.folder("path-empty"), "TZ": "UTC0"},
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        if option == "--dry-run":
            time.sleep(2)
            started.terminate()
        output, errors = started.communicate(timeout=20)
    finally:
        started.kill()
    assert "Port scan detected" in output, output
    assert UNKNOWN not in errors and "--allow" not in errors, errors
    assert len(held) == 4, "connections held"
