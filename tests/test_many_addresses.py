"""One hand with many addresses: it neither hides nor keeps others from being
blocked, and what is blocked of it harms few neighbours."""

import contextlib
import time

import pytest

from harness import carries_data, scan_pattern, wait_for
from test_evidence import PORTS
from traffic import end, has_events, helper, serve, touch

SITE = "2001:db8:5"  # a routed /48
DECOYS = ("10.99.0.0/16", "2001:db8::/32")  # all routed, documentation and private
SCANNERS = {"IPv4": "10.98.0.7", "IPv6": "fd91::7"}
SPREAD = "it was spread over several sources"


class Routed:
    """A host with services, and a router behind which there are many sources."""

    def __init__(self, t, *arguments, ports=PORTS, own=(), **options):
        self.lan, self.binary = t.lan(), t.binary
        self.host, self.peer = self.lan.host, self.lan.peer
        networks = (*DECOYS, "10.98.0.0/16", "fd91::/16", "64:ff9b::/96")
        for network in networks:
            family, via = ("-6", self.lan.peer_v6) if ":" in network else ("-4", self.lan.peer_v4)
            self.host.must("ip", family, "route", "add", network, "via", via)
            self.peer.must("ip", family, "route", "add", "local", network, "dev", "lo")
        for address in own:
            self.host.ip(f"address add {address} dev lan0 nodad")
        # Local routes alone let IPv4 sockets bind to them.
        self.peer.sysctl("net.ipv6.ip_nonlocal_bind=1")
        serve(self.host, *ports, address="::")
        # Before the first scan: who is a neighbour is found out.
        for address in (self.lan.host_v4, self.lan.host_v6):
            wait_for(lambda: self.peer.connects(address, ports[0]), "the link")
        self.guard = t.guard(self.host, *arguments, **options).ready()
        wait_for(lambda: has_events(self.guard), "destroy events")

    def at(self, source):
        """The host's address for a source of that family."""
        return self.lan.host_v6 if ":" in source else self.lan.host_v4

    def scan(self, *scanners, ports=PORTS):
        for source in scanners:
            touch(self.peer, self.at(source), *ports, source=source)

    @contextlib.contextmanager
    def decoys(self, addresses, rate, ports=PORTS):
        """Their scans go on until the end of the block."""
        with helper(self.peer, "sources", self.at(addresses[0]), rate, *ports) as process:
            process.stdin.write("\n".join(addresses) + "\n")
            process.stdin.close()
            process.stdin = None
            yield process

    def blocked(self):
        """The sources of --list: lines have a budget, blocks none."""
        done = self.host.run(self.binary, "--list")
        lines = done.stdout.splitlines()
        return [line.split()[0] for line in lines if " iptables-" in line or line.endswith(" nft")]

    def wait_blocked(self, source, seconds=10):
        wait_for(lambda: source in self.blocked(), f"{source} blocked", seconds)

    def control(self):
        """Ordinary scanners are blocked within three seconds, all the same."""
        began = time.monotonic()
        self.scan(*SCANNERS.values())
        for blocked in ("10.98.0.7", "fd91::/64"):
            self.wait_blocked(blocked, 3)
        print(f"    scanners blocked {time.monotonic() - began:.2f} s after the first connection")
        for source in SCANNERS.values():
            assert not self.peer.connects(self.at(source), 22, source), f"{source} connects"


# ------------------------------------------------------------------- decoys

# Not more than the sets' 10,000 a minute, and as many as spend the budget at once.
BUDGETS = {"default": (), "60 a minute": ("--max-blocks-per-minute", "60"),
           "iptables": ("--firewall", "iptables")}
# Each of another /56: none is blocked as one.
FLOODS = {
    "one /48": [f"{SITE}:{number % 256:x}{number // 256:02x}::1" for number in range(1000)],
    "five /48s": [f"2001:db8:{0x50 + number % 5:x}:{number // 5:x}00::1"
                  for number in range(1000)],
    "2,000 IPv4 addresses": [f"10.99.{number // 250}.{1 + number % 250}"
                             for number in range(2000)],
}


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("flood", FLOODS)
def test_decoys_keep_no_scanner_from_being_blocked(t, flood, budget):
    scene = Routed(t, "--show", "scans", *BUDGETS[budget])
    with scene.decoys(FLOODS[flood], 50):
        wait_for(lambda: scene.guard.metric("tcpparser_port_scans_total") > 150, "decoys", 20)
        if budget == "60 a minute":
            assert scene.guard.metric("tcpparser_blocks_pending") > 0, "held back"
        scene.control()


@pytest.mark.alone
def test_sources_one_port_short_hide_no_newcomer(t):
    """8,192 of them, 400 a second and on; a scanner with 0.3 s a port."""
    scene = Routed(t, "--show", "scans")
    flood = [f"10.99.{number // 250}.{1 + number % 250}" for number in range(25_000)]
    with scene.decoys(flood, 1500, PORTS[:3]):
        entries = 'tcpparser_table_entries{table="sources"}'
        most = scene.guard.metric('tcpparser_table_capacity{table="sources"}')
        assert most == 8192, most
        evictions = 'tcpparser_table_evictions_total{table="sources"}'
        wait_for(lambda: scene.guard.metric(evictions) > 100, "a full table", 30)
        assert scene.guard.metric(entries) > most * 7 / 8 - 1, "entries"
        for port in PORTS:
            for source in SCANNERS.values():
                touch(scene.peer, scene.at(source), port, source=source)
            time.sleep(0.3)
        for blocked in ("10.98.0.7", "fd91::/64"):
            scene.wait_blocked(blocked, 3)


