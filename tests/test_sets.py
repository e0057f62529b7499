"""The sets: which blocks go there and which into the chain, what the kernel
tells of other programs' changes, other firewalls beside them, and how little
they need.
"""

import os
import re
import signal
import time

import traffic
import pytest

from harness import Sets, carries_data, link, need, run, wait_for, wrapped_firewall
from machine import Machine
from test_blocking import PORTS, Scene
from test_files import fixture, listening, tcp_row
from test_firewall import PERIOD, block, boot_seconds, cidr, entry, feed, listed, total
from test_places import ends, is_blocked_by, shows

IN_CHAIN = 16  # rules of a family, then `auto` goes on in the sets
NOTHING = "nothing can be blocked by iptables or nf_tables"


def numbered(count, is_v6=False):
    """Sources of scans, each a block of its own."""
    if is_v6:
        return [f"2001:db8:{n:x}::9" for n in range(1, count + 1)]
    return [f"198.18.{n // 250}.{1 + n % 250}" for n in range(count)]


def as_blocked(source):
    return f"{source.removesuffix('9')}/64" if ":" in source else f"{source}/32"


def as_listed(source):
    return as_blocked(source).removesuffix("/32")


def scanned_by(t, peers):
    """A folder for --proc: each of them has scanned."""
    host = "2001:db8:ffff::7" if ":" in peers[0] else "198.51.100.7"
    rows = [listening("::" if ":" in host else "0.0.0.0", port) for port in PORTS]
    rows += [tcp_row(host, port, peer, 40000, 1) for peer in peers for port in PORTS]
    return fixture(t, *(([], rows) if ":" in host else (rows,)))


class TwoPlaces(Scene):
    """iptables is here, and the test looks at both places."""

    def __init__(self, t, backend="iptables-nft", family="v4", *arguments, **options):
        super().__init__(t, backend, family, *arguments, **options)
        self.sets = Sets(t)
        self.sets.probe(self.host)
        self.chain = self.firewall

    def in_chain(self):
        return sorted(one.source for one in self.entries())

    def in_sets(self):
        return sorted(one.source for one in self.sets.standing(self.host, self.family.tool))

    def has_table(self):
        return "table inet tcpparser" in self.sets.must(self.host, "list", "tables")

    def has_chain(self):
        return "-N TCPPARSER" in self.chain.rules(self.host, self.family.tool)

    def unblock(self, target, count):
        done = self.chain.product(self.host, "--unblock", target)
        assert ((done.returncode, done.stdout, done.stderr)
                == (0, f"{count} block{'s' if count > 1 else ''} removed\n", "")), (
            f"--unblock {target}")


# ------------------------------------------------------------------- placement


@pytest.mark.parametrize("backend, family", [
    ("iptables-nft", "v4"), ("iptables-legacy", "v4"), ("iptables-nft", "v6")])
def test_sixteen_go_into_the_chain_and_the_rest_into_the_sets(t, backend, family):
    t.use_quick_binary()
    scene = TwoPlaces(t, backend, family)
    peers = numbered(IN_CHAIN + 4, scene.family.is_v6)
    guard = scene.start("--proc", scanned_by(t, peers), "--show", "scans")
    wait_for(lambda: len(guard.matching(" Blocked: ")) == len(peers), "all blocks")
    chain, sets = scene.in_chain(), scene.in_sets()
    assert (len(chain), len(sets)) == (IN_CHAIN, 4), "in the chain, in the sets"
    assert sorted(chain + sets) == sorted(map(as_blocked, peers)), "sources"
    assert guard.metric("tcpparser_blocked_sources") == len(peers), "blocked_sources"
    assert scene.is_whole() and scene.sets.is_whole(scene.host), "what leads packets there"
    shown = listed(scene)
    assert sorted(shown) == sorted(map(as_listed, peers)), "--list"
    assert sorted(row[3] for row in shown.values()) == [backend] * IN_CHAIN + ["nft"] * 4, "places"
    one_of_each = [place[0].removesuffix("/32") for place in (chain, sets)]
    for source in one_of_each:
        scene.unblock(source, 1)
        guard.wait_line(rf" Unblocked: +{re.escape(source)} its rule was removed by ")
    scene.unblock("all", len(peers) - 2)
    ends(guard)
    assert not scene.has_chain() and not scene.has_table(), "nothing is left"


