"""OpenWrt, 23.05 to 25.12: the package of a feed, and a router with nothing but
BusyBox, procd's interface, and firewall4's ruleset, which the real nft loads."""

import os
import re
from shlex import quote

from harness import must, need, run, wait_for
from machine import BUSYBOX, Machine
from test_init import DIST, IDLE, UCI, dist, files_below, need_busybox, uci_as_shell
from test_readme import ROOT

PORTS = (22, 25, 80, 443)
SCRIPT = "/etc/init.d/tcpparser"

# ------------------------------------------------------------------- the feed

# What of OpenWrt's build system (include/package.mk, lang/rust of the feed
# `packages`) the package calls; each phase is a verb.
RULES_MK = """\
INCLUDE_DIR:=$(TOPDIR)/include
INSTALL_DIR:=install -d -m0755
INSTALL_BIN:=install -m0755
INSTALL_CONF:=install -m0600
CP:=cp -fpR
"""
PACKAGE_MK = """\
PKG_BUILD_DIR:=$(TOPDIR)/build_dir/$(PKG_NAME)-$(PKG_VERSION)
PKG_INSTALL_DIR:=$(PKG_BUILD_DIR)/ipkg-install
define BuildPackage
prepare:
	$(call Build/Prepare)
install:
	$(call Package/$(1)/install,$(TOPDIR)/root)
define Read
$(call Package/$(1))
endef
$$(eval $$(Read))
show:
	@echo '$$(TITLE):$$(DEPENDS):$(PKG_VERSION):$(strip $(call Package/$(1)/conffiles)):$(CARGO_RUSTFLAGS)'
endef
"""
RUST_PACKAGE_MK = """\
RUST_ARCH_DEPENDS:=@(aarch64||x86_64)
CARGO_RUSTFLAGS+=-Ctarget-feature=-crt-static
RustBinPackage=
"""


def test_feed_makes_the_package(t):
    """The same files as install.sh's, of a tree that cargo builds as it is."""
    need("make", "cargo")
    top = t.folder("openwrt")
    for path, text in (("rules.mk", RULES_MK), ("include/package.mk", PACKAGE_MK),
                       ("feeds/packages/lang/rust/rust-package.mk", RUST_PACKAGE_MK)):
        os.makedirs(os.path.dirname(f"{top}/{path}"), exist_ok=True)
        with open(f"{top}/{path}", "w") as file:
            file.write(text)
    # As scripts/feeds makes it known.
    os.makedirs(f"{top}/package/feeds/tcpparser")
    os.symlink(f"{DIST}/openwrt/tcpparser", f"{top}/package/feeds/tcpparser/tcpparser")
    make = ("make", "-s", "--no-print-directory", "-C", f"{top}/package/feeds/tcpparser/tcpparser",
            f"TOPDIR={top}")
    title, depends, version, conffiles, flags = must(*make, "show").strip().split(":")
    assert title == "Port-scan guard", "title"
    assert depends.split() == ["@(aarch64||x86_64)", "+kmod-nft-core", "+kmod-inet-diag"], "needs"
    assert version == re.search('^version = "(.*)"', open(f"{ROOT}/Cargo.toml").read(), re.M)[1]
    assert conffiles == "/etc/config/tcpparser", "settings that an upgrade keeps"
    assert flags.split()[-1] == "-Ctarget-feature=+crt-static", "how it is linked"
    must(*make, "prepare")
    tree = f"{top}/build_dir/tcpparser-{version}"
    done = run("cargo", "metadata", "--offline", "--locked", "--format-version=1", "--no-deps",
               f"--manifest-path={tree}/Cargo.toml", "-q")
    assert done.returncode == 0 and tree in done.stdout, f"cargo: {done.stderr}"
    must("diff", "-r", f"{ROOT}/src", f"{tree}/src")
    must("cmp", f"{ROOT}/build.rs", f"{tree}/build.rs")
    # What rustc reads besides: the live page.
    sources = must("grep", "-rhE", r'"(\.\./)+dist/', f"{tree}/src")
    besides = set(re.findall(r'"(?:\.\./)+(dist/[^"]+)"', sources))
    assert "dist/live.html.gz" in besides, f"what is included: {sources}"
    for path in besides:
        must("cmp", f"{ROOT}/{path}", f"{tree}/{path}")
    os.makedirs(f"{tree}/ipkg-install/bin")
    must("cp", t.binary, f"{tree}/ipkg-install/bin/tcpparser")
    must(*make, "install")
    by_hand = t.folder("by-hand")
    must("sh", f"{DIST}/install.sh", "INIT=procd", f"DESTDIR={by_hand}", f"BINARY={t.binary}")
    wanted = {path for path in files_below(by_hand) if "/share/" not in path}
    assert set(files_below(f"{top}/root")) == wanted, "files"
    for path in wanted:
        must("cmp", f"{by_hand}{path}", f"{top}/root{path}")
    modes = files_below(f"{top}/root")
    assert (modes["/usr/bin/tcpparser"], modes[SCRIPT]) == (0o755, 0o755), "modes"


