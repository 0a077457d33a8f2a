"""All measurements that require a GPU, in one command: make gpu.

    python benchmarks/gpu.py [--minutes 9] [--out out/gpu] [--parts parity ...] [--docs FILE] [--rehearse]

Each part runs alone, in its own process with its own time limit. Its record is added to --out/results.json.
A part whose limit exceeds the time that is left is not run. Rerun the same command to measure missing or
failed parts, with more --minutes if parts timed out. torch and the core of the package suffice, without
Ray, Optuna and network, except for the parts `study` and `stream`, which need Ray. A table lists each
expectation of docs/performance.md as "holds", "does not hold" or "not measured", and the last line counts
them. The table and the measurements also replace the block `gpu` of --docs. Without a GPU, the exit status
is 2. `--rehearse` checks this script on a CPU, with mini and without waiting. Its figures mean nothing.
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
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from common import describe, parser_of, publish, table

from prometar.io.files import write_atomically

HERE = Path(__file__).resolve().parent
RESULTS = "results.json"
"""File of the records, by GPU (with its versions) and part."""

Figures = Mapping[str, Any]
"""What a part measured, by name."""

Record = Mapping[str, Any]
"""Result of a part: `failed` (a reason, or ""), `seconds` and `figures`."""

Records = Mapping[str, Record]
"""Record of each part, by name."""


@dataclass(frozen=True)
class Part:
    """A script, its arguments, and the limit of its duration.

    The script writes its figures to the file given by --json.
    """

    script: str
    arguments: tuple[str, ...]
    limit_seconds: float
    needs_ray: bool = False


PARTS = {
    "parity": Part("gpu_parts.py", ("parity",), 35),
    "repeat": Part("gpu_parts.py", ("repeat",), 75),
    "speed": Part("gpu_parts.py", ("speed",), 60),
    "parity-vit": Part("gpu_parts.py", ("parity-vit",), 60),
    "packing": Part("gpu_parts.py", ("packing",), 170),
    "memory": Part("gpu_parts.py", ("memory",), 45),
    "out-of-memory": Part("gpu_parts.py", ("out-of-memory",), 20),
    "methods": Part("gpu_parts.py", ("methods",), 70),
    "study": Part("gpu_parts.py", ("study",), 300, needs_ray=True),
    "stream": Part("stream.py", ("--repeats", "1"), 180, needs_ray=True),
}
"""Parts in the order of their runs. Those that do not need Ray fit into `MINUTES`, even if all time out."""

MINUTES = 9.0
"""Default of --minutes, to which the limits of the parts refer. More minutes raise all limits."""


@dataclass(frozen=True)
class Claim:
    """Expectation of docs/performance.md, and its condition on the figures by part.

    If a figure is missing, the expectation is not measured.
    """

    text: str
    holds: Callable[[Mapping[str, Figures]], bool]


def _within_bounds(part: str, name: str) -> Callable[[Mapping[str, Figures]], bool]:
    return lambda figures: not figures[part][name]["violations"]


def _methods_within_bounds(figures: Mapping[str, Figures]) -> bool:
    by_method = {name: each for name, each in figures["methods"].items() if name != "device"}
    return not any(each["violations"] for each in by_method.values())


def _speed(figures: Mapping[str, Figures], precision: str) -> float:
    """Return the steps per second of one process."""
    return float(figures["speed"][precision]["steps_per_second"])


def _packed_rate(figures: Mapping[str, Figures], num_processes: int) -> float:
    """Return the total steps per second of processes in bf16, or 0 if so many do not fit."""
    packed = figures["packing"]["bf16"][str(num_processes)]
    return 0.0 if "does not fit" in packed else float(packed["steps_per_second"])


def _recovers_from_lack_of_memory(figures: Mapping[str, Figures]) -> bool:
    found = figures["out-of-memory"]
    return bool(found["recognized"] and found["succeeded"])


def _counted_memory(figures: Mapping[str, Figures]) -> bool:
    """Return True if the counted memory of a step is close to the allocated one, in each precision."""
    memory = figures["memory"]
    pairs = [memory[precision] for precision in ("fp32", "tf32", "bf16")]
    return all(abs(pair["counted"] - pair["allocated"]) < 0.25 * pair["allocated"] for pair in pairs)


BATCH_SIZE = 4  # images per step of the part `speed`


def _stream_keeps_up(figures: Mapping[str, Figures]) -> bool:
    """Return True if Ray Data prepares at least as many images as the fastest precision trains on."""
    image_rates: list[float] = []
    for rounds in figures["stream"]["rounds"]:
        image_rates += [each["rate"] for each in rounds if each["kind"] == "ray"]
    step_rate = max(_speed(figures, precision) for precision in ("fp32", "tf32", "bf16"))
    return bool(max(image_rates) >= BATCH_SIZE * step_rate)


def _study_shares_gpu(figures: Mapping[str, Figures]) -> bool:
    """Return True if the study succeeded, and runs had less than a whole GPU."""
    study = figures["study"]
    return study["status"] == 0 and 0 < min(study["gpu_shares"], default=0) < 1


CLAIMS = (
    *(
        Claim(f"mini in {precision} is within the bounds", _within_bounds("parity", precision))
        for precision in ("fp64", "fp32", "tf32", "bf16")
    ),
    *(
        Claim(f"ViT-B/16 in {precision} is within the bounds", _within_bounds("parity-vit", precision))
        for precision in ("fp32", "tf32", "bf16")
    ),
    Claim(
        "each method in fp32 is within the bounds",
        _methods_within_bounds,
    ),
    Claim("runs in two processes are equal bit for bit", lambda figures: figures["repeat"]["again"]),
    Claim(
        "a resumed run equals one that never stopped, bit for bit",
        lambda figures: figures["repeat"]["resumed"],
    ),
    Claim("TF32 is faster than fp32", lambda figures: _speed(figures, "tf32") > _speed(figures, "fp32")),
    Claim("bf16 is faster than fp32", lambda figures: _speed(figures, "bf16") > _speed(figures, "fp32")),
    Claim("the counted memory is within 25% of the allocated memory", _counted_memory),
    Claim(
        "a job leaves less than 16 MiB allocated",
        lambda figures: figures["memory"]["after a job"]["more allocated"] < 16 * 2**20,
    ),
    Claim(
        "a step that runs out of memory succeeds with a larger share of the GPU",
        _recovers_from_lack_of_memory,
    ),
    Claim("the image stream is as fast as the training steps", _stream_keeps_up),
    Claim(
        "four processes in bf16 do 1.5 times the steps of one",
        lambda figures: _packed_rate(figures, 4) >= 1.5 * _packed_rate(figures, 1),
    ),
    Claim("a study whose trials share the GPU finishes", _study_shares_gpu),
)


def verdict(claim: Claim, records: Records) -> str:
    """Return "holds", "does not hold" or "not measured"."""
    try:
        holds = claim.holds({name: record["figures"] for name, record in records.items()})
    except KeyError:
        return "not measured"
    return "holds" if holds else "does not hold"


def claims_table(records: Records) -> str:
    """Return a Markdown table of every expectation and its verdict."""
    rows = [(claim.text, verdict(claim, records)) for claim in CLAIMS]
    return table(("expectation", "verdict"), rows)


def last_line(records: Records) -> str:
    """Return one line with the number of expectations that hold, and the names of those that do not."""
    texts: dict[str, list[str]] = {"holds": [], "does not hold": [], "not measured": []}
    for claim in CLAIMS:
        texts[verdict(claim, records)].append(claim.text)
    broken = texts["does not hold"]
    named = f" ({'; '.join(broken)})" if broken else ""
    return (
        f"Expectations: {len(texts['holds'])} hold, {len(broken)} do not hold{named}, "
        f"{len(texts['not measured'])} not measured."
    )


def read_results(path: Path) -> dict[str, dict[str, Any]]:
    """Return the records of each GPU in a file. A missing or corrupt file has none."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def measured(path: Path, gpu: str) -> dict[str, Record]:
    """Return the successful records of this GPU with these versions."""
    found = {}
    for name, record in read_results(path).get(gpu, {}).items():
        with suppress(KeyError, TypeError):  # a corrupt record counts as missing
            if name in PARTS and not record["failed"]:
                found[name] = record
    return found