def test_each_family_has_sixteen_in_the_chain(t):
    scene = TwoPlaces(t, "iptables-nft", "v6")
    now = boot_seconds()
    feed(scene, *(entry(f"{source}/32", now + 600) for source in numbered(IN_CHAIN)),
         tool="iptables")
    guard = scene.start()
    block(scene, guard)
    assert (scene.in_chain(), scene.in_sets()) == ([cidr(scene)], []), "the first of IPv6"
    assert not scene.has_table(), "no table of ours"


def test_option_iptables_leaves_the_sets_alone(t):
    scene = TwoPlaces(t)
    peers = numbered(IN_CHAIN + 4)
    guard = scene.start("--proc", scanned_by(t, peers), "--show", "scans", "--firewall=iptables")
    wait_for(lambda: len(guard.matching(" Blocked: ")) == len(peers), "all blocks")
    assert scene.in_chain() == sorted(map(as_blocked, peers)), "in the chain"
    assert not scene.has_table(), "no table of ours"


def test_option_nft_starts_no_child(t):
    """Although iptables is there; its blocks are others' to look after."""
    need("strace")
    scene, log = TwoPlaces(t), os.path.join(t.tmp, "strace")
    feed(scene, entry("198.51.100.9/32", 0))
    guard = t.guard(scene.host, "--firewall=nft", "--block-time=2s", env=scene.chain.env, before=(
        "strace", "-D", "-f", "-qq", "-e", "trace=process", "-o", log)).ready()
    block(scene, guard)
    assert (scene.in_chain(), scene.in_sets()) == (["198.51.100.9/32"], [cidr(scene)]), "places"
    assert not scene.reaches(seconds=0.3), "it is blocked"
    assert shows(scene) == [(scene.family.peer, "nft"), ("198.51.100.9", "iptables-nft")], "--list"
    guard.wait_line(" Unblocked: ")
    wait_for(lambda: not scene.has_table(), "no table")
    guard.wait_readings(2)
    with open(log) as lines:
        calls = [line.split(None, 1)[1] for line in lines]
    assert [call for call in calls if re.match("clone|fork|vfork", call)] == [], "processes"
    assert len([call for call in calls if call.startswith("execve")]) == 1, "programs started"
    assert scene.in_chain() == ["198.51.100.9/32"], "the chain"
    scene.unblock("all", 1)


@pytest.mark.parametrize("option", ["auto", "iptables", "nft"])
def test_blocks_of_both_places_are_adopted(t, option):
    """And end, whatever the option says; with `nft` the chain stays."""
    scene = TwoPlaces(t, "iptables-nft", "v4")
    now, ours = boot_seconds(), ["198.51.100.8", "198.51.100.9"]
    feed(scene, entry("198.51.100.8/32", now + 4))
    scene.sets.feed(scene.host, "iptables", entry("198.51.100.9/32", now + 4))
    guard = scene.start(f"--firewall={option}")
    seen = ours[1:] if option == "nft" else ours
    wait_for(lambda: guard.metric("tcpparser_blocked_sources") == len(seen), "their adoption")
    assert shows(scene) == list(zip(ours, ("iptables-nft", "nft"))), "--list"
    for source in seen:
        guard.wait_line(rf" Unblocked: +{re.escape(source)} its time is over", 8)
    wait_for(lambda: not scene.has_table(), "no table")
    wait_for(lambda: scene.in_chain() == ([] if option != "nft" else ["198.51.100.8/32"]),
             "the chain")
    assert guard.matching(" Blocked:") == [], "no source is blocked twice"


@pytest.mark.parametrize("family", ["v4", "v6"])
def test_source_in_both_places_is_one_block(t, family):
    scene = TwoPlaces(t, "iptables-nft", family)
    both = entry(cidr(scene), boot_seconds() + 600, local=True)
    feed(scene, both)
    scene.sets.feed(scene.host, scene.family.tool, both)
    assert {source for source, _ in shows(scene)} == {scene.family.peer}, f"--list: {shows(scene)}"
    guard = scene.start()
    wait_for(lambda: len(scene.in_chain() + scene.in_sets()) == 1, "one place")
    assert guard.metric("tcpparser_blocked_sources") == 1, "blocked_sources"
    assert not scene.reaches(seconds=0.3), "it is blocked"
    assert guard.matching("locked") == [], "words about blocks"
    scene.unblock(scene.family.peer, 1)
    assert scene.reaches(seconds=5), "it is back"


