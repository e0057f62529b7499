"""Other users cannot keep it from blocking: the name by which two that block exclude each
other, and the port of its metrics, in the hands of other users."""

import contextlib
import re
import signal
import subprocess
import sys

import pytest

from harness import need, wait_for

PORTS = (22, 25, 80, 443)
USERS = {"root": (), "nobody": (
    "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups",
    "--inh-caps=+net_admin,+net_raw,+net_broadcast",
    "--ambient-caps=+net_admin,+net_raw,+net_broadcast")}

# Programs of another user, run by our own Python, which that user may have no
# right to start.
ROOT = """
import ctypes, os, socket, sys, time
"""
NOBODY = ROOT + """
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
"""
# PR_SET_DUMPABLE, else the map is root's (proc_pid_uid_map(5)); CLONE_NEWUSER.
CONTAINER = NOBODY + """
libc = ctypes.CDLL(None, use_errno=True)
if libc.prctl(4, 1, 0, 0, 0) or libc.unshare(0x10000000):
    sys.exit(os.strerror(ctypes.get_errno()))
with open("/proc/self/uid_map", "w") as file:
    file.write("0 65534 1")
assert os.geteuid() == 0
"""
TAKE = """
def named():
    made = socket.socket(socket.AF_UNIX)
    made.bind("\\0tcpparser")
    return made
def fill():
    try:
        while True:
            made = socket.socket(socket.AF_UNIX)
            made.setblocking(False)
            made.connect("\\0tcpparser")
            made.close()
    except BlockingIOError:
        pass
def port(address):
    made = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind((address, 3021))
    made.listen(16)
    return made
"""
KEEP = """
print("taken", flush=True)
sys.stdin.read()
"""
ANSWER = """
print("taken", flush=True)
while True:
    client, _ = held.accept()
    client.recv(4096)
    client.sendall(b"HTTP/1.1 200 OK\\r\\nConnection: close\\r\\n\\r\\n<p>hello</p>\\n")
    client.close()
"""
BOUND = TAKE + "held = named()" + KEEP
LISTENING = TAKE + "held = named(); held.listen(128)" + KEEP
FULL = TAKE + "held = named(); held.listen(0); fill()" + KEEP

UNKNOWN = "its holder does not answer"
STRANGER = "user 65534 holds it"
HOLDERS = {
    "bound": (NOBODY + BOUND, UNKNOWN),
    "listening": (NOBODY + LISTENING, STRANGER),
    "full": (NOBODY + FULL, UNKNOWN),
    "root of a user namespace": (CONTAINER + LISTENING, STRANGER),
    # Before it listened there, tcpparser only bound the name.
    "older tcpparser": (ROOT + BOUND, UNKNOWN),
}


