"""Two studies side by side: what was asked, what was found, and the paired difference between them."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup
from rich.console import Console

from prometar.config.settings import flatten
from prometar.data.datasets.catalog import place_beside
from prometar.errors import UserError
from prometar.io.files import resolved, write_atomically
from prometar.io.pages import mark, require_page_target
from prometar.metrics import Interval, over_all, t_interval
from tune.reporting.formatting import NONE, bounds, hours, interval, listed, number, setting, shown
from tune.reporting.html import page
from tune.reporting.plots.finals import Row, forest
from tune.reporting.statements import caveats
from tune.reporting.tables import figures_of, round_rows, settings_rows
from tune.reporting.terminal import print_table
from tune.results.costs import costs
from tune.results.reader import Records, paired, read_records
from tune.results.schema import Run

KIND = "report --compare"
"""Of page, for `prometar.io.pages`."""

# What must be alike for two searches' figures to stand beside each other.
_SEARCH = ("datasets", "data_root", "objective", "shots", "seeds", "folds", "val_per_class")


@dataclass(frozen=True)
class Line:
    """A line of a side-by-side table."""

    name: str
    a: str
    b: str

    @property
    def differs(self) -> bool:
        return self.a != self.b


@dataclass(frozen=True)
class Pair:
    """A data set's A − B over the seeds that both finished, or why there is none."""

    dataset: str
    a: str
    b: str
    singles: tuple[float, ...]
    difference: Interval | None
    reason: str


@dataclass(frozen=True)
class Comparison:
    """Everything that both ways of showing it need."""

    a: Records
    b: Records
    names: tuple[str, str]
    pairs: list[Pair]
    reason: str

    @property
    def overall(self) -> Interval | None:
        """The one data set's difference; over several, the interval of their mean differences."""
        return over_all([pair.difference for pair in self.pairs])

    @property
    def asked(self) -> list[Line]:
        """Everything that either was asked, what differs first; the ranges of the spaces too."""
        return _beside(_flat_asked(self.a), _flat_asked(self.b))

    @property
    def settings(self) -> list[Line]:
        """The best ones, what differs first."""
        keys = dict.fromkeys((*self.a.ranges, *self.b.ranges))
        return _beside(_best(self.a, keys), _best(self.b, keys))

    @property
    def search(self) -> list[Line]:
        return [
            self._line("score", lambda r: r.score),
            self._line("trials finished", lambda r: f"{len(r.complete)} of {len(r.trials)}"),
            self._line("released settings", lambda r: number(r.released.score) if r.released else NONE),
            self._line(
                "best settings",
                lambda r: f"{number(r.chosen.score)} (trial {r.chosen.number})" if r.chosen else NONE,
            ),
        ]

    @property
    def search_differs(self) -> list[str]:
        """What keeps the searches' own figures from being compared."""
        a, b = self.a.asked, self.b.asked
        keys = [key for key in _SEARCH if getattr(a, key) != getattr(b, key)]
        other = any(_unlike(name, self.a, self.b) for name in a.datasets if name in b.datasets)
        return [*keys, "images"] if other and "data_root" not in keys else keys

    @property
    def rounds(self) -> list[Line]:
        if not (self.a.lastround or self.b.lastround):
            return []
        return [
            self._line(
                "released, fresh seeds",
                lambda r: next((row.spread for row in round_rows(r) if row.of.reference), NONE),
            ),
            self._line(
                "chosen, fresh seeds",
                lambda r: next((row.spread for row in round_rows(r) if row.chosen), NONE),
            ),
        ]

    @property
    def costs(self) -> list[Line]:
        return [
            self._line("hours of runs", lambda r: hours(costs(r)[-1].seconds / 3600)),
            self._line("CPU hours", lambda r: hours(costs(r)[-1].cpu_hours)),
            self._line("GPU hours", lambda r: hours(costs(r)[-1].gpu_hours)),
        ]

    def _line(self, name: str, of: Callable[[Records], str]) -> Line:
        return Line(name, of(self.a), of(self.b))

    @property
    def caveats(self) -> list[str]:
        """What the figures do not show, of both studies and of each alone."""
        a, b = caveats(self.a), caveats(self.b)
        alone = [(name, line) for name, mine, other in zip(self.names, (a, b), (b, a), strict=True)
                 for line in mine if line not in other]  # fmt: skip
        return [*(line for line in a if line in b), *(f"{name}: {line}" for name, line in alone)]

    @property
    def verdict(self) -> str:
        """What the comparison shows, in a sentence or two."""
        leaking = [name for name, r in zip(self.names, (self.a, self.b), strict=True) if r.leaking]
        warning = f"Leaking: the search of {listed(leaking)} read the test images. " if leaking else ""
        return warning + self._verdict

    @property
    def _verdict(self) -> str:
        if self.reason:
            return f"The two can't be compared on test images: {self.reason}."
        first, second = self.names
        if not any(single for pair in self.pairs for single in pair.singles):
            return f"The best of {first} and the best of {second} are equal in every paired run."
        if self.overall is None:
            words = [f"{p.dataset} {interval(p.difference, 'seed')}" for p in self.pairs if p.difference]
            return f"Best of {first} − best of {second}, only one data set has an interval: {listed(words)}."
        text = interval(self.overall, "data set" if len(self.pairs) > 1 else "paired seed")
        word = shown(self.overall, first=f"the best of {first}", second=f"the best of {second}")
        return f"{word[:1].upper()}{word[1:]}: best of {first} − best of {second}, H on test images, {text}."


