"""Grids as values: which runs a request means, and what its folder contains."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prometar.comparison.finished_runs import compare_runs
from prometar.config.settings import dump_config
from prometar.data.datasets.benchmarks import BENCHMARKS
from prometar.data.datasets.catalog import open_dataset
from prometar.data.datasets.exclusions import read_exclusions
from prometar.data.splits.objective import FINAL, split_dataset
from prometar.errors import UserError
from tests.support.copies import write_tree
from tests.support.reproductions import RUNS, UNTRAINED, finished, make_grid
from tune.execution.job import Job
from tune.reproduce.grid import PROTOCOLS, read_run


@settings(max_examples=30)
@given(
    protocol=st.sampled_from(sorted(PROTOCOLS)),
    methods=st.lists(st.sampled_from(["zero-shot", "coop", "maple", "prometar"]), min_size=1, unique=True),
    seeds=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=4, unique=True),
    num_missing=st.integers(0, 3),
)
def test_combinations_are_runs(protocol: str, methods: list[str], seeds: list[int], num_missing: int) -> None:
    grid = make_grid(protocol, tuple(methods), seeds=tuple(seeds))
    missing = grid.datasets[:num_missing]
    jobs = grid.jobs(RUNS, UNTRAINED, missing)
    assert len({job.name for job in jobs}) == len({job.folder for job in jobs}) == len(jobs)
    available = [name for name in grid.training_datasets if name not in missing]
    per_method = {method: 1 if method in UNTRAINED else len(seeds) * len(grid.shots) for method in methods}
    assert len(jobs) == len(available) * sum(per_method.values())
    targets = set(grid.datasets) - set(missing) if grid.source else set()
    assert all(set(job.targets) == targets for job in jobs)


def test_the_protocols_are_those_of_the_field() -> None:
    assert len(PROTOCOLS["base-to-new"].datasets) == 11
    assert PROTOCOLS["cross-dataset"].source == "imagenet"
    assert set(PROTOCOLS["cross-dataset"].datasets) == set(PROTOCOLS["base-to-new"].datasets) - {"imagenet"}
    variants = PROTOCOLS["domain-generalisation"].datasets
    assert variants == ("imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r")
    assert set(variants) | set(PROTOCOLS["few-shot"].datasets) == set(BENCHMARKS)
    assert PROTOCOLS["few-shot"].shots == (1, 2, 4, 8, 16)


def test_protocols_with_one_source_share_its_runs() -> None:
    methods = ("zero-shot", "coop", "maple", "promptsrc", "prometar")
    grids = (make_grid(protocol, methods) for protocol in ("cross-dataset", "domain-generalisation"))
    cross, domain = (grid.jobs(RUNS, UNTRAINED) for grid in grids)
    assert [job.folder for job in cross] == [job.folder for job in domain]
    assert [job.config for job in cross] == [job.config for job in domain]


def test_every_job_has_the_published_settings_of_its_dataset_protocol_and_shots() -> None:
    few_shot = make_grid(
        "few-shot", ("coop", "mmrl"), seeds=(1,), datasets=("dtd", "imagenet"), shots=(1, 4, 16)
    )
    epochs = {job.name: job.config.train.epochs for job in few_shot.jobs(RUNS, UNTRAINED)}
    assert epochs == {
        "dtd, coop, 1 shot, seed 1": 50,
        "dtd, mmrl, 1 shot, seed 1": 50,
        "dtd, coop, 4 shots, seed 1": 100,
        "dtd, mmrl, 4 shots, seed 1": 50,
        "dtd, coop, 16 shots, seed 1": 200,
        "dtd, mmrl, 16 shots, seed 1": 50,
        **{f"imagenet, coop, {shots}, seed 1": 50 for shots in ("1 shot", "4 shots", "16 shots")},
        **{f"imagenet, mmrl, {shots}, seed 1": 5 for shots in ("1 shot", "4 shots", "16 shots")},
    }
    base_to_new = make_grid("base-to-new", ("coop", "mmrl"), seeds=(1,), datasets=("dtd", "imagenet"))
    found = [
        (job.config.data.name, job.config.method, job.config.train.epochs, job.config.prompts.component())
        for job in base_to_new.jobs(RUNS, UNTRAINED)
    ]
    assert [each[:3] for each in found] == [
        ("dtd", "coop", 200),
        ("dtd", "mmrl", 10),
        ("imagenet", "coop", 50),
        ("imagenet", "mmrl", 5),
    ]
    assert found[0][3].text_length == 4
    (cross,) = make_grid("cross-dataset", ("mmrl",), seeds=(1,)).jobs(RUNS, UNTRAINED)
    assert (cross.config.train.epochs, cross.config.regularizer.text_weight) == (1, 0.2)
    (given,) = make_grid("cross-dataset", ("mmrl",), seeds=(1,), settings={"train.epochs": 3}).jobs(
        RUNS, UNTRAINED
    )
    assert (given.config.train.epochs, given.config.optim.warmup_epochs) == (3, 0)


def job_of(folder: Path, **changes: Any) -> Job:
    grid = make_grid("cross-dataset", ("maple",), seeds=(1,), datasets=("dtd", "eurosat"), settings=changes)
    return grid.jobs(folder, UNTRAINED)[0]


@pytest.fixture
def written(tmp_path: Path) -> Job:
    """A job whose folder contains its finished run."""
    job = job_of(tmp_path)
    run = finished(job, lambda config, name: 50.0)
    run.folder.mkdir()
    (run.folder / "config.yaml").write_text(dump_config(job.config))
    run.result.write(run.folder)
    return job


def test_only_runs_that_used_an_excluded_image_are_repeated_in_folders_of_their_own(tmp_path: Path) -> None:
    paths = [f"{name}/{k}.png" for name in ("ash", "fir", "oak", "yew") for k in range(12)]
    photos = write_tree(tmp_path / "photos", paths)
    grid = make_grid(
        "base-to-new",
        ("coop", "maple"),
        seeds=(1, 2, 4),
        datasets=("folder",),
        shots=(2,),
        settings={"data.root": str(photos)},
    )
    dataset = open_dataset("folder", str(photos))

    def finish() -> list[str]:
        """Write results of the jobs without one. Return the names of their folders."""
        jobs = grid.jobs(tmp_path / "runs", UNTRAINED)
        started = [job for job in jobs if read_run(job, {}) is None]
        for job in started:
            job.folder.mkdir(parents=True)
            (job.folder / "config.yaml").write_text(dump_config(job.config))
            excluded = tuple(read_exclusions(str(photos)))
            result = finished(job, lambda config, name: 50.0).result
            result.model_copy(update={"excluded": excluded}).write(job.folder)
        return [job.folder.name for job in started]

    def training_paths(seed: int) -> set[str]:
        return {item.path for item in split_dataset(FINAL, dataset, shots=2, seed=seed).train}

    assert len(finish()) == 6
    assert finish() == []
    before = {path: path.read_bytes() for path in tmp_path.rglob("result.json")}
    image = min(training_paths(4) - training_paths(1) - training_paths(2))
    (photos / "excluded.txt").write_text(image)
    repeated = ["final-folder-2shots-coop-seed4-2", "final-folder-2shots-maple-seed4-2"]
    assert finish() == repeated
    assert finish() == []
    compare_runs([tmp_path / "runs"])  # refuses several runs of one seed
    assert {path: path.read_bytes() for path in before} == before, "nothing finished is changed"
    (photos / "excluded.txt").unlink()
    assert finish() == [], "the first results are used again"


@pytest.mark.parametrize("text", ["", "[1]", "[" * 100_000])
def test_a_corrupt_result_counts_as_missing(text: str, written: Job) -> None:
    assert read_run(written, {}) == finished(written, lambda config, name: 50.0)
    Path(written.folder, "result.json").write_text(text)
    assert read_run(written, {}) is None


def test_runs_with_other_texts_of_classes_are_rejected(tmp_path: Path) -> None:
    job = job_of(tmp_path, **{"regularizer.kind": "l1", "regularizer.texts": "/data/texts.json"})
    run = finished(job, lambda config, name: 50.0)
    run.folder.mkdir()
    (run.folder / "config.yaml").write_text(dump_config(job.config))
    run.result.model_copy(update={"texts": "old"}).write(run.folder)
    assert read_run(job, {"texts of /data/texts.json": "old"})
    with pytest.raises(UserError, match=r"another version of texts of /data/texts\.json"):
        read_run(job, {"texts of /data/texts.json": "new"})


def test_runs_with_other_settings_or_splits_are_rejected(written: Job, tmp_path: Path) -> None:
    digests = {name: f"of {name}" for name in ("imagenet", "dtd")}
    assert read_run(written, digests)
    for name in (*digests, "weights"):
        with pytest.raises(UserError, match=f"another version of {name}"):
            read_run(written, {**digests, name: "other"})
    assert read_run(job_of(tmp_path, **{"data.root": "/moved"}), digests)
    result = finished(written, lambda config, name: 50.0).result
    result.model_copy(update={"code": {"mine:Huber": "old"}}).write(written.folder)
    with pytest.raises(UserError, match="another version of code of mine:Huber"):
        read_run(written, {"code of mine:Huber": "new"})
    with pytest.raises(UserError, match=r"other settings \(optim\.lr: 0\.0026 then, 0\.1 now\)"):
        read_run(job_of(tmp_path, **{"optim.lr": 0.1}), {})
