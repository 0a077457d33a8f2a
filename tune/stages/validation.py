"""What can be wrong with a study, found before any worker starts; and on what exactly it is to run."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prometar.clip.openclip import load_backbone
from prometar.clip.weights_digest import weights_digest
from prometar.data.datasets.catalog import open_dataset
from prometar.data.datasets.dataset import Dataset
from prometar.data.splits.objective import LEAKS, Problem
from prometar.methods.probing import probe
from prometar.parts.identity import identities
from prometar.reproduce.published import published
from prometar.training.drift import drift_identity, foreign_to
from prometar.training.memory import Footprint
from prometar.training.run import DTYPES, code_of, split_entry, weights_entry
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
        contents: What every worker's machine must have too (`Terms.contents`).
    """

    published: dict[str, float | None]
    notes: tuple[str, ...]
    identity: dict[str, Any]
    budget: Budget
    footprint: Footprint
    contents: Mapping[str, str]


def check(spec: StudySpec) -> Checked:
    """Try everything that a study names.

    Raises:
        UserError, WorkError: see the builders.
    """
    config = spec.config
    require_space(spec)
    cited, steps = dict[str, float | None](), dict[str, Steps]()
    splits, datasets = list[Problem](), list[Dataset]()
    notes, contents, everywhere = list[str](), dict[str, str](), code_of("prometar") | code_of("tune")
    for name in spec.names:
        dataset = open_dataset(name, config.data.root, spec.data_args(name))
        datasets.append(dataset)
        cited[name] = published(dataset, config)
        contents[f"split of {name}"] = dataset.digest[:_DIGITS]
        everywhere[split_entry(name)] = dataset.digest
        searched, final = problems(spec, dataset)
        splits += [*searched, final]
        steps[name], note = steps_of(spec, searched, final), searched[-1].note
        if note:
            notes.append(note if note == LEAKS else f"{name}: {note}")
    backbone = load_backbone(config.backbone.name, config.backbone.pretrained)
    clip, narrow = backbone.clip, backbone.clip.to(dtype=DTYPES[config.backbone.precision])
    contents["weights"] = backbone.digest[:_DIGITS]
    same = narrow.dtype == clip.dtype
    everywhere[weights_entry(config.backbone)] = backbone.digest if same else weights_digest(narrow)
    if searched[-1].predicts_new:
        contents["drift"] = drift_identity(backbone)
        for dataset in datasets:
            foreign_to(dataset, backbone.vocabulary)
    contents |= {f"code of {piece}": code for piece, code in identities(spec.own).items()}
    probe(config, clip)
    told = tuple(dict.fromkeys(notes))
    budget = budget_of(spec, steps)
    return Checked(cited, told, spec.identity | contents, budget, Footprint.of(clip, splits), everywhere)
