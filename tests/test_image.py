"""The container image, built and run: Dockerfile.scratch and dist/image.sh.

The host is a namespace of the test's own, which the container shares as
`--net=host`. Images live in a storage of the test's own as well.
"""

import errno
import io
import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tarfile
import tempfile
import time

import pytest

from harness import AT_END, FOLDER, HOME, Family, Guard, must, need, run, wait_for
from test_dist import image
from test_readme import Terminal, blocks_to_type, typed
from traffic import Nmap, touch

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
ARCHIVE = "target/image/tcpparser.tar"
# What configuration, manifest and tar headers may add to the program.
BYTES_MORE = 16 * 1024
# One worker has all of them: the image is built and loaded once.
pytestmark = pytest.mark.xdist_group("image")
PORTS = (22, 25, 80, 443)
NAMES = itertools.count(1)
# No systemd and no more files than this machine may give.
PODMAN = ("podman", "--runtime", "runc", "--cgroup-manager", "cgroupfs", "--events-backend",
          "none", "--log-level", "fatal")
LIMITS = ("--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1000:1000",
          "--cgroup-parent", f"/tcpp-{os.getpid()}-containers")
# As docker has a read-only root: without the folders in memory that podman adds.
RUN = ("run", "--rm", *LIMITS, "--net=host", "--read-only", "--read-only-tmpfs=false",
       "--cap-drop=ALL", "--cap-add=NET_ADMIN")
# What the product says where neither iptables nor nf_tables is to be had.
WAY_OUT = "-v /:/host:ro --cap-add=NET_RAW --cap-add=SYS_CHROOT -e TCPPARSER_EXEC_ROOT=/host"


# A read that meets the end of its input has lost the process that wrote it.
APART = """mount -t tmpfs tmpfs /run && mount -t tmpfs tmpfs /dev/shm && echo apart && read -r _"""
ENTER = """#!/bin/sh
exec nsenter --mount=/proc/{}/ns/mnt sh -c 'cd "$0" && exec "$@"' "$PWD" {} "$@"
"""


class Engines:
    """podman and buildah in a mount namespace where /run and /dev/shm are their
    own: what they leave there and what they mount is gone with this process."""

    folder = None

    @classmethod
    def path(cls):
        """A PATH folder that holds them."""
        if cls.folder is None:
            cls.folder = cls.apart()
        return cls.folder

    @staticmethod
    def apart():
        if os.geteuid() != 0:
            pytest.skip("containers of the test need root")
        need("unshare", "nsenter")
        holder = subprocess.Popen(["unshare", "--mount", "sh", "-c", APART],
                                  stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        if holder.stdout.readline() != b"apart\n":
            pytest.skip("no mount namespace for containers here")
        AT_END.append(holder.kill)
        folder = tempfile.mkdtemp(prefix=f"{FOLDER}{os.getpid()}-")
        for name in filter(shutil.which, ("podman", "buildah")):
            path = os.path.join(folder, name)
            with open(path, "w") as file:
                file.write(ENTER.format(holder.pid, shutil.which(name)))
            os.chmod(path, 0o755)
        return folder


def storage(folder):
    """The environment of a podman or buildah whose images live in `folder`."""
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, "storage.conf")
    with open(path, "w") as file:
        file.write(f'[storage]\ndriver = "vfs"\ngraphroot = "{folder}/graph"\n'
                   f'runroot = "{folder}/run"\n')
    return {**HOME, "CONTAINERS_STORAGE_CONF": path, "PATH": f"{Engines.path()}:{HOME['PATH']}"}


def checkout(t, name, binary):
    """What building the image takes, in a folder of its own."""
    folder = t.folder(name)
    os.makedirs(os.path.join(folder, "dist"))
    os.makedirs(os.path.join(folder, "target"))
    for file in ("Dockerfile.scratch", ".dockerignore", "dist/image.sh"):
        shutil.copy(os.path.join(ROOT, file), os.path.join(folder, file))
    shutil.copy(binary, os.path.join(folder, "target/tcpparser"))
    return folder


def make_image(t, name, engine, **environment):
    """Builds the image in a folder of its own; the path of its archive."""
    need("buildah", "podman", "runc")
    folder = checkout(t, name, t.binary)
    env = {**storage(t.folder(f"{name}-storage")), "ENGINE": engine,
           "SOURCE_DATE_EPOCH": "1700000000", **environment}
    must("sh", os.path.join(folder, "dist/image.sh"), env=env, seconds=60)
    return os.path.join(folder, ARCHIVE)


