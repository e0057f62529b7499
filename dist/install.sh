#!/bin/sh
# Installs tcpparser and has the machine start it, or takes all that away:
#
#   install.sh [install|uninstall|start|stop] [NAME=VALUE ...]
#
# What is not named here is taken from the environment.
#
# start and stop are what packages do after and before their files are there:
# enable and start it; stop and disable it, and lift all blocks.
#
#   INIT=auto      none, sysv, openrc, procd or systemd; auto finds out
#   PREFIX=DIR     the program goes to DIR/bin; /usr/local, with procd /usr
#   DESTDIR=DIR    into this tree, where nothing is started or enabled; auto
#                  then means the init system that the tree itself holds, none
#                  for an empty one
#   BINARY=FILE    the program; else beside this script or in ../target
#   UNBLOCK=no     uninstall or stop it even where blocks cannot be lifted
#   UPGRADE=yes    start: only what runs is started again
#
# Exit status 3: it runs, but cannot block here; the last lines say what to do.
#
# `make install` and `make uninstall` call this. It also runs where BusyBox is
# all there is, hence no install(1).
set -eu
# All users may read what is installed, and look into new folders.
umask 022

here=$(cd "$(dirname "$0")" && pwd)
verb='' INIT=${INIT:-auto} PREFIX=${PREFIX:-} DESTDIR=${DESTDIR:-} BINARY=${BINARY:-}
UNBLOCK=${UNBLOCK:-yes} UPGRADE=${UPGRADE:-no}
PATH=$PATH:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

give_up() {
    echo "install.sh: $*" >&2
    exit 1
}

for argument in "$@"; do
    case $argument in
        install | uninstall | start | stop)
            [ -z "$verb" ] || give_up "'$verb' or '$argument', not both: see $0 --help"
            verb=$argument
            ;;
        INIT=*) INIT=${argument#*=} ;;
        PREFIX=*) PREFIX=${argument#*=} ;;
        DESTDIR=*) DESTDIR=${argument#*=} ;;
        BINARY=*) BINARY=${argument#*=} ;;
        UNBLOCK=*) UNBLOCK=${argument#*=} ;;
        UPGRADE=*) UPGRADE=${argument#*=} ;;
        -h | --help | help)
            # The comment at the head.
            sed -n '1d; /^#/!q; s/^# \{0,1\}//p' "$0"
            exit
            ;;
        *) give_up "'$argument' is not known: see $0 --help" ;;
    esac
done
case $UNBLOCK$UPGRADE in
    yesyes | yesno | noyes | nono) ;;
    *) give_up "'UNBLOCK=$UNBLOCK' or 'UPGRADE=$UPGRADE' is not known: yes or no" ;;
esac
: "${verb:=install}"

# What goes where, below DESTDIR. Units lie where systemd looks for them. Where
# there is a script, too, disabling the unit leaves links to it: it comes last.
SCRIPT=/etc/init.d/tcpparser
SERVICES="/etc/systemd/system/tcpparser.service /usr/lib/systemd/system/tcpparser.service
    /usr/local/lib/systemd/system/tcpparser.service $SCRIPT"

has() { command -v "$1" >/dev/null; }
is_live() { [ -z "$DESTDIR" ]; }
is_root() { [ "$(id -u)" = 0 ]; }

# Whether the tree holds one of these.
holds() {
    for path in "$@"; do
        [ ! -e "$DESTDIR$path" ] || return 0
    done
    return 1
}

# What runs this machine, or what would run the tree.
detect() {
    if is_live; then
        if [ -d /run/systemd/system ]; then echo systemd && return; fi
        if [ -d /run/openrc ] || has openrc-run; then echo openrc && return; fi
    else
        if holds /lib/systemd/systemd /usr/lib/systemd/systemd; then echo systemd && return; fi
        if holds /sbin/openrc-run /usr/sbin/openrc-run /usr/bin/openrc-run; then echo openrc && return; fi
    fi
    if holds /sbin/procd; then
        echo procd
    elif holds /etc/init.d && holds /sbin/start-stop-daemon /usr/sbin/start-stop-daemon; then
        echo sysv
    else
        echo none
    fi
}

