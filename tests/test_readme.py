"""README.md against the real program: what it shows, what it lets one type, and
what it says of files and verbs; and what the man page says of messages.

Fenced code blocks hold commands where their info string is `sh`, one a line, or
`console`, behind a prompt; others hold none. Tests type commands as they stand,
into a shell; a comment behind one that says what it needs marks it as not
typed. The last test counts both. Some commands of the man page are typed too.
"""

import glob
import os
import re
import shlex
import signal

import pytest

from harness import HOME, Guard, link, must, need, need_namespaces, run, wait_for

ROOT = os.path.realpath(os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
PORTS = (22, 25, 80, 445)
# README's networks, and those of the same width that stand for them in tests,
# whose hosts have private addresses only.
PRIVATE = {"172.31.": "10.172.", "206.11.": "10.206.", "99.84.": "10.99.", "198.51.": "10.198.",
           "192.0.2.": "10.92.2."}
HOST, CLIENT, SERVER = "10.172.59.87", "10.206.237.209", "10.99.191.103"
NEIGHBOUR, STRANGER = "10.172.63.176", "10.198.100.23"
MARKED_MAX = 10
README_MAX = 16_384  # bytes: a few screens


def text_of(name):
    with open(os.path.join(ROOT, name), encoding="utf-8") as file:
        return file.read()


def section(heading):
    found = re.search(rf"^## {heading}$(.*?)(?=^## |\Z)", text_of("README.md"), re.M | re.S)
    assert found, f"README.md has no section {heading}"
    return found[1]


def man_section(heading):
    """The source of a section or subsection of the man page."""
    found = re.search(rf"^\.S[hs] {heading}$(.*?)(?=^\.Sh |\Z)", text_of("dist/tcpparser.8"),
                      re.M | re.S)
    assert found, f"the man page has no section {heading}"
    return found[1]


def man_examples(heading):
    """The lines of each literal block of a section, and each line that is shown
    as one, without its prompt."""
    found = re.findall(r"^\.Bd -literal.*\n((?:.*\n)*?)\.Ed$|^\.Dl (?:[$#] )?(.*)$",
                       in_private(man_section(heading)).replace(r"\e", "\\"), re.M)
    return [block.splitlines() or [line] for block, line in found]


def in_private(text):
    for network, private in PRIVATE.items():
        text = text.replace(network, private)
    return text


def code_blocks(text):
    """The info string and the lines of each fenced block, those in lists too."""
    found = re.findall(r"^( *)```(.*)\n((?:.*\n)*?)\1```$", in_private(text), re.M)
    return [(info, [line.removeprefix(indent) for line in body.splitlines()])
            for indent, info, body in found]


def commands_of(info, lines):
    """The commands of a block, each with what it needs, if it says so."""
    if info == "console":
        lines = [line[2:] for line in lines if line.startswith(("$ ", "# "))]
    elif info != "sh":
        return []
    found = [re.fullmatch(r"(.*?)(?: +# (.*))?", line).groups() for line in unfolded(lines)]
    return [(line, mark if re.match("(needs|takes) ", mark or "") else None)
            for line, mark in found]


def unfolded(lines):
    return re.sub(r"\\\n *", "", "\n".join(lines)).splitlines()


# --------------------------------------------------------------- typing them


def blocks_to_type(t, heading):
    """The commands of each block of a section that holds unmarked ones, which
    the test `t` is to type."""
    found = [[line for line, mark in commands_of(*block) if not mark]
             for block in code_blocks(section(heading))]
    t.to_type.update(line for lines in found for line in lines)
    return [lines for lines in found if lines]


def man_line_to_type(t, heading, word):
    """The command of a section of the man page that holds this word."""
    examples = [unfolded(lines) for lines in man_examples(heading)]
    line = next(lines[0] for lines in examples if word in lines[0])
    t.to_type.add(line)
    return line


def typed(t, run, *lines, folder=ROOT, **options):
    """What lines of README print, typed into one shell that `run` starts."""
    assert set(lines) <= t.to_type, f"{lines} stand nowhere"
    script = "\n".join(["set -e", f"cd {shlex.quote(folder)}", *lines])
    done = run("/bin/sh", "-c", script, **options)
    assert done.returncode == 0, (f"exit status of {lines}: {done.stdout[-600:]!r}, "
                                  f"{done.stderr[-600:]!r}")
    t.typed.update(lines)
    return done.stdout


class Terminal(Guard):
    """A line of README that goes on until it is ended, typed at a terminal
    of its own, without the colours that README can't show; `before` is a
    wrapping command."""

    def __init__(self, t, namespace, line, env, folder=ROOT, before=()):
        assert line in t.to_type, f"{line!r} stands nowhere"
        need("setsid")
        self.t, self.line = t, line
        self.keyboard, screen = os.openpty()
        command = ["setsid", "--ctty", *before, "/bin/sh", "-c",
                   f"cd {shlex.quote(folder)}\nexec {line}"]
        super().__init__(namespace, command, {**env, "NO_COLOR": "1"}, stdin=screen, stdout=screen)
        os.close(screen)
        shown = os.fdopen(self.keyboard, "rb", closefd=False)
        self.readers.append(self.collect(shown, self.lines))
        t.guards.append(self)

    def ready(self):
        super().ready()
        return self.works()

    def works(self):
        """It does what its test waited for."""
        self.t.typed.add(self.line)
        return self

    def control_c(self):
        os.write(self.keyboard, b"\x03")
        return self.wait_exit()

    def kill(self):
        super().kill()
        os.close(self.keyboard)


def product_path(t, *folders):
    """A PATH on which the product is installed, behind these folders."""
    folder = t.folder("path-product")
    if not os.listdir(folder):
        os.symlink(t.binary, os.path.join(folder, "tcpparser"))
    return ":".join([*folders, folder, HOME["PATH"], "/usr/sbin:/sbin"])


# ---------------------------------------------------------- what README shows


def shape(line):
    """A line without what differs from run to run and from tool to tool."""
    for pattern, word in ((r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "TIME"), (r" \d+m\d+s +", " LEFT "),
                          (r"\bb=[0-9a-f]{8} e=\d+", "b= e="), (r"\bt=\d+ d=[n?]", "t= d="),
                          (r"data sent: (no|unknown)", "data sent:"),
                          (r"(timeout|expires) \d\w*", r"\1"), (r"  (0|all) +-- ", "  all -- ")):
        line = re.sub(pattern, word, line)
    return line.rstrip()


def shapes(lines):
    return [shape(line) for line in lines]


def words(lines):
    """Those of the shapes of lines, wherever these were folded."""
    return shape(" ".join(" ".join(lines).split())).split()


def check_in_order(wanted, found):
    """All of `wanted` stand in `found`, in this order, others between them."""
    rest = iter(found)
    for line in wanted:
        assert line in rest, f"README.md shows {line!r}, found {found}"


class Scene:
    """The addresses of README: a host, a neighbour on its network, and from
    far a client, a server and a stranger. With no flavour the product finds no
    iptables."""

    def __init__(self, t, flavour="nft"):
        self.t = t
        self.host, self.near, self.far = (t.namespace(role) for role in ("host", "near", "far"))
        link(self.host, "lan", self.near, "lan", (f"{HOST}/20", f"{NEIGHBOUR}/20"))
        link(self.host, "wan", self.far, "wan", ("10.92.2.1/24", "10.92.2.2/24"))
        self.host.ip("route add default via 10.92.2.2")
        self.far.ip(*(f"address add {address}/32 dev wan"
                      for address in (CLIENT, SERVER, STRANGER)),
                    "route add default via 10.92.2.1")
        self.firewall = flavour and t.firewall(self.host, flavour)
        self.tools = self.firewall.env if flavour else {"PATH": t.folder("empty"), "TZ": "UTC0"}
        self.host.listen(*PORTS)
        self.far.listen(443)
        self.env = {**HOME, **self.tools, "PATH": product_path(t, self.tools["PATH"])}

    def start(self):
        self.guard = self.t.guard(self.host, env=self.tools).ready()
        return self

    def start_line(self, line, **options):
        """A line of README that goes on."""
        self.guard = Terminal(self.t, self.host, line, self.env, **options)
        return self

    def connect(self, space, source, address, *ports):
        for port in ports:
            source_port = {CLIENT: 52239, HOST: 37474}.get(source, 0)
            made = space.socket(address)
            made.settimeout(5)
            made.bind((source, source_port))
            made.connect((address, port))
            if source not in (CLIENT, HOST):
                made.close()

    def scan(self, space, source, follows="Blocked"):
        self.connect(space, source, HOST, *PORTS)
        self.guard.wait_line(f" {follows}: +{source} ")

    def type(self, *lines, space=None, folder=ROOT):
        """What lines of README print, typed by root."""
        return typed(self.t, (space or self.host).run, *lines, folder=folder,
                     env=self.env).splitlines()

    def nothing_left(self):
        return not any("TCPPARSER" in rule for rule in self.firewall.everything(self.host))


def test_what_you_will_see(t):
    seen = code_blocks(section("What you will see"))
    assert [info for info, _ in seen] == ["text", "text", "console", "console", "console"], "blocks"
    demo, end, *typing = [lines for _, lines in seen]
    blocks_to_type(t, "What you will see")
    undo = next(lines for lines in blocks_to_type(t, "Allow and undo") if "--unblock" in lines[0])
    scene = Scene(t).start()
    scene.connect(scene.far, CLIENT, HOST, 22)
    scene.connect(scene.host, HOST, SERVER, 443)
    scene.guard.wait_readings(2)
    scene.scan(scene.near, NEIGHBOUR)
    scene.scan(scene.far, STRANGER)
    check_in_order(shapes(demo), shapes(scene.guard.output()))
    for prompt, *shown in typing:
        assert shapes(scene.type(prompt[2:])) == shapes(shown), f"what {prompt!r} prints"
    one, every = undo
    assert scene.type(one) == ["1 block removed"], f"what {one!r} prints"
    # A connection in the first half second does not trigger a verification yet.
    wait_for(lambda: scene.near.connects(HOST, 22)
             and scene.guard.matching(f"Unblocked: +{NEIGHBOUR} "), "the end of the block")
    scene.guard.signal(signal.SIGTERM)
    assert scene.guard.wait_exit() == 0, "exit status"
    assert scene.guard.output()[-1:] == end, "last line"
    scene.type(every)
    assert scene.nothing_left(), "something of ours is left"


def test_everything_of_ours_goes_by_hand(t):
    commands = next(lines for lines in blocks_to_type(t, "Allow and undo")
                    if lines[0].startswith("iptables "))
    scene = Scene(t).start()
    scene.scan(scene.near, NEIGHBOUR)
    scene.guard.signal(signal.SIGTERM)
    scene.guard.wait_exit()
    assert not scene.nothing_left(), "the block stays"
    scene.type(*commands)
    assert scene.nothing_left(), f"left: {scene.firewall.everything(scene.host)}"


def test_sets_are_seen_and_emptied_by_hand(t):
    """Where there is no iptables: what nft shows, and what it takes away."""
    need("nft")
    prompt, *shown = next(lines for lines in man_examples("EXAMPLES") if len(lines) > 1)
    t.to_type.add(prompt[2:])
    lift = next(lines for lines in blocks_to_type(t, "Allow and undo")
                if lines[0].startswith("nft "))
    scene = Scene(t, flavour=None).start()
    scene.scan(scene.far, STRANGER)
    assert words(scene.type(prompt[2:])) == words(shown), f"what {prompt!r} prints"
    scene.type(*lift)
    scene.guard.wait_line(f" Unblocked: +{STRANGER} its rule was removed by nft$")
    scene.scan(scene.near, NEIGHBOUR)
    scene.guard.signal(signal.SIGTERM)
    scene.guard.wait_exit()
    (command,) = set(re.findall("`(nft delete table [^`]*)`", section("Allow and undo")))
    scene.host.must(*command.split())
    assert scene.host.run("nft", "list", "tables").stdout == "", "tables that are left"


def test_allowed_sources_are_not_blocked(t):
    ((line,), *_) = blocks_to_type(t, "Allow and undo")
    scene = Scene(t).start_line(line)
    scene.guard.ready()
    for space, source in ((scene.near, NEIGHBOUR), (scene.far, STRANGER)):
        scene.scan(space, source, "Not blocked")
    scene.scan(scene.far, SERVER)


# ---------------------------------------------------------- ways to start it


def test_release_runs_where_it_is_unpacked(t):
    unpack = blocks_to_type(t, "Run it in 30 seconds")[0]
    tarballs = glob.glob(os.path.join(os.path.dirname(t.binary), "dist", "*-x86_64-*.tar.gz"))
    if not tarballs or os.uname().machine != "x86_64":
        pytest.skip("`make dist` makes the tarball, and this machine runs it")
    folder = t.folder("unpacked")
    os.symlink(*tarballs, os.path.join(folder, os.path.basename(*tarballs)))
    scene = Scene(t)
    scene.type(unpack[0], folder=folder)
    scene.start_line(unpack[1], folder=folder)
    scene.guard.ready()
    scene.scan(scene.far, STRANGER)
    assert scene.guard.control_c() == 0, "exit status"


def test_make_run_blocks_until_control_c(t):
    line = next(lines[0] for lines in blocks_to_type(t, "Run it in 30 seconds")
                if lines[0] == "make run")
    need("make", "cargo")
    if os.stat(ROOT).st_uid != os.geteuid() or os.path.dirname(t.binary) != f"{ROOT}/target":
        pytest.skip("the program was built elsewhere or by another user")
    scene = Scene(t)
    scene.start_line(line)
    scene.guard.ready()
    scene.scan(scene.far, STRANGER)
    scene.guard.control_c()
    scene.guard.wait_line("1 block stands")


def test_looking_on_needs_no_root(t):
    line = next(lines[0] for lines in blocks_to_type(t, "Run it in 30 seconds")
                if "--dry-run" in lines[0])
    need("setpriv")
    scene = Scene(t)
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all"]
    if scene.host.run(*nobody, "test", "-x", t.binary).returncode != 0:
        pytest.skip(f"others may not look into {ROOT}")
    scene.start_line(line, before=nobody).guard.ready()
    scene.scan(scene.far, STRANGER, "Not blocked")
    assert scene.nothing_left(), "it changed the firewall"


def test_http_on_one_address(t):
    line = man_line_to_type(t, "SECURITY CONSIDERATIONS", "--listen")
    scene = Scene(t).start_line(line)
    wait_for(lambda: scene.host.run("curl", "-s", "http://10.92.2.1:3021/healthz").returncode == 0,
             "an answer")
    assert scene.host.run("curl", "-s", f"http://{HOST}:3021/healthz").returncode == 7, (
        "exit status of curl for another address")
    scene.guard.works()


def test_without_root(t):
    line = man_line_to_type(t, "SECURITY CONSIDERATIONS", "setpriv")
    need("setpriv")
    scene = Scene(t).start_line(line)
    scene.guard.ready()
    with open(f"/proc/{scene.guard.pid}/status") as status:
        text = status.read()
    for words in ("Uid:\t65534\t", *(f"Cap{name}:\t0000000000001000\n" for name in
                                     ("Inh", "Prm", "Eff", "Bnd", "Amb"))):
        assert words in text, f"no {words!r} in {text}"
    scene.scan(scene.far, STRANGER)
    assert scene.guard.control_c() == 0, "exit status"


def test_another_firewall_takes_the_list(t):
    once, (fill,) = blocks_to_type(t, "Many hosts")
    need("ipset")
    scene = Scene(t).start()
    scene.scan(scene.near, NEIGHBOUR)
    scene.scan(scene.far, STRANGER)
    set_up = scene.far.run("ipset", "create", "probe", "hash:net", "timeout", "1")
    if set_up.returncode != 0:
        pytest.skip(f"ipset create: {set_up.stderr.strip()}")
    scene.type(*once, space=scene.far)
    for _ in range(2):
        scene.type(fill, space=scene.far)
        listed = scene.far.must("ipset", "list", "scanners")
        found = set(re.findall(r"^(\S+) timeout 1[78]\d$", listed, re.M))
        assert found == {NEIGHBOUR, STRANGER}, f"members of {listed}"


def test_scrape_configuration_is_valid(t):
    need("promtool")
    config = next(lines for info, lines in
                  code_blocks(section("Many hosts"))
                  if info == "yaml")
    path = os.path.join(t.tmp, "prometheus.yml")
    with open(path, "w") as file:
        file.write("\n".join(config) + "\n")
    os.symlink(f"{ROOT}/dist/tcpparser.rules.yml", f"{t.tmp}/tcpparser.rules.yml")
    must("promtool", "check", "config", path)


# ------------------------------------------------------------- what it names


HEADINGS = ("Run it in 30 seconds", "What you will see", "Allow and undo", "Start it at boot",
            "Keep it running in a container", "Options", "Many hosts", "How it decides",
            "What it does not see", "Limits and figures", "Release files", "Tests", "Contribute",
            "Licence")


def test_it_fits_on_a_few_screens():
    size = len(text_of("README.md").encode())
    assert size <= README_MAX, f"README.md has {size} bytes, {size - README_MAX} too many"


def test_headings_are_there_and_links_lead_to_them():
    text = text_of("README.md")
    assert tuple(re.findall("^## (.*)$", text, re.M)) == HEADINGS, "headings"
    anchors = {re.sub("[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in HEADINGS}
    links = re.findall(r"\]\(([^)]*)\)", text)
    lost = [link for link in links if not link.startswith("https://")
            and not (link[1:] in anchors if link[0] == "#" else os.path.exists(f"{ROOT}/{link}"))]
    assert lost == [], f"links to nowhere among {len(links)}"


def test_first_command_stands_on_the_first_screen():
    text = text_of("README.md")
    blocks = [block for block in code_blocks(text) if commands_of(*block)]
    lines = text[:text.index(blocks[0][1][0])].count("\n")
    assert lines < 20, f"{lines} lines above the first command"


def test_blocks_say_what_they_hold():
    kinds = [info for info, _ in code_blocks(text_of("README.md"))]
    assert set(kinds) == {"sh", "console", "text", "yaml"}, "info strings"
    assert 2 * len(kinds) == len(re.findall("^ *```", text_of("README.md"), re.M)), "fences"
    assert "TBD" not in text_of("README.md"), "README.md has a TBD"


def test_verbs_of_make_are_there():
    verbs = set(re.findall(r"(?:^|`|\d )make ([a-z]+)", text_of("README.md"), re.M))
    known = set(re.findall(r"^([a-z]+):.*## ", text_of("Makefile"), re.M))
    assert verbs - known == set(), "verbs that make does not know"
    assert known - verbs == {"clean"}, "verbs that README.md does not name"


def test_files_named_are_there():
    """In README.md and the man page; src/lib.rs has a test of its own."""
    named = set(re.findall(r"`((?:src|tests|dist)/[\w./-]*)`", text_of("README.md")))
    assert len(named) > 15, f"files: {named}"
    named.update(re.findall(r"\.Pa ((?:src|tests|dist)/[\w./-]*)", text_of("dist/tcpparser.8")))
    missing = [name for name in named if not os.path.exists(os.path.join(ROOT, name))]
    assert missing == [], "files that are not there"


def test_figures_are_documented():
    limits = section("Limits and figures")
    assert re.search(r"\| figure \| aim \| measured on \d{4}-\d\d-\d\d \|", limits), "no date"
    for row in (r"size of the binary \| at most 64 KiB \| [\d.]+ KiB",
                r"resident memory, idle \| at most 128 KiB \| \d+ KiB",
                r"resident memory, 20,000 rows \| - \| [\d,]+ KiB",
                r"CPU of a reading of 20,000 rows, .* \| at most 1\.10 \| \d\.\d\d \([\d.]+ ms\)"):
        assert re.search(rf"^\| {row}", limits, re.M), f"no row /{row}/"


# What --help and a debug build's panic say needs no row.
NO_MESSAGES = ("interval|i|", "Usage: ", "DUR: ", "Each option is also", "panic at ")


def only_for_tests():
    """Files of modules that are no part of the product; the folder of the fake
    world has a row all the same."""
    modules = re.findall(r"^#\[cfg\(test\)\]\nmod (\w+);", text_of("src/lib.rs"), re.M)
    assert "testing" in modules, f"modules of tests: {modules}"
    return {f"{name}.rs" for name in modules}


def texts_of_the_source():
    """All lines of byte strings of the product, with no blank or punctuation at the
    ends."""
    found = set()
    for path in glob.glob(f"{ROOT}/src/**/*.rs", recursive=True):
        if "/testing/" not in path and os.path.basename(path) not in only_for_tests():
            code = re.split(r"^#\[cfg\(test\)\]\nmod ", text_of(path), flags=re.M)[0]
            code = re.sub(r"^\s*//.*$", "", code, flags=re.M)
            found.update(re.findall(r'\bb"((?:[^"\\]|\\.|\\\n)*)"', code))
    found = {re.sub(r"\\\n\s*", "", text) for text in found}
    return {line.strip(" ,:;") for text in found if not text.startswith(NO_MESSAGES)
            for line in text.split(r"\n")}


def man_words(source):
    """What the man page says, without its macros, on one line."""
    source = re.sub(r'^\.(?:[A-Z][a-z] )+|"|\\[&e]', "", source, flags=re.M)
    return re.sub(r" (?=[.,;:)])", "", re.sub(r"\s+", " ", source))


def test_every_message_is_documented():
    """Whatever it can say holds two words side by side."""
    messages = {text for text in texts_of_the_source() if re.search("[a-z]{2,} [a-z]", text)}
    assert len(messages) > 60, f"messages: {messages}"
    page = man_words(text_of("dist/tcpparser.8"))
    assert {text for text in messages if text not in page} == set(), "messages without an entry"


def test_documented_messages_are_those_of_the_source():
    """What is left of each when texts of the source are taken away is its
    variable part."""
    texts = [text for text in texts_of_the_source() if re.search("[a-z]{3}", text)]
    texts.sort(key=len, reverse=True)
    messages = re.findall(r"^\.It (.+)$", man_section("DIAGNOSTICS"), re.M)
    assert len(messages) > 80, f"messages: {messages}"
    for message in messages:
        rest = message
        for text in texts:
            rest = re.sub(rf"(?<!\w){re.escape(text)}(?!\w)", "", rest)
        assert re.fullmatch(r"(\.\.\.|503|--firewall|--|[\s':;,])*", rest), (
            f"nothing says {message!r}: {rest!r} is left")


def test_a_container_that_runs_on_has_a_short_log():
    lines = [line for block in code_blocks(section("Keep it running in a container"))
             for line, _ in commands_of(*block) if line.startswith("docker run -d ")]
    assert len(lines) == 2, lines
    for line in lines:
        assert " -e TCPPARSER_SHOW=scans " in line, line


def test_what_lacking_tools_skip_is_documented():
    """At the head of the list of tools in the Makefile."""
    comment = re.search("^# Without  .*\n((?:#.*\n)+)", text_of("Makefile"), re.M)[1]
    named = set(re.findall(r"[\w-]+", comment))
    needed = set()
    for path in glob.glob(f"{ROOT}/tests/*.py"):
        for call in re.findall(r"\bneed\(([^)]*)\)", text_of(path)):
            needed.update(re.findall('"([^"]+)"', call))
    needed.update(re.findall(r"(?:if|&&) has ([\w-]+)", text_of("tests/build.sh")))
    assert len(needed) > 20, f"tools: {needed}"
    assert needed - named == set(), "tools without a row"


# ------------------------------------------------------------------ the count


def test_single_tests_run_by_name(t):
    need_namespaces()
    need("pytest")
    ((*_, line),) = blocks_to_type(t, "Tests")
    if t.binary != f"{ROOT}/target/tcpparser":
        pytest.skip("the program was built elsewhere")
    env = {name: value for name, value in HOME.items() if not name.startswith("PYTEST_")}
    said = typed(t, run, line, env=env, seconds=60)
    assert re.search(r"^=+ 1 passed in ", said.splitlines()[-1]), said


def makes_test():
    """Whether we run below a `make test`."""
    number = os.getpid()
    while number > 1:
        with open(f"/proc/{number}/cmdline") as file:
            program, *words = file.read().split("\0")
        if os.path.basename(program) in ("make", "gmake") and "test" in words:
            return True
        with open(f"/proc/{number}/status") as file:
            number = int(re.search(r"^PPid:\t(\d+)", file.read(), re.M)[1])
    return False


def test_make_test_types_others(t):
    """It is typed now, and tests/build.sh before us has typed some."""
    t.to_type.update(["make test", "make image", "make dist", "make wheel"])
    if not makes_test():
        pytest.skip("`make test` does not run this")
    t.typed.add("make test")
    t.typed.update(text_of("target/typed-in-build").splitlines())
    if t.to_type - t.typed:
        pytest.skip(f"tests/build.sh has skipped {sorted(t.to_type - t.typed)}")


@pytest.mark.last
def test_every_command_is_typed_or_marked(ledger):
    if not ledger.is_whole:
        pytest.skip("not all tests run")
    commands = dict(command for block in code_blocks(text_of("README.md"))
                    for command in commands_of(*block))
    marked = {line: mark for line, mark in commands.items() if mark}
    executed = {line for line in commands if line in ledger.typed}
    print(f"README: {len(executed)} commands executed, {len(marked)} marked ("
          + ", ".join(f"{line}: {mark}" for line, mark in marked.items()) + ")", flush=True)
    assert sorted(executed & set(marked)) == [], "marked, and typed all the same"
    left = set(commands) - executed - set(marked)
    assert sorted(left - ledger.untyped) == [], "neither typed by a test nor marked"
    assert len(marked) <= MARKED_MAX, f"{len(marked)} commands are marked"
    if left:
        pytest.skip(f"not typed, since tests were skipped or failed: {sorted(left)}")
