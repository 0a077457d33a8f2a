"""Shared code of the benchmark scripts: arguments, machine description, subprocesses, tables and JSON.

A script lists the configurations ("sides") to compare. `in_turn` measures each side in a fresh process and
alternates between sides, so that gradual changes of the machine's speed affect all sides equally.

Example:

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
"""Selected settings are worse if their H minus that of the default settings is below this value, in points.

H is the harmonic mean of base and new accuracy.
"""

_PREFIX = "FIGURES "
"""Start of the line with the figures in the output of a side's process."""


def parser_of(doc: str | None) -> argparse.ArgumentParser:
    """Return a parser whose help is a script's docstring, with its line breaks."""
    return argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)


def arguments(
    doc: str | None, add: Callable[[argparse.ArgumentParser], Any] | None = None, *, repeats: int | None = 5
) -> argparse.Namespace:
    """Parse --repeats, --threads, --quick, --json and the options of a script.

    Args:
        doc: Docstring of the script.
        add: Function that adds the options of the script to a parser.
        repeats: Default of --repeats. None: the script chooses it.

    Returns:
        The options. In a process that `in_turn` has started, `side` is the side to measure. In the first
        process, it is None.
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
    """Return the model of the CPU, or at least its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # only Linux has this file
        lines = []
    for line in lines:
        if line.startswith("model name"):
            _, _, model = line.partition(":")
            return model.strip()
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
    """Measure each side --repeats times. Each run is this script in a new process.

    Every second round is in reverse order, so that no side is always first.

    Args:
        sides: JSON values that the process of a side receives as `args.side`.
        args: Result of `arguments`.
        killed: Figures of a side that the system kills because of its memory. None: such a kill is an error.

    Returns:
        The figures of each side, one entry per round. They include the values of the side itself.

    Raises:
        SystemExit: a process fails or prints no figures.
    """
    results: list[list[Figures]] = [[] for _ in sides]
    for turn in range(args.repeats):
        order = list(range(len(sides)))
        if turn % 2 == 1:
            order.reverse()
        for number in order:
            results[number].append(_run(sides[number], args.threads, killed))
    return results


def _run(side: Figures, threads: int, killed: Figures | None) -> Figures:
    """Measure a side once."""
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
    """Return the median of a figure over a side's rounds. Each value of a list counts as one value."""
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
    separator = "|" + "---|" * len(head)
    return "\n".join([_line(head), separator, *map(_line, rows)])


def _line(values: Sequence[Any]) -> str:
    """Return a line of a table."""
    cells = " | ".join(_cell(value) for value in values)
    return f"| {cells} |"


def _cell(value: Any) -> str:
    """Return a value as text. Floats have three significant digits, or all digits before the point."""
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
    """Print a result. If a document is given, write it there between `<!-- BLOCK -->` and `<!-- end -->`.

    Raises:
        SystemExit: the document does not have exactly one such block.
    """
    print(f"\n{text}")
    if doc is not None:
        old = doc.read_text("utf-8")
        pattern = rf"(<!-- {block} -->\n).*?(<!-- end -->)"
        # A function, because backslashes in a replacement string would be escapes.
        new, count = re.subn(pattern, lambda match: f"{match[1]}\n{text}\n\n{match[2]}", old, flags=re.DOTALL)
        if count != 1:
            raise SystemExit(
                f"error: {doc} must have one block <!-- {block} --> ... <!-- end -->, found {count}"
            )
        write_atomically(doc, new.encode())


def write_json(args: argparse.Namespace, rounds: Any, **more: Any) -> None:
    """Write all figures, the machine and the arguments to --json, if it is given.

    Args:
        args: Result of `arguments`.
        rounds: Figures to write.
        more: Other JSON values to write, by name.
    """
    if args.json:
        options = dict(vars(args))
        del options["side"]  # always None in the first process
        for name, value in options.items():
            if isinstance(value, Path):
                options[name] = str(value)
        content = {"machine": machine(), "arguments": options, "rounds": rounds, **more}
        args.json.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
