"""What containers and init systems ask of it: the tools of another root
directory, a health check, and word about its start, its life and its end."""

import glob
import os
import re
import shutil

from harness import (FLAVOURS, IPTABLES_NAMES, cases, check, equal, must, need, wait_for)

PORTS = (22, 25, 80, 443)
EXTENSIONS = ("standard", "comment", "addrtype")


# ------------------------------------------------------------- --exec-root


def copy(file, root):
    """Puts a file where it stands, below another root directory."""
    place = root + file
    os.makedirs(os.path.dirname(place), exist_ok=True)
    shutil.copy(file, place)


def small_root(t, firewall, folder="/usr/sbin"):
    """A root directory with one flavour's tools and nothing else."""
    need("ldd")
    root = t.folder("root")
    os.makedirs(root + folder)
    os.makedirs(root + "/run")
    tool = os.path.realpath(os.path.join(firewall.folder, "iptables"))
    files = [file for name in EXTENSIONS for folder in ("/usr/lib*", "/usr/lib/*")
             for file in glob.glob(f"{folder}/xtables/libxt_{name}.so")]
    copy(tool, root)
    for name in IPTABLES_NAMES:
        os.symlink(tool, os.path.join(root + folder, name))
    for file in (tool, *files):
        for library in re.findall(r"(/\S+) \(0x", must("ldd", file)):
            copy(library, root)
    for file in files:
        copy(file, root)
    return root


class Scene:
    """A host whose only iptables stands in another root directory."""

    def __init__(self, t, flavour="nft", folder="/usr/sbin", path="/nowhere"):
        self.t, self.lan = t, t.lan()
        self.lan.host.listen(*PORTS)
        self.firewall = t.firewall(self.lan.host, flavour)
        self.root = small_root(t, self.firewall, folder)
        self.env = {"PATH": path, "TZ": "UTC0", "XTABLES_LOCKFILE": "/run/lock-of-the-root"}

    def scan(self):
        return [self.lan.peer.connect(self.lan.host_v4, port) for port in PORTS]

    def command(self, *arguments, **env):
        return self.lan.host.run(self.t.binary, *arguments, env={**self.env, **env})


@cases(*FLAVOURS)
def test_tools_of_another_root(t, flavour):
    """From the first look to the last unblock, whatever our own PATH says."""
    scene = Scene(t, flavour)
    guard = t.guard(scene.lan.host, "--exec-root", scene.root, env=scene.env).ready()
    scene.scan()
    undo = guard.wait_line(" Blocked: +10.77.0.2 ").partition("undo: tcpparser ")[2].split()
    equal(undo, ["--unblock", "10.77.0.2", "--exec-root", scene.root], "the undo command")
    check(scene.firewall.blocks(scene.lan.host, "10.77.0.2/32"), "it stands in the kernel")
    equal(guard.error_output(), [], "stderr")
    for command in ("/proc/self", f"/proc/{guard.pid}"):
        equal(os.readlink(f"{command}/root"), "/", "only the commands' root is another one")
    if flavour == "legacy":
        check(os.path.exists(f"{scene.root}/run/lock-of-the-root"), "XTABLES_LOCKFILE is in it")
    listed = scene.command("--list", TCPPARSER_EXEC_ROOT=scene.root)
    check("10.77.0.2" in listed.stdout, f"--list: {listed.stdout!r} {listed.stderr!r}")
    equal(scene.command("--list").returncode, 1, "--list without it")
    undone = scene.command(*undo)
    equal((undone.returncode, undone.stdout), (0, "1 block removed\n"), undone.stderr)
    check(not scene.firewall.entries(scene.lan.host), "no entry is left")


def test_our_path_comes_first_in_another_root(t):
    """A host that keeps its tools elsewhere, named by PATH."""
    scene = Scene(t, folder="/tools/bin", path="relative:/tools/bin")
    guard = t.guard(scene.lan.host, env={**scene.env, "TCPPARSER_EXEC_ROOT": scene.root}).ready()
    scene.scan()
    guard.wait_line(" Blocked: ")
    equal(guard.error_output(), [], "stderr")


@cases("no capability", "no directory", "no tool", "not executable")
def test_another_root_that_is_of_no_use(t, trouble):
    """Said once for each family and tried again; the commands say it, too."""
    scene, before = Scene(t), ()
    root, words = scene.root, {
        "no capability": "CAP_SYS_CHROOT is missing for",
        "no directory": "there is no directory",
        "no tool": "it is not in",
        "not executable": "it cannot be run in",
    }[trouble]
    if trouble == "no capability":
        need("setpriv")
        before = ("setpriv", "--bounding-set=-sys_chroot", "--inh-caps=-sys_chroot")
    elif trouble == "no directory":
        os.rename(root, root + "-away")
    elif trouble == "no tool":
        os.rename(root + "/usr/sbin", root + "/usr/away")
    else:
        os.chmod(os.path.realpath(scene.firewall.folder + "/iptables").replace("/", root + "/", 1),
                 0o644)
    words += f" --exec-root {root}"
    guard = t.guard(scene.lan.host, "--exec-root", root, env=scene.env, before=before).ready()
    scene.scan()
    guard.wait_line(" Block failed: ")
    said = wait_for(lambda: len(guard.error_output()) >= 2 and guard.error_output(), "stderr")
    equal(sorted(said), sorted(f"tcpparser: {tool} could not be started: {words}; "
                               "it is tried again" for tool in ("iptables", "ip6tables")), "stderr")
    if before:
        return
    for command in ("--list", "--unblock=all"):
        ended = scene.command(command, "--exec-root", root)
        equal((ended.returncode, ended.stdout), (1, ""), f"{command}: {ended.stderr}")
        check(words in ended.stderr, f"{command}: {ended.stderr!r}")
    if trouble == "no tool":
        os.rename(root + "/usr/away", root + "/usr/sbin")
        guard.wait_line(" Blocked: ")