# kind_of FILE: the init system that an installed file belongs to.
kind_of() {
    read -r first <"$DESTDIR$1" || :
    case $1:$first in
        *.service:*) echo systemd ;;
        *openrc-run*) echo openrc ;;
        *rc.common*) echo procd ;;
        *) echo sysv ;;
    esac
}

# prefix_in FILE...: the PREFIX that installed files name, if there are any.
prefix_in() {
    for path in "$@"; do
        [ ! -f "$DESTDIR$path" ] || sed -n -E \
            's,^(DAEMON|PROG|command|ExecStart)=(/.*)/bin/tcpparser$,\2,p' "$DESTDIR$path"
    done | tail -n 1
}

# set_places: all that differs between init systems.
set_places() {
    file='' place=$SCRIPT mode=755 sample=tcpparser.default settings=/etc/default/tcpparser
    again="$SCRIPT restart"
    case $INIT in
        sysv)
            file=tcpparser.init
            log=$(syslog_command)
            ;;
        openrc)
            file=tcpparser.openrc settings=/etc/conf.d/tcpparser
            again='rc-service tcpparser restart' log='tail -f /var/log/tcpparser.log'
            ;;
        procd)
            file=tcpparser.procd sample=tcpparser.uci settings=/etc/config/tcpparser
            again="$SCRIPT reload" log='logread -f -e tcpparser'
            ;;
        systemd)
            file=tcpparser.service place=/etc/systemd/system/tcpparser.service mode=644
            case $PREFIX in
                /usr | /usr/local) place=$PREFIX/lib/systemd/system/tcpparser.service ;;
            esac
            again='systemctl reload tcpparser' log='journalctl -f -u tcpparser'
            ;;
        none) ;;
        *) give_up "INIT=$INIT is not known: auto, none, sysv, openrc, procd or systemd" ;;
    esac
}

# Where the SysV script's output goes here.
syslog_command() {
    if [ ! -S /dev/log ] || ! has logger; then
        echo 'tail -f /var/log/tcpparser.log'
    elif [ -f /var/log/syslog ]; then
        echo 'tail -f /var/log/syslog'
    elif [ -f /var/log/messages ]; then
        echo 'tail -f /var/log/messages'
    else
        echo 'logread -f'
    fi
}

# put MODE FROM TO: a file that is in use is replaced, not written over. Text
# names the program by its path.
put() {
    mkdir -p "$DESTDIR${3%/*}"
    case $2 in
        "$here"/tcpparser.*) sed "s,/usr/local/bin/tcpparser,$PREFIX/bin/tcpparser,g" "$2" ;;
        *) cat "$2" ;;
    esac >"$DESTDIR$3.new"
    chmod "$1" "$DESTDIR$3.new"
    mv -f "$DESTDIR$3.new" "$DESTDIR$3"
    echo "installed $DESTDIR$3"
}

# take FILE...: removes what is there.
take() {
    for path in "$@"; do
        if [ -e "$DESTDIR$path" ] || [ -L "$DESTDIR$path" ]; then
            rm -f "$DESTDIR$path"
            echo "removed   $DESTDIR$path"
        fi
    done
}

# take_settings SAMPLE FILE: what an administrator changed stays.
take_settings() {
    if cmp -s "$here/$1" "$DESTDIR$2"; then
        take "$2"
    elif [ -e "$DESTDIR$2" ]; then
        echo "left      $DESTDIR$2: it was changed"
    fi
}

# Systems with nothing but BusyBox run /etc/init.d/S??* in order.
LINK=/etc/init.d/S90tcpparser

enable_sysv() {
    if has update-rc.d; then
        update-rc.d tcpparser defaults
    elif has chkconfig; then
        chkconfig --add tcpparser
    elif grep -qs 'init\.d/S' /etc/init.d/rcS; then
        ln -sf tcpparser "$LINK"
    else
        echo "nothing here starts /etc/init.d at boot; this does: $SCRIPT start"
    fi
}

disable_sysv() {
    take "$LINK"
    if has update-rc.d; then
        update-rc.d -f tcpparser remove
    elif has chkconfig; then
        chkconfig --del tcpparser
    fi
}

enable_service() {
    case $INIT in
        sysv) enable_sysv ;;
        openrc) rc-update -q add tcpparser default ;;
        procd) "$SCRIPT" enable ;;
        systemd) systemctl -q enable tcpparser ;;
    esac
}

