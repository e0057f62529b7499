"""`make bench`: what the witness costs those whose packets pass its sockets.

Three hosts alike, each between a client and a machine behind it: one with a
tcpparser and its witness, one whose tcpparser has none, one without tcpparser. In
turns, each of them serves short connections (wrk to an nginx), and forwards UDP
to the machine behind it and the answers back, two packets a request. All that
takes part shares one processor, so that what is counted is work and no wait for
another processor to wake.

The tcpparser measured is built without its limit: with more than WITNESS_PACKETS
a second (src/limits.rs) its witness would pause for ten seconds, and cost nothing
meanwhile. Rates belong to the machine; the ratios are what counts: each is the
median of those of neighbours in one round. On 2026-11-30, on a virtual machine with 2
cores, Linux 6.18, with the witness to without: short connections 0.95 (24 rounds,
quartiles 0.87 and 1.07; 4,400 a second), forwarded packets 0.93 (600 rounds, 0.73 and
1.15; 87,000 a second). Without the witness to without tcpparser: 0.57 and 1.00; each
socket that ends is an event, which the kernel makes and tcpparser reads, and here
those of clients are as well.
"""

import os
import statistics
import subprocess

import bench_blocks
import bench_http
import harness

CONNECTIONS, PACKETS = "short connections", "forwarded packets"
ROUNDS = {CONNECTIONS: 24, PACKETS: 600}
SLICE = 0.02  # seconds of packets in a round
WITH, WITHOUT, NONE = "with the witness", "--witness none", "no tcpparser"
HOSTS = {WITH: ["--witness", "auto"], WITHOUT: ["--witness", "none"], NONE: None}
PAIRS = ((WITH, WITHOUT), (WITHOUT, NONE))
ADDRESS, CLIENT, BEHIND = "10.6.0.1", "10.6.0.2", "10.5.0.2"
DEADLINE = 170  # seconds for everything


class Host:
    """Between a client and a machine behind it."""

    def __init__(self, case, arguments):
        self.client, space, box = (case.namespace(role) for role in ("client", "host", "box"))
        harness.link(space, "up0", self.client, "up0", (f"{ADDRESS}/24", f"{CLIENT}/24"))
        harness.link(space, "in0", box, "in0", ("10.5.0.1/24", f"{BEHIND}/24"))
        self.client.ip(f"route add default via {ADDRESS}")
        box.ip("route add default via 10.5.0.1")
        space.sysctl("net.ipv4.ip_forward=1")
        self.guard = None
        if arguments:
            self.guard = case.guard(space, "--dry-run", "--show", "scans", *arguments).ready()
        folder = case.folder(space.name)
        bench_http.written(f"{folder}/metrics", "x" * 100)
        command = bench_http.nginx(folder, ADDRESS)
        with space.entered():  # it ends with the namespace
            subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                             stderr=subprocess.DEVNULL)
        harness.wait_for(lambda: self.client.listens_at(ADDRESS, bench_http.PORT), "nginx")
        self.requests = bench_blocks.Requests(box, BEHIND, self.client, CLIENT)
        case.closing.append(self.requests)

    def rate(self, what):
        """So many a second."""
        if what == PACKETS:
            return 2 * self.requests.rate(SLICE)
        return bench_http.wrk(self.client, ADDRESS, "-H", "Connection: close")

    def metric(self, name):
        return self.guard.metric(f"tcpparser_witness_{name}")


def measure(hosts, what):
    """Name -> one rate a round."""
    rates = {name: [] for name in hosts}
    names = list(hosts)
    for number in range(1 + ROUNDS[what]):
        for name in names[number % 3:] + names[:number % 3]:
            rates[name].append(hosts[name].rate(what))
    return {name: values[1:] for name, values in rates.items()}  # the first fills caches


def tell(what, rates):
    for name, values in rates.items():
        print(f"{f'{what} {name}':34} {statistics.median(values):9.0f} a second"
              f"   (from {min(values):.0f} to {max(values):.0f})")
    for one, other in PAIRS:
        ratios = [mine / theirs for mine, theirs in zip(rates[one], rates[other])]
        least, middle, most = statistics.quantiles(ratios, n=4)
        print(f"{what}: {middle:.3f} {one}, to {other} (quartiles {least:.3f}, {most:.3f})", flush=True)
    print()


def main(binary):
    harness.need("wrk", "nginx")
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    case = harness.Case(binary)
    try:
        hosts = {name: Host(case, arguments) for name, arguments in HOSTS.items()}
        seen = hosts[WITH].metric("packets_total")
        for what in ROUNDS:
            tell(what, measure(hosts, what))
        assert hosts[WITH].metric("up") == 1, "the witness is up"
        assert hosts[WITH].metric("pauses_total") == 0, "it never paused"
        assert hosts[WITH].metric("packets_total") > seen + 1000, "it saw the connections"
        assert hosts[WITHOUT].metric("up") == 0, "the other has none"
    finally:
        case.close()
    print("All on one processor, clients as well, whose sockets are events for tcpparser, too, when\n"
          "they end. The tcpparser measured is built without its limit (WITNESS_PACKETS of\n"
          "src/limits.rs), from which on its witness pauses and costs nothing.")


if __name__ == "__main__":
    harness.run_alone(main, DEADLINE)
