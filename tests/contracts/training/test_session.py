"""A run stopped and resumed equals one that never stopped, bit for bit; checkpoints survive trouble."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file

from prometar.clip.weights import read_tensors
from prometar.config.recipes import METHODS
from prometar.config.settings import Config
from prometar.data.datasets.dataset import Item, Source
from prometar.data.streaming.order import ImageOrder
from prometar.data.streaming.stream import Batch, StreamFn, stream_local
from prometar.errors import UserError, WorkError
from prometar.training.backbone import DTYPES
from prometar.training.cache import RunCache
from prometar.training.checkpoint import load_checkpoint
from prometar.training.epoch import drawn_text, rates_of, train_epoch, train_step
from prometar.training.run import Run, initial_state
from prometar.training.session import Session
from tests.support.small import small_run, train, without_time

Begun = tuple[Run, Path]


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Begun:
    """A run, and its checkpoint after an epoch."""
    run = small_run()
    folder = tmp_path_factory.mktemp("begun")
    Session(run, folder).run_epoch()
    return run, folder / "checkpoint.safetensors"


@pytest.mark.parametrize(
    ("method", "precision"),
    [*((method, "fp32") for method in METHODS), ("prometar", "bf16"), ("prometar", "fp16")],
)
def test_resumed_equals_never_stopped_bit_for_bit(method: str, precision: str, tmp_path: Path) -> None:
    """Prompts are learned in float32, whatever the towers compute in."""
    run = small_run(method, data__shots=1, backbone__precision=precision)
    assert run.backbone.clip.dtype == DTYPES[precision]
    assert run.backbone.clip.logit_scale.dtype == torch.float32
    start = initial_state(run).leaves
    whole = Session(run, tmp_path / "whole")
    history = train(whole)
    for _ in range(3):  # each epoch by another session, as after a kill
        parts = Session(run, tmp_path / "parts")
        parts.run_epoch()
    assert without_time(parts.history) == without_time(history)
    for name, tensor in whole.state.tensors().items():
        assert torch.equal(tensor, parts.state.tensors()[name]), name
        assert tensor.dtype == torch.float32
    assert all((whole.state.leaves[name] != leaf).any() for name, leaf in start.items())
    assert (
        whole.state.step == parts.state.step == (3 * run.order.steps_per_epoch if whole.state.leaves else 0)
    )


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw"])
def test_each_optimizer_resumes_bit_for_bit(kind: str, tmp_path: Path) -> None:
    run = small_run(data__shots=1, optim__kind=kind, optim__logits_lr_factor=2.0)
    whole = Session(run, tmp_path / "whole")
    history = train(whole)
    for _ in range(3):
        parts = Session(run, tmp_path / "parts")
        parts.run_epoch()
    assert without_time(parts.history) == without_time(history)
    assert parts.state.counters() == whole.state.counters()
    assert whole.state.optimizer.num_updates > whole.state.step, "both phases update the leaves"
    tensors = parts.state.tensors()
    for name, tensor in whole.state.tensors().items():
        assert torch.equal(tensor, tensors[name]), name


def test_a_checkpoint_without_numbers_of_updates_resumes(begun: Begun, tmp_path: Path) -> None:
    """Version 0.2 wrote such checkpoints."""
    run, path = begun
    tensors, metadata = read_tensors(path, "")
    old = {name: text for name, text in metadata.items() if not name.endswith("_updates")}
    (tmp_path / "checkpoint.safetensors").write_bytes(save(tensors, old))
    resumed = Session(run, tmp_path)
    assert resumed.state.step == run.order.steps_per_epoch
    assert {name.partition("/")[0] for name in tensors} >= {
        "prompts",
        "prompt_momenta",
        "gate",
        "gate_momenta",
    }
    resumed.run_epoch()


THEMSELVES = """
from dataclasses import dataclass


@dataclass(frozen=True)
class Themselves:
    def __call__(self, average, prompts, epoch, epochs):
        return dict(prompts)
