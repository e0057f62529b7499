#!/bin/sh
# A hook of tcpparser(8): each event as JSON to a web server, by curl(1).
# Copy it to a folder of root's, say where to, and name it by --hook.
url=http://127.0.0.1:8080/

# EVENT SOURCE PORTS SECONDS [REASON]: letters, digits and some of .:/,+ only, so
# there is nothing to quote.
exec curl -fsS --max-time 8 -H 'Content-Type: application/json' --data "{
  \"host\": \"$(uname -n)\", \"event\": \"$1\", \"source\": \"$2\",
  \"ports\": \"$3\", \"seconds\": \"$4\", \"reason\": \"$5\"
}" "$url"
