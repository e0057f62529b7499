"""Blocks, checked by connecting and by the rules themselves."""

import os
import re
import shlex
import signal
import time

import pytest

from harness import (BACKENDS, FAMILIES, Family, broken_firewall, carries_data, line_pattern, link,
                     need, scan_pattern, this_boot, wait_for)

PORTS = (22, 25, 80, 443)
BOTH = [(backend, family) for backend in BACKENDS for family in FAMILIES]


class Scene:
    """A guarded host with four services, and a peer about to scan it."""

    def __init__(self, t, backend="iptables-nft", family="v4", *arguments, **options):
        self.family, self.lan = Family(family), t.lan()
        self.host, self.peer = self.lan.host, self.lan.peer
        self.firewall = t.backend(self.host, backend)
        self.host.listen(*PORTS, address=self.family.wildcard)
        options.setdefault("env", self.firewall.env)
        self.start = lambda *more: t.guard(self.host, *arguments, *more, **options).ready()

    def scan(self, source=None):
        return [self.peer.connect(self.family.host, port, source) for port in PORTS]

    def reaches(self, source=None, seconds=0.5):  # no SYN is sent again in these
        return self.peer.connects(self.family.host, 22, source, seconds)

    def entries(self):
        return self.firewall.standing(self.host, self.family.tool)

    def is_whole(self):
        return self.firewall.is_whole(self.host, self.family.tool)

    def wait_blocked(self, guard):
        guard.wait_line("Blocked: ")
        return wait_for(self.entries, "an entry")[0]


@pytest.mark.parametrize("backend, family", BOTH)
def test_four_ports_are_blocked(t, backend, family):
    scene = Scene(t, backend, family)
    guard = scene.start()
    assert scene.firewall.is_untouched(scene.host), "a quiet host was touched"
    held = [scene.peer.connect(scene.family.host, PORTS[0])]
    assert carries_data(held[0], 5), "the services answer"
    held += [scene.peer.connect(scene.family.host, port) for port in PORTS[1:]]
    entry = scene.wait_blocked(guard)
    assert entry.source == f"{scene.family.peer}/{scene.family.single}", "source"
    assert entry.local, "an on-link source is blocked towards the host only"
    assert ((entry.boot, entry.strike, entry.data, entry.ports)
            == (this_boot(), 1, "y", "22,25,80,443")), "comment"
    now, since, end = time.clock_gettime(time.CLOCK_BOOTTIME), entry.since, entry.end
    assert now - 30 <= since <= now + 1, f"since {since} at {now}"
    assert since + 600 <= end <= since + 602, f"ten minutes from {since} is not {end}"
    assert scene.is_whole(), "what leads packets to the entry"
    assert not scene.reaches(), "new connections fail"
    assert not carries_data(held[0]), "open connections carry no more data"
    assert scene.reaches(scene.family.friend, 5), "another source goes on"


@pytest.mark.parametrize("backend", ["iptables-nft", "nft"])
def test_scan_is_printed_before_its_block(t, backend):
    scene = Scene(t, backend)
    guard = scene.start()
    scene.scan()
    scene.wait_blocked(guard)
    guard.wait_readings(3)
    order = [line for line in guard.output() if re.search("Port scan|Blocked", line)]
    assert len(order) == 2, f"lines {order}"
    assert re.search(scan_pattern(scene.family.peer, scene.family.host, PORTS), order[0]), order[0]
    assert re.search(r": +Blocked: +10\.77\.0\.2 ", order[1]), order[1]
    assert "10m" in order[1] or "600" in order[1], f"how long: {order[1]!r}"


@pytest.mark.parametrize("backend", BACKENDS)
def test_established_connections_of_the_source_end(t, backend):
    """Above any rule that accepts what is established."""
    scene = Scene(t, backend)
    scene.firewall.accept_established(scene.host)
    before = scene.firewall.everything(scene.host)
    guard = scene.start()
    friend = scene.peer.connect(scene.family.host, 22, scene.family.friend)
    held = scene.scan()
    assert carries_data(held[0], 3), "the connection carries data first"
    scene.wait_blocked(guard)
    assert not carries_data(held[1]), "the open connection carries no more data"
    assert not scene.reaches(), "new connections fail"
    assert carries_data(friend, 5), "another source's open connection goes on"
    assert scene.reaches(scene.family.friend, 5), "another source connects"
    assert scene.firewall.foreign(scene.host) == before, "foreign rules"


@pytest.mark.parametrize("backend, name", [
    ("iptables-nft", "v4"), ("iptables-nft", "v6"), ("nft", "v4"), ("nft", "v6")])
