"""`make fleet`: many hosts and one Prometheus.

Three hosts run the real binary, each in its own network namespace; a fourth
namespace joins them by a bridge and holds a real Prometheus server with the
rules of dist/. nmap scans one host from a fifth. What the query API says about
that is the test, and an example of how a fleet is watched.
"""

import json
import os
import subprocess
import urllib.parse

import harness
from harness import wait_for

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
RULES = os.path.join(ROOT, "dist", "tcpparser.rules.yml")
PORTS = (22, 25, 80, 443, 3306, 8080)
HOSTS = 3
DEADLINE = 120  # seconds for everything


class Prometheus:
    """A real server that scrapes each second, in a namespace of a case."""

    def __init__(self, case, namespace, jobs):
        """`jobs` maps names to lists of addresses with ports."""
        harness.need("prometheus")
        self.namespace = namespace
        folder = case.folder("prometheus")
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [RULES],
            "scrape_configs": [
                {"job_name": job, "static_configs": [{"targets": targets}]}
                for job, targets in jobs.items()],
        }
        path = os.path.join(folder, "prometheus.yml")
        with open(path, "w") as file:
            json.dump(config, file)  # which is YAML too
        self.log = open(os.path.join(folder, "log"), "w+")
        with namespace.entered():
            self.process = subprocess.Popen(
                ["prometheus", f"--config.file={path}", f"--storage.tsdb.path={folder}/data",
                 "--web.listen-address=127.0.0.1:9090"],
                stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait(5)
        self.log.close()

    def get(self, path):
        """The data of an answer of its API; None while it starts."""
        done = self.namespace.run("curl", "-sS", "--max-time", "5",
                                  f"http://127.0.0.1:9090/api/v1/{path}")
        if done.returncode != 0 or not done.stdout.startswith("{"):
            assert self.process.poll() is None, f"prometheus ended: {self.tail()}"
            return None
        return json.loads(done.stdout).get("data")

    def tail(self):
        self.log.seek(0)
        return self.log.read()[-500:]

    def query(self, expression):
        """An instant vector: instance -> value."""
        data = self.get("query?" + urllib.parse.urlencode({"query": expression})) or {}
        return {sample["metric"].get("instance", ""): float(sample["value"][1])
                for sample in data.get("result", [])}

    def wait_query(self, expression, wanted, seconds=30):
        found = {}

        def is_so():
            found.clear()
            found.update(self.query(expression))
            return found == wanted
        try:
            wait_for(is_so, expression, seconds)
        except AssertionError:
            raise AssertionError(f"{expression}: found {found}, wanted {wanted}") from None

    def targets(self):
        """What it says about its targets: instance -> (health, last error)."""
        data = self.get("targets") or {}
        return {target["labels"]["instance"]: (target["health"], target["lastError"])
                for target in data.get("activeTargets", [])}


def plug(bridge, namespace, number):
    """Joins a namespace to the bridge; its address there."""
    address = f"10.78.0.{number}"
    namespace.ip(f"link add lan0 type veth peer name port{number} netns {bridge.name}",
                 f"address add {address}/24 dev lan0", "link set lan0 up")
    bridge.ip(f"link set port{number} master br0 up")
    return address


def fleet(case):
    """The namespaces of bridge, hosts and scanner; the hosts' addresses."""
    bridge = case.namespace("bridge")
    bridge.ip("link add br0 type bridge", "link set br0 up", "address add 10.78.0.254/24 dev br0")
    hosts = [case.namespace(f"host{number}") for number in range(1, HOSTS + 1)]
    addresses = [plug(bridge, host, number) for number, host in enumerate(hosts, 1)]
    scanner = case.namespace("scanner")
    source = plug(bridge, scanner, 66)
    return bridge, hosts, addresses, scanner, source


def scenario(case):
    harness.need("nmap", "prometheus")
    bridge, hosts, addresses, scanner, source = fleet(case)
    guards = []
    for host in hosts:
        host.listen(*PORTS)
        firewall = case.firewall(host)
        guards.append(case.guard(host, "--allow", "10.78.0.254", env=firewall.env,
                                 interval="500ms"))
    for guard in guards:
        guard.ready()
    targets = [f"{address}:3021" for address in addresses]
    with Prometheus(case, bridge, {"tcpparser": targets}) as prometheus:
        def expect(what, expression, values):
            prometheus.wait_query(expression, dict(zip(targets, map(float, values))))
            print(f"ok {what}: {expression}", flush=True)

        expect("all hosts are scraped", "up", (1, 1, 1))
        firing = prometheus.query('ALERTS{alertstate="firing"}')
        assert firing == {}, f"alerts of a quiet fleet: {firing}"
        scanner.must("nmap", "-sT", "-Pn", "-n", "-p", ",".join(map(str, PORTS)), addresses[1],
                     seconds=30)
        guards[1].wait_line(f"Blocked: +{source} ")
        expect("the scan is on the right host", "tcpparser_port_scans_total", (0, 1, 0))
        expect("so is the block", "tcpparser_blocked_sources", (0, 1, 0))
        assert not scanner.connects(addresses[1], PORTS[0]), "the scanner gets through"
        assert scanner.connects(addresses[0], PORTS[0]), "another host blocks the scanner"
        scan = 'ALERTS{alertname="TcpparserPortScan",alertstate="firing"}'
        prometheus.wait_query(scan, {targets[1]: 1.0})
        print(f"ok the alert fires for that host: {scan}", flush=True)
        guards[2].kill()
        expect("a host that is gone is seen", "up", (1, 1, 0))
        down = 'ALERTS{alertname="TcpparserDown",alertstate="pending"}'
        prometheus.wait_query(down, {targets[2]: 1.0})
        print(f"ok and its alert waits its two minutes: {down}", flush=True)


def main(binary):
    case = harness.Case(binary)
    try:
        scenario(case)
    except AssertionError as reason:
        raise AssertionError("\n".join([str(reason), *case.report()])) from None
    finally:
        case.close()


if __name__ == "__main__":
    harness.run_alone(main, DEADLINE)
