"""`make bench`: what a block costs, against the tools that make blocks, and what
standing blocks cost those who are not blocked.

The blocks are real: tcpparser reads connections of scanners from a folder of
its own and blocks them in a namespace. Its time is that of its own metric,
tcpparser_firewall_command_duration_seconds_sum, from the first byte of a batch
to the kernel's answer, without its own work between two batches; a tool's is
that of the whole process, for which tcpparser would have to wait. Times belong
to the machine; the ratios are what counts.
"""

import os
import signal
import socket
import statistics
import subprocess
import time
from unittest import SkipTest

import bench
import harness
from test_blocking import PORTS
from test_files import fixture, listening, tcp_row

COUNTS = (1, 1_000)  # blocks put in at once
ROUNDS = 10  # alternations of tools
SLICES = 50  # alternations of places
SLICE = 0.1  # seconds of requests in one of them
FLAVOUR = "nft"  # of the chain beside which requests are counted
CHAIN, CHAIN_FULL, MANY = 16, 500, 5_000
AIM = 0.95
PORT = 7_000
REQUEST = b"x" * 32
METRIC = "tcpparser_firewall_command_duration_seconds"
DEADLINE = 90  # seconds for everything


# ------------------------------------------------------------------- blocks


class Product:
    """A running tcpparser that sees as many scanners as it is told."""

    def __init__(self, case, host, firewall, *arguments):
        self.case, self.rows = case, [listening("0.0.0.0", port) for port in PORTS]
        self.seen = 0
        folder = fixture(case, self.rows)
        self.guard = case.guard(
            host, "--proc", folder, "--show", "scans", "--block-time", "1h",
            "--max-blocks-per-minute", "100000", *arguments, env=firewall.env,
            interval="100ms", stdout=subprocess.DEVNULL)

    def block(self, count):
        """Blocks so many more; what that adds to the metric, in seconds and in
        commands."""
        before = self.guard.ready().scrape()
        for number in range(self.seen, self.seen + count):
            peer = f"198.18.{number // 250}.{1 + number % 250}"
            self.rows += [tcp_row("198.51.100.7", port, peer, 40_000, 1) for port in PORTS]
        self.seen += count
        fixture(self.case, self.rows)

        def all_stand():
            samples = self.guard.scrape()
            return samples["tcpparser_blocked_sources"] == self.seen and samples
        after = harness.wait_for(all_stand, f"{self.seen} blocks")
        return [after[f"{METRIC}_{what}"] - before[f"{METRIC}_{what}"] for what in ("sum", "count")]

    def end(self):
        """Its blocks stand."""
        self.guard.signal(signal.SIGTERM)
        assert self.guard.wait_exit() == 0, "exit status"


class Tool:
    """A program that puts blocks in from its standard input."""

    def __init__(self, case, role):
        self.host = case.namespace(role)
        self.input = os.path.join(case.tmp, role)

    def seconds(self, entries):
        with open(self.input, "w") as file:
            file.write(self.text(entries) + "\n")
        stdin = (os.POSIX_SPAWN_OPEN, 0, self.input, os.O_RDONLY, 0)
        with self.host.entered():
            began = time.perf_counter()
            pid = os.posix_spawn(self.command[0], self.command, self.env, file_actions=[stdin])
            _, status = os.waitpid(pid, 0)
            took = time.perf_counter() - began
        assert status == 0, f"{self.command}: status {status}"
        self.clear()
        return took


class Restore(Tool):
    def __init__(self, case, flavour):
        super().__init__(case, flavour)
        self.firewall = case.firewall(self.host, flavour)
        self.firewall.feed(self.host, "iptables")
        self.command = [f"{self.firewall.folder}/iptables-restore", "-w", "5", "--noflush"]
        self.env = self.firewall.env

    def text(self, entries):
        return "\n".join(["*filter", *(one.rule() for one in entries), "COMMIT"])

    def clear(self):
        self.firewall.delete_all(self.host, "iptables")