@contextlib.contextmanager
def stranger(space, script):
    """A process in `space` that has taken what is not its own."""
    with space.entered():
        process = subprocess.Popen([sys.executable, "-c", script], cwd="/", text=True,
                                   stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == "taken\n", "the stranger's word"
        yield
    finally:
        process.kill()
        process.communicate()


class Scene:
    """A host with four services, and a peer about to scan it."""

    def __init__(self, t):
        self.t, self.lan = t, t.lan()
        self.host, self.peer = self.lan.host, self.lan.peer
        self.host.listen(*PORTS)
        self.firewall = t.firewall(self.host)

    def start(self, user="root", arguments=()):
        # Where two change the chain at once, `auto` goes on in the sets.
        return self.t.guard(self.host, "--firewall=iptables", *arguments, env=self.firewall.env,
                            before=USERS[user])

    def second(self, user="root"):
        """How a second one ends, and what it says."""
        guard = self.start(user, ("--listen", "none"))
        return guard.wait_exit(), guard.error_output()

    def blocks(self, guard, source):
        """An ordinary scan from this address of the peer, and its end."""
        held = [self.peer.connect(self.lan.host_v4, port, source) for port in PORTS]
        guard.wait_line(f" Blocked: +{source} ")
        wait_for(lambda: self.firewall.blocks(self.host, f"{source}/32"), "the rule")
        assert not self.peer.connects(self.lan.host_v4, 22, source), "blocked"
        return held

    def unblock(self):
        return self.firewall.product(self.host, "--unblock", "all")


def without_name(why):
    return [f"tcpparser: blocking without the socket @tcpparser: {why}"]


ANOTHER = ["tcpparser: another tcpparser blocks in this network namespace; "
           "only watch with --dry-run"]


def first_reading(guard, count=1):
    """Waits for this many lists without a connection."""
    wait_for(lambda: len(guard.matching("^No TCP peer connection")) >= count, "readings")


# ------------------------------------------------------------------ the name


@pytest.mark.parametrize("holder", HOLDERS)
def test_name_is_held_by_another(t, holder):
    script, why = HOLDERS[holder]
    scene = Scene(t)
    with stranger(scene.host, script):
        guard = scene.start().ready()
        assert guard.error_output() == without_name(why), "what it says"
        scene.blocks(guard, scene.lan.peer_v4)
        assert scene.unblock().returncode == 0, "exit status of --unblock beside it"
        assert scene.firewall.entries(scene.host) == [], "what --unblock leaves"
        assert scene.peer.connects(scene.lan.host_v4, 22, seconds=5), "unblocked"
        scene.blocks(guard, scene.lan.friend_v4)
        guard.signal(signal.SIGTERM)
        assert guard.wait_exit() == 0, "exit status"
        assert scene.unblock().returncode == 0, "exit status of --unblock without it"
        assert scene.firewall.entries(scene.host) == [], "what --unblock leaves"
    guard = scene.start().ready()
    scene.blocks(guard, scene.lan.peer_v4)
    assert guard.error_output() == [], "what it says where the name is free"


@pytest.mark.parametrize("first, second", [
    ("root", "root"), ("nobody", "nobody"), ("root", "nobody")])
def test_second_one_ends(t, first, second):
    need("setpriv")
    scene = Scene(t)
    guard = scene.start(first).ready()
    # Sockets to ask the kernel for connections are kept.
    scene.blocks(guard, scene.lan.peer_v4)
    descriptors = guard.metric("process_open_fds")
    for _ in range(3):
        assert scene.second(second) == (1, ANOTHER), "the second one"
    scene.blocks(guard, scene.lan.friend_v4)
    assert guard.error_output() == [], "what the first one says"
    assert guard.metric("process_open_fds") == descriptors, "descriptors of the first one"


def test_first_one_of_another_user_ends_no_start(t):
    need("setpriv")
    scene = Scene(t)
    scene.start("nobody").ready()
    guard = scene.start(arguments=("--listen", "none"))
    first_reading(guard)
    assert guard.error_output() == without_name(STRANGER), "what it says"
    scene.blocks(guard, scene.lan.peer_v4)


def test_full_queue_at_the_name(t):
    """Whose a name is that takes no connection cannot be known: a start goes on
    rather than let any user end it. Where the queue has room again it ends."""
    need("ss")
    scene = Scene(t)
    scene.host.sysctl("net.core.somaxconn=8")
    guard = scene.start().ready()
    # And the socket by which it will ask for the scanner's connections.
    descriptors = guard.metric("process_open_fds") + 1
    with stranger(scene.host, NOBODY + TAKE + """
fill()
print("taken", flush=True)
while True:
    fill()
    time.sleep(0.002)
"""):
        second = scene.start(arguments=("--listen", "none"))
        first_reading(second)
        assert second.error_output() == without_name(UNKNOWN), "what the second one says"
        second.signal(signal.SIGTERM)
        assert second.wait_exit() == 0, "its exit status"
        scene.blocks(guard, scene.lan.peer_v4)
        assert scene.unblock().returncode == 0, "exit status of --unblock"
        assert scene.firewall.entries(scene.host) == [], "what --unblock leaves"
        assert "-N TCPPARSER" in scene.firewall.rules(scene.host), "its chain is the daemon's"
    # State, Recv-Q, and what else ss(8) shows.
    wait_for(lambda: scene.host.run("ss", "-Hxln", "src", "@tcpparser").stdout.split()[2] == "0",
             "an empty queue")
    assert scene.second() == (1, ANOTHER), "one more"
    scene.blocks(guard, scene.lan.friend_v4)
    assert guard.metric("process_open_fds") == descriptors, "descriptors of the first one"
    assert guard.error_output() == [], "what the first one says"


# ------------------------------------------------------------------ the port


@pytest.mark.parametrize("address", ["::", "0.0.0.0", "127.0.0.1"])
def test_port_is_taken(t, address):
    scene = Scene(t)
    script = f"{NOBODY}{TAKE}held = port({address!r})"
    with stranger(scene.host, script + ANSWER):
        guard = scene.start()
        first_reading(guard)
        scene.blocks(guard, scene.lan.peer_v4)
        done = scene.firewall.product(scene.host, "--healthcheck")
        assert ((done.returncode, done.stderr)
                == (1, "tcpparser: 127.0.0.1:3021: that is no answer of tcpparser\n")), (
            "--healthcheck")
        # Two seconds more, in which it is tried again.
        first_reading(guard, len(guard.matching("^No TCP peer connection")) + 11)
        assert (guard.error_output()
                == ["tcpparser: cannot listen on [::]:3021: address in use; it is tried again"]), (
            "what it says")
    wait_for(lambda: guard.error_output()[1:], "a word about the port")
    assert guard.error_output()[1:] == ["tcpparser: listening on [::]:3021 now"], "what it says"
    assert guard.metric("tcpparser_blocked_sources") == 1, "blocked sources"
    done = scene.firewall.product(scene.host, "--healthcheck")
    assert (done.returncode, done.stderr) == (0, ""), "--healthcheck"
    scene.blocks(guard, scene.lan.friend_v4)


def test_silent_holder_of_the_port_is_not_healthy(t):
    scene = Scene(t)
    with stranger(scene.host, f"{NOBODY}{TAKE}held = port('0.0.0.0')" + KEEP):
        guard = scene.start(arguments=("--listen", "0.0.0.0:3021"))
        first_reading(guard)
        scene.blocks(guard, scene.lan.peer_v4)
        done = scene.firewall.product(scene.host, "--healthcheck")
        assert done.returncode == 1 and re.search("no answer in time", done.stderr), f"{done}"