class Loaded:
    """The image, built once, saved, and loaded into another storage."""

    env = None
    why_not = None  # no container runs here, whatever its image

    @classmethod
    def podman(cls, t):
        """The environment for a podman that has it."""
        if cls.why_not:
            pytest.skip(cls.why_not)
        if cls.env is None:
            folder = tempfile.mkdtemp(prefix=f"{FOLDER}{os.getpid()}-")
            env = storage(folder)
            archive = make_image(t, "loaded", "buildah")
            said = must(*PODMAN, "load", "-i", archive, env=env)
            assert re.search(r"tcpparser:latest$", said.strip()), f"loaded: {said!r}"
            cls.probe(t, env)
            cls.env = env
        return cls.env

    @classmethod
    def probe(cls, t, env):
        """Runs the program as a container without the image. 125 to 127 are
        podman's own: podman-run(1), EXIT STATUS."""
        root = t.folder("probe")
        shutil.copy(t.binary, root)
        done = run(*PODMAN, *RUN, "--rootfs", root, f"/{os.path.basename(t.binary)}", "--version",
                   env=env)
        if done.returncode in (125, 126, 127):
            cls.why_not = f"no containers here: {done.stderr.strip().rpartition(chr(10))[2]}"
            pytest.skip(cls.why_not)


class Container(Guard):
    """A container that runs the image in a namespace."""

    def __init__(self, t, namespace, *arguments, options=()):
        self.podman_env = Loaded.podman(t)
        self.name = f"tcpp-{os.getpid()}-{next(NAMES)}"
        command = [*PODMAN, *RUN, *options, "--name", self.name, "tcpparser", *arguments]
        super().__init__(namespace, command, self.podman_env)
        t.guards.append(self)

    def podman(self, *arguments):
        """Inside: `exec` into a container of its host's network stays where
        podman itself is."""
        return self.namespace.run(*PODMAN, *arguments, env=self.podman_env)

    def inspected(self, what):
        done = self.podman("inspect", "--format", "{{" + what + "}}", self.name)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def exec(self, *arguments):
        return self.podman("exec", self.name, "tcpparser", *arguments)


def once(t, namespace, *arguments, options=()):
    """Runs a container to its end."""
    return namespace.run(*PODMAN, *RUN, *options, "tcpparser", *arguments,
                         env=Loaded.podman(t))


class Scene:
    """A host with four services that a container guards, and a peer. Of the
    host's firewalls `flavour` of iptables is at hand, or none: the container has
    nothing but the kernel's nf_tables."""

    def __init__(self, t, family="v4", flavour=None):
        self.t, self.family, self.lan = t, Family(family), t.lan()
        self.host, self.peer = self.lan.host, self.lan.peer
        self.firewall = t.backend(self.host, f"iptables-{flavour}" if flavour else "nft")
        self.host.listen(*PORTS, address=self.family.wildcard)

    def start(self, *arguments, options=()):
        self.guard = Container(self.t, self.host, "--interval", "200ms", *arguments,
                               options=options).ready()
        return self

    def reaches(self, source=None, seconds=1):
        return self.peer.connects(self.family.host, 22, source, seconds)

    def scan(self):
        """nmap's connect scan, over when its packets were."""
        flags = ("-6",) if self.family.is_v6 else ()
        said = Nmap(self.peer, *flags, "-sT", "-Pn", "-p", ",".join(map(str, PORTS)),
                    self.family.host).wait()
        assert "scanned" in said, said

    def wait_blocked(self):
        self.guard.wait_line("Blocked: ")
        wait_for(lambda: self.firewall.blocks(
            self.host, f"{self.family.peer}/{self.family.single}", self.family.tool),
            "a DROP in the kernel")

    def stop(self):
        """SIGTERM to PID 1 of the container."""
        process = int(self.guard.inspected(".State.Pid"))
        os.kill(process, signal.SIGTERM)
        # Less than the ten seconds after which an engine kills it.
        wait_for(lambda: not os.path.exists(f"/proc/{process}/exe"), "its end", 5)
        assert self.guard.wait_exit() == 0, "exit status"


