"""`make page` and `make picture`: the live page as the program holds it, and its
picture in README.md.

The page is packed without indents and comments. Content-Security-Policy lets its
script and its style run by their hashes alone.
"""

import base64
import gzip
import hashlib
import os
import re
import subprocess
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SOURCE, PACKED, POLICY = (os.path.join(ROOT, "dist", name)
                          for name in ("live.html", "live.html.gz", "live.csp"))


def content(path):
    with open(path, "rb") as file:
        return file.read()


def lean(source):
    """The page without comments, which have lines of their own, and without the
    blanks that a reader of its source wants."""
    lines = (line.strip() for line in source.decode().splitlines())
    text = "\n".join(line for line in lines if line and not line.startswith(("// ", "<!-- ")))
    for element, signs in (("style", "{}:;,"), ("script", "{}:;,()=+*<>?|&!")):
        found = re.search(rf"(?<=<{element}>).*(?=</{element}>)", text, re.S)
        # No text of a script is touched, nor an expression that reads one.
        parts = re.split(r'("[^"\n]*"|`[^`]*`|/\^.*?\$/)', found[0].strip())
        parts[::2] = [re.sub(rf"\s*([{signs}])\s*", r"\1", part) for part in parts[::2]]
        text = text[:found.start()] + "".join(parts) + text[found.end():]
    return (text + "\n").encode()


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
