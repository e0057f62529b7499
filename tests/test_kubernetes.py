"""dist/tcpparser.daemonset.yaml, without a cluster: under Kubernetes' own schemas,
and what it asks for done by hand."""

import json
import os
import shutil

from harness import link, need, run
from test_metrics import curl
from test_readme import ROOT

MANIFEST = os.path.join(ROOT, "dist", "tcpparser.daemonset.yaml")
PORTS = (22, 25, 80, 443)
# Versions that are years old, and the newest that is known.
CHECK = """
import json, sys, kubernetes_validate, yaml
parts = list(yaml.safe_load_all(sys.stdin))
for version in ("1.25", kubernetes_validate.latest_version()):
    for part in parts:
        kubernetes_validate.validate(part, version, strict=True)
print(json.dumps(parts))
"""


def checked(text):
    """The manifest in JSON by Python's kubernetes-validate, which brings the schemas
    along; it stands behind the first line of its command."""
    need("kubernetes-validate")
    with open(shutil.which("kubernetes-validate")) as script:
        python = script.readline()[2:].split()
    return run(*python, "-c", CHECK, input=text)


def text_of_manifest():
    with open(MANIFEST, encoding="utf-8") as file:
        return file.read()


def manifest():
    done = checked(text_of_manifest())
    assert done.returncode == 0, f"refused: {done.stderr[-400:]}"
    parts = {part["kind"]: part for part in json.loads(done.stdout)}
    assert set(parts) == {"Namespace", "DaemonSet", "Service"}, "kinds"
    return parts


def test_schemas_accept_it_and_find_mistakes(t):
    manifest()
    for good, bad in (("hostNetwork: true", "hostNetwrk: true"),
                      ("periodSeconds: 30", "periodSeconds: often"),
                      ("containerPort: 3021", "port: 3021"),
                      ("apiVersion: apps/v1", "apiVersion: apps/v0")):
        text = text_of_manifest()
        assert good in text, f"{good} is not there"
        assert checked(text.replace(good, bad)).returncode != 0, f"{bad} is accepted"


def test_parts_fit_together(t):
    """What no schema knows."""
    parts = manifest()
    spec = parts["DaemonSet"]["spec"]
    pod, service = spec["template"]["spec"], parts["Service"]["spec"]
    (container,) = pod["containers"]
    labels = spec["template"]["metadata"]["labels"]
    assert labels == spec["selector"]["matchLabels"] == service["selector"], "labels"
    names = {parts[kind]["metadata"]["namespace"] for kind in ("DaemonSet", "Service")}
    assert names == {parts["Namespace"]["metadata"]["name"]}, "namespaces"
    assert pod["hostNetwork"] and not pod.get("hostPID"), "of the node its network alone"
    (port,) = container["ports"]
    assert (port["name"], port["containerPort"]) == ("metrics", 3021), "port"
    for probe, path in (("livenessProbe", "/metrics"), ("readinessProbe", "/healthz")):
        assert container[probe]["httpGet"] == {"path": path, "port": "metrics"}, probe
    limits = container["securityContext"]
    assert limits["readOnlyRootFilesystem"] and limits["capabilities"]["drop"] == ["ALL"], "rights"


def injected(service):
    """What each pod of its namespace is given for a service with an address
    (https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables)."""
    name = service["metadata"]["name"].upper().replace("-", "_")
    made = {f"{name}_SERVICE_HOST": "10.96.3.7"}
    for port in service["spec"]["ports"]:
        number, protocol = str(port["port"]), port["protocol"]
        url = f"{protocol.lower()}://10.96.3.7:{number}"
        made.setdefault(f"{name}_SERVICE_PORT", number)
        made.setdefault(f"{name}_PORT", url)
        made[f"{name}_SERVICE_PORT_{port['name'].upper().replace('-', '_')}"] = number
        prefix = f"{name}_PORT_{number}_{protocol}"
        made.update({prefix: url, f"{prefix}_PROTO": protocol.lower(),
                     f"{prefix}_PORT": number, f"{prefix}_ADDR": "10.96.3.7"})
    return made


def test_it_guards_a_node(t):
    """With the settings, rights and variables of its container."""
    need("setpriv")
    parts = manifest()
    (container,) = parts["DaemonSet"]["spec"]["template"]["spec"]["containers"]
    settings = {entry["name"]: entry["value"] for entry in container["env"]}
    rights = ",".join(f"+{name.lower()}" for name in
                      container["securityContext"]["capabilities"]["add"])
    before = ("setpriv", "--no-new-privs", f"--bounding-set=-all,{rights}", f"--inh-caps=-all,{rights}")
    node, far = t.namespace("node"), t.namespace("far")
    link(node, "wan", far, "wan", ("198.51.100.1/24", "198.51.100.2/24"),
         ("10.90.0.1/24", "10.90.0.2/24"))
    node.listen(*PORTS)
    env = {"PATH": t.folder("empty"), "TZ": "UTC0", "container": "oci",
           **injected(parts["Service"]), **settings}
    assert len(env) > 12, f"variables: {env}"
    guard = t.guard(node, env=env, before=before).ready()
    for probe in ("livenessProbe", "readinessProbe"):
        path = container[probe]["httpGet"]["path"]
        assert curl(guard, f"http://198.51.100.1:3021{path}")[0] == 200, probe
    for address, source, said in (("198.51.100.1", "198.51.100.2", "Blocked"),
                                  ("10.90.0.1", "10.90.0.2", "Not blocked")):
        for port in PORTS:
            far.connect(address, port, source=source).close()
        guard.wait_line(f" {said}: +{source} ")
    assert not guard.matching("New connection"), "what is shown"
    lacking = [line for line in guard.error_output() if "needs CAP_" in line or "no packet" in line]
    assert lacking == [], "rights that are missing"
