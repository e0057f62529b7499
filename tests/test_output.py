"""What standard output is: a pipe or a file, systemd's journal, or a terminal."""

import os
import re
import socket

from harness import connection_pattern, name_of

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