def test_unblock_lifts_a_source_from_both_places(t):
    scene = TwoPlaces(t)
    both = entry(cidr(scene), 0, local=True)
    feed(scene, both)
    scene.sets.feed(scene.host, "iptables", both)
    assert not scene.reaches(seconds=0.3), "it is blocked"
    done = scene.chain.product(scene.host, "--unblock", scene.family.peer)
    assert (done.returncode, done.stderr) == (0, ""), "--unblock"
    assert scene.reaches(seconds=5), "it is back"
    assert not scene.has_chain() and not scene.has_table(), "nothing is left"


def appear(scene, folder):
    """The tools of the chain, in a folder of PATH."""
    for name in os.listdir(scene.chain.folder):
        os.symlink(os.path.realpath(os.path.join(scene.chain.folder, name)),
                   os.path.join(folder, name))


def test_iptables_that_vanishes(t):
    """Sets at once, and the chain again once the tools are back; the quick
    binary tries each second instead of each minute."""
    t.use_quick_binary()
    scene, folder = TwoPlaces(t), t.folder("path-vanishing")
    appear(scene, folder)
    guard = t.guard(scene.host, env={**scene.chain.env, "PATH": folder}).ready()
    scene.peer.ip("address add 10.77.0.4/24 dev lan0")
    block(scene, guard)
    assert (scene.in_chain(), scene.in_sets()) == ([cidr(scene)], []), "the first one"
    for name in os.listdir(folder):
        os.unlink(os.path.join(folder, name))
    started = time.monotonic()
    block(scene, guard, scene.family.friend)
    assert time.monotonic() - started < 3, "at once"
    assert ((scene.in_chain(), scene.in_sets())
            == ([cidr(scene)], [cidr(scene, scene.family.friend)])), "the second one"
    appear(scene, folder)
    time.sleep(PERIOD)
    block(scene, guard, "10.77.0.4")
    assert ((scene.in_chain(), scene.in_sets())
            == ([cidr(scene), "10.77.0.4/32"], [cidr(scene, scene.family.friend)])), "the third one"
    assert guard.matching("Unblocked") == [], "all of them stand"


def test_start_without_iptables_decides_for_the_sets(t):
    """Until the next start, and nothing is tried meanwhile."""
    t.use_quick_binary()
    scene = TwoPlaces(t)
    tried = scene.chain.env["XTABLES_LOCKFILE"]
    guard = t.guard(scene.host, env={**scene.chain.env, "PATH": t.folder("path-wrapped")}).ready()
    block(scene, guard)
    env = wrapped_firewall(t, scene.chain, 'echo >>"$XTABLES_LOCKFILE"')
    time.sleep(PERIOD)
    block(scene, guard, scene.family.friend)
    assert (scene.in_chain(), len(scene.in_sets())) == ([], 2), "in the chain, in the sets"
    assert not os.path.exists(tried), "iptables was tried"
    assert (guard.error_output(), guard.matching("failed")) == ([], []), "words"
    ends(guard)
    scene.peer.ip("address add 10.77.0.4/24 dev lan0")
    block(scene, t.guard(scene.host, env=env).ready(), "10.77.0.4")
    assert (scene.in_chain(), len(scene.in_sets())) == (["10.77.0.4/32"], 2), "at the next start"


def test_neither_iptables_nor_nf_tables(t):
    """What the kernel lacks is said, and blocks are tried again."""
    scene = Scene(t, "nft", before=traffic.deaf("netfilter"))
    guard = scene.start()
    scene.scan()
    guard.wait_line("Block failed: ")
    said = [line for line in guard.error_output() if NOTHING in line]
    assert len(said) == 1, f"once in {guard.error_output()}"
    assert guard.metric("tcpparser_firewall_up") == 0, "firewall_up"
    assert scene.firewall.is_untouched(scene.host), "a table was made"


