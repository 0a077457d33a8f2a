"""How searches like this one have done on data sets that nobody had looked at."""

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from tune.reporting.formatting import signed
from tune.results.reader import Records
from tune.space.portfolio import SIZE


@dataclass(frozen=True)
class TrackRecord:
    """Searches of `benchmarks/claim.py`, at the defaults of `tune/search.py`.

    Args:
        searches: How many. sets: On how many data sets.
        mean: Of what was chosen minus released, in points of H on test images. low, high: Its interval of
            95 % over data sets.
        worse: How many chose settings that test more than `by` points worse.
        kept: How many kept the released settings.
        alone: What the portfolio's best setting gained, taken without a search, in points of H.
    """

    searches: int
    sets: int
    mean: float
    low: float
    high: float
    worse: int
    by: float
    kept: int
    alone: float


@cache
def shipped() -> TrackRecord:
    """The one that comes with the package."""
    return TrackRecord(**json.loads(files("tune.reporting").joinpath("track_record.json").read_text("utf-8")))


def track_record(records: Records) -> str:
    """A sentence on searches that were asked the same of one other data set; "" where none were."""
    asked, found = records.asked, shipped()
    claimed = {
        "objective": "drift", "method": "prometar", "backbone": "mini", "sampler": "tpe",
        "pruner": "hopeless", "trials": 24, "epochs": 5, "shots": 16, "top": 3,
        "goals": ("objective",), "bounds": (), "max_hours": None, "val_per_class": 20,
    }  # fmt: skip
    alike = all(getattr(asked, key) == value for key, value in claimed.items())
    origins = [trial.origin for trial in records.trials]
    own = records.learned is not None or not {"enqueued", "warm start"}.isdisjoint(origins)
    knew = origins.count("portfolio") == SIZE and not own
    whole = (len(asked.seeds), len(asked.top_seeds)) == (1, 2) and len(records.trials) >= asked.trials
    if not alike or not whole or not knew or records.study.space.name != "recipe" or len(asked.datasets) > 1:
        return ""
    return (
        f"Of {found.searches} such searches on {found.sets} rendered data sets kept for this, chosen minus "
        f"released was {signed(found.mean)} points of H on average ({signed(found.low)} to "
        f"{signed(found.high)} over data sets); {found.worse} chose settings that test more than "
        f"{found.by:g} points worse, {found.kept} kept the released ones. "
        f"The portfolio's best setting, taken without a search, gained {signed(found.alone)}."
    )