def measure(
    path: Path, gpu: str, wanted: Sequence[str], seconds: float, run: Callable[[str, float], Record]
) -> dict[str, Record]:
    """Run the missing parts, as long as their time limits fit into what is left of `seconds`.

    Args:
        path: File of the records. Each record is added before the next part starts.
        gpu: Name of the GPU and versions. Other GPUs have records of their own.
        wanted: Names of the parts.
        seconds: Time limit of all parts together. With more than `MINUTES`, each part gets more time, too.
        run: Function that runs a part within a number of seconds.

    Returns:
        The successful records of this GPU, including those of earlier calls.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + seconds
    factor = max(1.0, seconds / (60 * MINUTES))
    for name in wanted:
        if name in measured(path, gpu):
            continue
        limit = factor * PARTS[name].limit_seconds
        time_left = deadline - time.monotonic()
        # A part with missing packages needs no time: its record says what is missing.
        if limit > time_left and not missing_packages(PARTS[name]):
            print(f"{name}: not run, because its limit of {limit:.0f} s exceeds the time left", flush=True)
            continue
        record = run(name, limit)
        results = read_results(path)
        results.setdefault(gpu, {})[name] = dict(record)
        write_atomically(path, json.dumps(results, indent=1).encode())
        print(f"{name}: {record['failed'] or 'measured'}", flush=True)
    return measured(path, gpu)


def is_installed(package: str) -> bool:
    """Return True if a package can be found, without importing it."""
    try:
        return find_spec(package) is not None
    except ImportError:
        return False


def missing_packages(part: Part) -> list[str]:
    """Return the packages that a part needs and that are not installed."""
    needed = ("ray", "optuna") if part.needs_ray else ()
    return [package for package in needed if not is_installed(package)]


def run_part(name: str, seconds: float, *, folder: Path, rehearse: bool = False) -> Record:
    """Run a part. Return its record."""
    part = PARTS[name]
    missing = missing_packages(part)
    if missing:
        return {"failed": f"needs {' and '.join(missing)}, not installed", "seconds": 0.0, "figures": {}}
    figures_path = folder / f"{name}.figures.json"
    figures_path.unlink(missing_ok=True)
    command = [sys.executable, str(HERE / part.script), *part.arguments, "--json", str(figures_path)]
    if rehearse:
        command.append("--rehearse" if part.script == "gpu_parts.py" else "--quick")
    began = time.monotonic()
    status = _run(command, seconds)
    record: dict[str, Any] = {"failed": "", "seconds": round(time.monotonic() - began, 1), "figures": {}}
    if status is None:
        record["failed"] = f"timed out after {seconds:.0f} s"
    elif status < 0:
        record["failed"] = f"crashed with signal {signal.Signals(-status).name}"
    elif status or not figures_path.is_file():
        record["failed"] = f"failed with exit status {status}"
    else:
        record["figures"] = json.loads(figures_path.read_text("utf-8"))
    figures_path.unlink(missing_ok=True)
    return record


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


def block(gpu: str, records: Records) -> str:
    """Return the Markdown block for the docs."""
    parts = [f"Measured on {gpu}, with `make gpu`.", claims_table(records)]
    if "speed" in records:
        parts.append(_speed_table(records["speed"]["figures"]))
    if "packing" in records:
        parts.append(_packing_table(records["packing"]["figures"]))
    return "\n\n".join(parts)


def _speed_table(figures: Figures) -> str:
    head = ("ViT-B/16, 32 classes, batch 4", "steps per second (median)", "lowest", "highest", "SM MHz", "°C")
    rows = []
    for precision, speed in figures.items():
        if precision != "device":
            rates = [speed[name] for name in ("steps_per_second", "lowest", "highest")]
            rows.append((precision, *rates, *_sensors(speed, "clocks.sm", "temperature.gpu")))
    return table(head, rows)


def _packing_table(figures: Figures) -> str:
    head = ("precision", "processes", "total steps per second (median)", "lowest", "highest", "GPU busy %")
    rows: list[tuple[Any, ...]] = []
    for precision, by_count in figures.items():
        if precision == "device":
            continue
        for count, packed in by_count.items():
            if "does not fit" in packed:
                rows.append((precision, count, "does not fit", "-", "-", "-"))
            else:
                rates = [packed[name] for name in ("steps_per_second", "lowest", "highest")]
                rows.append((precision, count, *rates, *_sensors(packed, "utilization.gpu")))
    return table(head, rows)


def _sensors(figures: Figures, *names: str) -> list[Any]:
    """Return the medians of sensors, "-" if they could not be read."""
    readings = figures["sensors"]
    return [readings[name][1] if name in readings else "-" for name in names]


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--minutes", type=float, default=MINUTES, help="time limit of all parts together")
    parser.add_argument("--out", type=Path, default=Path("out/gpu"), help=f"folder of {RESULTS}")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS), help="parts to run")
    parser.add_argument("--docs", type=Path, help="document whose block `gpu` is replaced")
    parser.add_argument("--rehearse", action="store_true", help="check this script on a CPU")
    args = parser.parse_args()
    import torch

    if args.rehearse:
        gpu = f"a CPU, rehearsed; {describe(1)}"
    elif torch.cuda.is_available():
        gpu = f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}; {describe(1)}"
    else:
        print("No GPU is available. Nothing was measured.", file=sys.stderr)
        return 2
    records = measure(
        args.out / RESULTS,
        gpu,
        args.parts,
        60 * args.minutes,
        lambda name, seconds: run_part(name, seconds, folder=args.out, rehearse=args.rehearse),
    )
    publish(block(gpu, records), None if args.rehearse else args.docs, "gpu")
    print(f"\n{last_line(records)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
