"""What dist/ has for Prometheus people, under their own tools."""

import contextlib
import http.server
import json
import os
import re
import sys
import threading
import urllib.request

import pytest

from fleet import ROOT, RULES, Prometheus
from harness import need, run, wait_for
from machine import PACKAGES
from test_metrics import body_of, curl, faults

DASHBOARD = os.path.join(ROOT, "dist", "grafana-dashboard.json")
OPENMETRICS = "application/openmetrics-text; version=1.0.0"


def read(path):
    with open(path) as file:
        return file.read()


def queries():
    """All queries of the dashboard."""
    dashboard = json.loads(read(DASHBOARD))
    found = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    return found + [annotation["expr"] for annotation in dashboard["annotations"]["list"]]


def names_in(text):
    return set(re.findall(r"\b(?:tcpparser|process)_[a-z0-9_]+", text))


def names_exposed(text):
    """The names of all samples of an exposition, without labels."""
    return set(re.findall(r"^([a-z][a-z0-9_]+)[ {]", text, re.M))


def test_rules_are_valid(t):
    need("promtool")
    done = run("promtool", "check", "rules", RULES)
    assert done.returncode == 0, f"promtool check rules: {done.stdout}{done.stderr}"


def test_rules_fire_when_they_should(t):
    need("promtool")
    done = run("promtool", "test", "rules", RULES.replace(".yml", ".test.yml"))
    assert done.returncode == 0, f"promtool test rules: {done.stdout}{done.stderr}"


def test_every_alert_is_tested_and_says_what_it_means(t):
    rules, tests = read(RULES), read(RULES.replace(".yml", ".test.yml"))
    alerts = re.findall(r"- alert: (\w+)", rules)
    assert len(alerts) > 5, f"alerts: {alerts}"
    for alert in alerts:
        assert f"alertname: {alert}\n" in tests, f"{alert} is never seen to fire"
        assert f"alertname: {alert}, eval" in tests, f"{alert} is never seen to be quiet"
    assert rules.count("summary:") == len(alerts), "summaries"
    assert rules.count("severity:") == len(alerts), "severities"


def test_rules_and_dashboard_ask_for_metrics_that_exist(t):
    exposed = names_exposed(body_of(t.guard(t.lan().host).ready()))
    expressions = re.findall(r"expr: ((?:.|\n)*?)\n +(?:for|labels):", read(RULES))
    assert 'job="' not in "".join(expressions), "a job's name is the administrator's"
    for source, text in (("rules", "\n".join(expressions)), ("dashboard", read(DASHBOARD))):
        asked = names_in(text)
        assert len(asked) > 5, f"{source} ask for {asked}"
        assert asked - exposed == set(), f"names that {source} ask for and no family has"


def test_dashboard_is_whole(t):
    dashboard = json.loads(read(DASHBOARD))
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels), "different ids"
    cells = []
    for panel in panels:
        assert panel["title"], f"panel {panel['id']} has no title"
        assert panel["type"] == "row" or panel["description"], f"{panel['title']}: description"
        assert panel["type"] == "row" or panel["fieldConfig"]["defaults"].get("noValue"), (
            f"{panel['title']}: what it says where there is no number")
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24, f"{panel['title']} does not fit"
        cells += [(x, y) for x in range(place["x"], place["x"] + place["w"])
                  for y in range(place["y"], place["y"] + place["h"])]
    assert len(set(cells)) == len(cells), "panels that overlap"
    for annotation in dashboard["annotations"]["list"]:
        assert annotation["datasource"]["uid"] == "${datasource}", annotation["name"]
    assert len(dashboard["annotations"]["list"]) == 2, "scans and starts"
    used = set(re.findall(r"\$\{?([a-z]+)", " ".join(queries()) + json.dumps(panels)
                          + json.dumps(dashboard["annotations"])))
    known = {variable["name"] for variable in dashboard["templating"]["list"]}
    assert used - known == set(), "variables that are not set"


def test_dashboard_queries_are_valid(t):
    """promtool reads them as rules, Grafana's variables filled in."""
    need("promtool")
    filled = [re.sub(r"\$__rate_interval", "5m", query) for query in queries()]
    filled = [re.sub(r"\$\w+", ".*", query) for query in filled]
    rules = {"groups": [{"name": "dashboard", "rules": [
        {"record": f"query:{number}", "expr": query} for number, query in enumerate(filled)]}]}
    path = os.path.join(t.tmp, "dashboard.yml")
    with open(path, "w") as file:
        json.dump(rules, file)
    done = run("promtool", "check", "rules", path)
    assert done.returncode == 0, f"promtool check rules: {done.stdout}{done.stderr}"
    assert f"{len(filled)} rules found" in done.stdout, done.stdout


def openmetrics_faults(text):
    """Ours speak the text format: undo what OpenMetrics has otherwise."""
    found = [] if text.endswith("\n# EOF\n") else ["no # EOF at the end"]
    text = text.removesuffix("# EOF\n")
    found += ["empty line"] if "\n\n" in text else []
    counters = re.findall(r"^# TYPE (\S+) counter$", text, re.M)
    infos = re.findall(r"^# TYPE (\S+) info$", text, re.M)
    found += [f"counter {name} ends in _total" for name in counters if name.endswith("_total")]
    for name, unit in re.findall(r"^# UNIT (\S+) (\S+)\n", text, re.M):
        found += [] if name.endswith(f"_{unit}") else [f"{name} is not in {unit}"]
    text = re.sub(r"^# UNIT .*\n|^\w+_created[ {].*\n", "", text, flags=re.M)
    for name, suffix in [(n, "_total") for n in counters] + [(n, "_info") for n in infos]:
        text = re.sub(f"^# (HELP|TYPE) {name} ", rf"# \1 {name}{suffix} ", text, flags=re.M)
    return found + faults(text)