def compare(a: Path, b: Path) -> Comparison:
    """Two studies' records, compared.

    Raises:
        UserError: a folder holds no study, or a damaged record; or both are one study.
    """
    if resolved(a) == resolved(b):
        raise UserError(f"--compare takes two studies, and both are {a}")
    first, second = read_records(a), read_records(b)
    names = _names(a, b)
    pairs, reason = _pairs(first, second, names)
    return Comparison(first, second, names, pairs, reason)


def build_comparison(a: Path, b: Path, to: Path) -> Comparison:
    """Write the comparison as one self-contained HTML file. Returns it.

    Raises:
        UserError: as `compare`; or `to` is there, and no earlier comparison.
        StorageError: `to` cannot be written.
    """
    require_page_target(to, KIND)
    found = compare(a, b)
    rows = [Row(pair.dataset, pair.difference, pair.singles) for pair in found.pairs]
    if len(rows) > 1:
        rows.append(Row("over data sets", found.overall, total=True))
    plot = forest(rows, title=f"best of {found.names[0]} − best of {found.names[1]}, points of H")
    html = page(
        "compare.html.jinja", mark=Markup(mark(KIND)), found=found, forest=Markup(plot) if plot else None
    )
    write_atomically(to, html.encode("utf-8"))
    return found


def print_comparison(console: Console, found: Comparison) -> None:
    """A short form for the terminal."""
    differing = [line for line in found.asked if line.differs]
    if not differing:
        console.print("asked for the same")
    for title, lines in (
        ("asked", differing),
        ("best settings", found.settings),
        ("search", found.search),
        ("last round", found.rounds),
        ("cost", found.costs),
    ):
        rows = [(line.name, line.a, line.b) for line in lines]
        print_table(console, title, ("", *found.names), rows)
    if found.search_differs:
        console.print(
            f"the searches' own figures do not compare: {listed(found.search_differs)} differ", markup=False
        )
    print_table(
        console,
        "final test, H (mean ± sd)",
        ("", *found.names, "difference (95 % interval)"),
        [(pair.dataset, pair.a, pair.b, _measured(pair)) for pair in found.pairs],
    )
    console.print(found.verdict, markup=False, highlight=False)
    for line in found.caveats:
        console.print(f"- {line}", markup=False, highlight=False)


def _measured(pair: Pair) -> str:
    if not pair.difference:
        return pair.reason
    word = shown(pair.difference, first="the first", second="the second")
    return f"{bounds(pair.difference)}, n = {pair.difference.n}: {word}"