# ----------------------------------------------------------------- the router

# A folder that is OpenWrt's root: BusyBox and nft, nothing else.
MAKE_ROOT = """root=/openwrt
mkdir -p $root/bin $root/sbin $root/usr/sbin $root/usr/bin $root/proc $root/dev $root/root \\
    $root/etc/init.d $root/etc/rc.d $root/etc/config $root/etc/nftables.d $root/tmp/run \\
    $root/tmp/resolv.conf.d
ln -s tmp $root/var
mount -t proc proc $root/proc
mknod $root/dev/null c 1 3
busybox=$(command -v busybox) nft=$(command -v nft)
for file in $busybox $nft $(ldd $busybox $nft 2>/dev/null | grep -o '/[^ :]*' | sort -u); do
    mkdir -p $root${{file%/*}}
    cp -L $file $root$file
done
for name in $($busybox --list); do ln -sf $busybox $root/bin/$name; done
[ -e $root/usr/sbin/nft ] || ln -s $nft $root/usr/sbin/nft
: >$root/sbin/procd
cp {dist}/install.sh {dist}/tcpparser.* {binary} $root/root
"""

# rc.common and procd's functions, with one instance, which really runs. What a
# script defines itself beats the defaults; procd's verbs beat both.
RC_COMMON = "#!/bin/sh\ninitscript=$1\naction=$2" + UCI + r"""
script=$(readlink -f "$initscript")
name=${script##*/}
number=/var/run/$name.pid
is_running() { [ -f $number ] && kill -0 "$(cat $number)" 2>/dev/null; }
end() {
    ! is_running || kill "$(cat $number)"
    while is_running; do sleep 0.05; done
    rm -f $number
}
procd_open_instance() { :; }
procd_set_param() {
    [ "$1" = command ] || return 0
    shift
    printf '%s\n' "$@" >/tmp/procd.new
}
procd_close_instance() {
    ! { is_running && cmp -s /tmp/procd.new /tmp/procd.now; } || return 0
    end
    mv /tmp/procd.new /tmp/procd.now
    set --
    while read -r word; do set -- "$@" "$word"; done </tmp/procd.now
    setsid "$@" >>/tmp/log 2>&1 </dev/null &
    echo $! >$number
}
procd_add_reload_trigger() { :; }
start() { :; }
stop() { :; }
restart() { stop; start; }
reload() { restart; }
boot() { start; }
disable() { rm -f /etc/rc.d/S??$name /etc/rc.d/K??$name; }
enable() {
    disable
    ln -s ../init.d/$name /etc/rc.d/S$START$name
    [ -z "$STOP" ] || ln -s ../init.d/$name /etc/rc.d/K$STOP$name
}
. "$initscript"
if [ -n "$USE_PROCD" ]; then
    start() { start_service && service_triggers; }
    stop() { ! type stop_service >/dev/null || stop_service; end; }
    reload() { if type reload_service >/dev/null; then reload_service; else start; fi; }
    running() { is_running; }
fi
$action
"""

