"""What is a port scan and, more important, what is none."""

import pytest

from harness import FAMILIES, Family, Lan, link, scan_pattern

PORTS = (22, 25, 80, 443)


def guarded(t, family, *arguments, ports=PORTS):
    """A LAN whose host serves four ports and is watched, but blocks no source."""
    lan = t.lan()
    lan.host.listen(*ports, address=family.wildcard)
    return lan, t.guard(lan.host, "--dry-run", *arguments).ready()


def nothing_found(guard):
    guard.wait_readings(3)
    assert guard.matching("Port scan") == [], "scans"
    assert guard.metric("tcpparser_port_scans_total") == 0, "port_scans_total"


@pytest.mark.parametrize("name", FAMILIES)
def test_three_ports_are_no_scan(t, name):
    family = Family(name)
    lan, guard = guarded(t, family)
    held = [lan.peer.connect(family.host, port) for port in PORTS[:3] for _ in range(5)]
    guard.wait_line("New connection")
    nothing_found(guard)
    assert len(held) == 15, "connections held"


@pytest.mark.parametrize("name", FAMILIES)
def test_four_standing_connections_are_a_scan(t, name):
    family = Family(name)
    lan, guard = guarded(t, family)
    held = [lan.peer.connect(family.host, port) for port in reversed(PORTS)]
    guard.wait_line(scan_pattern(family.peer, family.host, PORTS))
    guard.wait_readings(3)
    assert len(guard.matching("Port scan")) == 1, "scan lines"
    assert len(held) == 4, "connections held"


@pytest.mark.parametrize("name", FAMILIES)
def test_one_after_the_other_is_a_scan(t, name):
    family = Family(name)
    lan, guard = guarded(t, family)
    for port in PORTS:
        assert guard.matching("Port scan") == [], "scans so far"
        with lan.peer.connect(family.host, port):
            guard.wait_readings(1)
    guard.wait_line(scan_pattern(family.peer, family.host, PORTS))


def test_standing_before_the_start_is_a_scan(t):
    lan = t.lan()
    lan.host.listen(*PORTS)
    held = [lan.peer.connect(lan.host_v4, port) for port in PORTS]
    guard = t.guard(lan.host, "--dry-run")
    guard.wait_line(scan_pattern(lan.peer_v4, lan.host_v4, PORTS, is_old=True))
    assert len(held) == 4, "connections held"


@pytest.mark.idle
def test_ports_older_than_the_window_do_not_count(t):
    family = Family("v4")
    lan, guard = guarded(t, family, "--window", "1s")
    for port in PORTS:
        with lan.peer.connect(family.host, port):
            guard.wait_readings(1)
        guard.wait_readings(7)
    nothing_found(guard)


def test_threshold_is_an_option(t):
    family = Family("v4")
    lan, guard = guarded(t, family, "--ports", "1")
    held = [lan.peer.connect(family.host, port) for port in (22, 80)]
    guard.wait_line(scan_pattern(family.peer, family.host, (22, 80)))
    assert len(held) == 2, "connections held"


@pytest.mark.idle
def test_quiet_for_a_window_reports_again(t):
    family = Family("v4")
    lan, guard = guarded(t, family, "--window", "1s")
    for scans in (1, 2):
        held = [lan.peer.connect(family.host, port) for port in PORTS]
        guard.wait_line("Port scan")
        guard.wait_readings(8)
        assert len(guard.matching("Port scan")) == scans, "scans while it goes on"
        for connection in held:
            connection.close()
        guard.wait_readings(8)


def test_two_families_are_two_sources(t):
    lan, guard = guarded(t, Family("mapped"))
    held = [lan.peer.connect(lan.host_v4, port) for port in (22, 25)]
    held += [lan.peer.connect(lan.host_v6, port) for port in (80, 443)]
    nothing_found(guard)
    assert len(held) == 4, "connections held"


