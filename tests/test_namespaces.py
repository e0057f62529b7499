"""Published ports of containers: scans of them are seen and blocked in what is
forwarded, and nobody inside a container can have a stranger blocked."""

import re
import time

import pytest

from containers import (FOREIGN, INSIDE, NAMESPACES_UP, PUBLISHED, SILENT, SPARE, STRANGER,
                        UNSEEN, Docker, Impostor, Liar, Tunnel, Turner, in_fragments)
from harness import need, scan_pattern, wait_for
from test_evidence import PORTS
from traffic import ACK, SYN, Forger, Nmap, Stopwatch, deaf, helper, serve, touch, until

SCANS = "tcpparser_port_scans_total"
BLOCKS = "tcpparser_blocks_total"
# Whose host resets what it did not ask for, and whose host says nothing.
LIVE = {"v4": "198.51.100.9", "v6": "2001:db8:7:9::7"}
MUTE = {"v4": "198.51.100.201", "v6": "2001:db8:7:201::7"}


def without(*capabilities):
    """A wrapping command that takes rights away."""
    need("setpriv")
    dropped = ",".join(f"-{one}" for one in capabilities)
    return ("setpriv", f"--bounding-set={dropped}", f"--inh-caps={dropped}")


def refused(guard):
    """Blocks refused, whatever the reason."""
    return sum(value for name, value in guard.scrape().items()
               if name.startswith("tcpparser_blocks_refused_total"))


def reaches(scene, source, family="v4"):
    """The published ports at which a source is served."""
    return [port for port in PUBLISHED
            if scene.far.connects(scene.address(family), port, source, 0.3)]


def serves_others(scene, family="v4", ports=PUBLISHED):
    """Whether clients of one port each are served."""
    friend = "2001:db8:9:{}::9" if family == "v6" else "192.0.2.{}"
    return all(scene.far.connects(scene.address(family), port, friend.format(number), 0.5)
               for number, port in enumerate(ports, 9))


def links_settle():
    """A new link makes the guard list all of them, and once more where one that
    containers can send by was found; until then nothing is blocked."""
    time.sleep(0.6)


def control(scene, guard, source="198.51.100.77"):
    """An ordinary scanner of published ports is blocked; whatever was sent before
    has been judged by then."""
    assert touch(scene.far, scene.host_v4, *PUBLISHED, source=source) == 4, "connections"
    guard.wait_line(rf": +Blocked: +{re.escape(source)} ", 3)


def only_the_control_is_blocked(scene, guard, told=()):
    """And nobody but those `told` is said to scan."""
    control(scene, guard)
    sources = set(re.findall(r"Port scan detected: +(\S+)", "\n".join(guard.output())))
    assert sources <= {"198.51.100.77", *told}, f"told: {sources}"
    assert guard.metric(BLOCKS) == 1, BLOCKS
    assert len(guard.matching(": +Blocked: ")) == 1, "lines"
    assert [one.source for one in scene.firewall.standing(scene.host)] == ["198.51.100.77/32"], "rules"


# --------------------------------------------------------------------- scans


@pytest.mark.parametrize("kind, family, backend", [
    ("nmap", "v4", "nft"), ("rst", "v4", "iptables-nft"), ("fin", "v4", "nft"), ("rst", "v6", "nft"),
    ("nmap", "v6", "iptables-nft"), ("fin", "v4", "iptables-legacy")])
def test_scans_of_published_ports_are_blocked(t, kind, family, backend):
    """Four ports of two containers. The ports said are those that were asked
    for; what is forwarded is shut for the stranger, and open for others."""
    scene = Docker(t)
    guard = scene.guard("--show", "scans", backend=backend)
    host, stranger = scene.address(family), STRANGER[family]
    single = stranger if family == "v4" else "2001:db8:7::/64"
    wait_for(lambda: serves_others(scene, family), "the services")
    watch = scene.keep(Stopwatch(scene.host, "up0"))
    if kind == "nmap":
        ports = ",".join(map(str, PUBLISHED))
        Nmap(scene.far, *(["-6"] if family == "v6" else []), "-Pn", "-sT", "-p", ports, host).wait()
    else:
        assert touch(scene.far, host, *PUBLISHED, how=kind) == 4, "connections"
    guard.wait_line(scan_pattern(single, host, PUBLISHED))
    guard.wait_line(rf": +Blocked: +{re.escape(single)} for 10m, data sent: no, ")
    tell_time(watch, kind, backend)
    assert reaches(scene, stranger, family) == [], "published ports"
    assert serves_others(scene, family), "others go on"
    rule = scene.firewall.standing(scene.host, "ip6tables" if family == "v6" else "iptables")[0]
    assert not rule.local, "what is forwarded is dropped, too"
    assert guard.metric(SCANS) == guard.metric(BLOCKS) == 1, "scans, blocks"
    assert guard.metric(FOREIGN) >= 4, FOREIGN
    assert guard.metric(NAMESPACES_UP) == 1, NAMESPACES_UP
    assert guard.error_output() == [], "words"


