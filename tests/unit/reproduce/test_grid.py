"""Grids as values: which runs a request means, and what its folder remembers of them."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prometar.config.settings import dump_config
from prometar.data.datasets.benchmarks import BENCHMARKS
from prometar.data.datasets.dataset import Item
from prometar.errors import UserError, one_line
from prometar.reproduce.check import too_few
from prometar.reproduce.grid import WEIGHTS, Entry, GridFolder, Record, entries, read_record
from prometar.reproduce.protocols import PROTOCOLS
from tests.support.reproductions import IDLE, ask
from tests.support.texts import ANY


@given(
    protocol=st.sampled_from(sorted(PROTOCOLS)),
    methods=st.lists(st.sampled_from(["zero-shot", "coop", "maple", "prometar"]), min_size=1, unique=True),
    seeds=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=4, unique=True),
    num_missing=st.integers(0, 3),
)
def test_every_combination_is_one_run(
    protocol: str, methods: list[str], seeds: list[int], num_missing: int
) -> None:
    asked = ask(protocol, tuple(methods), seeds=tuple(seeds))
    missing = asked.datasets[:num_missing]
    runs = entries(asked, IDLE, missing)
    assert len({run.name for run in runs}) == len(runs), "each has a folder of its own"
    trained_on = [d for d in asked.trained_on if d not in missing]
    per_method = {m: 1 if m in IDLE else len(seeds) * len(asked.shots) for m in methods}
    assert len(runs) == len(trained_on) * sum(per_method.values())
    targets = set(asked.datasets) - set(missing) if asked.source else set()
    assert all(set(run.targets) == targets for run in runs)
    assert {(r.config.data.shots, r.config.train.seed) for r in runs if r.trains} == (
        {(k, s) for k in asked.shots for s in seeds} if set(methods) - IDLE else set()
    )


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
    cross, domain = (entries(ask(p, methods), IDLE) for p in ("cross-dataset", "domain-generalisation"))
    assert [(run.name, run.config) for run in cross] == [(run.name, run.config) for run in domain]


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"seeds": (1, 1)}, "--seeds must be different values, at least one, found 1, 1"),
    ({"seeds": (-1,)}, r"--seeds must be numbers from 0 to 2\^32 - 1, found -1"),
    ({"seeds": (2**32,)}, "--seeds must be numbers from 0"),
    ({"shots": (0,)}, "--shots must be at least 1, found 0"),
    ({"shots": (1, 2)}, "base-to-new takes one number of --shots, found 1, 2"),
    ({"datasets": ("dtd", "dtd")}, "--datasets must be different values"),
    ({"datasets": ("dtx",)}, "unknown data set 'dtx': known are imagenet"),
    ({"methods": ()}, "--methods must name at least one"),
]  # fmt: skip


@pytest.mark.parametrize(("wrong", "message"), WRONG, ids=[str(w) for w, _ in WRONG])
def test_wrong_requests(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ask("base-to-new", **wrong)


def test_a_source_is_no_target() -> None:
    with pytest.raises(UserError, match="the source imagenet is tested anyway"):
        ask("cross-dataset", datasets=("imagenet", "dtd"))


def entry(**settings: Any) -> Entry:
    return entries(ask("cross-dataset", ("maple",), seeds=(1,), settings=settings), IDLE)[0]


def test_more_shots_than_there_are_images_are_said() -> None:
    train = [Item(f"{k}.jpg", k % 3, f"class {k % 3}") for k in range(11)]  # 4, 4 and 3 of a class
    assert too_few("a", train, (1, 2, 4)) == []
    assert too_few("a", train, (1, 16)) == [
        "a has at most 4 training images a class: 16 shots are all of them"
    ]
    for shots in ((1, 4, 16), (8, 16)):
        with pytest.raises(UserError, match=rf"--shots {shots[-2]} and 16 would be the same images"):
            too_few("a", train, shots)


def test_a_record_comes_back(tmp_path: Path) -> None:
    record = Record({"all": 50.0}, {"dtd": 40.0}, {"dtd": 47}, 3.5, environment={"torch": "2"}, entry=entry())
    record.write(tmp_path)
    assert read_record(entry(), tmp_path) == record
    figures = ('{"accuracies": {"all": "high"}}', '{"accuracies": {"all": 50}, "tests": {"dtd": 400}}')
    without = dict(json.loads((tmp_path / "record.json").read_text()), config={})
    for damaged in (json.dumps(without), "", "{}", "[1]", '{"accuracies": 3', "[" * 100_000, *figures):
        (tmp_path / "record.json").write_text(damaged)
        assert read_record(entry(), tmp_path) is None


def test_what_is_finished(tmp_path: Path) -> None:
    folder, run = GridFolder(tmp_path), entry()
    assert folder.finished(run) is None
    tests = dict.fromkeys(run.targets, 50.0)
    some = dict(list(tests.items())[1:])
    for state, done in (
        (Record({"all": 1.0}, tests, entry=run), True),
        (Record({"all": 1.0}, some, entry=run), False),
        (Record({"all": 1.0}, tests, reason="broken", entry=run), False),
    ):
        folder.run(run).mkdir(parents=True, exist_ok=True)
        state.write(folder.run(run))
        assert (folder.finished(run) is not None) is done
        assert folder.record(run) == state


def test_other_settings_are_refused_with_the_difference(tmp_path: Path) -> None:
    folder, run = GridFolder(tmp_path), entry()
    folder.require_same([run], {})
    folder.run(run).mkdir(parents=True)
    config = folder.run(run) / "config.yaml"
    config.write_text(dump_config(run.config))

    def refuses_others() -> None:
        folder.require_same([run], {})
        with pytest.raises(
            UserError, match=r"other settings \(optim\.lr: 0\.0026 then, 0\.1 now\): repeat them, or"
        ):
            folder.require_same([entry(**{"optim.lr": 0.1})], {})

    refuses_others()
    Record({"all": 1.0}, entry=run).write(folder.run(run))
    refuses_others()
    config.unlink()
    refuses_others()
    config.write_text(dump_config(entry(**{"optim.lr": 0.1}).config))
    with pytest.raises(UserError, match="other settings"):
        folder.require_same([entry(**{"optim.lr": 0.1})], {})  # the record is of others


def test_other_images_or_weights_are_refused(tmp_path: Path) -> None:
    folder, run = GridFolder(tmp_path), entry()
    folder.run(run).mkdir(parents=True)
    (folder.run(run) / "config.yaml").write_text(dump_config(run.config))
    Record({"all": 1.0}, contents={"dtd": "a", WEIGHTS: "b"}, entry=run).write(folder.run(run))
    folder.require_same([run], {"dtd": "a", WEIGHTS: "b", "eurosat": "c"})
    for now, said in (({"dtd": "x"}, "other splits of dtd"), ({WEIGHTS: "x"}, "other weights")):
        with pytest.raises(UserError, match=f"was made with {said} than now: restore them, or choose"):
            folder.require_same([run], now)


@given(st.text(ANY))
def test_a_message_is_one_printable_line(text: str) -> None:
    line = one_line(text)
    assert line == "" or line.isprintable()
    assert line == one_line(line)