def test_two_addresses_on_the_link_are_two_sources(t):
    lan, guard = guarded(t, Family("v6"))
    held = [lan.peer.connect(lan.host_v6, port, source=lan.peer_v6) for port in (22, 25)]
    held += [lan.peer.connect(lan.host_v6, port, source=lan.friend_v6) for port in (80, 443)]
    nothing_found(guard)
    assert len(held) == 4, "connections held"


def test_neighbours_of_a_64_beyond_a_router_are_one_source(t):
    host, gateway, far = t.namespace("host"), t.namespace("gateway"), t.namespace("far")
    link(host, "lan0", gateway, "lan0", ("fd00:77::1/64", "fd00:77::fe/64"))
    link(gateway, "wan0", far, "wan0", ("2001:db8:4::1/64", "2001:db8:4::2/64"))
    gateway.sysctl("net.ipv6.conf.all.forwarding=1")
    host.ip("route add default via fd00:77::fe")
    far.ip("route add default via 2001:db8:4::1",
           "address add 2001:db8:4::3/64 dev wan0 nodad")
    host.listen(*PORTS, address="::")
    guard = t.guard(host, "--dry-run").ready()
    held = [far.connect("fd00:77::1", port, source="2001:db8:4::2") for port in (22, 25)]
    held += [far.connect("fd00:77::1", port, source="2001:db8:4::3") for port in (80, 443)]
    guard.wait_line(scan_pattern("2001:db8:4::/64", "fd00:77::1", PORTS))
    assert len(held) == 4, "connections held"


def test_one_port_at_four_local_addresses_is_one_port(t):
    lan, guard = guarded(t, Family("v4"))
    extra = [f"10.77.0.{n}" for n in (11, 12, 13)]
    lan.host.ip(*(f"address add {address}/24 dev lan0" for address in extra))
    held = [lan.peer.connect(address, 22) for address in (lan.host_v4, *extra)]
    nothing_found(guard)
    assert len(held) == 4, "connections held"


def test_parallel_downloads_are_no_scan(t):
    lan, guard = guarded(t, Family("v4"))
    lan.peer.listen(8080)
    downloads = [lan.host.connect(lan.peer_v4, 8080) for _ in range(6)]
    for download in downloads:
        download.sendall(b"x" * 50_000)
    guard.wait_line("New connection")
    nothing_found(guard)
    assert all(" <- " in line for line in guard.matching("New connection")), "direction"


def test_idle_outgoing_connections_are_no_scan(t):
    lan, guard = guarded(t, Family("v4"))
    lan.peer.listen(*range(9001, 9007))
    held = [lan.host.connect(lan.peer_v4, port) for port in range(9001, 9007)]
    nothing_found(guard)
    assert len(held) == 6, "connections held"


def test_two_hundred_connections_to_one_port_are_no_scan(t):
    lan, guard = guarded(t, Family("v4"))
    held = [lan.peer.connect(lan.host_v4, 443) for _ in range(200)]
    nothing_found(guard)
    assert len(held) == 200, "connections held"


def test_refused_connections_are_no_scan(t):
    lan, guard = guarded(t, Family("v4"))
    for port in range(1000, 1020):
        assert not lan.peer.connects(lan.host_v4, port), f"port {port} is closed"
    nothing_found(guard)


def test_loopback_is_no_scan(t):
    lan, guard = guarded(t, Family("mapped"))
    held = [lan.host.connect(address, port) for port in PORTS
            for address in ("127.0.0.1", "::1", lan.host_v4)]
    nothing_found(guard)
    assert len(held) == 12, "connections held"


def test_many_scanners_at_once(t):
    lan, guard = guarded(t, Family("v4"))
    sources = [f"10.77.0.{n}" for n in range(100, 120)]
    lan.peer.ip(*(f"address add {source}/24 dev lan0" for source in sources))
    held = [lan.peer.connect(lan.host_v4, port, source=source)
            for source in sources for port in PORTS]
    for source in sources:
        guard.wait_line(scan_pattern(source, Lan.host_v4, PORTS))
    assert len(held) == 80, "connections held"
