"""The trial store: no Ray and no training."""

from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

from prometar.errors import StorageError, UserError
from tests.support.databases import BASELINE, open_store, open_study, report, run, score, study_config
from tune.store.samplers import STARTUP_TRIALS
from tune.store.trial_store import HOPELESS, TrialCounts, TrialStore

KINDS = "task.augmentation: {type: choice, choices: [none, feature_mixup, input_mixup]}"
MINE = [{"regularizer.text_weight": float(weight), "augment.jitter": 0.1} for weight in (1, 2, 3)]


def enqueue(folder: Path, settings: list[dict[str, float]]) -> Path:
    file = folder / "mine.yaml"
    file.write_text(str(settings))
    return file


def states(store: TrialStore) -> list[str]:
    return [trial.state for trial in store.trials()]


def fail_next(store: TrialStore, reason: str) -> None:
    trial = store.ask()
    assert trial is not None
    store.fail(trial.number, reason)


def test_the_baseline_is_trial_0_and_the_budget_holds(tmp_path: Path) -> None:
    store = open_store(tmp_path, trials=5)
    done = run(store)
    assert [trial.number for trial in done] == [0, 1, 2, 3, 4]
    assert done[0].settings == BASELINE
    assert [(t.baseline, t.origin) for t in store.trials()[:2]] == [(True, "baseline"), (False, "sampled")]
    assert [t.objective for t in store.trials()] == [score(trial.settings) for trial in done]
    assert store.counts == TrialCounts(done=5, running=0, interrupted=0, waiting=0)
    store.close()
    assert [trial.number for trial in run(open_store(tmp_path, trials=7))] == [5, 6]


def test_a_record_holds_what_was_reported(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    trial = store.ask()
    assert trial is not None
    score = {"dataset": "textures", "seed": 3, "base": 61.0, "new": 39.0, "objective": 61.0, "seconds": 1.0}
    figures = report(trial, 1, of=2, objective=61.0)
    assert store.report(trial.number, figures, {"cpus": 2.0, "gpus": 0.5})
    assert store.trial(0) is None
    assert not store.report(trial.number, {**report(trial, 2, of=2, objective=62.0), "runs": [score]})
    record = store.trial(0)
    assert record is not None
    assert [(e.epoch, e.objective) for e in record.epochs] == [(1, 61.0), (2, 62.0)]
    assert (record.epoch, record.seconds, record.runs[0].objective) == (2, 2.0, 61.0)
    assert not store.report(trial.number, figures), "it is over"


def test_a_resumed_study_samples_what_an_undisturbed_one_samples(tmp_path: Path) -> None:
    whole = run(open_store(tmp_path / "a", trials=12))
    parts = []
    for target in (3, 4, 9, 12):
        with open_store(tmp_path / "b", trials=target) as store:
            parts += run(store)
    assert parts == whole
    assert len({tuple(trial.settings.values()) for trial in whole}) == 12


def test_samples_are_those_of_optunas_sampler(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    run(store, most=12)
    sampled = store.ask()
    assert sampled is not None
    seed = int(np.random.SeedSequence([3, 12]).generate_state(1)[0])
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP_TRIALS)
    plain = optuna.create_study(direction="maximize", sampler=sampler)
    plain.add_trials(open_study(store._storage._url).trials[:12])
    assert sampled.settings == study_config(tmp_path).search.space.sample(plain.ask())


def test_interrupted_trials_come_first_with_the_same_settings(tmp_path: Path) -> None:
    store = open_store(tmp_path, trials=4)
    first, second, third = store.ask(), store.ask(), store.ask()
    assert second is not None
    store.report(second.number, report(second))
    again = open_store(tmp_path, trials=4)
    assert again.counts.interrupted == 2
    assert [again.ask(new=False), again.ask(new=False), again.ask(new=False)] == [first, third, None]
    again.close()  # as on an interrupt
    again = open_store(tmp_path, trials=4)
    assert [again.ask(), again.ask()] == [first, third]
    fresh = again.ask()
    assert fresh is not None
    assert (fresh.number, again.ask(), again.counts.running) == (3, None, 3)


def test_a_repeated_epoch_is_stored_once(tmp_path: Path) -> None:
    trial = (store := open_store(tmp_path)).ask()
    assert trial is not None
    store.report(0, report(trial, 1, of=3))
    again = open_store(tmp_path)
    assert again.ask() == trial
    assert again.report(0, report(trial, 1, of=3, objective=1.0))
    for epoch in (2, 3):
        again.report(0, report(trial, epoch, of=3))
    (record,) = again.trials()
    assert [(e.epoch, e.objective) for e in record.epochs] == [(e, score(BASELINE) + e) for e in (1, 2, 3)]


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        ({"epoch": 1, "objective": float("nan")}, "objective is nan in epoch 1"),
        ({"failed": "the loss is nan at step 3"}, "the loss is nan at step 3"),
        ({"epoch": 1, "finished": False}, "the trial did not report objective"),
        ({"epoch": 1, "objective": 1.0, "new": 2.0, "finished": True}, "the trial did not report base"),
    ],
)
def test_a_failed_report_ends_the_trial_with_its_reason(
    tmp_path: Path, told: dict[str, Any], reason: str
) -> None:
    store = open_store(tmp_path, goals=("base", "new"))
    assert store.ask() is not None
    assert not store.report(0, told)
    assert [(trial.state, trial.reason) for trial in store.trials()] == [("FAIL", reason)]
    assert store.ask() is not None