def is_blocked_until_lifted(scene):
    """The whole scenario: a scan is blocked, shown, and undone."""
    guard = scene.guard
    lacks = ("no packet sockets (CAP_NET_RAW)", "that needs CAP_NET_BROADCAST")
    errors = [line for _, line in guard.errors if not any(words in line for words in lacks)]
    assert errors == [], "errors"
    assert scene.reaches(seconds=5), "the services answer"
    scene.scan()
    scene.wait_blocked()
    assert not scene.reaches(), "new connections fail"
    assert scene.reaches(scene.family.friend, 5), "another source goes on"
    assert guard.metric("tcpparser_blocks_total") == 1, "blocks_total"
    assert guard.metric("tcpparser_firewall_up") == 1, "firewall_up"
    assert guard.podman("healthcheck", "run", guard.name).returncode == 0, "healthcheck"
    undo = re.search(r"undo: docker exec NAME tcpparser (.*)$", guard.wait_line("Blocked: "))
    listed = guard.exec("--list", *undo[1].split()[2:])
    assert scene.family.peer in listed.stdout, f"--list: {listed}"
    assert guard.exec(*undo[1].split()).returncode == 0, f"exit status of {undo[0]}"
    assert scene.reaches(seconds=5), "the source is back"


@pytest.mark.parametrize("family", ["v4", "v6"])
def test_it_blocks_with_one_capability_and_nothing_else(t, family):
    """No tool, no shell, no file to write to, no right but NET_ADMIN."""
    scene = Scene(t, family).start()
    is_blocked_until_lifted(scene)
    scene.stop()
    assert scene.firewall.is_untouched(scene.host), "a table without blocks"


def default():
    """The flavour of the iptables in PATH."""
    need("iptables")
    return "nft" if "nf_tables" in must("iptables", "-V") else "legacy"


def host_tools(t, flavour):
    """What lets a container use the tools of this machine. The legacy flavour's
    lock is one that exists: it is taken where nothing can be written to."""
    options = WAY_OUT.split()
    if flavour == "legacy":
        lock = os.path.join(t.tmp, "xtables.lock")
        with open(lock, "w"):
            options += ["-e", f"XTABLES_LOCKFILE={lock}"]
    if flavour != default():
        options += ["-e", f"PATH={t.folder('path-' + flavour)}:/bin"]
    return options


@pytest.mark.parametrize("flavour, family", [("nft", "v4"), ("nft", "v6"), ("legacy", "v4")])
def test_the_iptables_of_its_host_blocks(t, flavour, family):
    scene = Scene(t, family, flavour)
    scene.start("--firewall", "iptables", options=host_tools(t, flavour))
    is_blocked_until_lifted(scene)
    scene.stop()


# socket(AF_NETLINK, ..., NETLINK_NETFILTER) as on a kernel that was built without.
WITHOUT_NFNETLINK = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{
    "names": ["socket"], "action": "SCMP_ACT_ERRNO", "errnoRet": errno.EPROTONOSUPPORT,
    "args": [{"index": 0, "value": socket.AF_NETLINK, "op": "SCMP_CMP_EQ"},
             {"index": 2, "value": 12, "op": "SCMP_CMP_EQ"}]}]}


@pytest.mark.parametrize("profile", ["default", "unconfined"])
def test_the_sandbox_is_entered_in_a_container(t, profile):
    """All of it, whatever seccomp profile the engine has put around."""
    options = ("--cap-add=NET_RAW", "--cap-add=NET_BROADCAST")
    if profile == "unconfined":
        options += ("--security-opt", "seccomp=unconfined")
    scene = Scene(t).start(options=options)
    scene.scan()
    scene.wait_blocked()
    samples = scene.guard.scrape()
    assert samples['tcpparser_sandbox_info{tier="sealed"}'] == 1, "the tier"
    layers = {name: value for name, value in samples.items()
              if name.startswith("tcpparser_sandbox{")}
    assert len(layers) == 4 and set(layers.values()) == {1}, f"layers: {layers}"
    assert scene.guard.error_output() == [], "stderr"
    scene.stop()


def test_where_nothing_blocks_the_way_out_is_said_and_is_one(t):
    """The options that the line names are those that are typed next."""
    scene = Scene(t, flavour="legacy")
    profile = os.path.join(t.tmp, "seccomp.json")
    with open(profile, "w") as file:
        json.dump(WITHOUT_NFNETLINK, file)
    seccomp = ("--security-opt", f"seccomp={profile}")
    scene.start(options=seccomp)
    said = wait_for(lambda: [line for line in scene.guard.error_output() if WAY_OUT in line],
                    "the way out")
    assert len(said) == 1, f"it is said once, {scene.guard.error_output()}"
    scene.scan()
    scene.guard.wait_line("Block failed: ")
    assert scene.guard.metric("tcpparser_firewall_up") == 0, "firewall_up"
    scene.stop()
    scene.start(options=(*seccomp, *host_tools(t, "legacy")))
    is_blocked_until_lifted(scene)
    scene.stop()