FIREWALL = """#!/bin/sh /etc/rc.common
START=19
start() { fw4 start; }
restart() { fw4 restart; }
reload() { fw4 reload; }
stop() { fw4 flush; }
"""

# firewall4's program: a reload replaces what its own table holds, `flush` takes the
# tables of all, and /etc/init.d/firewall stop is that.
FW4 = """#!/bin/sh
case $1 in
    start | reload) nft -f /usr/share/ruleset.nft ;;
    stop) nft delete table inet fw4 ;;
    restart) nft delete table inet fw4; nft -f /usr/share/ruleset.nft ;;
    flush) nft list tables | while read -r _ family table; do nft delete table $family $table; done ;;
esac
"""

# As fw4 renders it: one table, zones as chains, user's files included, NAT.
RULESET = """table inet fw4
flush table inet fw4

table inet fw4 {
    define lan_devices = { "lan0" }
    include "/etc/nftables.d/*.nft"

    chain input {
        type filter hook input priority filter; policy drop;
        iifname "lo" accept comment "!fw4: loopback"
        ct state established,related accept comment "!fw4: known flows"
        tcp flags & (fin | syn | rst | ack) == syn jump syn_flood
        iifname $lan_devices jump input_lan
        jump handle_reject
    }
    chain forward {
        type filter hook forward priority filter; policy drop;
        ct state established,related accept
        jump handle_reject
    }
    chain output {
        type filter hook output priority filter; policy accept;
        oifname "lo" accept
    }
    chain handle_reject {
        meta l4proto tcp reject with tcp reset
        reject with icmpx type port-unreachable
    }
    chain syn_flood {
        limit rate 25/second burst 50 packets return
        drop
    }
    chain input_lan {
        ct status dnat accept
        counter accept comment "!fw4: accept lan traffic"
    }
    chain dstnat { type nat hook prerouting priority dstnat; policy accept; }
    chain srcnat { type nat hook postrouting priority srcnat; policy accept; }
    chain mangle_forward {
        type filter hook forward priority mangle; policy accept;
        iifname $lan_devices tcp flags syn tcp option maxseg size set rt mtu
    }
}
"""


class Router:
    """A machine whose folder /openwrt is the root of all that this runs."""

    def __init__(self, t, m):
        self.m = m
        m.boot(IDLE + MAKE_ROOT.format(dist=quote(DIST), binary=quote(t.binary)),
               "busybox", "init", packages=BUSYBOX)
        for name, text in (("/etc/rc.common", RC_COMMON), ("/etc/init.d/firewall", FIREWALL),
                           ("/sbin/fw4", FW4), ("/usr/share/ruleset.nft", RULESET)):
            m.write(f"/openwrt{name}", text)
            os.chmod(m.path(f"/openwrt{name}"), 0o755)
        # dnsmasq answers here, and asks those that the provider has named.
        m.write("/openwrt/etc/resolv.conf", "search lan\nnameserver 127.0.0.1\n")

    def run(self, *command):
        return self.m.run("chroot", "/openwrt", *command)

    def must(self, *command):
        return self.m.must("chroot", "/openwrt", *command)

    def write(self, path, text):
        self.m.write(f"/openwrt{path}", text)

    def log(self):
        return self.m.text("/openwrt/tmp/log")

    def table(self, name="tcpparser"):
        return self.run("nft", "list", "table", "inet", name).stdout

    def boots(self):
        """What init runs at boot, after a kernel that knows no rule."""
        self.must("nft", "flush", "ruleset")
        self.must("sh", "-c", "for script in /etc/rc.d/S*; do $script boot; done")


def scan(lan, source):
    for port in PORTS:
        lan.peer.connect(lan.host_v4, port, source=source).close()