# An upgrade leaves it to the administrator whether it starts at boot.
start() {
    [ "$INIT" != systemd ] || systemctl daemon-reload || return
    [ "$UPGRADE" = yes ] || enable_service || return
    case $INIT in
        openrc) rc-service tcpparser restart ;;
        systemd) restart_unit ;;
        *) "$SCRIPT" restart ;;
    esac
}

# A reload is a restart that looks at the settings first.
restart_unit() {
    verb=restart
    ! systemctl -q is-active tcpparser || verb=reload
    systemctl "$verb" tcpparser
}

stop() {
    case $1 in
        sysv) "$SCRIPT" stop && disable_sysv ;;
        openrc) rc-service tcpparser stop && rc-update -q delete tcpparser default ;;
        procd) "$SCRIPT" stop && "$SCRIPT" disable ;;
        # A package has it beside the script.
        systemd) [ ! -d /run/systemd/system ] || systemctl -q disable --now tcpparser ;;
    esac
}

install_all() {
    if is_live && ! is_root && [ "$INIT" != none ]; then
        give_up 'a service needs root: use sudo, or INIT=none and a PREFIX of your own'
    fi
    for program in "$here/tcpparser" "$here/../target/tcpparser"; do
        [ -n "$BINARY" ] || [ ! -f "$program" ] || BINARY=$program
    done
    [ -z "$BINARY" ] || [ -f "$BINARY" ] || give_up "BINARY=$BINARY is no file"
    [ -n "$BINARY" ] || give_up 'the program is neither beside this script nor in target: make build'
    folder=$DESTDIR$PREFIX/bin
    { mkdir -p "$folder" && [ -w "$folder" ]; } 2>/dev/null ||
        give_up "$folder cannot be written: use sudo, or a PREFIX of your own"
    put 755 "$BINARY" "$PROGRAM"
    [ ! -f "$here/tcpparser.8" ] || put 644 "$here/tcpparser.8" "$MAN_PAGE"
    [ ! -f "$here/tcpparser.bash" ] || put 644 "$here/tcpparser.bash" "$COMPLETION"
    if [ -z "$file" ]; then
        echo "nothing starts it; by hand, as root: $PROGRAM"
        echo "at boot: again with INIT=sysv, openrc, procd or systemd, whichever runs this machine"
        return
    fi
    put "$mode" "$here/$file" "$place"
    if holds "$settings"; then
        echo "kept      $DESTDIR$settings"
    else
        put 644 "$here/$sample" "$settings"
    fi
    ! is_live || start_service
}

start_service() {
    start || give_up "the service did not start; settings: $settings, log: $log"
    if [ "$UPGRADE" = yes ]; then
        echo "tcpparser runs again ($INIT)"
    else
        echo "tcpparser runs, and does so after each boot ($INIT)"
    fi
    echo "settings: $settings, then: $again"
    echo "log:      $log"
    check_firewall
}

is_running() {
    case $INIT in
        sysv) "$SCRIPT" status ;;
        openrc) rc-service tcpparser status ;;
        procd) "$SCRIPT" running ;;
        systemd) systemctl -q is-active tcpparser ;;
    esac >/dev/null 2>&1
}

# Whether the settings are right; its line says which is not. procd's script looks
# itself.
check_settings() (
    set -a
    # shellcheck disable=SC1090
    [ "$INIT" = procd ] || [ ! -r "$settings" ] || . "$settings"
    [ "$INIT" = procd ] || "$PROGRAM" --check
)

# A machine may forbid its packages to start services (Debian's policy-rc.d), as
# images do while they are made. What cannot block runs nevertheless.
start_all() {
    [ "$INIT" != none ] || return 0
    [ "$UPGRADE" = no ] || is_running || return 0
    if has policy-rc.d && ! policy-rc.d tcpparser start; then
        echo 'tcpparser is not started: policy-rc.d forbids it'
    elif check_settings; then
        (start_service) || [ $? = 3 ]
    elif [ "$UPGRADE" = yes ]; then
        echo "tcpparser is not restarted, the old one runs on; put that right in $settings, then: $again"
    else
        echo "tcpparser is not started; put that right in $settings, then: $again"
    fi
}

