"""Notes on trials whose scores used images that are excluded now, or lacked images that are included now."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from prometar.data.datasets.dataset import Dataset, abbreviated
from prometar.data.splits.objective import FewShotSplit, split_dataset
from tune.config import StudyConfig
from tune.records.schema import StudyRecord


def exclusion_notes(
    config: StudyConfig, datasets: Iterable[Dataset], previous: StudyRecord | None
) -> Iterator[str]:
    """Yield a note for each dataset whose excluded images have changed since the last command.

    Scores of the search are kept, because samplers compare all trials. Confirmation and final test repeat
    affected runs (see `tune.stages.study_jobs`).

    Args:
        config: Configuration of the study.
        datasets: Datasets of the study, with the images that are excluded now.
        previous: Record that the last command wrote, or None if this is the first command.
    """
    if previous is None:
        return
    for dataset in datasets:
        excluded_before = frozenset(previous.excluded.get(dataset.name, ()))
        changed = sorted(excluded_before ^ dataset.excluded)
        if changed and _affects_search(config, dataset, excluded_before):
            yield (
                f"Excluded images of {dataset.name} have changed ({abbreviated(changed)}). Trials that ended "
                "before were trained or scored with other images. Their scores are kept."
            )


def _affects_search(config: StudyConfig, dataset: Dataset, excluded_before: frozenset[str]) -> bool:
    """Return True if trials use other images now than when `excluded_before` were the excluded images."""
    search = config.search
    if "data.shots" in search.space.ranges:
        return True  # each trial has its own images

    def split(excluded: frozenset[str], seed: int) -> FewShotSplit:
        return split_dataset(
            search.objective,
            replace(dataset, excluded=excluded),
            shots=config.baseline.data.shots,
            seed=seed,
            val_per_class=search.val_per_class,
        )

    for seed in search.seeds:
        before = split(excluded_before, seed)
        after = split(dataset.excluded, seed)
        if before.train != after.train or before.evaluations != after.evaluations:
            return True
    return False
