"""The embedded suite: what frozen and unregularized prompts do on each data set, and a picture of it.

    python benchmarks/suite.py --claim [--datasets NAME ...] [--seeds 1 2 3] [--epochs 5] [--out DIR]
        [--jobs 2] [--quick] [--tables] [--doc docs/embedded.md] [--sheet docs/embedded.webp]

The data sets were made and chosen by these figures alone, so this is the one script that opens all of them
before the last table. A run leaves a record in --out and is not made again.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from common import describe, parser_of, publish, require_development, table
from PIL import Image
from records import SCORES, Record, Wanted, mean_and_interval, read_all, run_all, run_options, values_of

from prometar.bundled.suite import SUITE
from prometar.config.settings import configure

METHODS = ("zero-shot", "ivlp")
SHOWN = 10  # classes of a data set in the picture, two images each


def wanted(name: str, method: str, seed: int, epochs: int) -> Wanted:
    """The run of a method on a data set."""
    settings = {"data.name": name, "train.seed": seed, "train.epochs": epochs}
    return Wanted(f"{name}-{method}-seed{seed}", configure(method, settings))


def suite_table(records: Mapping[str, Record], runs: Mapping[tuple[str, str, int], Wanted]) -> str:
    """A data set a row: what it is, then base, new and H of each method."""
    rows = []
    for name in dict.fromkeys(name for name, _, _ in runs):
        row = SUITE[name]
        cells: list[str] = []
        for method in METHODS:
            ours = {
                s: records[r.name]
                for (n, m, s), r in runs.items()
                if (n, m) == (name, method) and r.name in records
            }
            texts = (values_of(ours, key) for key in SCORES)
            cells += [mean_and_interval(v[:1] if method == "zero-shot" else v) for v in texts]
            if method != "zero-shot":
                cells.append(f"{np.mean(values_of(ours, 'seconds') or [np.nan]):.0f}")
        rows.append((name, row.purpose, len(row.classnames), *cells))
    scores = [f"{method} {score}" for method in METHODS for score in SCORES]
    return table(("data set", "purpose", "classes", *scores, "s a run"), rows)


def contact_sheet(names: Sequence[str], path: Path) -> None:
    """A picture: a data set a row, two training images of each of up to `SHOWN` classes."""
    rows = []
    for name in names:
        row = SUITE[name]
        some = np.linspace(0, len(row.classnames) - 1, SHOWN).round().astype(int)
        images = [row.render(row.classnames[k], seed) for k in some for seed in (0, 1)]
        rows.append(np.concatenate(images, axis=1))
    Image.fromarray(np.concatenate(rows)).save(path, quality=55, method=6)


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--datasets", nargs="+", choices=SUITE, default=list(SUITE), metavar="NAME")
    parser.add_argument("--claim", action="store_true", help="open the data sets kept for the last table")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--epochs", type=int, default=5)
    run_options(parser, out="out/suite")
    parser.add_argument("--quick", action="store_true", help="one seed, one epoch, into --out's folder quick")
    parser.add_argument("--tables", action="store_true", help="run nothing: the table of what is there")
    parser.add_argument("--doc", type=Path, help="a document whose block `suite` gets the table")
    parser.add_argument("--sheet", type=Path, help="a picture of the data sets, and nothing else")
    args = parser.parse_args()
    if args.sheet:
        contact_sheet(args.datasets, args.sheet)
        return
    require_development(args.datasets, claim=args.claim)
    seeds, epochs, out = ([1], 1, args.out / "quick") if args.quick else (args.seeds, args.epochs, args.out)
    runs = {
        (name, method, seed): wanted(name, method, seed, epochs)
        for seed in seeds
        for name in args.datasets
        for method in METHODS
        if method != "zero-shot" or seed == seeds[0]
    }
    asked = list(runs.values())
    records = read_all(asked, out) if args.tables else run_all(asked, out, jobs=args.jobs, claim=args.claim)
    text = (
        f"{describe(threads=1)}. Zero-shot: the frozen towers. IVLP: {epochs} epochs of 16 shots, mean and "
        f"95 % t-interval over seeds {', '.join(map(str, seeds))}. Accuracy in percent on test images."
    )
    publish(f"{text}\n\n{suite_table(records, runs)}", args.doc, "suite")


if __name__ == "__main__":
    main()