# -------------------------------------------------------------- the full chain


def test_long_chain_of_an_earlier_version_stands(t):
    """Whatever `auto` would have put into the sets."""
    scene, sources = TwoPlaces(t), [f"{source}/32" for source in numbered(600)]
    feed(scene, *(entry(source, boot_seconds() + 600) for source in sources))
    guard = scene.start()
    wait_for(lambda: guard.metric("tcpparser_blocked_sources") == len(sources), "their adoption")
    block(scene, guard)
    assert scene.in_sets() == [cidr(scene)], "the new one"
    assert scene.in_chain() == sorted(sources), "in the chain"
    assert guard.matching("Unblocked") == [], "Unblocked lines"


@pytest.mark.parametrize("backend", ["iptables-nft", "iptables-legacy"])
def test_full_chain_ends_the_block_with_least_time_left(t, backend):
    scene = TwoPlaces(t, backend, "v4", "--firewall=iptables", "--block-time=1h")
    now, sources = boot_seconds(), numbered(499)
    feed(scene, *(entry(f"{source}/32", now + 5000 + n) for n, source in enumerate(sources[1:])),
         entry(f"{sources[0]}/32", now + 300))
    guard = scene.start()
    wait_for(lambda: guard.metric("tcpparser_blocked_sources") == 499, "their adoption")
    block(scene, guard)
    assert guard.matching("Unblocked") == [], "five hundred fit"
    block(scene, guard, scene.family.friend)
    guard.wait_line(rf" Unblocked: +{re.escape(sources[0])} .*newer")
    wanted = [*(f"{source}/32" for source in sources[1:]), cidr(scene),
              cidr(scene, scene.family.friend)]
    assert scene.in_chain() == sorted(wanted), "in the chain"
    assert total(guard, "unblocks_total", reason="evicted") == 1, "unblocks_total"
    assert guard.metric("tcpparser_blocked_sources") == 500, "blocked_sources"
    assert not scene.has_table(), "no table of ours"


# --------------------------------------------------------------------- the end


@pytest.mark.parametrize("family", ["v4", "v6"])
def test_blocks_end_with_no_process_alive(t, family):
    scene = Scene(t, "nft", family, "--block-time", "4s")
    guard = scene.start()
    block(scene, guard)
    end = scene.entries()[0].end
    guard.signal(signal.SIGKILL)
    guard.wait_exit()
    assert not scene.reaches(seconds=0.3), "it is blocked"
    wait_for(lambda: scene.reaches(seconds=0.3), "the end of the block")
    late = time.clock_gettime(time.CLOCK_BOOTTIME) - end
    assert -1 <= late <= 2, f"it ended {late:.1f} s after its end"
    assert scene.entries() == [], "entries"
    scene.start()
    wait_for(lambda: scene.firewall.is_untouched(scene.host), "the empty table goes at a start")


@pytest.mark.parametrize("length", ["90s", "forever"])
def test_kernel_holds_the_end(t, length):
    scene = Scene(t, "nft", "v4", "--block-time", length)
    block(scene, scene.start())
    shown = scene.firewall.must(scene.host, "list", "set", "inet", "tcpparser", "host4")
    left = re.search(r" expires (?:(\d+)m)?(?:(\d+)s)?", shown)
    if length == "forever":
        assert not left and " e=0 " in shown, shown
    else:
        seconds = int(left[1] or 0) * 60 + int(left[2] or 0)
        wanted = scene.entries()[0].end - boot_seconds()
        assert abs(seconds - wanted) <= 2, f"{seconds} s left, {wanted} s by the comment"


def test_nothing_is_left_after_all_are_lifted(t):
    """Beside a daemon and without one."""
    scene = Scene(t, "nft")
    scene.firewall.accept_services(scene.host)
    before = scene.firewall.everything(scene.host)
    guard = scene.start()
    for is_running in (True, False):
        block(scene, guard)
        if not is_running:
            ends(guard)
        done = scene.firewall.product(scene.host, "--unblock", "all")
        assert (done.returncode, done.stdout) == (0, "1 block removed\n"), "--unblock all"
        wait_for(lambda: scene.firewall.everything(scene.host) == before, "the rules as before", 5)
        wait_for(lambda: scene.reaches(seconds=0.3), "it is back")
        guard.lines.clear()


