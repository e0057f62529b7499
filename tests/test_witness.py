"""The witness: packets say when to look, and only the kernel's table what is
there. Held scans are found at once; what is forged blocks nobody."""

import contextlib
import os
import re
import socket
import statistics
import struct
import subprocess
import time

import harness
import pytest

from containers import Cable
from harness import FAMILIES, Family, link, need, wait_for
from test_evidence import PORTS
from traffic import (ACK, SYN, Forger, Stopwatch, end, has_events, helper, segment, serve, touch,
                     until)

UP = "tcpparser_witness_up"
PACKETS = "tcpparser_witness_packets_total"
DROPPED = "tcpparser_witness_packets_dropped_total"
PAUSES = "tcpparser_witness_pauses_total"
SCANS = "tcpparser_port_scans_total"
BLOCKS = "tcpparser_blocks_total"
WITHOUT_RAW = ("setpriv", "--bounding-set=-net_raw", "--inh-caps=-net_raw")


def lookups(guard, result):
    return guard.metric(f'tcpparser_witness_lookups_total{{result="{result}"}}')


class Scene:
    """A guarded host with four services, and a peer with many addresses."""

    def __init__(self, t, *arguments, family="v4", ports=PORTS, interval="10s", lan=None,
                 **options):
        self.family, self.lan = Family(family), lan or t.lan()
        self.host, self.peer = self.lan.host, self.lan.peer
        self.peer.ip(*(f"address add {self.source(number)}/{64 if self.family.is_v6 else 24} dev lan0"
                       f"{' nodad' if self.family.is_v6 else ''}" for number in range(10)))
        serve(self.host, *ports, address=self.family.wildcard)
        self.firewall = t.backend(self.host, "nft")
        self.guard = t.guard(self.host, "--show", "scans", *arguments, env=self.firewall.env,
                             interval=interval, **options).ready()
        wait_for(lambda: has_events(self.guard) or self.guard.error_output(), "destroy events")
        wait_for(lambda: self.peer.connects(self.family.host, ports[0], self.source(0)), "the link")

    def source(self, number):
        return f"fd00:77::1{number}" if self.family.is_v6 else f"10.77.0.1{number}"

    def held(self, source, pause=0.0, ports=PORTS):
        """Connections of a source that stay open; milliseconds from the fourth
        connect(2) to the block."""
        watch = Stopwatch(self.host, "lo")
        held = []
        try:
            for port in ports:
                time.sleep(pause)
                held.append(self.peer.connect(self.family.host, port, source))
            opened = time.monotonic()
            assert until(lambda: watch.dropped, 5), f"{source} is not blocked"
        finally:
            watch.close()
            for connection in held:
                end(connection, "rst")
        return 1000 * (watch.dropped - opened)

    def times(self, count=5, pause=0.0):
        """Of so many sources, one after the other, and says them."""
        found = [self.held(self.source(number), pause) for number in range(1, 1 + count)]
        print(f"    blocked {', '.join(f'{one:.1f}' for one in found)} ms after the fourth handshake")
        return found

    def is_blocked(self, source):
        """The control: a scan of the ordinary kind."""
        touch(self.peer, self.family.host, *PORTS, source=source)
        self.guard.wait_line(rf": +Blocked: +{re.escape(source)} ")


# ---------------------------------------------------------------- held scans


@pytest.mark.alone
@pytest.mark.parametrize("family, interval, pause", [
    ("v4", "10s", 0), ("mapped", "1h", 0), ("v6", "1h", 0), ("v4", "1h", 0.3)])
def test_held_scans_are_blocked_at_once(t, family, interval, pause):
    """Slow ones, too, whose first looks were long due at the fourth port."""
    scene = Scene(t, family=family, interval=interval)
    assert scene.guard.metric(UP) == 1, UP
    times = scene.times(2 if pause else 5, pause)
    assert statistics.median(times) < 50 and max(times) < 500, f"{times} ms"
    assert lookups(scene.guard, "proven") >= 4, "looks that proved"
    assert scene.guard.metric(BLOCKS) == len(times), BLOCKS
    assert scene.guard.error_output() == [], "words"