def tell_time(watch, kind, backend):
    """Legacy tables tell nobody."""
    if backend == "iptables-legacy":
        return
    until(lambda: watch.dropped, 2)
    time.sleep(0.02)  # what was captured is still to be taken in
    took = 1000 * (watch.dropped - watch.ends()[3])
    print(f"    blocked {took:.1f} ms after the fourth connection ended")
    assert took < 1000, f"{kind}: {took} ms"


def test_containers_without_privileges(t):
    """Their network namespaces belong to user namespaces of their own."""
    scene = Docker(t, apart=True)
    guard = scene.guard("--show", "scans")
    control(scene, guard, STRANGER["v4"])
    guard.wait_line(scan_pattern(STRANGER["v4"], scene.host_v4, PUBLISHED))
    assert reaches(scene, STRANGER["v4"]) == [], "published ports"


def test_own_services_and_published_ports_count_together(t):
    scene = Docker(t)
    serve(scene.host, *PORTS[:2])
    guard = scene.guard("--show", "scans")
    assert touch(scene.far, scene.host_v4, *PUBLISHED[:2], *PORTS[:2]) == 4, "connections"
    guard.wait_line(scan_pattern(STRANGER["v4"], scene.host_v4, (*PUBLISHED[:2], *PORTS[:2])))
    guard.wait_line(rf": +Blocked: +{re.escape(STRANGER['v4'])} ", 3)


def test_containers_that_come_later_are_seen(t):
    """A network namespace made while the daemon runs, with a port of its own."""
    scene = Docker(t)
    guard = scene.guard("--show", "scans")
    scene.add_container("late", (8005, 8006))
    wait_for(lambda: serves_others(scene, ports=(8005, 8006)), "its services")
    links_settle()
    ports = (*PUBLISHED[:2], 8005, 8006)
    assert touch(scene.far, scene.host_v4, *ports) == 4, "connections"
    guard.wait_line(scan_pattern(STRANGER["v4"], scene.host_v4, ports), 3)
    guard.wait_line(rf": +Blocked: +{re.escape(STRANGER['v4'])} ", 3)


# -------------------------------------------------------------------- no scans


def three_ports(scene):
    assert touch(scene.far, scene.host_v4, *PUBLISHED[:3], times=5) == 15, "connections"


def one_port(scene):
    assert touch(scene.far, scene.host_v4, PUBLISHED[0], times=200) == 200, "connections"


def outgoing(scene):
    """From ephemeral ports, from low ones, and from those of services."""
    serve(scene.far, 9001, 9002, 9003, 9004)
    for number, port in enumerate((9001, 9002, 9003, 9004)):
        scene.one.connect(LIVE["v4"], port).close()
        low = scene.one.socket("0.0.0.0")
        low.bind(("0.0.0.0", 9000 + number))
        low.connect((LIVE["v4"], port))
        low.close()
    for port in (101, 102, 103, 104):
        low = scene.two.socket("0.0.0.0")
        low.bind(("0.0.0.0", port))
        low.connect((LIVE["v4"], 9001))
        low.close()


def each_other(scene):
    """Containers that scrape each other, by their own and by published ports."""
    assert touch(scene.one, "172.17.0.3", *INSIDE, times=3) == 12, "connections"
    assert touch(scene.two, "172.17.0.2", *INSIDE, times=3) == 12, "connections"
    assert touch(scene.two, scene.host_v4, *PUBLISHED, times=3) == 12, "connections"
    assert touch(scene.one, scene.host_v4, *PUBLISHED, times=3) == 12, "connections"