# ---------------------------------------------------------------------- events


def seconds_to_repair(scene):
    """From `nft flush ruleset`, as the kernel tells of it, until the first block
    stands again."""
    watch = traffic.Stopwatch(scene.host)
    try:
        scene.firewall.flush_all(scene.host, "iptables")
        wait_for(lambda: watch.deleted and watch.dropped, "the repair", 2)
        return watch.dropped - watch.deleted
    finally:
        watch.close()


@pytest.mark.alone
def test_flushed_ruleset_is_repaired_at_once(t):
    """By the binary that verifies each minute; `make detect` measures."""
    scene = Scene(t, "nft")
    guard = scene.start()
    block(scene, guard)
    before = scene.entries()
    for count in range(1, 4):
        time.sleep(1.1)  # at most one look a second
        took = seconds_to_repair(scene)
        print(f"    repaired after {took * 1000:.1f} ms", flush=True)
        wait_for(lambda: scene.entries() == before and scene.is_whole(), "all as before", 1)
        wait_for(lambda: guard.metric("tcpparser_firewall_repairs_total") == count, "a repair", 2)
    assert not scene.reaches(seconds=0.3), "it is blocked"
    assert guard.matching("Unblocked") == [], "Unblocked lines"


def test_deleted_element_is_said_at_once(t):
    """By the binary that verifies each minute, with the program's name."""
    scene = Scene(t, "nft")
    guard = scene.start()
    block(scene, guard)
    scene.firewall.delete(scene.host, "iptables", cidr(scene))
    guard.wait_line(r" Unblocked: +10\.77\.0\.2 its rule was removed by nft$", 3)
    assert total(guard, "unblocks_total", reason="operator") == 1, "unblocks_total"
    wait_for(lambda: scene.firewall.is_untouched(scene.host), "no table", 3)


@pytest.mark.alone
def test_other_programs_loads_cost_little(t):
    """Twenty of a thousand elements each, while a scan is to be blocked."""
    scene = Scene(t, "nft")
    guard = scene.start()
    block(scene, guard)
    scene.firewall.load(scene.host, "table inet other {", "set many { type ipv4_addr; }", "}")
    spent = guard.metric("process_cpu_seconds_total")
    for load in range(20):
        addresses = ", ".join(f"10.{load}.{n // 250}.{n % 250}" for n in range(1000))
        scene.firewall.load(scene.host, f"add element inet other many {{ {addresses} }}")
        if load == 10:
            held = scene.scan(scene.family.friend)
    guard.wait_line(rf" Blocked: +{re.escape(scene.family.friend)} ", 3)
    spent = guard.metric("process_cpu_seconds_total") - spent
    print(f"    {spent:.2f} s of CPU time", flush=True)
    assert spent < 1, f"{spent:.2f} s of CPU time"
    assert guard.matching("Unblocked") == [], "Unblocked lines"
    assert guard.metric("tcpparser_firewall_repairs_total") == 0, "firewall_repairs_total"
    scene.firewall.delete(scene.host, "iptables", cidr(scene))
    guard.wait_line(" Unblocked: .* by nft$", 3)
    assert len(held) == 4, "connections"


# --------------------------------------------------------------------- listing


def test_table_is_readable_and_can_be_loaded_again(t):
    scene = Scene(t, "nft")
    guard = scene.start()
    block(scene, guard)
    block(scene, guard, scene.family.friend)
    guard.signal(signal.SIGKILL)
    guard.wait_exit()
    before, text = scene.firewall.everything(scene.host), scene.firewall.save(scene.host, "")
    for words in ("table inet tcpparser {", "tcpparser --unblock all lifts them",
                  "ip saddr @drop4 drop", "10.77.0.2 timeout ", 'comment "tcpparser v1 b='):
        assert words in text, f"{words!r} in {text}"
    entries = scene.entries()
    scene.firewall.restore(scene.host, "", text)
    assert scene.firewall.everything(scene.host) == before, "the table"
    assert not scene.reaches(seconds=0.3), "it is blocked"
    guard = scene.start()
    wait_for(lambda: guard.metric("tcpparser_blocked_sources") == 2, "adoption")
    guard.wait_readings(2)
    assert scene.entries() == entries, "entries"
    assert guard.matching("locked") == [], "words about blocks"


