"""What standard output is: a pipe or a file, systemd's journal, or a terminal."""

import fcntl
import os
import re
import socket
import struct
import termios

import pytest

from harness import connection_pattern, name_of, wait_for

PORTS = (22, 25, 80, 445)


class Stream:
    """A socket as standard output, as journald hands one to its services."""

    def __init__(self, t, namespace, *arguments, names=True):
        self.ours, theirs = socket.socketpair()
        status = os.fstat(theirs.fileno())
        inode = status.st_ino if names else status.st_ino + 1
        env = {"PATH": t.folder("path-empty"), "TZ": "UTC0",
               "JOURNAL_STREAM": f"{status.st_dev}:{inode}"}
        self.guard = t.guard(namespace, *arguments, env=env, stdout=theirs)
        theirs.close()
        self.guard.readers.append(self.guard.collect(self.ours.makefile("rb"), self.guard.lines))


def test_the_journal_gets_a_priority_and_no_time(t):
    lan = t.lan()
    lan.host.listen(*PORTS)
    guard = Stream(t, lan.host, "--allow", "10.77.0.2").guard.ready()
    held = [lan.peer.connect(lan.host_v4, port) for port in PORTS]
    guard.wait_line("Not blocked")
    guard.wait_readings(1)
    assert guard.output()[0] == "<6>tcpparser starting...", guard.output()
    assert guard.matching(r"^<4>Port scan detected:  +10\.77\.0\.2 -> 10\.77\.0\.1 on ports ")
    assert guard.matching(r"^<4>       Not blocked:  +10\.77\.0\.2 --allow$"), guard.output()
    shown = f"^<6>    New connection: +{re.escape(name_of(held[0]))} -> "
    guard.wait_line(shown)
    assert all(re.match("<[46]>", line) for line in guard.output()), guard.output()
    assert not guard.matching(r"\d\d:\d\d:\d\d"), "no second time stamp"


def test_what_is_not_the_journal_stays_to_the_letter(t):
    """The output of a service's child that goes elsewhere."""
    lan = t.lan()
    lan.host.listen(*PORTS)
    guard = Stream(t, lan.host, names=False).guard.ready()
    client = lan.peer.connect(lan.host_v4, 22)
    guard.wait_line(connection_pattern(name_of(client), "->", "10.77.0.1:22"))
    assert guard.output()[:2] == ["tcpparser starting...", ""], guard.output()


# ------------------------------------------------------------------ a terminal


def terminal(t, namespace, *arguments, rows=24, columns=100, env=None):
    """A guard whose standard output is a terminal of this size."""
    ours, screen = os.openpty()
    fcntl.ioctl(screen, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    env = {"PATH": t.folder("path-empty"), "TZ": "UTC0", **(env or {})}
    guard = t.guard(namespace, *arguments, env=env, stdout=screen)
    os.close(screen)
    guard.readers.append(guard.collect(os.fdopen(ours, "rb", buffering=0), guard.lines))
    return guard


def scanned(t, env):
    """What a scan from a protected source looks like there."""
    lan = t.lan()
    lan.host.listen(*PORTS)
    guard = terminal(t, lan.host, "--allow", "10.77.0.2", "--show", "scans", env=env).ready()
    for port in PORTS:
        lan.peer.connect(lan.host_v4, port).close()
    guard.wait_line("Not blocked")
    return guard


def test_a_terminal_has_colours(t):
    guard = scanned(t, {"TERM": "xterm"})
    assert guard.matching("^[-0-9]{10} [:0-9]{8}: \x1b\\[31mPort scan detected\x1b\\[0m: "), guard.output()
    assert guard.matching(": \x1b\\[33m       Not blocked\x1b\\[0m: "), guard.output()


@pytest.mark.parametrize("env", [{"TERM": "dumb"}, {"TERM": "xterm", "NO_COLOR": "1"}, {}],
                         ids=["dumb", "NO_COLOR", "unknown"])
def test_no_colours_where_they_are_not_wanted(t, env):
    guard = scanned(t, env)
    assert not guard.matching("\x1b"), guard.output()


def test_a_terminal_is_told_what_to_expect(t):
    guard = terminal(t, t.lan().host, "--firewall", "nft", "--allow", "192.0.2.0/24",
                     env={"SSH_CONNECTION": "198.51.100.9 1 198.51.100.1 22"}).ready()
    assert guard.error_output() == [
        "tcpparser: metrics: http://127.0.0.1:3021/metrics",
        "tcpparser: blocks: nf_tables; connections: readings and destroy events",
        "tcpparser: never blocked: own addresses, gateways, nameservers, --allow, "
        "our own SSH session"]


def test_a_long_list_is_folded_to_the_screen(t):
    lan = t.lan()
    lan.host.listen(*PORTS)
    guard = terminal(t, lan.host, "--dry-run", "--interval", "2s", rows=6).ready()
    held = [lan.peer.connect(lan.host_v4, 445) for _ in range(5)]
    guard.wait_line(connection_pattern(name_of(held[4]), "->", "10.77.0.1:445"))
    held += [lan.peer.connect(lan.host_v4, port) for port in (445, 80, 80, 22)]
    guard.wait_line("New connection: +10.77.0.2 -> 10.77.0.1:80, 2 connections$")
    last = guard.output()[-3:]
    shown = [re.sub("^.*New connection: +", "", line) for line in last]
    assert shown == ["10.77.0.2 -> 10.77.0.1:445, 6 connections",
                     "10.77.0.2 -> 10.77.0.1:80, 2 connections",
                     f"{name_of(held[-1])} -> 10.77.0.1:22"], guard.output()[-12:]
    # More pairs than lines.
    lan.peer.listen(*range(9001, 9006))
    held += [lan.host.connect(lan.peer_v4, port) for port in range(9001, 9006)]
    guard.wait_line("^… and ")
    wait_for(lambda: re.search("^… and 4 more$", guard.output()[-1]), "the number of the others")
    assert "10.77.0.1:445, 6 connections" in guard.output()[-5], guard.output()[-6:]