@pytest.mark.alone
def test_held_scans_are_blocked_at_once_beside_20000_rows(t):
    lan = t.lan()
    with helper(lan.host, "rows", 5_000), helper(lan.host, "rows", 5_000):
        scene = Scene(t, lan=lan)
        rows = len(lan.host.must("cat", "/proc/net/tcp").splitlines())
        assert rows > 20_000, f"{rows} rows"
        times = scene.times()
        assert statistics.median(times) < 50, f"{times} ms"


def test_what_the_witness_finds_is_counted_once(t):
    """And stands in the next list, as what a reading finds."""
    scene = Scene(t, "--show", "all", interval="1s")
    name = 'tcpparser_new_connections_total{direction="in",family="4"}'
    wait_for(lambda: scene.guard.metric(name) == 1, "the first, which tried the link")
    held = [scene.peer.connect(scene.family.host, port, scene.source(1)) for port in PORTS]
    scene.guard.wait_line(f": +Blocked: +{re.escape(scene.source(1))} ")
    scene.guard.wait_readings(2)
    assert len(held) == 4 and scene.guard.metric(name) == 1 + 4, name
    assert scene.guard.metric("tcpparser_connections_missed_total") == 0, "missed"
    assert scene.guard.metric(SCANS) == 1, SCANS


# ------------------------------------------------------------ without a witness


@pytest.mark.alone
@pytest.mark.parametrize("how", ["--witness none", "no CAP_NET_RAW"])
def test_without_a_witness_the_counters_are_read_more_often(t, how):
    need("setpriv")
    is_wanted = how != "--witness none"
    scene = Scene(t, *(() if is_wanted else ("--witness", "none")), interval="1h",
                  before=WITHOUT_RAW if is_wanted else ())
    assert scene.guard.metric(UP) == 0, UP
    assert packet_sockets(scene.host) == 0, "packet sockets"
    times = scene.times(4)
    assert 10 < max(times) < 600, f"{times} ms"
    said = [line for line in scene.guard.error_output() if "CAP_NET_RAW" in line]
    assert len(said) == is_wanted and len(scene.guard.error_output()) == is_wanted, (
        f"lines {scene.guard.error_output()}")
    assert scene.guard.metric(PACKETS) == 0, PACKETS


def packet_sockets(space):
    return len(space.must("cat", "/proc/net/packet").splitlines()) - 1


def test_another_namespace_has_no_witness(t):
    lan = t.lan()
    serve(lan.host, *PORTS)
    elsewhere = t.namespace("elsewhere")
    with lan.host.entered():
        inside = subprocess.Popen(["sleep", "60"])
    try:
        guard = t.guard(elsewhere, "--dry-run", "--proc", f"/proc/{inside.pid}").ready()
        assert packet_sockets(elsewhere) == 0, "packet sockets"
        assert guard.metric(UP) == 0, UP
        held = [lan.peer.connect(lan.host_v4, port) for port in PORTS]
        guard.wait_line(f"Port scan detected: +{re.escape(lan.peer_v4)} ")
        assert len(held) == 4, "connections held"
        assert not [line for line in guard.error_output() if "witness" in line], "words"
    finally:
        inside.kill()
        inside.wait()


# --------------------------------------------------------------------- forged


@pytest.mark.parametrize("family", ["v4", "v6"])
def test_forged_syns_and_guessed_acknowledgements_prove_nothing(t, family):
    """Of strangers who are silent, and of one whose host resets what it did not
    ask for. Each is looked for, and nothing is found."""
    scene = Scene(t, family=family)
    lan, prefix = scene.lan, "fd00:77::" if family == "v6" else "10.77.0."
    silent = [f"{prefix}{number}" for number in (50, 51)]
    for number, address in enumerate(silent):  # known, so that answers go out; nobody is there
        scene.host.ip(f"neighbour add {address} lladdr 02:00:00:00:00:5{number} dev lan0 nud permanent")
    live = scene.source(9)
    forger = Forger(scene.peer)
    packets = scene.guard.metric(PACKETS)
    for stranger in (*silent, live):
        for port in PORTS:
            number, from_port = 1 << 20, 30_000 + port
            forger.put(segment(stranger, from_port, scene.family.host, port, SYN, number))
            for guess in range(200):
                forger.put(segment(stranger, from_port, scene.family.host, port, ACK, number + 1,
                                   guess * 21_474_836))
    forger.close()
    wait_for(lambda: scene.guard.metric(PACKETS) >= packets + 12, "the packets")
    wait_for(lambda: lookups(scene.guard, "open") + lookups(scene.guard, "none") >= 3, "looks")
    time.sleep(2)  # the last look is 1.6 s after the SYN
    assert lookups(scene.guard, "proven") == 0, "proven"
    assert scene.guard.matching("Port scan|Blocked") == [], "scans"
    scene.is_blocked(scene.source(1))
    assert scene.guard.metric(BLOCKS) == 1, BLOCKS
    assert lan.host.must("ss", "-Htan", "state", "established", "sport", "=", ":22") == "", "proved"


