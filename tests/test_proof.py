"""What proves a handshake where Fast Open takes data without a cookie: there
one forged SYN makes a connection that the service accepts."""

import socket

import traffic
import pytest

from harness import wait_for
from test_evidence import EVENTS_UP, counters, peers
from traffic import ConnectScan, Forger, Nmap, deaf, end, has_events, serve, touch

PORTS = (22, 25, 80, 443, 8080)
LISTED = ",".join(map(str, PORTS))
STRANGER = "10.93.0.77"  # no host answers there
FASTOPEN, FASTOPEN_NO_COOKIE = 23, 34  # TCP_* of linux/tcp.h
UNPROVEN = "tcpparser_events_unproven_total"
SCANS = "tcpparser_port_scans_total"

# How a forged SYN comes to be accepted: net.ipv4.tcp_fastopen, and whether
# TCP_FASTOPEN_NO_COOKIE is set or the route to the sender has fastopen_no_cookie.
WAYS = {"setting": ("0x203", False, False), "setting for all": ("0x603", False, False),
        "socket": ("3", True, False), "route": ("3", False, True),
        "leftovers": ("0x203", False, False)}


class Host:
    """A host whose services take Fast Open, and what it needs to be guarded."""

    def __init__(self, t, way="setting", kind="echo", address="0.0.0.0", settings=()):
        self.case, self.lan = t, t.lan()
        self.space, self.peer = self.lan.host, self.lan.peer
        tcp_fastopen, is_by_socket, is_by_route = WAYS[way]
        # Sockets whose peer is silent end within seconds.
        self.space.sysctl(f"net.ipv4.tcp_fastopen={tcp_fastopen}", "net.ipv4.tcp_orphan_retries=1",
                          "net.ipv4.tcp_synack_retries=1", "net.ipv4.tcp_retries2=3", *settings)
        # A gateway that takes what it is sent, and is not the peer.
        route = "route add 10.93.0.0/24 via 10.77.0.99"
        self.space.ip("neighbour add 10.77.0.99 lladdr 02:00:00:00:00:99 dev lan0",
                      route + (" fastopen_no_cookie 1" if is_by_route else ""))
        self.firewall = t.firewall(self.space)
        self.listeners = serve(self.space, *PORTS, kind=kind, address=address)
        for listener in self.listeners:
            listener.setsockopt(socket.IPPROTO_TCP, FASTOPEN, 64)
            if is_by_socket:
                listener.setsockopt(socket.IPPROTO_TCP, FASTOPEN_NO_COOKIE, 1)

    def start(self, **options):
        self.guard = self.case.guard(self.space, env=self.firewall.env, **options).ready()
        return self

    def hears(self):
        wait_for(lambda: has_events(self.guard), "destroy events")
        return self

    def forge(self, count=2):
        forger = Forger(self.peer)
        for port in PORTS:
            forger.send(STRANGER, self.lan.host_v4, port, traffic.SYN, b"hello", count=count)
        forger.close()
        taken = counters(self.space, "netstat")["TCPFastOpenPassive"]
        assert taken == count * len(PORTS), "forged connections accepted"
        return taken

    def closing(self):
        """Forged connections in FIN_WAIT1, as the kernel lists them."""
        done = self.space.must("ss", "-Htn", "state", "fin-wait-1", "dst", STRANGER)
        return done.splitlines()

    def blocks(self, source):
        return self.firewall.blocks(self.space, f"{source}/32")

    def nothing_found(self):
        self.guard.wait_readings(2)
        assert self.guard.matching("Port scan|Blocked") == [], "scans"
        assert self.guard.metric(SCANS) == 0, SCANS
        assert self.firewall.entries(self.space) == [], "rules"

    def blocks_scanners(self):
        """The control: an ordinary scan of the same services."""
        Nmap(self.peer, "-sT", "-p", LISTED, self.lan.host_v4).wait()
        wait_for(lambda: self.blocks(self.lan.peer_v4), "the scanner's block")
        assert not self.blocks(STRANGER), "the forged address is blocked"


# ------------------------------------------------------------------ forgeries


@pytest.mark.parametrize("way, kind", [(way, kind) for way in WAYS for kind in ("reading", "echo")])
def test_forged_connections_prove_nothing(t, way, kind):
    """The service closes first, or keeps the connection until it fails."""
    # What is left at the start has to stand a while longer.
    settings = ["net.ipv4.tcp_synack_retries=2", "net.ipv4.tcp_orphan_retries=2"]
    host = Host(t, way, kind, settings=settings if way == "leftovers" else ())
    if way == "leftovers":
        forged = host.forge()
        host.space.sysctl("net.ipv4.tcp_fastopen=1")
        host.start().hears()
    else:
        host.start().hears()
        forged = host.forge()
    watch_to_the_end(host, forged, kind)
    host.blocks_scanners()


def watch_to_the_end(host, forged, kind):
    """Until the forged sockets are gone. What closes stands as a row first."""
    if kind == "reading":
        wait_for(lambda: len(host.closing()) == forged, "rows in FIN_WAIT1")
        host.nothing_found()
        assert host.closing(), "the rows went before the readings"
    wait_for(lambda: not peers(host.space, STRANGER), "the end of its sockets", 60)
    host.nothing_found()
    wait_for(lambda: host.guard.metric(UNPROVEN) == forged, "their destroy events")
    assert host.guard.metric(EVENTS_UP) == 1, EVENTS_UP
    assert [line for line in host.guard.matching(STRANGER)
            if "Ports probed" not in line] == [], "lines about it"
    assert host.guard.error_output() == [], "words"


