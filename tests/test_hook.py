"""The hook: a program that is run at each scan, block and unblock, beside blocks
and never before them; and the examples that come with it."""

import glob
import http.server
import json
import os
import re
import shutil
import signal
import socket
import statistics
import tempfile
import threading
import time

import pytest

from harness import need, need_namespaces, wait_for
from test_readme import ROOT
from traffic import Stopwatch, has_events, touch

PORTS = (22, 25, 80, 445)
LISTED = ",".join(map(str, PORTS))
ROUTED = "10.98.0.0/16"
RECORD = 512  # HOOK_RECORD of src/kernel.rs
NOTES = """#!/bin/sh
for word in "$@"; do printf '%s|' "$word"; done >> {0}/events
echo >> {0}/events
"""


class Scene:
    """A host with services, a peer with addresses, and a folder of root's."""

    def __init__(self, t, script=NOTES):
        self.t, self.lan = t, t.lan()
        need_namespaces()
        # Not below /tmp, where others may write.
        self.folder = tempfile.mkdtemp(prefix="tcpparser-test-", dir="/run")
        os.chmod(self.folder, 0o755)
        t.closing.append(self)
        self.lan.host.listen(*PORTS)
        self.hook = self.script("hook", script.format(self.folder))

    def close(self):
        shutil.rmtree(self.folder)

    def script(self, name, text):
        path = os.path.join(self.folder, name)
        with open(path, "w") as file:
            file.write(text)
        os.chmod(path, 0o755)
        return path

    def route(self):
        """The peer can connect from any of these from now on."""
        self.lan.host.must("ip", "route", "add", ROUTED, "via", self.lan.peer_v4)
        self.lan.peer.must("ip", "route", "add", "local", ROUTED, "dev", "lo")

    def guard(self, *arguments, **options):
        return self.t.guard(self.lan.host, "--hook", self.hook, *arguments, **options).ready()

    def scan(self, source=None):
        for port in PORTS:
            self.lan.peer.connect(self.lan.host_v4, port, source=source)

    def events(self, count):
        """What it was run with, once it was run that often."""
        def noted():
            with open(f"{self.folder}/events") as file:
                lines = file.read().splitlines()
            return len(lines) >= count and lines
        wait_for(lambda: os.path.exists(f"{self.folder}/events"), "an event")
        return wait_for(noted, f"{count} events")


def runs(guard, result):
    return guard.metric(f'tcpparser_hook_runs_total{{result="{result}"}}')


def children(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(child) for child in file.read().split()]


def launcher_of(guard):
    """Its child that is the same program."""
    own = os.readlink(f"/proc/{guard.pid}/exe")
    (found,) = [child for child in children(guard.pid)
                if os.readlink(f"/proc/{child}/exe") == own]
    return found


def status(pid, *names):
    with open(f"/proc/{pid}/status") as file:
        fields = dict(line.rstrip("\n").split(":\t", 1) for line in file)
    return [fields[name] for name in names]


def is_gone(pid):
    return not os.path.exists(f"/proc/{pid}")