def test_packets_alone_never_reach_the_evidence(t):
    """A source with three open connections, and SYNs in its name to a fourth
    service and to forty; odd flags, and the ends of packets cut short."""
    scene = Scene(t, ports=(*PORTS, *range(1001, 1041)))
    source, forger = scene.source(1), Forger(scene.peer)
    held = [scene.peer.connect(scene.family.host, port, source) for port in PORTS[:3]]
    packets = scene.guard.metric(PACKETS)
    for flags in (SYN, 0, 1, 0x29):  # NULL, FIN, XMAS
        for port in (PORTS[3], *range(1001, 1041)):
            forger.put(segment(source, 33_333, scene.family.host, port, flags, 7))
    for length in (20, 21, 33):
        forger.put(segment(source, 33_333, scene.family.host, 443, SYN, 7)[:length])
    forger.close()
    wait_for(lambda: scene.guard.metric(PACKETS) > packets + 41, "the packets")
    time.sleep(2)
    assert scene.guard.matching("Port scan|Blocked") == [], "scans"
    held.append(scene.peer.connect(scene.family.host, PORTS[3], source))
    scene.guard.wait_line(f": +Blocked: +{re.escape(source)} ", 2)
    assert len(held) == 4, "connections held"


# ------------------------------------------------------------------ idle, flood


@pytest.mark.idle
def test_packets_of_open_connections_wake_nobody(t):
    """Counted beside a daemon without packet sockets, whose counters are looked
    at four times a second."""
    scenes = {how: Scene(t, "--witness", how, interval="1h") for how in ("auto", "none")}
    talkers = [scene.peer.connect(scene.family.host, 22, scene.source(1)) for scene in scenes.values()]
    time.sleep(3)  # the start has its own
    began, seconds = time.monotonic(), 5
    before = {how: wake_ups(scene.guard) for how, scene in scenes.items()}
    while time.monotonic() < began + seconds:
        for talker in talkers:
            assert harness.carries_data(talker), "the open connection"
        time.sleep(0.01)
    counts = {how: wake_ups(scene.guard) - before[how] for how, scene in scenes.items()}
    print(f"    wake-ups in {seconds} s: {counts}")
    assert counts["auto"] <= 1.6 * seconds < counts["none"], f"wake-ups {counts}"


def wake_ups(guard):
    with open(f"/proc/{guard.pid}/status") as status:
        return int(re.search(r"^voluntary_ctxt_switches:\s+(\d+)", status.read(), re.M)[1])


@pytest.mark.idle
def test_a_flood_pauses_the_witness(t):
    """Of SYNs and guessed acknowledgements. Said once and counted; ten seconds
    later it is back. A scan is found meanwhile, and nobody else is blocked."""
    flood(t, 400_000)


def flood(t, count):
    scene = Scene(t)
    scene.host.ip(f"route add 10.128.0.0/9 via {scene.lan.peer_v4}")
    forge = lambda rate, count: helper(scene.peer, "forge", "lan0", scene.lan.host_v4, rate, count, *PORTS)
    if os.cpu_count() > 1:  # the limit is half with one
        with forge(40_000, 60_000) as process:
            assert int(process.stdout.readline()) >= 60_000, "frames"
        assert scene.guard.metric(PAUSES) == 0, "no pause below the limit"
        assert scene.guard.metric(DROPPED) > 0, DROPPED
    with forge(130_000, count) as process:
        wait_for(lambda: scene.guard.metric(PAUSES), "a pause", 5)
        paused = time.monotonic()
        assert scene.guard.metric(UP) == 0, "up during a pause"
        took = scene.held(scene.source(1))
        print(f"    blocked {took:.1f} ms after the fourth handshake during the flood")
        assert took < 1500, f"{took} ms"
        assert int(process.stdout.readline()) >= count, "frames"
    packets = scene.guard.metric(PACKETS)
    wait_for(lambda: scene.guard.metric(UP), "the end of the pause", 20)
    assert time.monotonic() > paused + 8, "it was no pause"
    took = scene.held(scene.source(2))
    print(f"    blocked {took:.1f} ms after the fourth handshake after the pause")
    assert took < 500, f"{took} ms"
    assert scene.guard.metric(PACKETS) > packets, PACKETS
    assert lookups(scene.guard, "proven") >= 1, "proven"
    assert len(scene.guard.error_output()) == 1, f"lines {scene.guard.error_output()}"
    assert scene.guard.metric(SCANS) == scene.guard.metric(BLOCKS) == 2, "scans, blocks"