@pytest.mark.parametrize("way", ["setting", "socket"])
def test_forged_connections_to_dual_stack_services_prove_nothing(t, way):
    """Their rows stand in tcp6; they are asked for as IPv4."""
    host = Host(t, way, "reading", address="::").start().hears()
    watch_to_the_end(host, host.forge(), "reading")
    host.blocks_scanners()


@pytest.mark.parametrize("how", ["fin", "aborted"])
def test_forged_connections_that_only_events_show_prove_nothing(t, how):
    """Between readings an hour apart, but for early ones."""
    host = Host(t, "setting", "reading" if how == "fin" else "abort").start(interval="1h").hears()
    forged = host.forge()
    wait_for(lambda: host.guard.metric(UNPROVEN) == forged, "their destroy events", 60)
    assert host.guard.metric(SCANS) == 0, SCANS
    host.blocks_scanners()


@pytest.mark.parametrize("way", ["setting", "setting for all"])
def test_without_sock_diag_the_setting_decides(t, way):
    """Neither events nor sockets can be had: rows that close prove nothing."""
    host = Host(t, way, "reading").start(before=deaf("socket"))
    wait_for(host.guard.error_output, "words about destroy events")
    forged = host.forge()
    wait_for(lambda: len(host.closing()) == forged, "rows in FIN_WAIT1")
    host.nothing_found()
    assert host.closing(), "the rows went before the readings"
    held = [host.peer.connect(host.lan.host_v4, port) for port in PORTS]
    wait_for(lambda: host.blocks(host.lan.peer_v4), "the scanner's block")
    assert len(held) == len(PORTS), "connections held"


# ------------------------------------------------------------ what still proves


@pytest.mark.parametrize("way, kind", [(way, kind) for way in ("setting", "setting for all")
                                       for kind in ("nmap -sT", "fin", "rst", "held")])
def test_scanners_are_blocked_whatever_can_be_forged(t, way, kind):
    """Readings an hour apart: what is short is known by its events."""
    host = Host(t, way).start(interval="1h").hears()
    if kind == "nmap -sT":
        return host.blocks_scanners()
    scan = ConnectScan(host.peer, host.lan.host_v4, PORTS, "rst" if kind == "rst" else "fin",
                       hold=15 if kind == "held" else 0)
    wait_for(lambda: host.blocks(host.lan.peer_v4), "the scanner's block")
    scan.close()
    assert host.guard.metric(UNPROVEN) == 0, UNPROVEN


@pytest.mark.parametrize("way", ["setting", "socket"])
def test_connections_first_seen_while_they_close_are_proof(t, way):
    """The services closed, and the peer's answers are lost."""
    settings = ["net.ipv4.tcp_orphan_retries=3"]
    host = Host(t, way, "slow", settings=settings)
    held = [host.peer.connect(host.lan.host_v4, port) for port in PORTS]
    wait_for(lambda: len(host.space.service.kept) == len(PORTS), "the services")
    host.space.must("nft", "-f", "-", input=ANSWERS_LOST)
    host.space.service.close_kept()
    host.start()
    wait_for(lambda: host.blocks(host.lan.peer_v4), "the scanner's block")
    assert len(held) == len(PORTS), "connections held"
    assert host.guard.metric(UNPROVEN) == 0, UNPROVEN


ANSWERS_LOST = """table ip lossy {
 chain in {
  type filter hook input priority 0;
  tcp dport != 3021 ip saddr 10.77.0.2 drop
 }
}
"""

FIRST_LOST = """table ip lossy {
 set answered { type ipv4_addr . inet_service; flags dynamic, timeout; timeout 60s; }
 chain out {
  type filter hook output priority 0;
  tcp flags & (syn | ack) == syn | ack ip daddr . tcp sport != @answered \\
   add @answered { ip daddr . tcp sport } drop
 }
}
"""


@pytest.mark.parametrize("way", ["setting", "socket"])
@pytest.mark.parametrize("kind", ["aborted", "never accepted", "cookies", "SYN-ACK lost"])
def test_odd_handshakes_are_proof(t, kind, way):
    """Those whose sockets have no round trip time to show at their end."""
    service = {"aborted": "abort", "never accepted": "busy"}.get(kind, "echo")
    settings = ["net.ipv4.tcp_syncookies=2", "net.ipv4.tcp_timestamps=0"]
    host = Host(t, way, service, settings=settings if kind == "cookies" else ())
    if kind == "SYN-ACK lost":
        host.space.must("nft", "-f", "-", input=FIRST_LOST)
    host.start(interval="1h").hears()
    if kind == "never accepted":
        held = [host.peer.connect(host.lan.host_v4, port) for port in PORTS]
        for listener in host.listeners:
            listener.close()
        for connection in held:
            end(connection, "fin")
    else:
        touch(host.peer, host.lan.host_v4, *PORTS)
    wait_for(lambda: host.blocks(host.lan.peer_v4), "the scanner's block")
    assert host.guard.metric(UNPROVEN) == 0, UNPROVEN