class Nft(Tool):
    def __init__(self, case):
        super().__init__(case, "nft-f")
        self.sets = case.backend(self.host, "nft")
        self.sets.feed(self.host, "iptables")
        self.command, self.env = [self.sets.nft, "-f", "-"], harness.HOME

    def text(self, entries):
        elements = ", ".join(one.element() for one in entries)
        return f"add element inet tcpparser drop4 {{ {elements} }}"

    def clear(self):
        self.sets.load(self.host, "flush set inet tcpparser drop4")


class Ipset(Tool):
    def __init__(self, case):
        super().__init__(case, "ipset")
        self.command, self.env = [harness.real_tool("ipset"), "restore"], harness.HOME
        done = self.host.run(self.command[0], "create", "drop4", "hash:ip", "timeout", "0",
                             "comment")
        if done.returncode != 0:
            raise SkipTest(f"ipset: {done.stderr.strip()[:100]}")

    def text(self, entries):
        return "\n".join(f"add drop4 {one.source} timeout 3600 comment \"{one.comment()}\""
                         for one in entries)

    def clear(self):
        self.host.must(self.command[0], "flush", "drop4")


PRODUCT = "tcpparser --firewall nft"
TOOLS = {
    "iptables-nft-restore --noflush": lambda case: Restore(case, "nft"),
    "iptables-legacy-restore --noflush": lambda case: Restore(case, "legacy"),
    "nft -f -": Nft,
    "ipset restore": Ipset,
}


def tools_here(case):
    found = {}
    for name, made in TOOLS.items():
        try:
            found[name] = made(case)
        except SkipTest as reason:
            print(f"{name:34} SKIPPED {reason}")
    return found


def measure_blocks(case):
    """What each needs to put in so many: count -> name -> seconds, one value a
    round. All put in the same sources with the same comments."""
    tools = tools_here(case)
    took = {count: {name: [] for name in (PRODUCT, *tools)} for count in COUNTS}
    commands = {count: [] for count in COUNTS}
    host = case.namespace("host")
    sets = case.backend(host, "nft")
    for _ in range(ROUNDS):
        product = Product(case, host, sets, "--firewall=nft")
        product.block(1)  # which makes the table
        for count in COUNTS:
            before = set(sets.standing(host))
            seconds, number = product.block(count)
            took[count][PRODUCT].append(seconds)
            commands[count].append(number)
            entries = [one for one in sets.standing(host) if one not in before]
            assert len(entries) == count, f"{len(entries)} blocks stand, not {count}"
            for name, tool in tools.items():
                took[count][name].append(tool.seconds(entries))
        product.end()
        assert sets.product(host, "--unblock", "all").returncode == 0, "--unblock all"
    return took, {count: max(numbers) for count, numbers in commands.items()}


def tell_blocks(took, commands):
    for count, by_name in took.items():
        base = statistics.median(by_name[PRODUCT])
        what = f"{count:,} {'block' if count == 1 else 'blocks'} put in"
        print(f"{what:34} {'least':>10} {'median':>10}   to tcpparser")
        for name, values in by_name.items():
            middle = statistics.median(values)
            print(f"{name:34} {1e3 * min(values):7.3f} ms {1e3 * middle:7.3f} ms"
                  f"   {middle / base:8.1f}")
        print(flush=True)
    batches = ", ".join(f"{number:.0f} for {count:,}" for count, number in commands.items())
    print(f"{ROUNDS} rounds in turn; table, chain and set stand before. tcpparser's time is its own\n"
          f"{METRIC}_sum, the difference around the\n"
          f"blocks (batches at most: {batches}), without its work between two batches;\n"
          "a tool's is that of its process, start to end.\n", flush=True)


# ----------------------------------------------------------------- requests


