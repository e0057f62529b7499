"""The list of connections, live: real sockets in namespaces."""

import datetime
import os
import re
import socket
import struct

import pytest

from harness import Family, STAMP, connection_pattern, endpoint, name_of, wait_for
from test_files import fixture, tcp_row

NO_PEER = "No TCP peer connection established yet"


def test_first_lines_and_no_peer(t):
    guard = t.guard(t.lan().host).ready()
    guard.wait_line(f"^{NO_PEER}$")
    assert guard.output()[:3] == ["tcpparser starting...", "", NO_PEER], "first lines"


@pytest.mark.parametrize("name", ["v4", "v6", "mapped"])
def test_peer_connected_to_us(t, name):
    family, lan = Family(name), t.lan()
    lan.host.listen(22, address=family.wildcard)
    guard = t.guard(lan.host).ready()
    client = lan.peer.connect(family.host, 22)
    guard.wait_line(connection_pattern(name_of(client), "->", endpoint(family.host, 22)))


@pytest.mark.parametrize("name", ["v4", "v6"])
def test_we_connected_to_a_peer(t, name):
    family, lan = Family(name), t.lan()
    lan.peer.listen(443, address=family.wildcard)
    guard = t.guard(lan.host).ready()
    client = lan.host.connect(family.peer, 443)
    guard.wait_line(connection_pattern(endpoint(family.peer, 443), "<-", name_of(client)))


def connected(t, *arguments):
    """A guard, and one inbound connection it can see."""
    lan = t.lan()
    lan.host.listen(22)
    guard = t.guard(lan.host, *arguments).ready()
    client = lan.peer.connect(lan.host_v4, 22)
    return guard, client, connection_pattern(name_of(client), "->", "10.77.0.1:22")


def test_show_all_repeats_each_reading(t):
    guard, _, pattern = connected(t, "--show", "all")
    wait_for(lambda: len(guard.matching(pattern)) >= 3, "the third repetition")


def test_show_new_says_it_once(t):
    guard, client, pattern = connected(t, "--show", "new")
    guard.wait_line(pattern)
    guard.wait_readings(3)
    assert len(guard.matching(pattern)) == 1, "lines"
    client.close()


def test_show_scans_lists_nothing(t):
    guard, _, _ = connected(t, "--show", "scans")
    guard.wait_readings(3)
    assert guard.output() == ["tcpparser starting...", ""], "output"


def test_closed_connections_leave_the_list(t):
    guard, client, pattern = connected(t)
    guard.wait_line(pattern)
    client.close()
    wait_for(lambda: guard.output()[-1] == NO_PEER, "an empty list")


def test_same_ports_used_again_are_a_new_connection(t):
    lan = t.lan()
    lan.host.listen(22)
    guard = t.guard(lan.host, "--show", "new").ready()
    for round_number in (1, 2):
        client = lan.peer.socket(lan.host_v4)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.bind((lan.peer_v4, 40000))
        client.settimeout(5)
        client.connect((lan.host_v4, 22))
        pattern = connection_pattern("10.77.0.2:40000", "->", "10.77.0.1:22")
        wait_for(lambda: len(guard.matching(pattern)) == round_number, f"line {round_number}")
        client.close()
        guard.wait_readings(1)


def test_same_connection_by_its_inode(t):
    """0, N, 0 is one connection's inode; N and another number are two."""
    folder = fixture(t, [])
    guard = t.guard(t.namespace("host"), "--dry-run", "--show", "new", "--proc", folder).ready()
    for inode, lines in ((0, 1), (5000, 1), (0, 1), (5000, 1), (6000, 2), (0, 2), (6000, 2)):
        row = tcp_row("192.0.2.1", 40000, "198.51.100.7", 443, 1, inode=inode)
        following = os.path.join(fixture(t, [row], name="following"), "net/tcp")
        os.replace(following, os.path.join(folder, "net/tcp"))
        guard.wait_readings(1)
        assert len(guard.matching("New connection")) == lines, f"lines once the inode is {inode}"


def test_link_local_peers(t):
    lan = t.lan()
    for space, number in ((lan.host, 1), (lan.peer, 2)):
        space.ip(f"address add fe80::{number}/64 dev lan0 nodad")
    lan.host.listen(22, address="::")
    guard = t.guard(lan.host).ready()
    with lan.peer.entered():
        scope = socket.if_nametoindex("lan0")
    client = lan.peer.socket("fe80::1")
    client.bind(("fe80::2", 0, 0, scope))
    client.connect(("fe80::1", 22, 0, scope))
    port = client.getsockname()[1]
    guard.wait_line(connection_pattern(f"[fe80::2]:{port}", "->", "[fe80::1]:22"))


def test_loopback_and_own_addresses_are_not_shown(t):
    lan = t.lan()
    lan.host.listen(22, address="::")
    held = [lan.host.connect(address, 22)
            for address in ("127.0.0.1", "::1", lan.host_v4, lan.host_v6)]
    guard = t.guard(lan.host).ready()
    guard.wait_readings(3)
    assert guard.matching("New connection") == [], "lines"
    assert all(held), "the connections stand"


def test_direction_outlives_the_listener(t):
    lan = t.lan()
    listener, = lan.host.listen(22)
    guard = t.guard(lan.host).ready()
    client = lan.peer.connect(lan.host_v4, 22)
    guard.wait_line("New connection")
    lan.host.service.remove(listener)
    guard.wait_readings(3)
    wrong = [line for line in guard.matching("New connection") if " <- " in line]
    assert wrong == [], "lines that turned round"
    client.close()


@pytest.mark.parametrize("port, arrow", [(40080, "<-"), (8080, "->")])
def test_listener_at_another_address_does_not_count(t, port, arrow):
    """A service on loopback does not make a download's port an open one. Where
    no socket listens the arrow is a guess by the port."""
    lan = t.lan()
    lan.host.listen(port, address="127.0.0.1")
    lan.peer.listen(443)
    guard = t.guard(lan.host).ready()
    client = lan.host.socket(lan.peer_v4)
    client.bind((lan.host_v4, port))
    client.connect((lan.peer_v4, 443))
    guard.wait_line(connection_pattern("10.77.0.2:443", arrow, f"10.77.0.1:{port}"))


@pytest.mark.parametrize("zone", ["UTC0", "XXX-5:30"])
def test_stamps_are_local_time(t, zone):
    folder = fixture(t, [tcp_row("192.0.2.1", 50000, "198.51.100.7", 443, 1)])
    ended = t.once("--once", "--proc", folder, env={"TZ": zone})
    stamp = re.match(f"({STAMP}): ", ended.lines[2])
    assert stamp, f"no time in {ended.lines[2]!r}"
    shown = datetime.datetime.strptime(stamp[1], "%Y-%m-%d %H:%M:%S")
    shift = datetime.timedelta(hours=5, minutes=30) if zone != "UTC0" else datetime.timedelta()
    now = datetime.datetime.now(datetime.timezone.utc).replace(tzinfo=None) + shift
    assert abs((shown - now).total_seconds()) < 5, f"{shown} is not {now}"
