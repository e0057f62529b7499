"""README.md against the real program: what it shows and what it lets one type."""

import os
import re
import signal

from harness import HOME, check, equal, link, wait_for

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
PORTS = (22, 25, 80, 445)
HOST, CLIENT, SERVER = "172.31.59.87", "206.11.237.209", "99.84.191.103"
NEIGHBOUR, STRANGER = "172.31.63.176", "198.51.100.23"


def text_of(name):
    with open(os.path.join(ROOT, name), encoding="utf-8") as file:
        return file.read()


def section(heading):
    found = re.search(rf"^## {heading}$(.*?)(?=^## |\Z)", text_of("README.md"), re.M | re.S)
    check(found, f"README.md has no section {heading}")
    return found[1]


def code_blocks(heading):
    """The lines of each fenced block of a section."""
    return [block.splitlines() for block in
            re.findall(r"^```\n(.*?)^```$", section(heading), re.M | re.S)]


def shape(line):
    """A line without what differs from run to run and from tool to tool."""
    for pattern, word in ((r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "TIME"), (r" \d+m\d+s +", " LEFT "),
                          (r"\bb=[0-9a-f]{8} e=\d+", "b= e="), (r"\bt=\d+ d=[n?]", "t= d="),
                          (r"data sent: (no|unknown)", "data sent:"),
                          (r"  (0|all) +-- ", "  all -- ")):
        line = re.sub(pattern, word, line)
    return line.rstrip()


def shapes(lines):
    return [shape(line) for line in lines]


def check_in_order(wanted, found):
    """All of `wanted` stand in `found`, in this order, others between them."""
    rest = iter(found)
    for line in wanted:
        check(line in rest, f"README.md shows {line!r}, found {found}")


class Scene:
    """The addresses of README: a host, a neighbour on its network, and from
    far a client, a server and a stranger."""

    def __init__(self, t):
        self.t = t
        self.host, self.near, self.far = (t.namespace(role) for role in ("host", "near", "far"))
        link(self.host, "lan", self.near, "lan", (f"{HOST}/20", f"{NEIGHBOUR}/20"))
        link(self.host, "wan", self.far, "wan", ("192.0.2.1/24", "192.0.2.2/24"))
        self.host.ip("route add default via 192.0.2.2")
        self.far.ip(*(f"address add {address}/32 dev wan"
                      for address in (CLIENT, SERVER, STRANGER)),
                    "route add default via 192.0.2.1")
        self.firewall = t.firewall(self.host)
        self.host.listen(*PORTS)
        self.far.listen(443)
        self.guard = t.guard(self.host, env=self.firewall.env).ready()

    def connect(self, space, source, address, *ports):
        for port in ports:
            source_port = {CLIENT: 52239, HOST: 37474}.get(source, 0)
            made = space.socket(address)
            made.settimeout(5)
            made.bind((source, source_port))
            made.connect((address, port))
            if source not in (CLIENT, HOST):
                made.close()

    def scan(self, space, source):
        self.connect(space, source, HOST, *PORTS)
        self.guard.wait_line(f"Blocked: +{source} ")

    def type(self, line):
        """What a line that stands in README prints, typed by root."""
        command = re.sub(r"^(target/)?tcpparser\b", self.t.binary, line)
        path = f"{self.firewall.folder}:{HOME['PATH']}"
        done = self.host.run("sh", "-c", command, env={**HOME, **self.firewall.env, "PATH": path})
        equal(done.returncode, 0, f"exit status of {line!r}: {done.stderr.strip()!r}")
        return done.stdout.splitlines()

    def nothing_left(self):
        return not any("TCPPARSER" in rule for rule in self.firewall.everything(self.host))


def test_what_you_will_see(t):
    demo, end, rules, blocks, metrics = code_blocks("What you will see")
    (one, every), _ = code_blocks("Undo a block")
    scene = Scene(t)
    scene.connect(scene.far, CLIENT, HOST, 22)
    scene.connect(scene.host, HOST, SERVER, 443)
    scene.guard.wait_readings(2)
    scene.scan(scene.near, NEIGHBOUR)
    scene.scan(scene.far, STRANGER)
    check_in_order(shapes(demo), shapes(scene.guard.output()))
    for prompt, *shown in (rules, blocks, metrics):
        equal(shapes(scene.type(prompt[2:])), shapes(shown), f"what {prompt!r} prints")
    scene.type(one)
    # A connection in the first half second throws no doubt on a block yet.
    wait_for(lambda: scene.near.connects(HOST, 22)
             and scene.guard.matching(f"Unblocked: +{NEIGHBOUR} "), "the end of the block")
    scene.guard.signal(signal.SIGTERM)
    equal(scene.guard.wait_exit(), 0, "exit status")
    equal(scene.guard.output()[-1:], end, "last line")
    scene.type(every)
    check(scene.nothing_left(), "something of ours is left")


def test_everything_of_ours_goes_by_hand(t):
    _, commands = code_blocks("Undo a block")
    scene = Scene(t)
    scene.scan(scene.near, NEIGHBOUR)
    scene.guard.signal(signal.SIGTERM)
    scene.guard.wait_exit()
    check(not scene.nothing_left(), "the block stays")
    for command in commands:
        scene.type(command)
    check(scene.nothing_left(), f"left: {scene.firewall.everything(scene.host)}")


def test_looking_on(t):
    command = code_blocks("Run it")[-1][0]
    equal(command.split()[0], "target/tcpparser", "program")
    guard = t.guard(t.namespace("host"), *command.split()[1:]).ready()
    equal(guard.metric("tcpparser_blocking_enabled"), 0, "blocking_enabled")


def test_verbs_of_make_are_there(_t):
    verbs = set(re.findall(r"(?:^|`|\d )make ([a-z]+)", text_of("README.md"), re.M))
    makefile = text_of("Makefile")
    check({"run", "test", "bench"} <= verbs, f"verbs: {verbs}")
    missing = [verb for verb in verbs if not re.search(rf"^{verb}:.*## ", makefile, re.M)]
    equal(missing, [], "verbs that make does not know")


def test_files_named_are_there(_t):
    named = set(re.findall(r"`((?:src|tests)/[\w/]*(?:\.\w+)?)`", text_of("README.md")))
    check(len(named) > 20, f"files: {named}")
    missing = [name for name in named if not os.path.exists(os.path.join(ROOT, name))]
    equal(missing, [], "files that are not there")
    sources = [name for name in os.listdir(os.path.join(ROOT, "src")) if name != "lib.rs"]
    untold = [name for name in sources if f"`src/{name}" not in text_of("README.md")]
    equal(untold, [], "sources without a row")


def test_figures_are_told(_t):
    limits = section("Limits")
    check(re.search(r"\| figure \| aim \| measured on \d{4}-\d\d-\d\d \|", limits), "no date")
    for row in (r"size of the binary \| at most 64 KiB \| [\d.]+ KiB",
                r"resident memory, idle \| at most 128 KiB \| \d+ KiB",
                r"resident memory, 20,000 rows \| - \| [\d,]+ KiB",
                r"CPU of a reading of 20,000 rows, .* \| at most 1\.10 \| \d\.\d\d \([\d.]+ ms\)"):
        check(re.search(rf"^\| {row}", limits, re.M), f"no row /{row}/")
    check("TBD" not in text_of("README.md"), "README.md has a TBD")
