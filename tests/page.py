"""`make page` and `make picture`: the live page as the program holds it, and its
picture in README.md.

Content-Security-Policy lets its script and its style run by their hashes alone.
"""

import base64
import gzip
import hashlib
import json
import os
import re
import subprocess
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SOURCE, PACKED, POLICY = (os.path.join(ROOT, "dist", name)
                          for name in ("live.html", "live.html.gz", "live.csp"))
MINIFIER = os.path.join(ROOT, "target/tools/node_modules/.bin/html-minifier-terser")
# A variable of its script.
SEEN_BY_TESTS = "busy"


def content(path):
    with open(path, "rb") as file:
        return file.read()


def lean(source):
    """The page in as few bytes as html-minifier-terser can say it."""
    options = {"ecma": 2022, "toplevel": True, "mangle": {"reserved": [SEEN_BY_TESTS]},
               "compress": {"passes": 4, "unsafe_arrows": True}}
    made = subprocess.run(
        [MINIFIER, "--collapse-whitespace", "--remove-comments", "--remove-optional-tags",
         "--remove-attribute-quotes", "--minify-css", "--minify-js",
         json.dumps(options)], input=source, stdout=subprocess.PIPE, check=True).stdout
    return made.strip()


def policy(page):
    """What the page may do: run its own script and style, ask where it came from."""
    def hashes(element):
        found = re.findall(rf"<{element}>(.*?)</{element}>".encode(), page, re.S)
        digests = (base64.b64encode(hashlib.sha256(one).digest()).decode() for one in found)
        return " ".join(f"'sha256-{digest}'" for digest in digests)
    return (f"default-src 'none'; script-src {hashes('script')}; style-src {hashes('style')}; "
            "img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
            "frame-ancestors 'none'; require-trusted-types-for 'script'").encode()


def pack(page):
    """By zopfli, which puts no name and no time into what it makes."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(page)
        file.flush()
        packed = subprocess.run(["zopfli", "--i1000", "-c", file.name], stdout=subprocess.PIPE,
                                check=True).stdout
    assert gzip.decompress(packed) == page, "zopfli"
    return packed


def main():
    page = lean(content(SOURCE))
    for path, made in ((PACKED, pack(page)), (POLICY, policy(page))):
        with open(path, "wb") as file:
            file.write(made)
        print(f"{os.path.relpath(path, ROOT)}: {len(made)} bytes")


if __name__ == "__main__":
    main()
