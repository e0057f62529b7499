"""Signals, descriptors, children, and an output that is not read."""

import fcntl
import os
import re
import signal
import subprocess
import time

import pytest

from harness import STAMP, broken_firewall, need, wait_for
from test_files import fixture, tcp_row

PORTS = (22, 25, 80, 443)
F_SETPIPE_SZ = 1031


def scene(t):
    """A host with four services and its firewall."""
    lan = t.lan()
    lan.host.listen(*PORTS)
    return lan, t.firewall(lan.host)


def scan(lan):
    return [lan.peer.connect(lan.host_v4, port) for port in PORTS]


def ends_well(guard, number=signal.SIGTERM):
    started = time.monotonic()
    guard.signal(number)
    assert guard.wait_exit() == 0, "exit status"
    took = time.monotonic() - started
    # A second is promised and held by the simulator to the letter; what waits
    # for a child waits for ten.
    assert took < 4, f"it took {took:.2f} s"


def states_of_children(pid):
    """Process state letters of the children, by process number."""
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        children = file.read().split()
    states = {}
    for child in children:
        try:
            with open(f"/proc/{child}/stat") as stat:
                states[int(child)] = stat.read().rpartition(")")[2].split()[0]
        except OSError:
            pass
    return states


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_signals_end_it(t, name):
    guard = t.guard(t.lan().host).ready()
    lines = len(guard.output())
    ends_well(guard, getattr(signal, name))
    assert guard.error_output() == [], "stderr"
    said = [line for line in guard.output()[lines:] if "block" in line.lower()]
    assert said == [], "words about blocks where none stands"


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_exit_line_counts_standing_blocks(t, name):
    lan, firewall = scene(t)
    guard = t.guard(lan.host, "--show", "scans", env=firewall.env).ready()
    scan(lan)
    guard.wait_line("Blocked: ")
    lines = len(guard.output())
    ends_well(guard, getattr(signal, name))
    said = guard.output()[lines:]
    assert len(said) == 1, f"lines at exit: {said}"
    assert re.search(r"\b1\b|\bone\b", said[0]) and "block" in said[0].lower(), said[0]
    assert len(firewall.entries(lan.host)) == 1, "the block stays"


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_first_process_of_a_container_ends(t, name):
    need("unshare")
    guard = t.guard(t.lan().host, before=(
        "unshare", "--pid", "--fork", "--mount-proc", "--kill-child")).ready()
    children = wait_for(lambda: states_of_children(guard.pid), "the child of unshare")
    guard.pid = next(iter(children))
    ends_well(guard, getattr(signal, name))


def test_first_process_blocks_and_reaps(t):
    need("unshare")
    lan, firewall = scene(t)
    guard = t.guard(lan.host, env=firewall.env, before=(
        "unshare", "--pid", "--fork", "--mount-proc", "--kill-child")).ready()
    scan(lan)
    guard.wait_line("Blocked: ")
    guard.pid = next(iter(states_of_children(guard.pid)))
    guard.wait_readings(2)
    assert "Z" not in states_of_children(guard.pid).values(), "zombies"
    ends_well(guard)


def hanging(t, lan):
    """A guard whose firewall child hangs and ignores SIGTERM."""
    pids = os.path.join(t.tmp, "hanging")
    env = broken_firewall(t, f"trap '' TERM INT\necho $$ >> {pids}\n"
                             "while :; do /bin/sleep 1; done\n")
    guard = t.guard(lan.host, env=env).ready()
    scan(lan)
    guard.wait_line("Port scan")
    wait_for(lambda: os.path.exists(pids), "a hanging child")
    return guard, pids


def test_hanging_child_does_not_delay_the_end(t):
    lan, _ = scene(t)
    guard, pids = hanging(t, lan)
    ends_well(guard)
    with open(pids) as file:
        numbers = file.read().split()
    assert numbers, "a child was started"
    wait_for(lambda: not any(os.path.exists(f"/proc/{n}") for n in numbers), "the child's end", 3)


def test_hanging_child_does_not_delay_readings(t):
    lan, _ = scene(t)
    guard, pids = hanging(t, lan)
    started = time.monotonic()
    guard.wait_readings(5)
    assert time.monotonic() - started < 8, "readings wait for the child"
    with open(pids) as file:
        assert len(file.read().split()) == 1, "children at a time"


def test_standard_descriptors_closed_at_start(t):
    need("sh")
    lan, firewall = scene(t)
    guard = t.guard(lan.host, env=firewall.env, before=(
        "sh", "-c", 'exec "$@" 0<&- 1>&- 2>&-', "sh")).ready()
    for number in (0, 1, 2):
        assert os.readlink(f"/proc/{guard.pid}/fd/{number}") == "/dev/null", f"descriptor {number}"
    scan(lan)
    wait_for(lambda: firewall.blocks(lan.host, "10.77.0.2/32"), "the block")
    ends_well(guard)


