"""What can be wrong with a study, found before any worker starts; and on what exactly it is to run."""

from dataclasses import dataclass
from typing import Any

from prometar.clip.openclip import load_backbone
from prometar.data.datasets.catalog import open_dataset
from prometar.data.datasets.dataset import Dataset
from prometar.data.splits.objective import LEAKS, Problem
from prometar.io.custom import digest_of
from prometar.methods.smoke_test import smoke_test
from prometar.reproduce.published import published
from prometar.training.drift import drift_identity, foreign_to
from prometar.training.memory import Footprint
from tune.stages.budget import Budget, Steps, budget_of, problems, require_space, steps_of
from tune.study_spec import StudySpec

_DIGITS = 12  # of a digest, in what users read


@dataclass(frozen=True)
class Checked:
    """A study that can be run.

    Args:
        published: H that may stand beside ours, by data set. budget: What it trains at most.
        notes: What a user must be told of the search's images.
        identity: What must not change while a study goes on: the spec's own, and digests of the data
            sets' splits and of the backbone's weights, so that no study mixes figures of two.
        footprint: Sizes that determine a run's memory.
    """

    published: dict[str, float | None]
    notes: tuple[str, ...]
    identity: dict[str, Any]
    budget: Budget
    footprint: Footprint


def check(spec: StudySpec) -> Checked:
    """Try everything that a study names.

    Raises:
        UserError, WorkError: see the builders.
    """
    config = spec.config
    require_space(spec)
    cited, steps = dict[str, float | None](), dict[str, Steps]()
    splits, datasets = list[Problem](), list[Dataset]()
    notes, contents = list[str](), dict[str, str]()
    for name in spec.names:
        dataset = open_dataset(name, config.data.root, spec.data_args(name))
        datasets.append(dataset)
        cited[name] = published(dataset, config)
        contents[f"split of {name}"] = dataset.digest[:_DIGITS]
        searched, final = problems(spec, dataset)
        splits += [*searched, final]
        steps[name], note = steps_of(spec, searched, final), searched[-1].note
        if note:
            notes.append(note if note == LEAKS else f"{name}: {note}")
    backbone = load_backbone(config.backbone.name, config.backbone.pretrained)
    contents["weights"] = backbone.digest[:_DIGITS]
    if searched[-1].predicts_new:
        contents["drift"] = drift_identity(backbone)
        for dataset in datasets:
            foreign_to(dataset, backbone.vocabulary)
    contents |= {f"code of {name}": digest_of(name)[:_DIGITS] for name in sorted(spec.own)}
    smoke_test(config, backbone.clip)
    told = tuple(dict.fromkeys(notes))
    budget = budget_of(spec, steps)
    return Checked(cited, told, spec.identity | contents, budget, Footprint.of(backbone.clip, splits))