def test_router(t):
    need("nft")
    need_busybox()
    lan = t.lan()
    lan.host.listen(*PORTS)
    with Machine(t, lan.host) as m:
        router = Router(t, m)
        assert router.run("sh", "-c", "command -v iptables").returncode != 0, "iptables"
        router.write("/tmp/resolv.conf.d/resolv.conf.auto",
                     f"# Interface wan\nnameserver {lan.friend_v4}\nsearch lan\n")
        router.write("/tmp/uci.tcpparser", uci_as_shell(dist("tcpparser.uci")))
        for verb in ("enable", "start"):
            router.must("/etc/init.d/firewall", verb)

        # Installed, and booted.
        said = router.must("sh", "/root/install.sh")
        assert "(procd)" in said and "/etc/config/tcpparser" in said, f"said: {said}"
        first = m.guard()
        assert router.must("ls", "/etc/rc.d").split() == [
            "K10tcpparser", "S19firewall", "S90tcpparser"], "when it is started and stopped"
        router.must(SCRIPT, "stop")
        assert m.guards() == [], "stopped"
        router.boots()
        assert m.guard() != first, "started at boot"
        assert m.text(f"/proc/{m.guard()}/cmdline").split("\0")[:2] == [
            "/usr/bin/tcpparser", "--show=scans"], "command"

        # A scan: the provider's nameserver is spared.
        scan(lan, lan.friend_v4)
        wait_for(lambda: f"Not blocked: {lan.friend_v4:>21} " in router.log(), "the reason")
        scan(lan, lan.peer_v4)
        wait_for(lambda: f" {lan.peer_v4} timeout " in router.table(), "a block")
        assert not comes_through(lan), "it comes through"

        # A reload flushes fw4's own table alone, a restart deletes it.
        counted = "counter packets 0 "
        for verb in ("reload", "restart"):
            before, fw4 = router.table(), router.table("fw4")
            assert counted not in fw4, f"a packet was counted: {fw4}"
            router.must("/etc/init.d/firewall", verb)
            assert counted in router.table("fw4"), "its ruleset is new"
            assert unchanged(before) == unchanged(router.table()), "ours stays"
            assert not comes_through(lan), f"it comes through after {verb}"
            assert repairs(lan) == 0, "repairs"
            assert lan.peer.connects(lan.host_v4, 22, source=lan.friend_v4), "others come through"
        # To stop it takes all tables.
        router.must("/etc/init.d/firewall", "stop")
        wait_for(lambda: f" {lan.peer_v4} timeout " in router.table(), "the block again")
        wait_for(lambda: repairs(lan) == 1, "a repair")
        router.must("/etc/init.d/firewall", "start")
        assert not comes_through(lan), "it comes through after a stop"

        # Settings are read anew; what is not changed runs on.
        number = m.guard()
        router.must(SCRIPT, "reload")
        assert m.guards() == [number], "the same settings"
        settings = dist("tcpparser.uci").replace("#option ports '3'", "option ports '9'")
        router.write("/tmp/uci.tcpparser", uci_as_shell(settings))
        router.must(SCRIPT, "reload")
        assert m.guard() != number, "other settings"
        assert f" {lan.peer_v4} timeout " in router.table(), "the block stays"

        # Nothing of ours is left, and all of fw4.
        fw4 = router.table("fw4")
        said = router.must("sh", "/root/install.sh", "uninstall")
        assert m.guards() == [], "it runs"
        assert router.must("nft", "list", "tables") == "table inet fw4\n", f"tables: {said}"
        assert router.table("fw4").count("\n") == fw4.count("\n") > 30, "fw4's table"
        left = router.must("find", "/etc", "/usr", "-name", "*tcpparser*").split()
        assert left == [], f"left: {said}"
        assert lan.peer.connects(lan.host_v4, 22), "the block is lifted"


def comes_through(lan):
    return lan.peer.connects(lan.host_v4, 22, seconds=0.3)


def unchanged(table):
    """A listing without the time that is left."""
    return re.sub(r" expires \S+", "", table)


def repairs(lan):
    page = lan.host.must("curl", "-s", "http://127.0.0.1:3021/metrics")
    return int(re.search(r"^tcpparser_firewall_repairs_total (\d+)", page, re.M)[1])
