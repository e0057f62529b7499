#!/bin/sh
# A hook of tcpparser(8): a mail for each block, by the interface of sendmail(8)
# that Postfix, Exim, msmtp and others have.
# Copy it to a folder of root's, say who gets them, and name it by --hook.
to=root

# EVENT SOURCE PORTS SECONDS [REASON]
[ "$1" = block ] || exit 0
[ "$4" = 0 ] && time='for ever' || time="for $4 s"
# Where it lies on some systems, and no PATH leads.
PATH=$PATH:/usr/sbin:/usr/lib
sendmail -t <<END
To: $to
Subject: $(uname -n): $2 is blocked

It connected to ports $3, and is blocked $time.
To undo: tcpparser --unblock $2
END