def _names(a: Path, b: Path) -> tuple[str, str]:
    """The folders' names; with as much of the way to them as tells them apart."""
    ours, theirs = a.resolve().parts, b.resolve().parts
    length = next(n for n in range(1, max(len(ours), len(theirs)) + 1) if ours[-n:] != theirs[-n:])
    return "/".join(ours[-length:]), "/".join(theirs[-length:])


_ASKED_BESIDES = {"method", "data.name", "data.root", "data.shots", "backbone.name", "backbone.pretrained"}


def _flat_asked(records: Records) -> dict[str, str]:
    asked = {key: _shown(value) for key, value in vars(records.asked).items()}
    flat = flatten(records.study.config)
    asked |= {f"released {key}": _shown(flat[key]) for key in flat if key not in _ASKED_BESIDES}
    asked["space"] = records.study.space.name
    asked["learned from"] = str(records.learned or NONE)
    return asked | {f"range of {row.key}": row.range for row in settings_rows(records)}


def _shown(value: object) -> str:
    return ", ".join(map(setting, value)) if isinstance(value, list | tuple) else setting(value)


def _best(records: Records, keys: Iterable[str]) -> dict[str, str]:
    """Settings that were tested in the end, else those that lead; as released where none was searched."""
    best = records.finals.best if records.finals and not records.overtaken else records.chosen
    if best is None:
        return {}
    released = flatten(records.study.config)
    return {key: setting(best.settings.get(key, released.get(key))) for key in keys}


def _beside(left: Mapping[str, str], right: Mapping[str, str]) -> list[Line]:
    lines = [Line(key, left.get(key, NONE), right.get(key, NONE)) for key in {**left, **right}]
    return sorted(lines, key=lambda line: not line.differs)


def _pairs(a: Records, b: Records, names: tuple[str, str]) -> tuple[list[Pair], str]:
    """Each data set that both tested; and why none can be compared, where that is so."""
    named = dict(zip(names, (a, b), strict=True))
    missing = [name for name, r in named.items() if not r.finals or not r.finals.seeds]
    if missing:
        return [], f"{listed(missing)} {'has' if len(missing) == 1 else 'have'} no final test"
    if overtaken := [name for name, r in named.items() if r.overtaken]:
        return [], f"the final test of {listed(overtaken)} is of an earlier choice: the same command goes on"
    left, right = a.tests, b.tests
    both = [name for name in left if name in right]
    if not both:
        return [], f"one was tested on {listed(left)}, the other on {listed(right)}"
    if a.asked.shots != b.asked.shots:
        return [], "their shots differ, so a seed is not the same training images in both"
    pairs = [_pair(name, left[name].best, right[name].best, _unlike(name, a, b)) for name in both]
    if any(pair.difference for pair in pairs):
        return pairs, ""
    return pairs, listed(dict.fromkeys(pair.reason for pair in pairs))


def _unlike(name: str, a: Records, b: Records) -> str:
    """Why a seed of a data set is not the same images in both studies; "" where nothing says so."""
    splits, places = [], []
    for study in (a.study, b.study):
        splits.append(study.identity.get(f"split of {name}"))
        data = flatten(study.config)
        args = {key: value for key, value in data.items() if key.startswith("data.args.")}
        places.append(place_beside(name, data.get("data.root"), args))
    if all(splits) and splits[0] != splits[1]:
        return f"their splits of {name} differ"
    if places[0] != places[1]:
        return f"their {name} lies in {listed([place or 'no folder' for place in places])}"
    return ""


def _pair(name: str, ours: tuple[Run, ...], theirs: tuple[Run, ...], unlike: str) -> Pair:
    if unlike:
        return Pair(name, figures_of(ours), figures_of(theirs), (), None, unlike)
    singles = tuple(paired(ours, theirs).values())
    found = t_interval(singles)
    seeds, others = ([run.seed for run in runs] for runs in (ours, theirs))
    reason = ""
    if not set(seeds) & set(others):
        reason = f"their final seeds differ: {listed(seeds)}, and {listed(others)}"
    elif found is None:
        reason = "fewer than two seeds were finished by both"
    return Pair(name, figures_of(ours), figures_of(theirs), singles, found, reason)