# setting NAME: of the service, from the file of whichever init system it has.
setting() {
    option=$(echo "$1" | tr '[:upper:]' '[:lower:]')
    sed -n -E "s/^(TCPPARSER_$1=|[[:blank:]]*option[[:blank:]]+${option}[[:blank:]]+)//p" \
        /etc/default/tcpparser /etc/conf.d/tcpparser /etc/config/tcpparser 2>/dev/null |
        tail -n 1 | tr -d "\"'"
}

# ask [NAME=VALUE] COMMAND...: what a command says, with the root directory in which the
# service runs iptables.
ask() {
    env -i PATH="$PATH" TCPPARSER_EXEC_ROOT="$(setting EXEC_ROOT)" "$@" 2>&1
}

# Whether the service can block, as far as it is asked to. Soon after its start it
# knows.
check_firewall() {
    tries=5
    until said=$(ask TCPPARSER_LISTEN="$(setting LISTEN)" "$PROGRAM" --healthcheck); do
        [ "$tries" -gt 0 ] || break
        tries=$((tries - 1))
        sleep 1
    done
    case $said in *' cannot be used') ;; *) return 0 ;; esac
    why=$(ask TCPPARSER_FIREWALL="$(setting FIREWALL)" "$PROGRAM" --list | grep '^tcpparser: ') || :
    printf '%s\n' "$said" "$why" >&2
    case $why in
        *' is not installed'*) what=$(package_command) ;;
        *) what='put that right' ;;
    esac
    echo "install.sh: tcpparser runs, but cannot block; $what, then: $again" >&2
    exit 3
}

package_command() {
    if has opkg; then
        echo 'opkg install iptables-nft ip6tables-nft'
    elif has apk; then
        echo 'apk add iptables ip6tables'
    elif has pacman; then
        echo 'pacman -S iptables'
    else
        for tool in apt-get dnf yum zypper; do
            ! has "$tool" || break
        done
        has "$tool" && echo "$tool install iptables" || echo 'install the package iptables'
    fi
}

# Lifts all blocks, in the tables of iptables that the service used and in those
# of nf_tables. None there is as good.
unblock() {
    [ "$UNBLOCK" = yes ] && [ -x "$PROGRAM" ] && is_root || return 0
    lifted=yes
    said=$(ask "$PROGRAM" --unblock all) || lifted=no
    [ "$said" != 'tcpparser: no such block' ] || return 0
    echo "$said"
    [ "$lifted" = yes ] || give_up 'blocks may still stand, so that the program stays, stopped and disabled;' \
        'uninstall it again when that is put right, or with UNBLOCK=no'
}

# The service stops before blocks are lifted: it could block again meanwhile, and
# only when it is gone its chain and its table go with the last block.
stop_all() {
    for path in $SERVICES; do
        [ -e "$path" ] || continue
        is_root || give_up 'a service is to be stopped: use sudo'
        stop "$(kind_of "$path")" || echo "could not stop or disable $path"
    done
    unblock
}

uninstall_all() {
    ! is_live || stop_all
    # shellcheck disable=SC2086 # words
    take $SERVICES "$PROGRAM" "$MAN_PAGE" "$COMPLETION"
    take_settings tcpparser.default /etc/default/tcpparser
    take_settings tcpparser.default /etc/conf.d/tcpparser
    take_settings tcpparser.uci /etc/config/tcpparser
    if is_live && [ -d /run/systemd/system ]; then systemctl daemon-reload; fi
}

[ "$INIT" != auto ] || INIT=$(detect)
# shellcheck disable=SC2086 # words
[ -n "$PREFIX" ] || [ "$verb" = install ] || PREFIX=$(prefix_in $SERVICES)
[ -n "$PREFIX" ] || case $INIT in procd) PREFIX=/usr ;; *) PREFIX=/usr/local ;; esac
case $PREFIX in
    /*[!A-Za-z0-9/._+-]* | [!/]*) give_up "PREFIX=$PREFIX: an absolute path of plain letters" ;;
esac
PROGRAM=$PREFIX/bin/tcpparser
MAN_PAGE=$PREFIX/share/man/man8/tcpparser.8
COMPLETION=$PREFIX/share/bash-completion/completions/tcpparser
set_places
"${verb}_all"