# --------------------------------------------------------------- where packets come


def test_packets_that_the_firewall_drops_are_seen(t):
    """INPUT drops all: nothing is proven, nothing breaks; then a scan is."""
    scene = Scene(t)
    packets = scene.guard.metric(PACKETS)
    scene.firewall.load(scene.host, "table ip shut {", "chain input {",
                        "type filter hook input priority 0; policy drop;",
                        'iifname "lo" accept', "}", "}")
    for port in PORTS:
        with contextlib.suppress(OSError):
            scene.peer.connect(scene.family.host, port, scene.source(1), seconds=0.3)
    wait_for(lambda: scene.guard.metric(PACKETS) >= packets + 4, "the packets")
    assert lookups(scene.guard, "proven") == 0, "proven"
    assert scene.guard.metric(SCANS) == 0, SCANS
    scene.firewall.must(scene.host, "delete", "table", "ip", "shut")
    assert scene.held(scene.source(1)) < 1000, "held"


@pytest.mark.alone
def test_links_that_come_later_are_seen(t):
    scene = Scene(t, interval="1h")
    late = t.namespace("late")
    link(scene.host, "late0", late, "late0", ("10.78.0.1/24", "10.78.0.2/24"))
    packets = scene.guard.metric(PACKETS)
    held = [late.connect("10.78.0.1", port) for port in PORTS]
    scene.guard.wait_line(": +Blocked: +10.78.0.2 ", 1)
    # Once in a while the reading that a new service asks for comes between.
    early = scene.guard.metric("tcpparser_early_readings_total")
    assert early > 0 or lookups(scene.guard, "proven") == 4, "found by looks"
    assert len(held) == 4 and scene.guard.metric(PACKETS) >= packets + 4, PACKETS
    late.destroy()  # the link goes with it
    assert scene.held(scene.source(1)) < 500, "held"


def test_a_tunnel_without_link_headers_is_seen(t):
    """As of WireGuard, ppp and OpenVPN: packets begin with the IP header."""
    scene = Scene(t, interval="1h")
    tun = Cable.tap(scene.host, "tun0", Cable.TUN_WITHOUT_HEAD)
    try:
        scene.host.ip("address add 10.79.0.1/24 dev tun0")
        packets = scene.guard.metric(PACKETS)
        for port in PORTS:
            os.write(tun, segment("10.79.0.2", 40_000, "10.79.0.1", port, SYN, 7))
        wait_for(lambda: scene.guard.metric(PACKETS) >= packets + 4, "the packets")
        found = finish_handshakes(tun, PORTS)
        assert found == 4, f"{found} handshakes"
        scene.guard.wait_line(": +Blocked: +10.79.0.2 ", 2)
    finally:
        os.close(tun)


def finish_handshakes(tun, ports):
    """Answers each SYN-ACK that comes out of the tunnel."""
    done, deadline = set(), time.monotonic() + 3
    while len(done) < len(ports) and time.monotonic() < deadline:
        try:
            packet = os.read(tun, 2048)
        except BlockingIOError:
            time.sleep(0.005)
            continue
        words = packet[(packet[0] & 15) * 4:]
        if packet[0] >> 4 == 4 and packet[9] == socket.IPPROTO_TCP and words[13] == SYN | ACK:
            port, _, number = struct.unpack("!HHI", words[:8])
            os.write(tun, segment("10.79.0.2", 40_000, "10.79.0.1", port, ACK, 8, number + 1))
            done.add(port)
    return len(done)
