"""Shared code of the benchmark scripts: arguments, machine description, subprocesses, tables and JSON.

A script lists the configurations ("sides") to compare. `in_turn` measures each side in a fresh process and
alternates between sides, so that gradual changes of the machine's speed affect all sides equally:

    def main() -> None:
        args = arguments(__doc__)
        if args.side:  # in the process of a side
            return print_figures(measure(**args.side))
        rounds = in_turn([{"side": "plain"}, {"side": "ours"}], args)
        plain, ours = [median_of(figures, "seconds") for figures in rounds]
        print(describe(args.threads))
        print(table(("plain s", "ours s", "ratio"), [(plain, ours, plain / ours)]))
        write_json(args, rounds)
"""

import argparse
import json
import os
import platform
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

from prometar.cli.console import format_count
from prometar.io.files import write_atomically
from prometar.metrics import t_interval

ROOT = Path(__file__).resolve().parent.parent
BACKBONE = "ViT-B-16-quickgelu"

Figures = dict[str, Any]
"""Measurements of one run of a side, by name. JSON values."""

DEVELOPMENT = ("textures", "cells", "suite:flags", "suite:leaves")
"""Datasets for development."""
CLOSED = ("suite:shapes", "suite:fabrics", "suite:plots", "suite:terrain", "suite:sketches")
"""Datasets for final results. Version 0.1 was tested on them too. Version 0.2 was not developed on them."""
WORSE = -0.5
"""A selection is worse if its difference in H from the default settings is below this value."""

_PREFIX = "FIGURES "


def parser_of(doc: str | None) -> argparse.ArgumentParser:
    """Return a parser whose help is a script's docstring, with its line breaks."""
    return argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)


def arguments(
    doc: str | None, add: Callable[[argparse.ArgumentParser], Any] | None = None, *, repeats: int | None = 5
) -> argparse.Namespace:
    """Parse --repeats, --threads, --quick, --json and the options that `add` adds.

    `repeats` is the default of --repeats. None: the script chooses it.

    `in_turn` passes the side to measure to each process as `--side`. It is None in the first process.
    """
    parser = parser_of(doc)
    parser.add_argument("--repeats", type=int, default=repeats, help="rounds, whose median is reported")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads of torch")
    parser.add_argument("--quick", action="store_true", help="small sizes, to check that the script runs")
    parser.add_argument("--json", type=Path, help="file for all measurements")
    parser.add_argument("--side", type=json.loads, help=argparse.SUPPRESS)
    if add:
        add(parser)
    return parser.parse_args()


def machine() -> dict[str, Any]:
    """Return CPU, memory and the versions that affect speed."""
    packages = ("torch", "ray", "optuna", "numpy", "pillow", "pyarrow")
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_gib": round(gib),
        "system": platform.system(),
        "python": platform.python_version(),
        **{name: _version(name) for name in packages},
    }