def test_both_formats_have_the_same_metrics(t):
    guard = t.guard(t.lan().host).ready()
    url = "http://127.0.0.1:3021/metrics"
    text = curl(guard, url)[2]
    _, headers, open_text = curl(guard, "-H", f"Accept: {OPENMETRICS}", url)
    assert headers["content-type"] == OPENMETRICS + "; charset=utf-8", "content type"
    assert openmetrics_faults(open_text) == [], "faults"
    assert faults(text) == [], "faults of the text format"
    created = {name for name in names_exposed(open_text) if name.endswith("_created")}
    assert names_exposed(open_text) - created == names_exposed(text), "names"
    for bad in (open_text.removesuffix("# EOF\n"), open_text.replace("_bytes 1", "_bytes  1"),
                open_text.replace("# TYPE tcpparser_rows ", "# TYPE tcpparser_rows_total ")):
        assert bad == open_text or openmetrics_faults(bad), "these checks find nothing"


# Families with their types and samples, by the parser of Prometheus's own client.
PARSE = """
import json, sys
from prometheus_client.openmetrics.parser import text_string_to_metric_families
print(json.dumps([(family.name, family.type, [(sample.name, sample.labels, sample.value)
                                              for sample in family.samples])
                  for family in text_string_to_metric_families(sys.stdin.read())]))
"""


def parsed(text):
    pythons = (sys.executable, f"{PACKAGES}/python/bin/python3")
    for python in filter(os.path.exists, pythons):
        if run(python, "-c", "import prometheus_client.openmetrics.parser").returncode == 0:
            done = run(python, "-c", PARSE, input=text)
            assert done.returncode == 0, f"refused: {done.stderr[-300:]}"
            return json.loads(done.stdout)
    pytest.skip("prometheus_client is not installed")


def test_counters_say_since_when_they_count(t):
    """But for one that the kernel counts, and in OpenMetrics alone."""
    guard = t.guard(t.lan().host).ready()
    families = parsed(curl(guard, "-H", f"Accept: {OPENMETRICS}",
                           "http://127.0.0.1:3021/metrics")[2])
    values = {name: value for _, _, samples in families for name, labels, value in samples}
    counters = [family for family in families if family[1] == "counter"]
    assert len(counters) > 30, f"counters: {counters}"
    for family, _, samples in counters:
        totals = [labels for name, labels, _ in samples if name == f"{family}_total"]
        created = [(labels, value) for name, labels, value in samples
                   if name == f"{family}_created"]
        wanted = [] if family == "tcpparser_resets_sent" else totals
        assert created == [(labels, values["process_start_time_seconds"])
                           for labels in wanted], f"{family}: {samples}"
        assert totals, f"no sample of {family}"
    assert "_created" not in body_of(guard), "the text format has no such sample"


class TextOnly(http.server.BaseHTTPRequestHandler):
    """Asks for the text format whatever its client prefers: older servers
    always prefer OpenMetrics."""

    def do_GET(self):
        request = urllib.request.Request("http://127.0.0.1:3021/metrics",
                                         headers={"Accept": "text/plain;version=0.0.4"})
        with urllib.request.urlopen(request, timeout=5) as answer:
            body, content_type = answer.read(), answer.headers["Content-Type"]
        self.server.formats.add(content_type)
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def text_only(namespace, port):
    """A server inside the namespace; what formats it has passed on."""
    stop = threading.Event()
    formats = set()

    def serve():
        with namespace.entered():
            with http.server.HTTPServer(("127.0.0.1", port), TextOnly) as server:
                server.formats, server.timeout = formats, 0.2
                while not stop.is_set():
                    server.handle_request()
    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield formats
    finally:
        stop.set()
        thread.join(10)


def test_prometheus_scrapes_both_formats(t):
    need("prometheus")
    host = t.lan().host
    guard = t.guard(host).ready()
    direct, relayed = "127.0.0.1:3021", "127.0.0.1:3022"
    jobs = {"tcpparser": [direct], "text": [relayed]}
    with text_only(host, 3022) as formats, Prometheus(t, host, jobs) as prometheus:
        prometheus.wait_query("up", {direct: 1.0, relayed: 1.0})
        wait_for(lambda: len(prometheus.query("tcpparser_readings_total")) == 2, "samples")
        assert prometheus.targets() == {direct: ("up", ""), relayed: ("up", "")}, "targets"
        counts = prometheus.query("scrape_samples_scraped")
        created = prometheus.query('count by (instance) ({__name__=~".+_created"})')
        assert set(created) == {direct}, f"where counters say since when they count: {created}"
        assert counts[direct] - created[direct] == counts.get(relayed), "samples in both formats"
        assert counts[direct] > 100, f"samples: {counts}"
        types = {name: entries[0]["type"] for name, entries in prometheus.get("metadata").items()}
        assert (types.get("tcpparser_port_scans_total", types.get("tcpparser_port_scans"))
                == "counter"), "type"
    assert formats == {"text/plain; version=0.0.4; charset=utf-8"}, "formats passed on"
    assert guard.process.poll() is None, "it ended"