# -------------------------------------------------------------- spread scans


@pytest.mark.parametrize("network, source", [
    ("2001:db8:5::/48", lambda number: f"{SITE}:{number:x}::9"),
    ("10.99.7.0/24", lambda number: f"10.99.7.{1 + number}"),
])
def test_a_spread_scan_is_told_once_and_not_blocked(t, network, source):
    """60 ports, three from each of 20 addresses."""
    ports = range(1001, 1061)
    scene = Routed(t, ports=(*PORTS, *ports))
    for number in range(20):
        scene.scan(source(number), ports=ports[3 * number:3 * number + 3])
    line = scene.guard.wait_line(f"Port scan detected: +{network} -> ")
    assert line.endswith(", from 6 addresses"), line
    scene.guard.wait_line(f"Not blocked: +{network} {SPREAD}")
    scene.guard.wait_readings(1)
    assert len(scene.guard.matching("Port scan detected")) == 1, "told once"
    assert scene.guard.matching(": +Blocked: ") == [], "blocked"
    refused = 'tcpparser_blocks_refused_total{reason="spread"}'
    assert scene.guard.metric(refused) == 1, refused
    scene.control()


# ------------------------------------------------------------------ widening


def test_many_scanners_of_one_delegation_are_blocked_as_one(t):
    """20 /64s of a /56; those with other /56s of the carrier's /48 go on."""
    scene = Routed(t)
    honest = [f"{SITE}:{0x1000 + (number << 8):x}::5" for number in range(40)]
    connections = [scene.peer.connect(scene.lan.host_v6, 22, source) for source in honest]
    for number in range(20):
        scene.scan(f"{SITE}:{0x200 + number:x}::1")
    scene.wait_blocked(f"{SITE}:200::/56")
    assert len(scene.guard.matching(f": +Blocked: +{SITE}:2")) == 16, "15 /64s and the /56"
    assert not scene.peer.connects(scene.lan.host_v6, 22, f"{SITE}:2ff::1"), "a neighbour there"
    for connection, source in zip(connections, honest):
        assert carries_data(connection), f"{source} is cut off"
        assert scene.peer.connects(scene.lan.host_v6, 25, source), f"{source} cannot connect"
        end(connection, "fin")
    wait_for(lambda: scene.guard.metric("tcpparser_blocked_sources") == 1, "one block")
    assert scene.guard.metric('tcpparser_unblocks_total{reason="widened"}') == 15, "widened"
    # Who knows an address alone lifts all of it.
    done = scene.host.run(t.binary, "--unblock", f"{SITE}:2aa::1")
    assert done.stdout == f"1 block removed; all of {SITE}:200::/56 was blocked as one\n", done.stderr
    scene.guard.wait_line(f"Unblocked: +{SITE}:200::/56 ")
    assert scene.peer.connects(scene.lan.host_v6, 22, f"{SITE}:2ff::1"), "lifted"
    scene.control()


def test_sixteen_delegations_make_their_site_one_block(t):
    scene = Routed(t, "--widen", "2")
    for site in (0x100, 0x200):
        for number in (1, 2):
            scene.scan(f"{SITE}:{site + number:x}::1")
    scene.wait_blocked(f"{SITE}::/48")
    assert not scene.peer.connects(scene.lan.host_v6, 22, f"{SITE}:ffff::1"), "all of it"
    scene.control()


@pytest.mark.parametrize("own, source, single", [
    ((f"{SITE}:2aa::1/64",), lambda number: f"{SITE}:{0x200 + number:x}::1", f"{SITE}:203::/64"),
    ((), lambda number: f"64:ff9b::a63:{number:x}", "64:ff9b::a63:3"),
])
def test_networks_that_hold_others_are_never_one_block(t, own, source, single):
    """One of the host's own links, and hosts behind NAT64."""
    scene = Routed(t, "--widen", "2", own=own)
    for number in range(1, 21):
        scene.scan(source(number))
    scene.wait_blocked(source(20).replace("::1", "::/64") if own else source(20))
    scene.guard.wait_line(f": +Blocked: +{single} ")
    assert len(scene.guard.matching(": +Blocked: ")) == 20, "blocks"
    assert scene.guard.matching("/(48|56) ") == [], "no network"
    scene.control()


def test_none_widens_nothing(t):
    scene = Routed(t, "--widen", "none")
    for number in range(20):
        scene.scan(f"{SITE}:{0x200 + number:x}::1")
    wait_for(lambda: len(scene.guard.matching(": +Blocked: ")) == 20, "20 blocks")
    assert scene.guard.matching("/(48|56) ") == [], "no network"