def the_host_itself(scene):
    for number in (2, 3):
        assert touch(scene.host, f"172.17.0.{number}", *INSIDE) == 4, "connections"
        assert touch(scene.host, f"172.17.0.{number}", *INSIDE, source=scene.host_v4) == 4


def on_link(scene):
    assert touch(scene.edge, scene.host_v4, *PUBLISHED, times=2) == 8, "connections"


def private(scene):
    for source in ("10.98.0.7", "fd91::7"):
        host = scene.address("v6" if ":" in source else "v4")
        wait_for(lambda: touch(scene.far, host, *PUBLISHED, source=source) == 4, "connections")


def loopback(scene):
    for space in scene.containers:
        touch(space, "127.0.0.1", *INSIDE, times=20)
        touch(space, "::1", *INSIDE, times=20)


@pytest.mark.parametrize("traffic", [three_ports, one_port, outgoing, each_other, the_host_itself,
                                     on_link, private, loopback])
def test_what_is_no_scan(t, traffic):
    scene = Docker(t)
    guard = scene.guard("--show", "scans")
    wait_for(lambda: serves_others(scene), "the services")
    traffic(scene)
    only_the_control_is_blocked(scene, guard)


def test_outgoing_connections_without_nat_are_no_scan(t):
    """A container with a public address of its own, whose port is reached as it
    is. Its outgoing connections are none; who asks four of its ports is a scanner."""
    scene = Docker(t)
    scene.route_container("203.0.113.130")
    guard = scene.guard("--show", "scans")
    serve(scene.far, 9001, 9002, 9003, 9004)
    for port in (9001, 9002, 9003, 9004):
        made = scene.one.socket("0.0.0.0")
        made.bind(("203.0.113.130", port - 8000))
        made.connect((LIVE["v4"], port))
        made.close()
    only_the_control_is_blocked(scene, guard)


@pytest.mark.alone
def test_a_busy_container_costs_our_own_evidence_nothing(t):
    """Thousands of loopback connections a second inside; a scan of the host's own
    services and one of published ports are found all the same."""
    scene = Docker(t)
    serve(scene.host, *PORTS)
    guard = scene.guard("--show", "scans")
    with helper(scene.one, "serve", 7000), helper(scene.one, "flood", "127.0.0.1", 7000, 15_000) as flood:
        began = time.monotonic()
        for source, ports in (("198.51.100.31", PORTS), ("198.51.100.32", PUBLISHED)):
            time.sleep(0.3)
            assert touch(scene.far, scene.host_v4, *ports, source=source) == 4, "connections"
            guard.wait_line(rf": +Blocked: +{re.escape(source)} ", 2)
        assert int(flood.stdout.readline()) == 15_000, "loopback connections"
        print(f"    {15_000 / (time.monotonic() - began):.0f} loopback connections a second")
    found = guard.scrape()
    assert found["tcpparser_destroy_event_overflows_total"] == 0, "events lost"
    assert found[FOREIGN] < 1000, f"{found[FOREIGN]} foreign events"


# ----------------------------------------------------------------------- forged


def impostors(scene, way):
    """Root in a container, in each of the ways it can be in a stranger's name: a
    function of (stranger, port), true once the handshake was done."""
    if way == "liberal":
        liar = scene.keep(Liar(scene))
        return SPARE, lambda source, port: liar.handshake(source, port)
    send, target = None, scene.address("v6" if way.endswith("v6") else "v4")
    if way == "tunnel":
        send = scene.keep(Tunnel(scene)).send
        links_settle()
    elif way == "router":
        scene.relay()
        target = scene.relay_v4
    elif way in ("fragments", "renumbered"):
        scene.keep(Turner(scene, 1000 if way == "renumbered" else 0))
        send = in_fragments(scene.keep(Forger(scene.one))) if way == "fragments" else None
        target = scene.relay_v4
    spaces = dict(zip(PUBLISHED, (scene.one, scene.one, scene.two, scene.two)))
    made = {port: scene.keep(Impostor(scene.one, space, send)) for port, space in spaces.items()}
    return PUBLISHED, lambda source, port: made[port].handshake(source, target, port)