def is_over(pid):
    """Or a zombie, which not every init reaps."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(") ")[2].startswith("Z")
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_it_is_run_at_each_event_in_order(t):
    scene = Scene(t)
    firewall = t.firewall(scene.lan.host)
    guard = scene.guard("--block-time", "3s,forever", env=firewall.env)
    scene.scan()
    assert scene.events(3) == [
        f"scan|10.77.0.2|{LISTED}||", f"block|10.77.0.2|{LISTED}|3|",
        f"unblock|10.77.0.2|{LISTED}||expired|"], "words"
    scene.scan()
    assert scene.events(5)[4] == f"block|10.77.0.2|{LISTED}|0|", "a block for ever"
    wait_for(lambda: runs(guard, "ok") == 5, "five good runs")
    # It holds nothing of ours, and a restart can bind at once.
    launcher = launcher_of(guard)
    assert os.getpgid(launcher) != os.getpgid(guard.pid), "a group of its own"
    assert os.getpriority(os.PRIO_PROCESS, launcher) == 10, "what wakes it keeps its processor"
    held = [os.readlink(f"/proc/{launcher}/fd/{number}").partition(":")[0]
            for number in sorted(os.listdir(f"/proc/{launcher}/fd"), key=int)]
    assert held == ["pipe", "pipe", "pipe", "anon_inode", "/dev/null"], "descriptors"
    guard.signal(signal.SIGKILL)
    guard.wait_exit()
    wait_for(lambda: is_gone(launcher), "the launcher's end")
    other = scene.guard(env=firewall.env)
    assert other.signal(signal.SIGTERM) is None and other.wait_exit(1) == 0, "exit status"


SURROUNDINGS = """#!/bin/sh
{{ env | sort; ls -l /proc/self/fd; readlink /proc/self/root /proc/$$/cwd; id -u; cat; }} > {0}/seen
mv {0}/seen {0}/events
"""


def test_it_runs_in_our_root_with_nothing_of_ours(t):
    scene = Scene(t, SURROUNDINGS)
    guard = scene.guard("--dry-run", "--exec-root", t.folder("root"),
                        env={"PATH": os.environ["PATH"], "SECRET": "1"})
    scene.scan()
    seen = scene.events(1)
    variables = {line.partition("=")[0] for line in seen if re.match(r"\w+=", line)}
    assert variables - {"PWD", "OLDPWD", "SHLVL", "_"} == {"PATH", "LC_ALL"}, variables
    # What it opened itself is the folder that it lists.
    held = [line.partition(" -> ")[2] for line in seen if " -> " in line]
    assert held[0] == "/dev/null" and held[2] == "/dev/null", held
    assert all("pipe" not in one and "socket" not in one for one in held), held
    assert "/" in seen and "0" in seen, seen
    wait_for(lambda: runs(guard, "ok") == 1, "a good run")


def test_what_is_no_shell_starts_as_clean(t):
    """Shells see to their signals themselves."""
    scene = Scene(t)
    scene.hook = shutil.copy(shutil.which("yes"), scene.folder)
    guard = scene.guard("--dry-run")
    launcher = launcher_of(guard)
    scene.scan()
    (hook,) = wait_for(lambda: children(launcher), "a run")
    wait_for(lambda: os.readlink(f"/proc/{hook}/exe") == scene.hook, "its program")
    signals = status(hook, "SigBlk", "SigIgn")
    assert [int(mask, 16) for mask in signals] == [0, 0], "signals that are blocked or ignored"
    wait_for(lambda: guard.metric('tcpparser_sandbox_info{tier="sealed"}') == 1, "the sandbox")
    rights = "Uid", "CapEff", "NoNewPrivs", "Seccomp"
    assert status(hook, *rights) == status(os.getpid(), *rights), "it is outside of the sandbox"
    held = {number: os.readlink(f"/proc/{hook}/fd/{number}")
            for number in os.listdir(f"/proc/{hook}/fd")}
    assert held == dict.fromkeys("012", "/dev/null"), "descriptors"
    os.kill(hook, signal.SIGKILL)
    wait_for(lambda: runs(guard, "failed") == 1, "its end")


def test_what_hangs_is_ended_and_what_fails_is_counted(t):
    """Both signals, and the whole group; failures beside that."""
    scene = Scene(t, """#!/bin/sh
