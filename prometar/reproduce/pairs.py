"""The methods of a grid in pairs, from its records alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from prometar.comparison.page import page
from prometar.comparison.paired import EVERY_SEED, Comparison, compare, default_reference
from prometar.comparison.render import as_csv
from prometar.io.files import write_atomically
from prometar.reproduce.figures import Scores, scores_of, with_harmonic
from prometar.reproduce.grid import Asked, Record


def pair_methods(asked: Asked, records: Sequence[Record], *, title: str = "") -> Comparison:
    """Each method minus the reference, over the data sets of the table's average: without the source."""
    idle = {record.entry.config.method for record in records if not record.entry.trains}
    results: dict[str, dict[str, Scores]] = {}
    for method in asked.configs:
        found = {d: with_harmonic(scores_of(asked, records, d, method)) for d in asked.datasets}
        results[method] = {
            dataset: _for_every_seed(scores) if method in idle else scores
            for dataset, scores in found.items()
            if scores
        }
    reference = asked.compared_to or default_reference(list(asked.configs))
    return compare(results, reference=reference, columns=asked.protocol.columns(asked.shots), title=title)


def _for_every_seed(scores: Scores) -> Scores:
    """Of what learns nothing: its one run is that of every seed."""
    return {column: {EVERY_SEED: value} for column, found in scores.items() for value in found.values()}


def write_pairs(found: Comparison, folder: Path) -> list[Path]:
    """FOLDER/pairs.csv and pairs.html; what an earlier request left there goes where nothing is paired."""
    made = {"pairs.csv": as_csv(found), "pairs.html": page(found)} if found.differences else {}
    for name in {"pairs.csv", "pairs.html"} - made.keys():
        (folder / name).unlink(missing_ok=True)
    for name, text in made.items():
        write_atomically(folder / name, text.encode())
    return [folder / name for name in made]