def _version(package: str) -> str:
    """Return the version of a package, or "missing". Some scripts need neither Ray nor Optuna."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def describe(threads: int, dtype: str = "fp32", where: Figures | None = None) -> str:
    """Describe the machine and setup of a measurement in one line.

    Args:
        threads: CPU threads of torch.
        dtype: Data type of the computation, or another remark about it.
        where: Result of `machine` on the machine to describe. None: this machine.
    """
    described = where or machine()
    installed = [name for name in ("torch", "ray", "optuna") if described[name] != "missing"]
    versions = ", ".join(f"{name} {described[name]}" for name in installed)
    hardware = f"{described['cpu']}, {described['cores']} cores, {described['memory_gib']} GiB"
    return f"{hardware}, {format_count(threads, 'thread')}, {dtype}, {versions}"


def in_turn(
    sides: Sequence[Figures], args: argparse.Namespace, *, killed: Figures | None = None
) -> list[list[Figures]]:
    """Return the figures of each side, one run per round. Each run is this script in a new process.

    Every second round is in reverse order, so that no side is always first. `killed` are the figures of a
    side that the system kills because of its memory. If it is None, such a kill ends the script.
    """
    results: list[list[Figures]] = [[] for _ in sides]
    for turn in range(args.repeats):
        order = range(len(sides)) if turn % 2 == 0 else reversed(range(len(sides)))
        for k in order:
            results[k].append(_run(sides[k], args.threads, killed))
    return results


def _run(side: Figures, threads: int, killed: Figures | None) -> Figures:
    command = [sys.executable, *sys.argv, "--side", json.dumps(side)]
    env = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True)
    if done.returncode == -signal.SIGKILL and killed is not None:
        return side | killed
    found = [line for line in done.stdout.splitlines() if line.startswith(_PREFIX)]
    if done.returncode or not found:
        raise SystemExit(f"{side} failed with status {done.returncode}. Its output:\n{done.stdout}")
    figures: Figures = json.loads(found[-1].removeprefix(_PREFIX))
    return side | figures


def run_python(*words: object, capture: bool = True) -> None:
    """Run a Python script or module of this project, in which datasets such as `suite:flags` exist.

    Args:
        words: Words of the command after `python`.
        capture: True to show the output only if the command fails.

    Raises:
        SystemExit: the command fails.
    """
    folders = [str(ROOT / "benchmarks")]
    if os.environ.get("PYTHONPATH"):
        folders.append(os.environ["PYTHONPATH"])
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(folders)},
        stdout=subprocess.PIPE if capture else None,
        stderr=subprocess.STDOUT if capture else None,
        text=True,
    )
    if done.returncode:
        command = " ".join(map(str, words))
        output = f":\n{done.stdout[-2000:]}" if capture else "."
        raise SystemExit(f"{command} failed with status {done.returncode}{output}")


def print_figures(figures: Figures) -> None:
    """Print the figures of a side for `in_turn`, which reads them from this process's stdout."""
    print(_PREFIX + json.dumps(figures), flush=True)


def median_of(rounds: Sequence[Figures], name: str) -> float:
    """Return the median over a side's rounds. If a round has a list of values, each value counts."""
    numbers: list[float] = []
    for figures in rounds:
        value = figures[name]
        if isinstance(value, list):
            numbers += value
        else:
            numbers.append(value)
    return float(median(numbers))


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a Markdown table. Floats have three significant digits.

    Example:
        >>> print(table(("n", "seconds"), [(24, 0.12345)]))
        | n | seconds |
        |---|---|
        | 24 | 0.123 |
    """
    lines = [head, *rows]
    texts = [f"| {' | '.join(map(_cell, line))} |" for line in lines]
    return "\n".join([texts[0], "|" + "---|" * len(head), *texts[1:]])


def _cell(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def mean_and_interval(values: Sequence[float]) -> str:
    """Format a mean with its 95% t-interval.

    Example:
        >>> mean_and_interval([1.0, 2.0, 3.0])
        '+2.00 [-0.48, +4.48]'
    """
    interval = t_interval(values)
    if interval is None:
        return f"{values[0]:+.2f}"
    return f"{interval.mean:+.2f} [{interval.low:+.2f}, {interval.high:+.2f}]"


def publish(text: str, doc: Path | None, block: str) -> None:
    """Print a result, and write it between `<!-- BLOCK -->` and `<!-- end -->` of the document."""
    print(f"\n{text}")
    if doc is not None:
        old = doc.read_text("utf-8")
        pattern = rf"(<!-- {block} -->\n).*?(<!-- end -->)"
        new, count = re.subn(pattern, lambda m: f"{m[1]}\n{text}\n\n{m[2]}", old, flags=re.DOTALL)
        if count != 1:
            raise SystemExit(
                f"error: {doc} must have one block <!-- {block} --> ... <!-- end -->, found {count}"
            )
        write_atomically(doc, new.encode())


def write_json(args: argparse.Namespace, rounds: Any, **more: Any) -> None:
    """Write all figures, the machine and the arguments to --json, if it is given."""
    if args.json:
        options = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items() if k != "side"}
        content = {"machine": machine(), "arguments": options, "rounds": rounds, **more}
        args.json.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