@pytest.mark.parametrize("uplink, way, rp_filter, bridged", [
    ("veth", "published", 0, 1), ("tap", "published", 2, 0), ("veth", "published v6", 0, 1),
    ("tap", "published v6", 0, 0), ("veth", "router", 0, 0), ("tap", "router", 2, 1),
    ("tap", "tunnel", 0, 1), ("veth", "tunnel", 2, 0), ("veth", "liberal", 2, 0),
    ("tap", "liberal", 0, 1), ("veth", "fragments", 0, 0), ("tap", "fragments", 2, 1),
    ("tap", "renumbered", 0, 0)])
def test_root_in_a_container_has_no_stranger_blocked(t, uplink, way, rp_filter, bridged):
    """Whose handshakes it completes; one of them is silent, the other's host
    resets what it did not ask for. Then a stranger who has three connections of
    its own gets the fourth forged. `bridged`: bridge-nf-call-iptables."""
    family = "v6" if way.endswith("v6") else "v4"
    silent, live, own = (addresses[family] for addresses in (SILENT, LIVE, MUTE))
    scene = Docker(t, uplink, rp_filter=rp_filter, bridged=bridged)
    wait_for(lambda: serves_others(scene, family), "the services")
    guard = scene.guard("--show", "scans")
    ports, forge = impostors(scene, way)
    events = guard.metric(FOREIGN)
    assert [port for port in ports if forge(silent, port)] == list(ports), "handshakes"
    wait_for(lambda: guard.metric(FOREIGN) >= events + 4, "their events")
    for port in ports:
        forge(live, port)
    scene.mute(own)
    host = scene.address(family)
    assert touch(scene.far, host, *PUBLISHED[:3], how="fin", source=own) == 3, "own connections"
    assert forge(own, ports[3]), "the fourth"
    only_the_control_is_blocked(scene, guard, told=map(shown, (silent, live, own)))
    for source in map(shown, (silent, own)):
        told = guard.matching(f"Port scan detected: +{re.escape(source)} ")
        lines = guard.matching(rf": +Not blocked: +{re.escape(source)} .*{UNSEEN}")
        print(f"    {source}: told {len(told)} times")
        assert len(told) == len(lines) <= 1, f"{told} {lines}"
    # Its own fourth port is another matter.
    assert touch(scene.far, host, PUBLISHED[3], how="fin", source=own) == 1, "own connections"
    guard.wait_line(rf": +Blocked: +{re.escape(shown(own))} ", 3)


def shown(source):
    """As it is blocked."""
    return source.rpartition("::")[0] + "::/64" if ":" in source else source


@pytest.mark.idle
def test_forged_fast_open_connections_prove_nothing(t):
    """Services of containers take data that came with a SYN; who sent it, nobody
    knows."""
    scene = Docker(t)
    for space in scene.containers:
        space.sysctl("net.ipv4.tcp_fastopen=0x603", "net.ipv4.tcp_synack_retries=1",
                     "net.ipv4.tcp_orphan_retries=1")
        for port in INSIDE:
            serve(space, port + 100, address="::")
    ports = (8021, 8022, 8023, 8024)
    scene.publish(scene.one, zip(ports[:2], (180, 181)))
    scene.publish(scene.two, zip(ports[2:], (180, 181)))
    guard = scene.guard("--show", "scans")
    forger = scene.keep(Forger(scene.far))
    for port in ports:
        forger.send(SILENT["v4"], scene.host_v4, port, SYN, b"hello", count=5)
    wait_for(lambda: guard.metric(FOREIGN) >= 20, "their events", 40)
    only_the_control_is_blocked(scene, guard)


def test_a_full_memory_of_one_link_makes_nothing_sure(t):
    """Root in a container drives out what was seen of its own SYN, which a router
    turned round, before it goes on."""
    scene = Docker(t, bridged=0)
    scene.relay()
    guard = scene.guard("--show", "scans")
    forger = scene.keep(Forger(scene.one))

    def send(packet):
        if packet[33] == ACK:
            for number in range(1100):
                forger.send(f"192.0.2.{number % 120 + 1}", scene.host_v4, 9, SYN)
                if number % 40 == 0:
                    time.sleep(0.008)  # what is dropped makes blind by itself
        forger.put(packet)

    for port, space in zip(PUBLISHED, (scene.one, scene.one, scene.two, scene.two)):
        impostor = scene.keep(Impostor(scene.one, space, send))
        assert impostor.handshake(SILENT["v4"], scene.relay_v4, port), "handshakes"
    guard.wait_line(rf": +Not blocked: +{re.escape(SILENT['v4'])} .*{UNSEEN}")
    assert guard.metric(BLOCKS) == 0, BLOCKS