def test_the_last_line_is_typed_outside(t):
    """Where the container is no more: it is started again first."""
    scene = Scene(t).start()
    scene.scan()
    scene.wait_blocked()
    scene.stop()
    end = "1 block stands; to lift all: docker start NAME; docker exec NAME tcpparser --unblock all"
    assert scene.guard.output()[-1] == end, "last line"


@pytest.mark.parametrize("net, is_own", [("--net=host", False), ("--net=none", True)])
def test_a_network_of_its_own_is_said(t, net, is_own):
    """Once; and nothing of it where the container has that of its host."""
    scene = Scene(t)
    command = [net if word == "--net=host" else word for word in RUN]
    done = scene.host.run(*PODMAN, *command, "tcpparser", "--once", env=Loaded.podman(t))
    said = ("tcpparser: nothing else listens in this container's own network: "
            "to watch that of the host start it with --net=host")
    assert ((done.returncode, done.stdout.splitlines()[:2], done.stderr.splitlines())
            == (0, ["tcpparser starting...", ""], [said] if is_own else [])), f"{done}"


def test_another_container_lists_and_unblocks(t):
    scene = Scene(t).start()
    scene.scan()
    scene.wait_blocked()
    scene.stop()
    assert not scene.reaches(), "the block stays"
    done = once(t, scene.host, "--list")
    assert done.returncode == 0, f"--list: {done}"
    assert re.search(r"^10\.77\.0\.2 .* nft +[\d,]+$", done.stdout, re.M), f"--list: {done}"
    assert once(t, scene.host, "--healthcheck").returncode == 1, "no daemon is well"
    done = once(t, scene.host, "--unblock", "all")
    assert done.returncode == 0, f"--unblock: {done}"
    assert scene.reaches(seconds=5), "the source is back"
    assert scene.firewall.is_untouched(scene.host), "a table without blocks"


def docker(t):
    """A folder where `docker` is podman, with what this machine asks of it."""
    folder = t.folder("path-docker")
    path = os.path.join(folder, "docker")
    with open(path, "w") as file:
        file.write("#!/bin/sh\nverb=$1\nshift\n"
                   f'[ "$verb" != run ] || set -- {" ".join(LIMITS)} "$@"\n'
                   f'exec {" ".join(PODMAN)} "$verb" "$@"\n')
    os.chmod(path, 0o755)
    return folder


def test_commands_of_README(t):
    """Typed as they stand, into the host of a namespace whose docker is podman."""
    load = next(lines for lines in blocks_to_type(t, "Run it in 30 seconds")
                if lines[0] == "make image")
    build, keep, lift, door = blocks_to_type(t, "Keep it running in a container")
    Loaded.podman(t)
    archive = make_image(t, "checkout", "buildah")
    folder = archive.removesuffix(ARCHIVE)
    lan = t.lan()
    firewalls = [t.backend(lan.host, name) for name in ("nft", f"iptables-{default()}")]
    lan.host.listen(*PORTS)
    env = storage(t.folder("storage"))
    env["PATH"] = f"{docker(t)}:{env['PATH']}"

    def type_line(line):
        return typed(t, lan.host.run, line, folder=folder, env=env, seconds=60)

    def scan(firewall):
        wait_for(lambda: lan.host.run("curl", "-s", "127.0.0.1:3021/healthz").returncode == 0,
                 "an answer")
        touch(lan.peer, lan.host_v4, *PORTS)
        wait_for(lambda: firewall.blocks(lan.host, f"{lan.peer_v4}/32"), "a block")
        assert not lan.peer.connects(lan.host_v4, 22), "new connections fail"

    try:
        for line in build:
            type_line(line)
        _, load_it, run_it = load
        type_line(load_it)
        guard = Terminal(t, lan.host, run_it, env, folder).ready()
        assert guard.control_c() == 0, "exit status"

        start, logs, list_, *others = keep
        type_line(start)
        scan(firewalls[0])
        assert "Blocked: " in type_line(logs), logs
        assert lan.peer_v4 in type_line(list_), list_
        for line in others:
            type_line(line)
        assert not lan.peer.connects(lan.host_v4, 22), "the block outlasts the container"
        type_line(lift[0])
        assert lan.peer.connects(lan.host_v4, 22, seconds=5), "the source is back"

        type_line(door[0])
        scan(firewalls[1])
    finally:
        run(*PODMAN, "rm", "-fa", "-t", "0", env=env)


