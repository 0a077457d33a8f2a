"""Trials whose scores used other images than the next ones, because images have been excluded since."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from prometar.data.datasets.dataset import Dataset, abbreviated
from prometar.data.splits.objective import split_dataset
from tune.config import StudyConfig
from tune.records.schema import StudyRecord


def exclusion_notes(
    config: StudyConfig, datasets: Iterable[Dataset], previous: StudyRecord | None
) -> Iterator[str]:
    """Yield a note for each dataset whose excluded images have changed since the last command.

    Scores of the search are kept, because samplers compare all trials. Confirmation and final test repeat
    affected runs (`study_jobs`).

    Args:
        previous: Record that the last command wrote, or None if this is the first command.
    """
    if previous is None:
        return
    for dataset in datasets:
        then = frozenset(previous.excluded.get(dataset.name, ()))
        changed = sorted(then ^ dataset.excluded)
        if changed and _affects_search(config, dataset, then):
            yield (
                f"Excluded images of {dataset.name} have changed ({abbreviated(changed)}). Trials that ended "
                "before were trained or scored with other images. Their scores are kept."
            )


def _affects_search(config: StudyConfig, dataset: Dataset, then: frozenset[str]) -> bool:
    """Return True if trials have other images now than if the images `then` were excluded."""
    search = config.search
    if "data.shots" in search.space.ranges:
        return True  # each trial has its own images
    for seed in search.seeds:
        before, after = (
            split_dataset(
                search.objective,
                replace(dataset, excluded=excluded),
                shots=config.baseline.data.shots,
                seed=seed,
                val_per_class=search.val_per_class,
            )
            for excluded in (then, dataset.excluded)
        )
        if before.train != after.train or before.evaluations != after.evaluations:
            return True
    return False
