#!/bin/sh
# A hook of tcpparser(8): a line for each block and unblock to the syslog server
# that keeps the list of all hosts, by logger(1) of util-linux.
# Copy it to a folder of root's, say where to, and name it by --hook.
server=127.0.0.1 port=514

# EVENT SOURCE PORTS SECONDS [REASON]
case $1 in
block) line="add $2 timeout $4" ;;
unblock) line="del $2" ;;
*) exit 0 ;;
esac
exec logger --rfc3164 -n "$server" -P "$port" -d -t tcpparser -- "$line"