def full_pipe():
    """A pipe of the smallest size that is not read."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, F_SETPIPE_SZ, 4096)
    return reader, writer


def test_full_output_stops_nothing(t):
    lan, firewall = scene(t)
    reader, writer = full_pipe()
    try:
        guard = t.guard(lan.host, env=firewall.env, stdout=writer).ready()
        crowd = [lan.peer.connect(lan.host_v4, 22, source=lan.friend_v4) for _ in range(100)]
        guard.wait_readings(5)
        scan(lan)
        wait_for(lambda: firewall.blocks(lan.host, "10.77.0.2/32"), "the block")
        dropped = {name: value for name, value in guard.scrape().items()
                   if re.match(r"tcpparser_\w*(output|lines)\w*", name) and value > 0}
        assert dropped, "no metric counts the dropped lines"
        ends_well(guard)
        os.set_blocking(reader, False)
        text = os.read(reader, 1 << 20).decode()
        torn = [line for line in text.splitlines()[2:]
                if line != "No TCP peer connection established yet"
                and not re.fullmatch(rf"{STAMP}: [A-Z ].*: .*:\d+ -> 10\.77\.0\.1:\d+", line)]
        assert torn == [], "torn lines"
        assert len(crowd) == 100, "connections held"
    finally:
        os.close(reader)
        os.close(writer)


def test_broken_output_stops_nothing(t):
    lan, firewall = scene(t)
    reader, writer = os.pipe()
    os.close(reader)
    try:
        guard = t.guard(lan.host, env=firewall.env, stdout=writer).ready()
        scan(lan)
        wait_for(lambda: firewall.blocks(lan.host, "10.77.0.2/32"), "the block")
        guard.wait_readings(2)
        ends_well(guard)
    finally:
        os.close(writer)


def test_broken_stderr_stops_nothing(t):
    lan, firewall = scene(t)
    guard = t.guard(lan.host, "--firewall=iptables",
                    env={**firewall.env, "PATH": t.folder("empty")}, before=(
        "sh", "-c", 'exec "$@" 2>/dev/full', "sh")).ready()
    scan(lan)
    guard.wait_line("Block failed: ")
    ends_well(guard)


def test_output_reader_that_leaves_stops_nothing(t):
    """`tcpparser | head -1`."""
    lan, firewall = scene(t)
    reader, writer = os.pipe()
    head = subprocess.Popen(["head", "-1"], stdin=reader, stdout=subprocess.DEVNULL)
    os.close(reader)
    try:
        guard = t.guard(lan.host, env=firewall.env, stdout=writer).ready()
        assert head.wait(10) == 0, "exit status of head"
        guard.wait_readings(2)
        scan(lan)
        wait_for(lambda: firewall.blocks(lan.host, "10.77.0.2/32"), "the block")
    finally:
        head.kill()
        os.close(writer)


def test_no_zombies_and_no_leaks(t):
    lan, firewall = scene(t)
    guard = t.guard(lan.host, "--block-time", "1s", env=firewall.env).ready()
    guard.wait_readings(1)
    # And the socket by which it will ask for the scanner's connections.
    before = len(os.listdir(f"/proc/{guard.pid}/fd")) + 1
    scan(lan)
    guard.wait_line("Blocked: ")
    wait_for(lambda: not firewall.entries(lan.host), "the end of the block")
    wait_for(lambda: not states_of_children(guard.pid), "no child left", 5)
    guard.wait_readings(2)
    wait_for(lambda: len(os.listdir(f"/proc/{guard.pid}/fd")) <= before, "no descriptor more", 5)


def test_unreadable_tcp_is_said_once_and_retried(t):
    host = t.namespace("host")
    folder = t.folder("later")
    guard = t.guard(host, "--dry-run", "--proc", folder)

    def messages():
        return [line for line in guard.error_output() if "cannot read" in line]

    wait_for(messages, "a message")
    time.sleep(1.5)
    assert len(messages()) == 1, f"lines on stderr: {guard.error_output()}"
    row = tcp_row("192.0.2.1", 40000, "198.51.100.7", 443, 1)
    tcp = os.path.join(fixture(t, [row], name="later"), "net/tcp")
    guard.wait_line("198.51.100.7:443 <- 192.0.2.1:40000")
    said = len(guard.error_output())
    os.rename(tcp, f"{tcp}-away")
    wait_for(lambda: len(guard.error_output()) > said, "a message when it goes away")
    os.rename(f"{tcp}-away", tcp)
    seen = len(guard.output())
    wait_for(lambda: any("198.51.100.7" in line for line in guard.output()[seen:]), "its return")


def test_stopped_and_continued_goes_on(t):
    lan, firewall = scene(t)
    guard = t.guard(lan.host, env=firewall.env).ready()
    guard.signal(signal.SIGSTOP)
    time.sleep(1)
    guard.signal(signal.SIGCONT)
    scan(lan)
    guard.wait_line("Blocked: ")


def test_no_allocation_ever(t):
    """The heap's only user is the C library's time zone reader."""
    guard = t.guard(t.lan().host).ready()
    guard.wait_readings(2)
    size = heap_size(guard.pid)
    guard.wait_readings(5)
    assert heap_size(guard.pid) == size, "heap size"


def heap_size(pid):
    with open(f"/proc/{pid}/maps") as maps:
        return sum(int(b, 16) - int(a, 16) for a, b in
                   re.findall(r"^(\w+)-(\w+) .*\[heap\]", maps.read(), re.M))
