"""All measurements that require a GPU, in one command: make gpu.

    python benchmarks/gpu.py [--minutes 30] [--out out/gpu] [--parts parity speed ...] [--docs FILE]

Each part runs in a separate process, and its record is written to --out. Rerun the same command to measure
missing or failed parts. At the end, a table lists each claim as "holds", "does not hold" or "not measured".
The table and the measurements also replace the block `gpu` of --docs. Without a GPU, the exit status is 2.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import describe, parser_of, publish, table

from prometar.io.files import write_atomically

HERE = Path(__file__).resolve().parent
Figures = Mapping[str, Any]


@dataclass(frozen=True)
class Part:
    """A script and its arguments. The script writes its figures to the file given by --json."""

    script: str
    arguments: tuple[str, ...] = ()


PARTS = {
    "parity": Part("gpu_parts.py", ("parity",)),
    "repeat": Part("gpu_parts.py", ("repeat",)),
    "speed": Part("gpu_parts.py", ("speed",)),
    "study": Part("gpu_parts.py", ("study",)),
    "memory": Part("gpu_parts.py", ("memory",)),
    "packing": Part("gpu_parts.py", ("packing",)),
    "stream": Part("stream.py", ("--repeats", "1")),
}
"""Parts in the order of their runs. If time runs out, the last ones are not measured."""


@dataclass(frozen=True)
class Claim:
    """Claim about a GPU, the part that measures it, and the condition on the part's figures.

    If a figure is missing, the claim is not measured.
    """

    text: str
    part: str
    holds: Callable[[Figures], bool]


CLAIMS = (
    Claim("a float64 run equals the CPU's within 1e-8", "parity", lambda f: f["fp64"] < 1e-8),
    Claim("a float32 run equals the CPU's within 1e-3, TF32 off", "parity", lambda f: f["fp32"] < 1e-3),
    Claim("two runs are equal bit for bit", "repeat", lambda f: f["again"]),
    Claim("a resumed run equals one that never stopped, bit for bit", "repeat", lambda f: f["resumed"]),
    Claim("bf16 is faster than fp32", "speed", lambda f: f["bf16"] > f["fp32"]),
    Claim(
        "the counted memory is within 25% of the allocated memory",
        "memory",
        lambda f: all(0.75 < counted / allocated < 1.25 for allocated, counted in f.values()),
    ),
    Claim("four trials on a GPU do 1.5 times the steps of one", "packing", lambda f: f["4"] >= 1.5 * f["1"]),
    Claim("a study finishes", "study", lambda f: f["status"] == 0),
)


def verdict(claim: Claim, records: Mapping[str, Figures]) -> str:
    """Return "holds", "does not hold" or "not measured"."""
    try:
        return "holds" if claim.holds(records[claim.part]["figures"]) else "does not hold"
    except KeyError:
        return "not measured"


def claims_table(records: Mapping[str, Figures]) -> str:
    """Return a Markdown table of every claim and its verdict."""
    return table(("claim", "verdict"), [(claim.text, verdict(claim, records)) for claim in CLAIMS])


def read_records(folder: Path, gpu: str) -> dict[str, Figures]:
    """Return the records measured on this GPU with these versions. Corrupt records are ignored."""
    found = {}
    for name in PARTS:
        try:
            record = json.loads((folder / f"{name}.json").read_text("utf-8"))
            if record["gpu"] == gpu and not record["failed"]:
                found[name] = record
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return found


def measure(
    folder: Path, gpu: str, wanted: Sequence[str], seconds: float, run: Callable[[str, float], Figures]
) -> dict[str, Figures]:
    """Run the missing parts while time is left. Write each record before the next part starts."""
    folder.mkdir(parents=True, exist_ok=True)
    records, deadline = read_records(folder, gpu), time.monotonic() + seconds
    for name in wanted:
        left = deadline - time.monotonic()
        if name in records or left <= 0:
            continue
        record = {"gpu": gpu, **run(name, left)}
        write_atomically(folder / f"{name}.json", json.dumps(record, indent=1).encode())
        if not record["failed"]:
            records[name] = record
        print(f"{name}: {record['failed'] or 'measured'}", flush=True)
    return records


def run_part(name: str, seconds: float, *, folder: Path) -> Figures:
    """Return the figures of a part, or the reason why it failed."""
    part, figures = PARTS[name], folder / f"{name}.figures.json"
    figures.unlink(missing_ok=True)
    command = [sys.executable, str(HERE / part.script), *part.arguments, "--json", str(figures)]
    status = _run(command, seconds)
    if status is None:
        return {"failed": "timed out", "figures": {}}
    if status or not figures.is_file():
        return {"failed": f"exit status {status}", "figures": {}}
    return {"failed": "", "figures": json.loads(figures.read_text("utf-8"))}


def _run(command: Sequence[str], seconds: float) -> int | None:
    """Return the exit status of a command, or None if it timed out.

    Afterwards, even on Ctrl-C, its processes are killed. Otherwise, they could hold GPU memory forever.
    """
    process = subprocess.Popen(command, start_new_session=True)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def block(gpu: str, records: Mapping[str, Figures]) -> str:
    """Return the Markdown block for the docs."""
    speeds = records.get("speed", {}).get("figures", {})
    parts = [f"Measured on {gpu}, with `make gpu`.", claims_table(records)]
    if speeds:
        rows = [(name, value) for name, value in speeds.items() if "peak" not in name]
        parts.append(table(("ViT-B/16, 24 classes, batch 4", "steps per second"), rows))
    if packed := records.get("packing", {}).get("figures"):
        parts.append(table(("processes on one GPU, bf16", "total steps per second"), packed.items()))
    if memory := records.get("memory", {}).get("figures"):
        rows = [(name, *(size / 2**30 for size in pair)) for name, pair in memory.items()]
        parts.append(table(("peak of a step", "allocated GiB", "counted GiB"), rows))
    return "\n\n".join(parts)


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--minutes", type=float, default=30, help="time limit")
    parser.add_argument("--out", type=Path, default=Path("out/gpu"), help="folder of the records")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS), help="parts to run")
    parser.add_argument("--docs", type=Path, help="document whose block `gpu` is replaced")
    args = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        print("No GPU is available. Nothing was measured.", file=sys.stderr)
        return 2
    gpu = f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}; {describe(1)}"
    records = measure(
        args.out, gpu, args.parts, 60 * args.minutes,
        lambda name, seconds: run_part(name, seconds, folder=args.out),
    )  # fmt: skip
    publish(block(gpu, records), args.docs, "gpu")
    return 0


if __name__ == "__main__":
    sys.exit(main())