[ "$1" = scan ] || exit 3
trap 'echo >> {0}/asked' TERM
(trap '' TERM; exec /bin/sleep 600) & echo "$$ $!" > {0}/hangs
while :; do wait; done
""")
    guard = scene.guard("--block-time", "1m", env=t.firewall(scene.lan.host).env)
    scene.scan()
    guard.wait_line(" Blocked: ")
    wait_for(lambda: os.path.exists(f"{scene.folder}/hangs"), "its start")
    started = time.monotonic()
    with open(f"{scene.folder}/hangs") as file:
        hung = file.read().split()
    wait_for(lambda: runs(guard, "timeout") == 1, "its end", 15)
    took = time.monotonic() - started
    assert 10 < took < 12.5, f"{took:.1f} s"
    assert os.path.exists(f"{scene.folder}/asked"), "SIGTERM comes first"
    assert is_gone(hung[0]), "reaped"
    wait_for(lambda: is_over(hung[1]), "the end of what it started")
    wait_for(lambda: runs(guard, "failed") == 1, "the next one's failure")
    assert children(launcher_of(guard)) == [], "zombies"


def test_waiting_events_are_bounded_and_end_with_us(t):
    scene = Scene(t, NOTES + "/bin/sleep 600\n")
    scene.route()
    guard = scene.guard("--dry-run", "--max-blocks-per-minute", "100000")
    for number in range(1, 101):
        scene.scan(f"10.98.0.{number}")
    wait_for(lambda: guard.metric("tcpparser_port_scans_total") == 100, "100 scans")
    wait_for(lambda: runs(guard, "dropped") == 35, "one runs, 64 wait")
    launcher = launcher_of(guard)
    (running,) = children(launcher)
    guard.signal(signal.SIGTERM)
    assert guard.wait_exit(1) == 0, "exit status"
    assert not is_gone(running), "what it has begun goes on"
    os.killpg(running, signal.SIGKILL)
    wait_for(lambda: is_gone(launcher), "the launcher's end")
    assert len(scene.events(1)) == 1, "what waited is dropped"


def test_without_its_launcher_all_else_goes_on(t):
    scene = Scene(t)
    guard = scene.guard(env=t.firewall(scene.lan.host).env)
    launcher = launcher_of(guard)
    os.kill(launcher, signal.SIGKILL)
    wait_for(lambda: is_gone(launcher), "no zombie")
    scene.scan()
    guard.wait_line(" Blocked: ")
    assert guard.error_output() == ["tcpparser: the hook is run no more: its launcher is gone"], (
        "stderr")
    assert runs(guard, "dropped") == 2, "a scan and a block"


def test_whoever_writes_its_records_chooses_no_other_words(t):
    """As whoever took the daemon over could."""
    scene = Scene(t)
    guard = scene.guard("--dry-run")
    wait_for(lambda: guard.metric('tcpparser_sandbox_info{tier="sealed"}') == 1, "the sandbox")
    launcher = launcher_of(guard)
    records = os.open(f"/proc/{launcher}/fd/0", os.O_WRONLY)
    for words in ("scan|$(id)|||", "scan|a\nb|||", "scan|A b|||", "scan", "scan|192.0.2.1|1,2||"):
        os.write(records, words.replace("|", "\0").encode().ljust(RECORD))
    os.close(records)
    assert scene.events(1) == ["scan|192.0.2.1|1,2||"], "words"
    wait_for(lambda: (runs(guard, "failed"), runs(guard, "ok")) == (4, 1), "runs")


def refused(scene, path, words="permission denied"):
    ended = scene.t.once("--hook", path)
    assert (ended.status, ended.stdout) == (2, ""), f"{path}: {ended}"
    assert ended.stderr == ("tcpparser: --hook needs a program that only root can change, in such "
                            f"folders: {words}\n"), path


def test_files_that_others_may_change_are_refused(t):
    scene = Scene(t)
    refused(scene, scene.folder + "/none", "no such file")
    for mode in (0o757, 0o775, 0o644):
        os.chmod(scene.hook, mode)
        refused(scene, scene.hook)
    os.chmod(scene.hook, 0o755)
    os.chown(scene.hook, 65534, -1)
    refused(scene, scene.hook)
    os.chown(scene.hook, 0, -1)
    for mode in (0o777, 0o1777, 0o775):
        os.chmod(scene.folder, mode)
        refused(scene, scene.hook)
    os.chmod(scene.folder, 0o755)
    os.symlink(scene.hook, scene.folder + "/link")
    refused(scene, scene.folder + "/link", "a symbolic link")
    os.symlink(scene.folder, scene.folder + "/folder")
    refused(scene, scene.folder + "/folder/hook", "a symbolic link")
    refused(scene, scene.folder)
    below_tmp = t.folder("of-root") + "/hook"
    shutil.copy(scene.hook, below_tmp)
    refused(scene, below_tmp)
    ended = t.once("--hook", "hook")
    assert (ended.status, ended.stderr) == (
        2, "tcpparser: --hook: 'hook' is not allowed: absolute, 1..200 bytes\n")
    scene.guard("--dry-run")


# --------------------------------------------------------------------- delay


BURST = 200


class Elements(Stopwatch):
    """Notes each element that a message of the kernel holds."""

    def take_rules(self):
        message = self.rules.recv(1 << 16)
        self.drops += [time.monotonic()] * message.count(b"tcpparser v1 b=")


def burst(scene, *arguments):
    """How long it takes to block scanners whose connections are found all at once,
    from the first look to the last block."""
    host, peer = scene.lan.host, scene.lan.peer
    guard = scene.t.guard(host, "--firewall", "nft", "--show", "scans", *arguments,
                          interval="10s").ready()
    wait_for(lambda: has_events(guard), "destroy events")
    elements = Elements(host)
    scene.t.closing.append(elements)
    guard.signal(signal.SIGSTOP)
    for number in range(BURST):
        assert touch(peer, scene.lan.host_v4, *PORTS, source=f"10.98.0.{number}") == len(PORTS)
    began = time.monotonic()
    guard.signal(signal.SIGCONT)
    wait_for(lambda: len(elements.drops) >= BURST, f"{BURST} blocks")
    if arguments:
        assert runs(guard, "dropped") > BURST, "it had much to do"
    guard.signal(signal.SIGTERM)
    guard.wait_exit()
    host.must(scene.t.binary, "--unblock", "all")
    return elements.drops[BURST - 1] - began


@pytest.mark.alone
def test_it_delays_no_block(t):
    """In pairs, each with a hook and without."""
    scene = Scene(t, "#!/bin/sh\nexec /bin/sleep 0.01\n")
    t.backend(scene.lan.host, "nft")
    scene.route()
    pairs = [(burst(scene, "--hook", scene.hook), burst(scene)) for _ in range(5)]
    later = statistics.median(hooked - bare for hooked, bare in pairs)
    shown = ", ".join(f"{1e3 * hooked:.1f} and {1e3 * bare:.1f}" for hooked, bare in pairs)
    print(f"the last of {BURST} blocks, with a hook and without, ms: {shown}")
    assert later < 0.005, f"{1e3 * later:.1f} ms later: {shown}"


# ------------------------------------------------------------------ examples


class Web(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.received.append((self.headers["Content-Type"], json.loads(body)))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_):
        pass


def test_examples(t):
    """Each of them for each event; the mail server is what PATH leads to first."""
    need("curl", "logger")
    scene = Scene(t, "#!/bin/sh\nfor file in {0}/hook-*.sh; do $file \"$@\" || exit 1; done\n")
    for path in glob.glob(f"{ROOT}/dist/hook-*.sh"):
        shutil.copy(path, scene.folder)
    scene.script("sendmail", f"#!/bin/sh\n[ \"$*\" = -t ] && cat >> {scene.folder}/mail\n")
    with scene.lan.host.entered():
        web = http.server.HTTPServer(("127.0.0.1", 8080), Web)
        syslog = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    web.received = []
    threading.Thread(target=web.serve_forever, daemon=True).start()
    syslog.bind(("127.0.0.1", 514))
    syslog.settimeout(5)
    path = os.environ["PATH"]
    guard = scene.guard("--firewall", "nft", "--block-time", "2s",
                        env={"PATH": f"{scene.folder}:{path}"})
    scene.scan()
    wait_for(lambda: runs(guard, "ok") == 3, "three good runs")
    web.shutdown()
    web.server_close()
    with open(f"{scene.folder}/mail") as file:
        head, _, body = file.read().partition("\n\n")
    host = os.uname().nodename
    assert head == f"To: root\nSubject: {host}: 10.77.0.2 is blocked", "head of the mail"
    assert body == (f"It connected to ports {LISTED}, and is blocked for 2 s.\n"
                    "To undo: tcpparser --unblock 10.77.0.2\n"), "its body"
    event = {"host": host, "source": "10.77.0.2", "ports": LISTED}
    assert web.received == [("application/json", {**event, **more}) for more in (
        {"event": "scan", "seconds": "", "reason": ""},
        {"event": "block", "seconds": "2", "reason": ""},
        {"event": "unblock", "seconds": "", "reason": "expired"})], "posted"
    lines = [syslog.recv(1024).decode().partition(" tcpparser: ")[2] for _ in range(2)]
    syslog.close()
    assert lines == ["add 10.77.0.2 timeout 2", "del 10.77.0.2"], "lines of the list"
