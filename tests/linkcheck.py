"""Ask every external address in pages and notebooks whether it still answers; needs a network and nothing else.

Prints one line per address that does not, and exits with 1 if there is any. Run by ``make linkcheck`` and weekly.
"""

from __future__ import annotations

import json
import re
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ADDRESS = re.compile(r"https?://[^\s<>\"'`)\]}|\\]+")
PAGES = ("*.md", "book/**/*.md", "book/*.bib", "CITATION.cff", "notebooks/*.ipynb", "saema_utils/*.py")
# The repository's placeholder, hosts that only answer after a login, and examples.
PASSED_OVER = re.compile(
    r"OWNER|localhost|127\.0\.0\.1|example\.(org|com)|colab\.research\.google\.com|settings/tokens"
)
REFUSES_ROBOTS = {401, 403, 405, 418, 429, 999}


def text_of(path: Path) -> str:
    if path.suffix != ".ipynb":
        return path.read_text(encoding="utf-8")
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells)


def addresses(root: Path = ROOT) -> dict[str, list[str]]:
    """Every external address, with the files it stands in."""
    found: dict[str, list[str]] = {}
    for path in _pages(root):
        for address in ADDRESS.findall(text_of(path)):
            clean = address.rstrip(".,;:*_").split("#")[0]
            # An address made while the program runs cannot be asked.
            if not PASSED_OVER.search(clean) and "{" not in clean and "." in clean.split("/")[2]:
                found.setdefault(clean, []).append(path.relative_to(root).as_posix())
    return found


def _pages(root: Path) -> Iterator[Path]:
    for pattern in PAGES:
        yield from sorted(root.glob(pattern))


def complaint(address: str) -> str:
    """Why an address counts as broken; empty if it does not. Hosts that refuse robots count as alive."""
    reason = ""
    for method in ("HEAD", "GET"):
        request = urllib.request.Request(address, method=method, headers={"User-Agent": "saema-linkcheck"})
        try:
            with urllib.request.urlopen(request, timeout=30):
                return ""
        except urllib.error.HTTPError as error:
            if error.code in REFUSES_ROBOTS and method == "GET":
                return ""
            reason = f"HTTP {error.code}"
        except (urllib.error.URLError, OSError, ValueError) as error:
            reason = str(getattr(error, "reason", error))
    return reason


def main() -> int:
    found = addresses()
    with ThreadPoolExecutor(8) as pool:
        complaints = dict(zip(found, pool.map(complaint, found), strict=True))
    broken = {address: reason for address, reason in complaints.items() if reason}
    for address, reason in broken.items():
        print(f"{address} ({reason}) in {', '.join(sorted(set(found[address])))}")
    print(f"{len(found)} addresses, {len(broken)} do not answer")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