class Requests:
    """A server at one address and a client at another, both of UDP."""

    def __init__(self, host, host_address, peer, peer_address):
        self.ends = [self.end(host, host_address, peer_address),
                     self.end(peer, peer_address, host_address)]
        self.server = self.start_server()

    @staticmethod
    def end(space, own, other):
        with space.entered():
            made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.bind((own, PORT))
        made.connect((other, PORT))
        return made

    def start_server(self):
        """A process that answers each request by the same bytes."""
        pid = os.fork()
        if pid == 0:
            try:
                harness.LIBC.prctl(bench.PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                receive, send = self.ends[0].recv, self.ends[0].send
                while True:
                    send(receive(64))
            finally:
                os._exit(1)
        return pid

    def rate(self, seconds=SLICE):
        """Requests a second, one after the other."""
        receive, send = self.ends[1].recv, self.ends[1].send
        count, began = 0, time.perf_counter()
        while time.perf_counter() - began < seconds:
            for _ in range(50):
                send(REQUEST)
                receive(64)
            count += 50
        return count / (time.perf_counter() - began)

    def close(self):
        bench.reap(self.server)
        for one in self.ends:
            one.close()


def place(case, option, rules, elements):
    """Of a host with blocks that a product left there, and a client that is not
    blocked."""
    lan = case.lan()
    sets = case.backend(lan.host, "nft")
    # Even a look by iptables can make tables.
    chain = case.firewall(lan.host, FLAVOUR) if rules else None
    if option:
        product = Product(case, lan.host, chain or sets, f"--firewall={option}")
        product.block(rules + elements)
        product.end()
    stand = len(chain.standing(lan.host)) if chain else 0, len(sets.standing(lan.host))
    assert stand == (rules, elements), f"rules and elements that stand: {stand}"
    return Requests(lan.host, lan.host_v4, lan.peer, lan.peer_v4)


NOTHING, CHAIN_ALONE = "beside nothing", f"beside {CHAIN} rules of the chain"
AUTO, NFT = f"beside {MANY:,} blocks, auto", f"beside {MANY:,} blocks, nft"
PLACES = {
    NOTHING: (None, 0, 0),
    CHAIN_ALONE: ("iptables", CHAIN, 0),
    AUTO: ("auto", CHAIN, MANY - CHAIN),
    NFT: ("nft", 0, MANY),
    f"beside {CHAIN_FULL} rules of the chain": ("iptables", CHAIN_FULL, 0),
}
AIMS = {NFT: NOTHING, AUTO: CHAIN_ALONE}


def measure_requests(case):
    """Requests a second beside each: name -> one value a slice."""
    places = {}
    before = os.sched_getaffinity(0)
    try:
        for name, what in PLACES.items():
            places[name] = place(case, *what)
        # Both ends on one processor: what is counted is the work of a request
        # and its answer, and no wait for another processor to wake.
        for pid in (0, *(one.server for one in places.values())):
            os.sched_setaffinity(pid, {max(before)})
        rates = {name: [] for name in places}
        for one in places.values():
            one.rate()
        for _ in range(SLICES):
            for name, one in places.items():
                rates[name].append(one.rate())
        return rates
    finally:
        os.sched_setaffinity(0, before)
        for one in places.values():
            one.close()


def tell_requests(rates):
    middle = {name: statistics.median(values) for name, values in rates.items()}
    print(f"{'requests a second':34} {'median':>8} {'least':>8} {'most':>8}   to nothing")
    for name, values in rates.items():
        ratio = f"{middle[name] / middle[NOTHING]:.3f}"
        if name in AIMS:
            other = AIMS[name]
            share = middle[name] / middle[other]
            words = "" if other == NOTHING else f"; {share:.3f} of {CHAIN} rules alone"
            ratio += f"{words} (aim: at least {AIM}{'' if share >= AIM else ', MISSED'})"
        print(f"{name:34} {middle[name]:8.0f} {min(values):8.0f} {max(values):8.0f}   {ratio}")
    print(f"\nUDP, {len(REQUEST)} bytes each way over a veth pair, one request after the other, by a client\n"
          f"that is not blocked; {SLICES} rounds of {SLICE} s in turn. The chain is that of "
          f"iptables-{FLAVOUR}.\nThe blocks are tcpparser's own, which has ended.", flush=True)


def main(binary):
    for measure, tell in ((measure_blocks, lambda found: tell_blocks(*found)),
                          (measure_requests, tell_requests)):
        case = harness.Case(binary)
        try:
            tell(measure(case))
        finally:
            case.close()


if __name__ == "__main__":
    harness.run_alone(main, DEADLINE)