def test_the_pruner_stops_a_poor_trial_but_never_the_baseline(tmp_path: Path) -> None:
    store = open_store(tmp_path, pruner="percentile")
    last = []
    for value in [0.1, *[10.0] * 8, 1.0]:  # the baseline and the last are the worst
        trial = store.ask()
        assert trial is not None
        epochs = (epoch for epoch in (1, 2, 3) if not store.report(
            trial.number, report(trial, epoch, of=3, objective=value)
        ))  # fmt: skip
        last.append(next(epochs))
    assert last == [*[3] * 9, 2]
    assert states(store) == [*["COMPLETE"] * 9, "PRUNED"]
    assert store.trials()[-1].objective == 1.0


def test_settings_are_tried_once_also_if_they_failed_or_the_model_prefers_them(tmp_path: Path) -> None:
    def value(settings: Any) -> float:
        return 90.0 if settings["task.augmentation"] == "none" else 10.0

    with open_store(tmp_path, space=KINDS) as store:
        trials = [store.ask(), store.ask()]
        store.fail(1, "diverged")
    with open_store(tmp_path, space=KINDS) as store:
        found = [trials[1], *run(store, value)]
        assert store.exhausted
    assert sorted(t.settings["task.augmentation"] for t in found if t) == [
        "feature_mixup",
        "input_mixup",
        "none",
    ]

    mixed = (
        KINDS
        + "\ntask.mixup_alpha: {type: float, low: 0.1, high: 1.0, when: {task.augmentation: feature_mixup}}"
    )
    store = open_store(tmp_path / "float", space=mixed, trials=10)
    assert len(run(store, value)) == 10, "a space with floats has no end"
    assert not store.exhausted


def test_a_hopeless_study_stops_and_resumes(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    for _ in range(HOPELESS):
        assert store.hopeless() is None
        fail_next(store, "no such file: x.jpg")
    assert store.ask() is None
    assert store.hopeless() == "no such file: x.jpg"
    store.close()
    again = open_store(tmp_path)
    first, *_ = run(again, most=2)
    assert first.settings == BASELINE, "a failed baseline is run again"
    for _ in range(HOPELESS + 1):
        fail_next(again, "bad luck")
    assert again.hopeless() is None


def test_a_failed_baseline_is_run_again_within_the_budget(tmp_path: Path) -> None:
    given: dict[str, Any] = {"trials": 3, "enqueue": [enqueue(tmp_path, MINE)]}
    with open_store(tmp_path, **given) as store:
        assert store.ask() is not None
        store.fail(0, "the worker died")
        assert [trial.settings for trial in run(store)] == MINE[:2]
        assert store.counts.waiting == 1
    with open_store(tmp_path, **given) as store:
        assert [trial.settings for trial in run(store)] == [BASELINE]
        assert [trial.baseline for trial in store.trials()] == [True, False, False, True]
    with open_store(tmp_path, **{**given, "trials": 5}) as store:
        assert [(t.settings in MINE) for t in run(store)] == [True, False]
        assert [t.origin for t in store.trials()][1:4] == ["enqueued"] * 3


def test_another_study_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    assert store.ask() is not None
    store.fail(0, "the worker died")  # so that another process would enqueue the baseline again
    with pytest.raises(
        UserError, match=r"was started with other settings \(seed: 3 then, 4 now; train\.seed"
    ):
        open_store(tmp_path, seed=4)
    with pytest.raises(UserError, match=f"belongs to {tmp_path}/s. Choose another"):
        open_store(tmp_path / "copy", storage=store._storage._backend)
    assert len(open_study(store._storage._url).trials) == 1


def test_a_lost_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s" / "trials" / "0000").mkdir(parents=True)
    (tmp_path / "s" / "trials" / "0000" / "record.json").write_text("{}")
    with pytest.raises(UserError, match="contains trials, but the study's database does not"):
        open_store(tmp_path)


def test_a_second_writer_is_noticed(tmp_path: Path) -> None:
    first, second = open_store(tmp_path), open_store(tmp_path)
    assert first.ask() is not None
    with pytest.raises(StorageError, match=r"Another process writes this study in sqlite.* to resume"):
        second.ask()
    third = open_store(tmp_path)
    assert first.ask() is not None
    with pytest.raises(StorageError, match="Another process writes this study"):
        [third.ask(), third.ask()]


def test_the_duration_is_added_up(tmp_path: Path) -> None:
    for seconds in (2.0, 3.0):
        with open_store(tmp_path) as store:
            store.add_seconds(seconds)
    assert open_store(tmp_path).seconds_searched == 5.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": "magic"}, "unknown sampler 'magic'"),
        ({"pruner": "best"}, "unknown pruner 'best'"),
        ({"pruner": "asha", "goals": ("base", "new")}, "--pruner asha requires a single goal"),
        (
            {"pruner": "median", "space": "train.epochs: {type: int, low: 3, high: 20}"},
            "--pruner median compares trials at the same epoch, but the space mine searches train.epochs",
        ),
    ],
)
def test_options_that_do_not_fit_are_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_store(tmp_path, **options)