@pytest.mark.alone
def test_restart_adopts_5000_blocks(t):
    scene, now = Scene(t, "nft"), boot_seconds()
    sources = [f"198.{18 + n // 62500}.{n // 250 % 250}.{1 + n % 250}" for n in range(5000)]
    feed(scene, *(entry(f"{source}/32", now + 900 + n) for n, source in enumerate(sources)))
    started = time.monotonic()
    guard = t.guard(scene.host, env=scene.firewall.env)
    wait_for(lambda: guard.readings()
             and guard.metric("tcpparser_blocked_sources") == len(sources), "all")
    print(f"    {time.monotonic() - started:.2f} s from the start to 5,000 blocks known", flush=True)
    block(scene, guard)
    assert guard.metric("tcpparser_blocked_sources") == 5001, "blocked_sources"
    done = scene.firewall.product(scene.host, "--unblock", "all")
    assert (done.returncode, done.stdout) == (0, "5001 blocks removed\n"), "--unblock all"


@pytest.mark.parametrize("comment, priority",
    [(comment, priority) for comment in ("", 'comment "another tool by this name"')
     for priority in ("5", "filter - 10")])
def test_table_of_somebody_else_stays(t, comment, priority):
    """One of our name, without our comment and our sets."""
    scene = Scene(t, "nft")
    scene.firewall.load(scene.host, "table inet tcpparser {", comment, "chain input {",
                        f"type filter hook input priority {priority}; tcp dport 9 drop", "}", "}")
    before = scene.firewall.everything(scene.host)
    guard = scene.start()
    scene.scan()
    guard.wait_line("Block failed: ")
    wait_for(lambda: "tcpparser: nf_tables refuses: the name is taken: the table tcpparser is another "
             "program's; it is tried again" in guard.error_output(), "whose it is")
    guard.wait_readings(2)
    done = scene.firewall.product(scene.host, "--list")
    assert done.returncode == 1 and done.stderr == (
        "tcpparser: the firewall cannot be listed: the name is taken: the table tcpparser is another "
        "program's\n"), f"--list: {done.stderr}"
    assert scene.firewall.everything(scene.host) == before, "the table"


@pytest.mark.parametrize("choice", ["nft", "auto"])
def test_a_set_without_room_is_said(t, choice):
    """Another program filled it: `auto` has the chain."""
    scene = TwoPlaces(t, "iptables-nft", "v4", "--firewall", choice, "--block-time", "1h")
    scene.host.must(scene.sets.nft, "-f", "-", input="""table inet tcpparser {
        comment "port scan sources; tcpparser --unblock all lifts them"
        set drop4 { type ipv4_addr; size 65536; flags timeout; }
        set host4 { type ipv4_addr; size 65536; flags timeout; }
        }\n""" + "".join(
            f"add element inet tcpparser {name} {{ " + ", ".join(
                f"172.{16 + n // 65536}.{n // 256 % 256}.{n % 256}" for n in range(65_536)) + " }\n"
            for name in ("drop4", "host4")))
    guard = scene.start()
    scene.scan()
    if choice == "nft":
        guard.wait_line("Block failed: .* nf_tables refuses: the set is full; it is tried again")
        assert total(guard, "block_failures_total", reason="refused") == 1, "failures"
        assert not scene.in_chain(), "a rule in the chain"
    else:
        guard.wait_line(" Blocked: ")
        assert len(scene.in_chain()) == 1, "rules in the chain"


@pytest.mark.parametrize("shape", ["another priority", "no timeouts"])
def test_table_of_ours_of_another_shape_is_made_anew(t, shape):
    scene = Scene(t, "nft")
    scene.firewall.load(
        scene.host, "table inet tcpparser {",
        'comment "port scan sources; tcpparser --unblock all lifts them"',
        *(["chain input { type filter hook input priority 5; }"] if shape[0] == "a" else
          ["set host4 { type ipv4_addr; }"]), "}")
    block(scene, scene.start())
    assert scene.is_whole(), "what leads packets to the entry"
    assert not scene.reaches(seconds=0.3), "it is blocked"