@pytest.mark.parametrize("uplink, bridged", [("bridge", 0), ("bridge", 1), ("tunnel", 0)])
def test_told_once_what_is_not_blocked(t, uplink, bridged):
    """Where the uplink is a bridge with containers' ports, or a tunnel without
    keys, nobody can tell where a SYN came from."""
    scene = Docker(t, uplink, bridged=bridged)
    guard = scene.guard("--show", "scans", interval="500ms")
    for _ in range(3):
        assert touch(scene.far, scene.host_v4, *PUBLISHED) == 4, "connections"
    guard.wait_line(scan_pattern(STRANGER["v4"], scene.host_v4, PUBLISHED))
    guard.wait_line(rf": +Not blocked: +{re.escape(STRANGER['v4'])} .*{UNSEEN}")
    guard.wait_readings(1)
    assert len(guard.matching("Port scan detected")) == 1, "told once"
    assert refused(guard) == 1, "blocks_refused_total"
    assert guard.metric(BLOCKS) == 0, BLOCKS
    assert len(reaches(scene, STRANGER["v4"])) == 4, "published ports"
    _, forge = impostors(scene, "tunnel" if uplink == "tunnel" else "published")
    for port in PUBLISHED:
        assert forge(SILENT["v4"], port), "handshakes"
    guard.wait_line(rf": +Not blocked: +{re.escape(SILENT['v4'])} .*{UNSEEN}")
    serve(scene.host, *PORTS)
    guard.wait_readings(2)
    assert touch(scene.far, scene.host_v4, *PORTS) == 4, "connections"
    guard.wait_line(rf": +Blocked: +{re.escape(STRANGER['v4'])} ", 3)


# ------------------------------------------------------------- what is missing


def own_namespace_works(scene, guard, source="198.51.100.41"):
    touch(scene.far, scene.host_v4, *PORTS, source=source)
    guard.wait_line(rf"Port scan detected: +{re.escape(source)} ", 3)


@pytest.mark.parametrize("missing", ["net_broadcast", "net_raw", "net_admin", "conntrack"])
def test_rights_that_are_missing_are_said_once(t, missing):
    scene = Docker(t)
    serve(scene.host, *PORTS)
    before = deaf("netfilter") if missing == "conntrack" else without(missing)
    arguments = {"net_admin": ("--dry-run",), "conntrack": ("--firewall", "iptables")}.get(missing, ())
    guard = scene.guard("--show", "scans", *arguments, before=before,
                        backend="iptables-legacy" if missing == "conntrack" else "nft")
    for _ in range(3):
        assert touch(scene.far, scene.host_v4, *PUBLISHED) == 4, "connections"
    own_namespace_works(scene, guard)
    name = {"net_broadcast": "CAP_NET_BROADCAST", "net_raw": "CAP_NET_RAW",
            "net_admin": "CAP_NET_ADMIN", "conntrack": "conntrack"}[missing]
    said = [line for line in guard.error_output() if name in line]
    assert len(said) == 1 == len(guard.error_output()), f"lines {guard.error_output()}"
    scans = guard.matching(rf"Port scan detected: +{re.escape(STRANGER['v4'])} ")
    if missing == "net_raw":
        assert len(scans) == 1, f"told {scans}"
        assert guard.matching(rf": +Not blocked: +{re.escape(STRANGER['v4'])} .*{UNSEEN}"), "why"
        assert guard.metric("tcpparser_witness_up") == 0, "witness_up"
    else:
        assert scans == [], f"told {scans}"
        assert guard.metric(NAMESPACES_UP) == 0, NAMESPACES_UP
    if missing != "net_admin":
        guard.wait_line(r": +Blocked: +198.51.100.41 ", 3)
        assert guard.metric(BLOCKS) == 1, BLOCKS
