"""`ray job submit` with this checkout as the job's code, refused at once where the upload would be too large.

    python clusters/submit.py --address http://127.0.0.1:8265 -- python tune/search.py --address auto ...

Everything before `--` goes to `ray job submit` (--no-wait, --submission-id, ...). Ray takes at most 100 MiB,
says so only after it has packed everything, and does not say what is large.
"""

import argparse
import logging
import os
import subprocess
import sys
from collections import Counter
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

ROOT = Path(__file__).resolve().parent.parent
LIMIT_MIB = 100


def upload_sizes(root: Path) -> Counter[str]:
    """Bytes that `--working-dir root` would send, by what lies directly in `root`.

    These are Ray's own rules (.gitignore and .rayignore in every folder), before compression.
    """
    from ray._private.runtime_env.packaging import _dir_travel

    sizes: Counter[str] = Counter()

    def count(path: Path) -> None:
        if path.is_file():
            sizes[path.relative_to(root).parts[0]] += path.stat().st_size

    _dir_travel(root, [], count, include_gitignore=True, logger=logging.getLogger(__name__))
    return sizes


def refusal(root: Path, limit_mib: float = LIMIT_MIB) -> str | None:
    """Why `root` cannot be uploaded, or None."""
    sizes = upload_sizes(root)
    total = sum(sizes.values()) / 2**20
    if total < limit_mib:
        return None
    largest = ", ".join(f"{name} {size / 2**20:.0f} MiB" for name, size in sizes.most_common(5))
    return (
        f"{root} holds {total:.0f} MiB, a job takes {limit_mib:g} ({largest}): "
        "name what it does not need in .rayignore"
    )


def nobody(arguments: list[str]) -> str | None:
    """That no head takes jobs at the address, or None; `ray job submit` would say so in a hundred lines."""
    options = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    options.add_argument("--address", default=os.environ.get("RAY_API_SERVER_ADDRESS", ""))
    address = options.parse_known_args(arguments)[0].address
    if not address.startswith("http"):
        return None
    try:
        urlopen(f"{address.rstrip('/')}/api/version", timeout=20).close()
    except HTTPError:  # somebody is there
        return None
    except (OSError, ValueError, HTTPException) as error:
        return f"no head of a Ray cluster takes jobs at {address}: {getattr(error, 'reason', error)}"
    return None


def main(arguments: list[str]) -> int:
    """Check, then submit; returns `ray job submit`'s exit status."""
    os.environ.setdefault("RAY_AUTH_MODE", "token")  # read when ray is imported
    if "--" not in arguments:
        print(__doc__, file=sys.stderr)
        return 2
    if reason := nobody(arguments[: arguments.index("--")]) or refusal(ROOT):
        print(f"error: {reason}", file=sys.stderr)
        return 1
    ray = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit"]
    code = ["--working-dir", str(ROOT), "--runtime-env", str(ROOT / "clusters" / "runtime-env.yaml")]
    try:
        return subprocess.run([*ray, *code, *arguments]).returncode
    except KeyboardInterrupt:  # it ends the following; the job goes on
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