# --------------------------------------------------------------- beside others


FW4 = """
table inet fw4 {
  chain input {
    type filter hook input priority filter; policy drop;
    iif lo accept
    ct state vmap { established : accept, related : accept }
    tcp flags & (fin | syn | rst | ack) == syn jump syn_flood
    iifname "lan0" jump input_lan
    jump handle_reject
  }
  chain forward {
    type filter hook forward priority filter; policy drop;
    ct state vmap { established : accept, related : accept }
    iifname "lan0" jump forward_lan
    jump handle_reject
  }
  chain output { type filter hook output priority filter; policy accept; }
  chain input_lan { jump accept_from_lan; }
  chain forward_lan { oifname "in0" counter accept comment "Accept lan to inner forwarding"; }
  chain accept_from_lan { iifname "lan0" counter accept comment "Accept IPv4/IPv6 traffic"; }
  chain syn_flood { limit rate 250/second burst 500 packets return; drop; }
  chain handle_reject { meta l4proto tcp reject with tcp reset; reject; }
  chain dstnat { type nat hook prerouting priority dstnat; policy accept; }
  chain srcnat { type nat hook postrouting priority srcnat; policy accept; }
  chain raw_prerouting { type filter hook prerouting priority raw; policy accept; }
  chain mangle_forward { type filter hook forward priority mangle; policy accept; }
}
"""
EARLY = """
table inet early {
  chain input { type filter hook input priority -300; policy accept; accept; }
  chain forward { type filter hook forward priority -300; policy accept; accept; }
}
"""


def accept_first(t, flavour):
    def load(host):
        firewall = t.firewall(host, flavour)
        for chain in ("INPUT", "FORWARD"):
            firewall.must(host, "iptables", "-w", "5", "-I", chain, "-j", "ACCEPT")
    return load


OTHERS = {
    "iptables-nft": lambda t: accept_first(t, "nft"),
    "iptables-legacy": lambda t: accept_first(t, "legacy"),
    "priority -300": lambda t: lambda host: Sets(t).load(host, EARLY),
    "fw4": lambda t: lambda host: Sets(t).load(host, FW4),
}
STRANGER, BYSTANDER, BEHIND = "198.18.9.2", "198.18.9.3", "10.79.0.2"


class Forwarding:
    """stranger -- host -- inner: the host serves and forwards."""

    def __init__(self, t):
        self.scene = Scene(t, "nft")
        self.host, self.peer, self.inner = self.scene.host, self.scene.peer, t.namespace("inner")
        link(self.host, "in0", self.inner, "in0", ("10.79.0.1/24", f"{BEHIND}/24"))
        self.host.sysctl("net.ipv4.ip_forward=1")
        self.host.ip("route add 198.18.9.0/24 via 10.77.0.2")
        self.inner.ip("route add default via 10.79.0.1")
        self.peer.ip("route add 10.79.0.0/24 via 10.77.0.1",
                     *(f"address add {one}/32 dev lo" for one in (STRANGER, BYSTANDER)))
        self.inner.listen(22)

    def reaches(self, source, seconds=0.3):
        """The host, and what lies behind it."""
        return [self.peer.connects(address, 22, source, seconds)
                for address in (self.scene.family.host, BEHIND)]

    def is_shut(self, open_ones):
        assert self.reaches(STRANGER) == [False, False], "new connections of the source"
        assert not any(carries_data(one, 0.3) for one in open_ones), "open ones carry data"
        assert self.reaches(BYSTANDER, 5) == [True, True], "another source's connections"


@pytest.mark.parametrize("other", OTHERS)
def test_blocked_beside_other_rules(t, other):
    """In INPUT and FORWARD, new connections and open ones."""
    path = Forwarding(t)
    OTHERS[other](t)(path.host)
    assert path.reaches(STRANGER, 5) == [True, True], "at first"
    guard = path.scene.start()
    foreign = path.scene.firewall.foreign(path.host)
    through = path.peer.connect(BEHIND, 22, STRANGER)
    assert carries_data(through, 5), "the open connection carries data at first"
    held = path.scene.scan(STRANGER)
    guard.wait_line(rf" Blocked: +{re.escape(STRANGER)} ")
    path.is_shut([through, *held])
    assert path.scene.firewall.foreign(path.host) == foreign, "other programs' rules"