def test_router_keeps_its_lan_on_the_internet(t, backend, name):
    """near -- guard -- inner, and far -- edge -- guard: a neighbour is refused
    by the router alone, a stranger reaches nothing behind it either."""
    near, far, edge = t.namespace("near"), t.namespace("far"), t.namespace("edge")
    router, inner = t.namespace("router"), t.namespace("inner")

    def pair(net, left, right):
        return ((f"10.{net}.0.{left}/24", f"10.{net}.0.{right}/24"),
                (f"2001:db8:{net}::{left}/64", f"2001:db8:{net}::{right}/64"))

    link(router, "near0", near, "up0", *pair(1, 1, 2))
    link(router, "edge0", edge, "up0", *pair(2, 1, 2))
    link(router, "inner0", inner, "up0", *pair(3, 1, 2))
    link(edge, "far0", far, "up0", *pair(4, 1, 2))
    for space, net in ((near, 1), (inner, 3), (edge, 2), (far, 4)):
        space.ip(f"route add default via 10.{net}.0.1",
                 f"route add default via 2001:db8:{net}::1")
    router.ip("route add 10.4.0.0/24 via 10.2.0.2", "route add 2001:db8:4::/64 via 2001:db8:2::2")
    for space in (router, edge):
        space.sysctl("net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
    v6 = name == "v6"
    own, behind = ("2001:db8:1::1", "2001:db8:3::2") if v6 else ("10.1.0.1", "10.3.0.2")
    firewall = t.backend(router, backend)
    router.listen(*PORTS, address="::")
    inner.listen(22, address="::")
    assert far.connects(behind, 22, seconds=5), "far reaches inner at first"
    assert near.connects(behind, 22, seconds=5), "near reaches inner at first"
    guard = t.guard(router, env=firewall.env).ready()
    held = [space.connect(own, port) for space in (near, far) for port in PORTS]
    tool = "ip6tables" if v6 else "iptables"
    sources = ("2001:db8:1::2/128", "2001:db8:4::/64") if v6 else ("10.1.0.2/32", "10.4.0.2/32")
    for source in sources:
        wait_for(lambda s=source: firewall.blocks(router, s, tool), f"a block of {source}")
    local = {entry.source: entry.local for entry in firewall.standing(router, tool)}
    assert local[sources[0]] and not local[sources[1]], f"towards the host only: {local}"
    assert not near.connects(own, 22), "near is refused by the router"
    assert near.connects(behind, 22, seconds=5), "near still reaches inner"
    assert not far.connects(own, 22), "far is refused by the router"
    assert not far.connects(behind, 22), "far does not reach inner"
    assert len(held) == 8, "connections held"
    assert len(guard.matching("Blocked")) == 2, "Blocked lines"


@pytest.mark.parametrize("option", ["--dry-run", "--firewall=none"])
@pytest.mark.parametrize("backend", ["iptables-nft", "nft"])
def test_watching_changes_nothing(t, backend, option):
    scene = Scene(t, backend, "v4", option)
    before = scene.firewall.everything(scene.host)
    guard = scene.start()
    held = scene.scan()
    guard.wait_line("Port scan")
    guard.wait_readings(3)
    assert scene.firewall.everything(scene.host) == before, "rules"
    assert carries_data(held[0], 5), "the connection goes on"
    assert len(guard.matching("Port scan")) == 1, "scan lines"
    assert guard.metric("tcpparser_blocks_total") == 0, "blocks_total"


@pytest.mark.parametrize("backend, family", [
    ("iptables-nft", "v4"), ("iptables-nft", "v6"), ("iptables-legacy", "v4"), ("nft", "v4"),
    ("nft", "v6")])
def test_printed_command_undoes_the_block(t, backend, family):
    scene = Scene(t, backend, family)
    guard = scene.start()
    scene.scan()
    scene.wait_blocked(guard)
    line = guard.wait_line("Blocked: ")
    command = re.search(r"undo: tcpparser (--unblock \S+)$", line)
    assert command, f"no command in {line!r}"
    assert scene.firewall.product(scene.host, *shlex.split(command[1])).returncode == 0, (
        "exit status")
    assert scene.entries() == [], "rules left"
    assert scene.reaches(seconds=5), "the source is back"


def test_blocked_sources_leave_the_list(t):
    scene = Scene(t)
    guard = scene.start()
    held = scene.scan()
    scene.wait_blocked(guard)
    guard.wait_readings(1)
    seen = len(guard.output())
    guard.wait_readings(3)
    shown = [line for line in guard.output()[seen:] if "10.77.0.2" in line]
    assert shown == [], "lines about a blocked source"
    assert len(held) == 4, "connections held"


def not_blocked(guard, scene, reason, source="10.77.0.2"):
    """A protected source: reported with the reason, once, and left alone."""
    line = guard.wait_line("Not blocked: ")
    assert re.search(rf":        Not blocked: +{re.escape(source)} ", line), line
    assert re.search(reason, line, re.I), f"reason /{reason}/ in {line!r}"
    guard.wait_readings(4)
    assert len(guard.matching("Port scan")) == 1, "scan lines"
    assert len(guard.matching("Not blocked")) == 1, "Not blocked lines"
    assert guard.matching(" Blocked: ") == [], "Blocked lines"
    assert scene.firewall.is_untouched(scene.host), "a rule was made"
    assert scene.reaches(seconds=5), "the source goes on"
    refused = sum(value for name, value in guard.scrape().items()
                  if name.startswith("tcpparser_blocks_refused_total"))
    assert refused == 1, "blocks_refused_total"


@pytest.mark.parametrize("backend, family", [
    ("iptables-nft", "v4"), ("iptables-nft", "v6"), ("nft", "v4"), ("nft", "v6")])
def test_gateway_is_never_blocked(t, backend, family):
    scene = Scene(t, backend, family)
    scene.host.ip(f"route add default via {scene.family.peer}")
    guard = scene.start()
    scene.scan()
    not_blocked(guard, scene, "gateway", scene.family.peer)


def test_gateway_of_another_table_is_never_blocked(t):
    scene = Scene(t)
    scene.host.ip("route add default via 10.77.0.2 table 77")
    guard = scene.start()
    scene.scan()
    not_blocked(guard, scene, "gateway")


def test_nameserver_is_never_blocked(t):
    need("unshare", "mount", "sh")
    resolver = os.path.join(t.tmp, "resolv.conf")
    with open(resolver, "w") as file:
        file.write("# a comment\nsearch example\nnameserver 10.77.0.2\n")
    if not os.path.exists("/etc/resolv.conf"):
        pytest.skip("no /etc/resolv.conf to bind over")
    mounted = ("env", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "unshare", "-m", "sh", "-c",
               f'mount --bind {resolver} /etc/resolv.conf; PATH={t.folder("path-nft")}; exec "$@"',
               "sh")
    scene = Scene(t, before=mounted)
    guard = scene.start()
    scene.scan()
    not_blocked(guard, scene, "nameserver|resolv")


@pytest.mark.parametrize("allowed", ["10.77.0.2", "10.77.0.0/29", "fd00::/8,10.0.0.0/8"])
def test_allowed_networks_are_never_blocked(t, allowed):
    options = [word for network in allowed.split(",") for word in ("--allow", network)]
    scene = Scene(t, "iptables-nft", "v4", *options)
    guard = scene.start()
    scene.scan()
    not_blocked(guard, scene, "allow")


def test_allowed_by_environment(t):
    scene = Scene(t)
    env = {**scene.firewall.env, "TCPPARSER_ALLOW": "fd00::/8,10.77.0.2"}
    guard = t.guard(scene.host, env=env).ready()
    scene.scan()
    not_blocked(guard, scene, "allow")


def test_own_ssh_session_is_never_blocked(t):
    scene = Scene(t)
    env = {**scene.firewall.env, "SSH_CONNECTION": "10.77.0.2 50000 10.77.0.1 22"}
    guard = t.guard(scene.host, env=env).ready()
    scene.scan()
    not_blocked(guard, scene, "ssh")


def test_refusing_firewall_is_reported(t):
    scene = Scene(t)
    env = broken_firewall(t, "echo 'no way' >&2\nexit 4\n")
    guard = t.guard(scene.host, "--firewall=iptables", env=env).ready()
    scene.scan()
    guard.wait_line(r":       Block failed: +10\.77\.0\.2 ")
    found = guard.scrape()
    failures = sum(value for name, value in found.items()
                   if name.startswith("tcpparser_block_failures_total"))
    assert failures >= 1, f"block_failures_total {failures}"
    assert found["tcpparser_port_scans_total"] == 1, "port_scans_total"
    assert found["tcpparser_blocks_total"] == 0, "blocks_total"
    assert found["tcpparser_blocked_sources"] == 0, "blocked_sources"
    guard.wait_readings(3)
    assert len(guard.matching("Port scan")) == 1, "scan lines"
    assert len(guard.matching("Block failed")) <= 4, "a flood of failures"


def test_missing_firewall_is_reported(t):
    scene = Scene(t)
    guard = t.guard(scene.host, "--firewall=iptables",
                    env={"PATH": t.folder("path-empty"), "TZ": "UTC0"}).ready()
    scene.scan()
    guard.wait_line("Block failed: ")
    assert guard.process.poll() is None, "exit status"


@pytest.mark.parametrize("backend", BACKENDS)
def test_block_ends_in_time(t, backend):
    """By connecting; and the stale connections are no new evidence."""
    scene = Scene(t, backend, "v4", "--block-time", "2s")
    guard = scene.start()
    held = scene.scan()
    scene.wait_blocked(guard)
    blocked_at = time.monotonic()
    assert not scene.reaches(seconds=0.5), "it is blocked first"
    wait_for(lambda: scene.reaches(seconds=0.5), "the end of the block", 10)
    assert time.monotonic() - blocked_at > 1.0, "the block ended too early"
    guard.wait_readings(4)
    assert len(guard.matching("Port scan")) == 1, "scan lines"
    assert guard.metric("tcpparser_blocked_sources") == 0, "blocked_sources"
    assert len(held) == 4, "connections held"


@pytest.mark.parametrize("backend", BACKENDS)
def test_all_goes_with_the_last_block(t, backend):
    scene = Scene(t, backend, "v4", "--block-time", "1s")
    before = scene.firewall.everything(scene.host)
    guard = scene.start()
    scene.scan()
    guard.wait_line("Blocked: ")
    wait_for(lambda: scene.firewall.everything(scene.host) == before, "the rules as they were")


@pytest.mark.parametrize("backend", BACKENDS)
def test_foreign_rules_in_the_way_stay(t, backend):
    """Blocked before everything else, and nothing else moves."""
    scene = Scene(t, backend)
    scene.firewall.accept_services(scene.host)
    before = scene.firewall.everything(scene.host)
    guard = scene.start()
    scene.scan()
    scene.wait_blocked(guard)
    assert not scene.reaches(), "blocked although the service is accepted"
    assert scene.firewall.foreign(scene.host) == before, "foreign rules"


@pytest.mark.parametrize("backend", BACKENDS)
def test_killed_and_started_again_it_uses_the_same_chain(t, backend):
    scene = Scene(t, backend)
    guard = scene.start()
    scene.scan()
    scene.wait_blocked(guard)
    guard.signal(signal.SIGKILL)
    guard.wait_exit()
    guard = scene.start()
    scene.scan(scene.family.friend)
    wait_for(lambda: scene.firewall.blocks(scene.host, "10.77.0.3/32"), "the second block")
    assert scene.is_whole(), "what leads packets to the entries is there once"
    assert scene.firewall.blocks(scene.host, "10.77.0.2/32"), "the first block stays"


@pytest.mark.parametrize("backend", BACKENDS)
def test_hundred_sources_are_all_blocked(t, backend):
    scene = Scene(t, backend)
    guard = scene.start(*scene.firewall.only)
    sources = [f"10.77.0.{n}" for n in range(100, 200)]
    scene.peer.ip(*(f"address add {source}/24 dev lan0" for source in sources))
    for source in sources:
        for port in PORTS:
            try:
                scene.peer.connect(scene.family.host, port, source, seconds=2)
            except OSError:
                pass  # blocked already: no port beyond the fourth is needed
    wait_for(lambda: len(scene.entries()) == 100, "a hundred rules")
    found = {entry.source for entry in scene.entries()}
    assert found == {f"{source}/32" for source in sources}, "sources"
    wait_for(lambda: guard.metric("tcpparser_blocked_sources") == 100, "blocked_sources 100")
    assert scene.is_whole(), "what leads packets to the entries is there once"


@pytest.mark.parametrize("backend", BACKENDS)
def test_longest_comment_lists_the_ports_cut(t, backend):
    """Many five-digit ports: the comment keeps within 120 bytes."""
    lan = t.lan()
    firewall = t.backend(lan.host, backend)
    ports = range(10000, 10060)
    lan.host.listen(*ports)
    held = [lan.peer.connect(lan.host_v4, port) for port in ports]
    guard = t.guard(lan.host, "--ports", "40", env=firewall.env)
    guard.wait_line("Blocked: ")
    comment = wait_for(lambda: firewall.standing(lan.host), "an entry")[0].comment()
    assert len(comment) <= 120, f"{len(comment)} bytes: {comment}"
    cut = re.search(r" p=((?:\d+,)*\d+),\+(\d+)$", comment)
    assert cut, f"no +N in {comment!r}"
    assert len(cut[1].split(",")) + int(cut[2]) == len(held), "ports named and not named"


def test_other_label_lines_are_aligned(t):
    scene = Scene(t)
    guard = scene.start()
    scene.scan()
    line = guard.wait_line("Blocked: ")
    start = line_pattern("Blocked", "10.77.0.2", "")[:-1]
    assert re.match(start, line), f"{line!r} does not start like {start!r}"