"""


def test_an_average_may_be_the_prompts_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "themselves.py").write_text(THEMSELVES)
    monkeypatch.syspath_prepend(tmp_path)
    run = small_run(averager__kind="themselves:Themselves")
    train(Session(run, tmp_path))
    found = load_checkpoint(tmp_path / "checkpoint.safetensors")
    assert found is not None
    assert all(torch.equal(found.state.average[name], leaf) for name, leaf in found.state.leaves.items())


def test_the_final_objective_tests_once(small_dtd: Path, tmp_path: Path) -> None:
    run = small_run(objective="final", train__epochs=2, data__name="dtd", data__root=str(small_dtd))
    tested = {item.path for item in run.dataset.test}
    opened: list[str] = []
    history = train(Session(run, tmp_path, count_opened(opened)))
    assert "objective" not in history[0]
    assert "objective" in history[1]
    assert sorted(path for path in opened if path in tested) == sorted(tested)


def count_opened(opened: list[str]) -> StreamFn:
    def stream(order: ImageOrder, source: Source, step: int) -> Iterator[Batch]:
        opened.extend(item.path for item in order.items)
        return stream_local(order, source, step)

    return stream


def test_a_search_never_opens_a_test_image_or_a_new_class(tmp_path: Path) -> None:
    names = small_run(objective="final").dataset.classnames
    base = set(names[: (len(names) + 1) // 2])
    for objective in ("drift", "base_val"):
        opened: list[str] = []
        run = small_run(objective=objective, train__epochs=1)
        train(Session(run, tmp_path / objective, count_opened(opened)))
        assert opened
        assert {path.split("/")[0] for path in opened} <= base
        assert not [path for path in opened if path.split("/")[1].startswith("test")]


def test_a_diverged_run_names_the_step(tmp_path: Path) -> None:
    run = small_run(optim__lr=1e30, optim__warmup_lr=1e30)
    with pytest.raises(WorkError, match=r"at step \d+|after step \d+"):
        train(Session(run, tmp_path))


def test_a_checkpoint_belongs_to_settings_class_names_and_words_around_them(begun: Begun) -> None:
    run, checkpoint = begun

    def renamed(items: Sequence[Item]) -> tuple[Item, ...]:
        return tuple(replace(item, classname=f"my {item.classname}") for item in items)

    names = replace(run.order, items=renamed(run.order.items))
    words = replace(run.dataset, template="nothing {}")
    others = [replace(run, order=names), replace(run, dataset=words), small_run(optim__lr=0.01)]
    assert names.digest == run.order.digest, "the same images"
    assert replace(run).digest == run.digest
    for other in others:
        with pytest.raises(WorkError, match="belongs to a run with other settings or data"):
            Session(other, checkpoint.parent)


@pytest.mark.parametrize("keep", [0, 10, 500])
def test_a_damaged_checkpoint_is_one_line(keep: int, begun: Begun, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(begun[1].read_bytes()[:keep])
    with pytest.raises(WorkError, match=r"is corrupt .* Remove it to start over"):
        load_checkpoint(path)


def test_schedules_as_released_and_as_configured() -> None:
    released = Config()
    assert [rates_of(released, epoch).gate_lr for epoch in (0, 1, 9)] == [1e-6] * 3
    configured = released.override({"optim.gate_schedule": "configured"})
    assert rates_of(configured, 0).gate_lr == 1e-6
    assert rates_of(configured, 1).gate_lr == 2.5e-4
    assert 0 < rates_of(configured, 9).gate_lr < 2.5e-4 / 10
    assert rates_of(released, 0).lr == 1e-5
    assert rates_of(released, 1).lr == 0.0025


def test_the_time_until_the_first_training_batch_is_not_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = small_run("coop", train__epochs=1)
    now = [0.0]
    monkeypatch.setattr("prometar.training.session.time", SimpleNamespace(perf_counter=lambda: now[0]))

    def slowly(order: ImageOrder, source: Source, step: int) -> Iterator[Batch]:
        is_slow = order == run.order  # scoring takes no time
        now[0] += 1000 * is_slow
        for batch in stream_local(order, source, step):
            yield batch
            now[0] += is_slow

    steps = run.order.steps_per_epoch
    assert train(Session(run, tmp_path, slowly))[0]["seconds"] == steps - 1


def test_runs_with_one_cache_and_image_order_compute_frozen_features_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shared = RunCache()
    first = small_run(data__shots=3, shared=shared)
    second = small_run(data__shots=3, inner__lr=0.02, shared=shared)
    train_epoch(first, initial_state(first), stream_local(first.order, first.dataset.source))
    alone, _ = train_epoch(
        replace(second, cache=None), initial_state(second), stream_local(second.order, second.dataset.source)
    )

    def never(*_: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr("prometar.clip.features.encode_image", never)
    state, _ = train_epoch(second, initial_state(second), stream_local(second.order, second.dataset.source))
    for name, tensor in alone.tensors().items():
        assert torch.equal(state.tensors()[name], tensor), name


def test_a_state_within_an_epoch_trains_the_remaining_steps_of_that_epoch() -> None:
    run = small_run(data__shots=3)
    rates = rates_of(run.config, 0)
    whole, _ = train_epoch(run, initial_state(run), stream_local(run.order, run.dataset.source))
    state = initial_state(run)
    for batch in islice(stream_local(run.order, run.dataset.source), 2):
        state, _ = train_step(run, state, batch, rates)
    assert 0 < state.step < run.order.steps_per_epoch
    state, _ = train_epoch(run, state, stream_local(run.order, run.dataset.source, state.step))
    assert state.step == run.order.steps_per_epoch
    for name, tensor in whole.tensors().items():
        assert torch.equal(state.tensors()[name], tensor), name


def test_the_message_about_tensors_that_are_not_finite_names_the_step() -> None:
    run = small_run(data__shots=1)
    state = replace(initial_state(run), step=run.order.steps_per_epoch - 1)
    overflowing = {
        name: torch.full_like(tensor, 1e38) for name, tensor in state.optimizer.slots["momenta"].items()
    }
    state = replace(state, optimizer=replace(state.optimizer, slots={"momenta": overflowing}))
    with pytest.raises(
        WorkError, match=f"learned tensors are not finite after step {run.order.steps_per_epoch}"
    ):
        train_epoch(run, state, stream_local(run.order, run.dataset.source, state.step))


Change = Callable[[dict[str, torch.Tensor], dict[str, str]], object]
NAME = "prompts/text.0"
DAMAGES: dict[str, tuple[Change, str]] = {
    "NaN": (lambda t, m: t[NAME].fill_(torch.nan), r"prompts/text\.0 is not finite"),
    "a missing tensor": (lambda t, m: t.pop(NAME), r"prompts/text\.0 is missing, expected float"),
    "one too many": (lambda t, m: t.update({"prompts/x": torch.ones(1)}), r"prompts/x is unexpected"),
    "another shape": (lambda t, m: t.update({NAME: t[NAME][:, 1:]}), r"text\.0 is float \(4, \d+\)"),
    "whole numbers": (lambda t, m: t.update({NAME: t[NAME].int()}), r"text\.0 is torch.int32"),
    "no group": (lambda t, m: t.update({"x": torch.ones(1)}), r"outdated \('x'\)"),
    "a history of numbers": (lambda t, m: m.update(history="[1]"), "history.0 must be"),
    "deep history": (lambda t, m: m.update(history="[" * 100_000), "is corrupt"),
    "long history": (
        lambda t, m: m.update(history=json.dumps([{"epoch": k, "seconds": 1} for k in range(1, 9)])),
        "it contains 8 epochs, more than train.epochs",
    ),
    "no number of steps": (lambda t, m: m.update(step="x"), "invalid literal for int"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_checkpoint_is_checked_where_it_enters(kind: str, begun: Begun, tmp_path: Path) -> None:
    change, message = DAMAGES[kind]
    run, checkpoint = begun
    tensors = load_file(checkpoint)
    with safe_open(checkpoint, framework="pt") as file:
        metadata = file.metadata()
    change(tensors, metadata)
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(tensors, tmp_path / checkpoint.name, metadata)
    with pytest.raises(WorkError, match=message) as caught:
        Session(run, tmp_path)
    assert "Remove it to start over" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_logits_that_are_not_finite_are_no_score(tmp_path: Path) -> None:
    """All of them NaN, the first class would be the most likely one."""
    run = small_run(objective="base_val")
    session = Session(run, tmp_path)
    scale = replace(run.backbone.clip, logit_scale=torch.tensor(torch.inf))
    models = {name: replace(e, model=replace(e.model, clip=scale)) for name, e in run.evaluations.items()}
    session.run = replace(run, evaluations=models)
    with pytest.raises(WorkError, match="Logits of tiny-plain in float32 are not finite"):
        session.score()


def test_each_step_draws_one_text_and_reads_a_second_view(tmp_path: Path) -> None:
    """CoPrompt's run resumes like others, because draws and views depend only on seed and step."""
    run = small_run("coprompt", data__shots=2)
    assert run.order.transform.views == 2
    assert run.model.frozen_text_CE is not None
    assert run.model.frozen_text_CE.ndim == 3
    draws = [drawn_text(1, step, len(run.model.frozen_text_CE)) for step in range(20)]
    assert len(set(draws)) > 5
    assert draws == [drawn_text(1, step, len(run.model.frozen_text_CE)) for step in range(20)]
    batch = next(iter(stream_local(run.order, run.dataset.source)))
    assert batch.images.shape[-1] == 6
    record = Session(run, tmp_path).run_epoch()
    assert record["direct_image"] > 0, "the frozen features are those of another view"


def test_texts_of_a_file_replace_the_templates_and_belong_to_the_run(tmp_path: Path) -> None:
    run = small_run("kgcoop", data__shots=1)
    names = run.model.frozen_text_CE
    assert names is not None
    file = tmp_path / "texts.json"
    classes = run.dataset.classnames
    file.write_text(json.dumps({name: [f"a drawing of a {name}.", "a thing."] for name in classes}))
    described = small_run("kgcoop", data__shots=1, regularizer__texts=str(file))
    assert described.model.frozen_text_CE is not None
    assert described.model.frozen_text_CE.shape == names.shape
    assert not torch.equal(described.model.frozen_text_CE, names)
    file.write_text(json.dumps({name: [f"a photo of a {name}."] for name in classes}))
    changed = small_run("kgcoop", data__shots=1, regularizer__texts=str(file))
    assert changed.digest != described.digest
    file.write_text(json.dumps({classes[0]: ["x"]}))
    with pytest.raises(UserError, match="has no texts for"):
        small_run("kgcoop", data__shots=1, regularizer__texts=str(file))