# How to start each in a machine of its own, with what its package's scripts would
# do; how to open a port and load all rules anew, and what answers once it is ready.
FIREWALLS = {
    "ufw": ("cd /usr/share/ufw && cp *.conf *.init iptables/* /etc/ufw && ufw --force enable",
            "ufw allow ", "ufw reload", "ufw status"),
    "firewalld": ("cd /usr/share/polkit-1/actions && for policy in *.server.policy.choice; do "
                  "cp $policy ${policy%.server.policy.choice}.policy; done; "
                  "mkdir -p /run/dbus && dbus-daemon --system --fork && firewalld",
                  "firewall-cmd --permanent --add-port=", "firewall-cmd --reload",
                  "firewall-cmd --state"),
}


def start_firewall(machine, name):
    """Before anything of ours: a machine where it does not run is no failure."""
    start, allow, reload, state = FIREWALLS[name]
    if machine.run("sh", "-c", f"command -v {name}").returncode != 0:
        pytest.skip(f"{name} could not be fetched")
    try:
        machine.must("sh", "-c", start, seconds=60)
        wait_for(lambda: machine.run("sh", "-c", state, seconds=60).returncode == 0, state)
        for port in PORTS:
            machine.must("sh", "-c", f"{allow}{port}/tcp", seconds=60)
        machine.must("sh", "-c", reload, seconds=60)
    except AssertionError as reason:
        pytest.skip(f"{name} does not run here: {str(reason)[-200:]}")
    return lambda: machine.must("sh", "-c", reload, seconds=60)


@pytest.mark.parametrize("name", FIREWALLS)
def test_reload_of_a_real_firewall_leaves_blocks(t, name):
    scene = Scene(t, "nft")
    with Machine(t, scene.host) as machine:
        machine.boot("", "sleep", "infinity", packages=None, folder="firewalls")
        reload = start_firewall(machine, name)
        assert scene.reaches(seconds=5), "the services are open"
        guard = scene.start()
        block(scene, guard)
        entries = scene.entries()
        assert not scene.reaches(seconds=0.3), "it is blocked"
        for _ in range(2):
            reload()
            assert not scene.reaches(seconds=0.3), "it is still blocked"
            assert scene.reaches(scene.family.friend, 5), "another source is not"
        assert (scene.entries(), scene.is_whole()) == (entries, True), "entries"
        assert guard.matching("Unblocked") == [], "Unblocked lines"


# ------------------------------------------------------------------- few rights


def test_one_capability_suffices(t):
    """Any user with CAP_NET_ADMIN, and no tool."""
    need("setpriv")
    only = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups",
            "--inh-caps=-all,+net_admin", "--ambient-caps=-all,+net_admin",
            "--bounding-set=-all,+net_admin")
    scene = Scene(t, "nft", before=only)
    guard = scene.start()
    with open(f"/proc/{guard.pid}/status") as status:
        effective = re.search(r"^CapEff:\s+(\w+)$", status.read(), re.M)[1]
    assert int(effective, 16) == 1 << 12, "capabilities"
    block(scene, guard)
    assert not scene.reaches(seconds=0.3), "it is blocked"
    lacks = [re.search("no packet sockets|that needs CAP_NET_BROADCAST", line)[0]
             for line in guard.error_output()]
    assert sorted(lacks) == ["no packet sockets", "that needs CAP_NET_BROADCAST"], "stderr"
    with scene.host.entered():
        done = run(*only, t.binary, "--unblock", "all", env={"PATH": "/usr/bin:/bin"})
    assert (done.returncode, done.stdout) == (0, "1 block removed\n"), "--unblock all"
    guard.wait_line(" Unblocked: ")
    wait_for(lambda: scene.firewall.is_untouched(scene.host), "nothing of ours")
    is_blocked_by(scene, guard)