def test_local_time_is_that_of_TZ(t):
    lan = t.lan()
    lan.host.listen(22)
    client = lan.peer.connect(lan.host_v4, 22)
    seconds = {}
    for zone in ("", "XXX-5"):
        options = ("-e", f"TZ={zone}") if zone else ()
        done = once(t, lan.host, "--once", options=options)
        stamp = re.search(r"^(\S+ \S+):     New connection", done.stdout, re.M)
        assert stamp, f"--once: {done}"
        seconds[zone] = time.mktime(time.strptime(stamp[1], "%Y-%m-%d %H:%M:%S"))
    ahead = seconds["XXX-5"] - seconds[""]
    assert 5 * 3600 <= ahead < 5 * 3600 + 15, f"{ahead} s ahead of UTC"
    client.close()


# ------------------------------------------------------------------ the build


def contents(archive):
    """Configuration and files of an image in a docker-archive."""
    with tarfile.open(archive) as outer:
        (manifest,) = json.load(outer.extractfile("manifest.json"))
        config = json.load(outer.extractfile(manifest["Config"]))
        files = {}
        for layer in manifest["Layers"]:
            with tarfile.open(fileobj=outer.extractfile(layer)) as inner:
                files.update({member.name: member for member in inner})
    return manifest, config, files


def test_image_is_the_one_file(t):
    archive = make_image(t, "image", "buildah")
    manifest, config, files = contents(archive)
    more = os.path.getsize(archive) - os.path.getsize(t.binary)
    assert 0 < more <= BYTES_MORE, f"{ARCHIVE} has {more} bytes more than the program"
    assert manifest["RepoTags"] == ["tcpparser:latest"], "name"
    assert len(config["rootfs"]["diff_ids"]) == 1, "layers"
    assert ([(name, file.uid, file.gid, oct(file.mode & 0o7777)) for name, file in files.items()]
            == [("bin", 0, 0, "0o755"), ("bin/tcpparser", 0, 0, "0o755")]), "files"
    config = config["config"]
    assert config["Entrypoint"] == ["/bin/tcpparser"], "Entrypoint"
    assert not config.get("Cmd"), "no Cmd: arguments follow the image's name"
    assert config["Healthcheck"]["Test"] == ["CMD", "/bin/tcpparser", "--healthcheck"], (
        "Healthcheck")
    assert [entry.partition("=")[0] for entry in config["Env"]] == ["PATH", "container"], "Env"
    _, version, _, revision = run(t.binary, "--version").stdout.split()
    label = "org.opencontainers.image."
    labels = {name.removeprefix(label): value for name, value in config["Labels"].items()
              if name.startswith(label)}
    assert ((labels["title"], labels["version"], labels["revision"], labels["licenses"])
            == ("tcpparser", version, revision, "MIT")), "labels"
    assert labels["description"], "a description"


def test_same_files_same_image(t):
    """From two folders, by two tools, under two umasks."""
    before = os.umask(0o077)
    try:
        one = make_image(t, "one", "podman")
    finally:
        os.umask(before)
    other = make_image(t, "an other", "buildah")
    with open(one, "rb") as first, open(other, "rb") as second:
        assert first.read() == second.read(), "the archives differ"


def test_released_image_runs_here(t):
    """Of all processors an engine takes its own."""
    archive = image(t)
    Loaded.podman(t)
    env = storage(t.folder("released"))
    pulled = must(*PODMAN, "pull", "-q", f"oci-archive:{archive}", env=env).strip()
    done = run(*PODMAN, *RUN, pulled, "--version", env=env)
    assert f" {os.uname().machine}-unknown-linux-musl " in done.stdout, f"what runs: {done}"


def test_missing_files_name_make_image(t):
    need("buildah")
    folder = t.folder("empty")
    for name in ("Dockerfile.scratch", ".dockerignore"):
        shutil.copy(os.path.join(ROOT, name), folder)
    done = run("buildah", "build", "-f", "Dockerfile.scratch", "-t", "tcpparser", folder,
               env=storage(t.folder("storage")))
    assert done.returncode != 0 and re.search("make.image", done.stderr), f"buildah: {done}"


