"""Run `ray job submit` with this checkout as the job's code, unless the upload is too large.

    python clusters/submit.py --address http://127.0.0.1:8265 -- python tune/search.py --address auto ...

Options before `--` are those of `ray job submit` (--no-wait, --submission-id, ...). Ray itself limits uploads
to 100 MiB. But Ray checks this limit only after it has packed everything, and does not name the largest
entries.
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
    """Return the number of bytes that `--working-dir root` uploads for each entry of `root`.

    As in Ray, the .gitignore and .rayignore of every folder apply. Sizes are uncompressed.
    """
    from ray._private.runtime_env.packaging import _dir_travel

    sizes: Counter[str] = Counter()

    def add_size(path: Path) -> None:
        if path.is_file():
            sizes[path.relative_to(root).parts[0]] += path.stat().st_size

    _dir_travel(root, [], add_size, include_gitignore=True, logger=logging.getLogger(__name__))
    return sizes


def upload_error(root: Path, limit_mib: float = LIMIT_MIB) -> str | None:
    """Return an error message if `root` is too large to upload, else None."""
    sizes = upload_sizes(root)
    total = sum(sizes.values()) / 2**20
    if total < limit_mib:
        return None
    largest = ", ".join(f"{name} {size / 2**20:.0f} MiB" for name, size in sizes.most_common(5))
    return (
        f"{root} contains {total:.0f} MiB, but an upload may contain at most {limit_mib:g} MiB. "
        f"List unneeded files in .rayignore. Largest entries: {largest}."
    )


def connection_error(arguments: list[str]) -> str | None:
    """Return an error message if no server answers at --address, else None.

    Without this check, Ray prints a traceback of a hundred lines.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--address", default=os.environ.get("RAY_API_SERVER_ADDRESS", ""))
    options, _ = parser.parse_known_args(arguments)
    address = options.address
    if not address.startswith("http"):
        return None  # missing, or not http: `ray job submit` has its own message
    try:
        urlopen(f"{address.rstrip('/')}/api/version", timeout=20).close()
    except HTTPError:  # the server answers, so `ray job submit` reports the error
        return None
    except (OSError, ValueError, HTTPException) as error:
        return f"no Ray cluster accepts jobs at {address}: {getattr(error, 'reason', error)}"
    return None


def main(arguments: list[str]) -> int:
    """Check the address and the upload size, then submit. Return the exit status."""
    # Our clusters require a token. Ray reads the variable when Ray is imported, which `upload_error` does.
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    if "--" not in arguments:
        print(__doc__, file=sys.stderr)
        return 2
    submit_options = arguments[: arguments.index("--")]
    error = connection_error(submit_options) or upload_error(ROOT)
    if error is not None:
        print(f"error: {error}", file=sys.stderr)
        return 1
    command = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit"]
    command += ["--working-dir", str(ROOT)]
    command += ["--runtime-env", str(ROOT / "clusters" / "runtime-env.yaml")]
    try:
        return subprocess.run([*command, *arguments]).returncode
    except KeyboardInterrupt:  # Ctrl-C stops only the log, not the job
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