def fake_engines(t, **scripts):
    """A PATH where these commands are shell scripts, beside what a build takes."""
    folder = t.folder("path-fake")
    shutil.rmtree(folder)
    os.mkdir(folder)
    for name in ("sh", "cp", "dirname", "rm", "install", "find", "touch", "chmod", "cut", "wc",
                 "cat", "tar", "sed", "sha256sum", "mkdir", "mv"):
        found = shutil.which(name)
        if found:
            os.symlink(found, os.path.join(folder, name))
    for name, script in scripts.items():
        path = os.path.join(folder, name)
        with open(path, "w") as file:
            file.write("#!/bin/sh\n" + script)
        os.chmod(path, 0o755)
    return {"PATH": folder, "SOURCE_DATE_EPOCH": "1700000000"}


def random_archive(path):
    """What podman and buildah save: two names differ each time."""
    name = os.urandom(6).hex()
    files = {"layer.tar": "layer", "config.json": json.dumps(
        {"container": name, "config": {"Hostname": name}}, separators=(",", ":")),
        "manifest.json": json.dumps([{"Config": "config.json", "RepoTags": None,
                                      "Layers": ["layer.tar"]}], separators=(",", ":"))}
    with tarfile.open(path, "w") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))


def test_docker_without_its_engine_is_passed_over(t):
    folder = checkout(t, "checkout", t.binary)
    script = os.path.join(folder, "dist/image.sh")
    log, saved = os.path.join(t.tmp, "log"), os.path.join(t.tmp, "saved.tar")
    refuses = "exit 1\n"
    done = run("sh", script, env=fake_engines(t, docker=refuses))
    assert done.returncode == 1, "exit status with an engine that does not run"
    assert "install podman" in done.stderr, f"it says {done.stderr!r}"
    works = f'echo "${{0##*/}} $1" >>{log}\n[ $1 != push ] || cp {saved} {ARCHIVE}\n'
    env = fake_engines(t, docker=refuses, podman=refuses, buildah=works)
    ids = set()
    for _ in range(2):
        random_archive(saved)
        done = run("sh", script, env=env)
        assert done.returncode == 0, f"exit status: {done.stderr}"
        with tarfile.open(os.path.join(folder, ARCHIVE)) as archive:
            ids.add(json.load(archive.extractfile("manifest.json"))[0]["Config"])
    assert len(ids) == 1, "ids"
    with open(log) as file:
        assert file.read().split()[1:10:2] == ["info", "build", "push", "rmi", "pull"], "verbs"


def test_docker_builds_from_the_same_files(t):
    folder = checkout(t, "checkout", t.binary)
    log = os.path.join(t.tmp, "log")
    docker = f'echo "$*" >>{log}\n[ $1 != save ] || echo archive >"$3"\n'
    done = run("sh", os.path.join(folder, "dist/image.sh"), env=fake_engines(t, docker=docker))
    assert done.returncode == 0, f"exit status: {done.stderr}"
    with open(log) as file:
        info, version, build, save = file.read().splitlines()
    assert (info, version, save) == ("info", "--version", f"save -o {ARCHIVE} tcpparser:latest"), (
        "commands")
    assert re.search(r"^build .*-f Dockerfile\.scratch .*-t tcpparser:latest .* \.$", build), build


def test_podman_by_the_name_of_docker_builds_as_podman(t):
    """Or the image would have no HEALTHCHECK, and two random names."""
    folder = checkout(t, "checkout", t.binary)
    log, saved = os.path.join(t.tmp, "log"), os.path.join(t.tmp, "saved.tar")
    random_archive(saved)
    podman = f'echo "${{0##*/}} $*" >>{log}\n[ $1 != push ] || cp {saved} {ARCHIVE}\n'
    docker = podman + '[ "$1" != --version ] || echo podman version 4.3.1\n'
    done = run("sh", os.path.join(folder, "dist/image.sh"),
               env=fake_engines(t, docker=docker, podman=podman))
    assert done.returncode == 0, f"exit status: {done.stderr}"
    with open(log) as file:
        builds = [line for line in file.read().splitlines() if " build " in line]
    assert len(builds) == 1 and builds[0].startswith("podman ") and "--format docker" in builds[0], (
        f"builds: {builds}")
