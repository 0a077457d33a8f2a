"""Sessions: a resumed run equals one that was never stopped, and each checkpoint is checked before use."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save, save_file

from prometar.clip.weights import read_tensors
from prometar.config.recipes import METHODS
from prometar.config.settings import Config
from prometar.data.datasets.dataset import Source
from prometar.data.streaming.order import ImageOrder
from prometar.data.streaming.stream import Batch, StreamFn, stream_local
from prometar.errors import UserError, WorkError
from prometar.step.state import State
from prometar.training.backbone import DTYPES
from prometar.training.cache import RunCache
from prometar.training.checkpoint import load_checkpoint
from prometar.training.epoch import drawn_text, rates_of, train_epoch, train_step
from prometar.training.run import Run, initial_state
from prometar.training.session import Session
from tests.support.small import small_run, train, without_time

CHECKPOINT = "checkpoint.safetensors"


@dataclass(frozen=True)
class Begun:
    """A run, and its checkpoint after one of three epochs."""

    run: Run
    checkpoint: Path


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Begun:
    """A run, and its checkpoint. Do not change it."""
    run = small_run()
    folder = tmp_path_factory.mktemp("begun")
    Session(run, folder).run_epoch()
    return Begun(run, folder / CHECKPOINT)


def train_in_three_sessions(run: Run, folder: Path) -> Session:
    """Train each of three epochs in another session, as after a kill. Return the last session."""
    for _ in range(3):
        session = Session(run, folder)
        session.run_epoch()
    return session


def require_equal_states(one: State, other: State) -> None:
    """Check that the tensors of two states are equal bit for bit."""
    tensors = other.tensors()
    for name, tensor in one.tensors().items():
        assert torch.equal(tensor, tensors[name]), name


@pytest.mark.parametrize(
    ("method", "precision"),
    [*((method, "fp32") for method in METHODS), ("prometar", "bf16"), ("prometar", "fp16")],
)
def test_a_resumed_run_equals_one_that_was_never_stopped_bit_for_bit(
    method: str, precision: str, tmp_path: Path
) -> None:
    run = small_run(method, data__shots=1, backbone__precision=precision)
    start = initial_state(run).leaves
    whole = Session(run, tmp_path / "whole")
    history = train(whole)

    resumed = train_in_three_sessions(run, tmp_path / "resumed")

    assert without_time(resumed.history) == without_time(history)
    require_equal_states(whole.state, resumed.state)
    num_steps = 3 * run.order.steps_per_epoch if start else 0
    assert whole.state.step == num_steps
    assert resumed.state.step == num_steps

    # Training changed each leaf. Whatever the precision of the towers, prompts are learned in float32.
    assert run.backbone.clip.dtype == DTYPES[precision]
    assert run.backbone.clip.logit_scale.dtype == torch.float32
    assert all((whole.state.leaves[name] != leaf).any() for name, leaf in start.items())
    assert all(tensor.dtype == torch.float32 for tensor in whole.state.tensors().values())


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw"])
def test_each_optimizer_resumes_bit_for_bit(kind: str, tmp_path: Path) -> None:
    run = small_run(data__shots=1, optim__kind=kind, optim__logits_lr_factor=2.0)
    whole = Session(run, tmp_path / "whole")
    history = train(whole)

    resumed = train_in_three_sessions(run, tmp_path / "resumed")

    assert without_time(resumed.history) == without_time(history)
    assert resumed.state.counters() == whole.state.counters()
    assert whole.state.optimizer.num_updates > whole.state.step, "both phases update the leaves"
    require_equal_states(whole.state, resumed.state)


def test_a_checkpoint_of_version_0_2_can_be_resumed(begun: Begun, tmp_path: Path) -> None:
    """Its metadata do not contain the numbers of updates."""
    tensors, metadata = read_tensors(begun.checkpoint, "")
    groups = {name.partition("/")[0] for name in tensors}
    assert groups >= {"prompts", "prompt_momenta", "gate", "gate_momenta"}
    old_metadata = {name: text for name, text in metadata.items() if not name.endswith("_updates")}
    (tmp_path / CHECKPOINT).write_bytes(save(tensors, old_metadata))

    resumed = Session(begun.run, tmp_path)

    assert resumed.state.step == begun.run.order.steps_per_epoch
    resumed.run_epoch()


# Module of a user with an averager. It returns the tensors of the prompts without copying them.
THEMSELVES = """
from dataclasses import dataclass


@dataclass(frozen=True)
class Themselves:
    def __call__(self, average, prompts, epoch, epochs):
        return dict(prompts)
"""


def test_a_custom_averager_may_return_the_prompts_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "themselves.py").write_text(THEMSELVES)
    monkeypatch.syspath_prepend(tmp_path)
    run = small_run(averager__kind="themselves:Themselves")
    train(Session(run, tmp_path))
    found = load_checkpoint(tmp_path / CHECKPOINT)
    assert found is not None
    assert all(torch.equal(found.state.average[name], leaf) for name, leaf in found.state.leaves.items())


def test_the_final_objective_reads_test_images_only_once(small_dtd: Path, tmp_path: Path) -> None:
    run = small_run(objective="final", train__epochs=2, data__name="dtd", data__root=str(small_dtd))
    test_paths = {item.path for item in run.dataset.test}
    opened: list[str] = []

    first_epoch, last_epoch = train(Session(run, tmp_path, recording_stream(opened)))

    assert "objective" not in first_epoch
    assert "objective" in last_epoch
    assert sorted(path for path in opened if path in test_paths) == sorted(test_paths)


def recording_stream(opened: list[str]) -> StreamFn:
    """Return a local stream that appends the paths of all images that it reads to a list."""

    def stream(order: ImageOrder, source: Source, step: int) -> Iterator[Batch]:
        opened.extend(item.path for item in order.items)
        return stream_local(order, source, step)

    return stream


@pytest.mark.parametrize("objective", ["drift", "base_val"])
def test_a_search_never_reads_a_test_image_or_a_new_class(objective: str, tmp_path: Path) -> None:
    run = small_run(objective=objective, train__epochs=1)
    names = run.dataset.classnames
    base = set(names[: (len(names) + 1) // 2])
    opened: list[str] = []

    train(Session(run, tmp_path, recording_stream(opened)))

    assert opened
    for path in opened:
        classname, file = path.split("/")
        assert classname in base
        assert not file.startswith("test")


def test_the_error_of_a_diverged_run_names_the_step(tmp_path: Path) -> None:
    run = small_run(optim__lr=1e30, optim__warmup_lr=1e30)
    with pytest.raises(WorkError, match=r"at step \d+|after step \d+"):
        train(Session(run, tmp_path))


@pytest.mark.parametrize("kind", ["settings", "class names", "template"])
def test_a_checkpoint_belongs_to_settings_class_names_and_the_words_around_them(
    kind: str, begun: Begun
) -> None:
    run = begun.run
    if kind == "settings":
        other = small_run(optim__lr=0.01)
    elif kind == "class names":
        items = tuple(replace(item, classname=f"my {item.classname}") for item in run.order.items)
        other = replace(run, order=replace(run.order, items=items))
        assert other.order.digest == run.order.digest, "the images are the same"
    else:
        other = replace(run, dataset=replace(run.dataset, template="nothing {}"))

    assert replace(run).digest == run.digest
    with pytest.raises(WorkError, match="belongs to a run with other settings or data"):
        Session(other, begun.checkpoint.parent)


@pytest.mark.parametrize("num_bytes", [0, 10, 500])
def test_an_incomplete_checkpoint_is_refused(num_bytes: int, begun: Begun, tmp_path: Path) -> None:
    path = tmp_path / CHECKPOINT
    path.write_bytes(begun.checkpoint.read_bytes()[:num_bytes])
    with pytest.raises(WorkError, match=r"is corrupt .* Remove it to start over"):
        load_checkpoint(path)


def test_the_released_schedule_keeps_the_warm_up_rate_of_the_gate() -> None:
    released = Config()
    assert [rates_of(released, epoch).gate_lr for epoch in (0, 1, 9)] == [1e-6] * 3
    assert rates_of(released, 0).lr == 1e-5
    assert rates_of(released, 1).lr == 0.0025


def test_the_configured_schedule_of_the_gate_has_its_own_rate_which_falls() -> None:
    configured = Config().override({"optim.gate_schedule": "configured"})
    assert rates_of(configured, 0).gate_lr == 1e-6
    assert rates_of(configured, 1).gate_lr == 2.5e-4
    assert 0 < rates_of(configured, 9).gate_lr < 2.5e-4 / 10


def test_the_time_until_the_first_training_batch_is_not_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first batch takes 1,000 s, each other one a second, and scoring takes no time."""
    run = small_run("coop", train__epochs=1)
    now = 0.0
    monkeypatch.setattr("prometar.training.session.time", SimpleNamespace(perf_counter=lambda: now))

    def slow_stream(order: ImageOrder, source: Source, step: int) -> Iterator[Batch]:
        nonlocal now
        is_training = order == run.order
        if is_training:
            now += 1000
        for batch in stream_local(order, source, step):
            yield batch
            if is_training:
                now += 1

    (record,) = train(Session(run, tmp_path, slow_stream))

    assert record["seconds"] == run.order.steps_per_epoch - 1


def test_runs_with_one_cache_and_image_order_compute_frozen_features_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shared = RunCache()
    first = small_run(data__shots=3, shared=shared)
    second = small_run(data__shots=3, inner__lr=0.02, shared=shared)
    train_first_epoch(first)
    expected = train_first_epoch(replace(second, cache=None))

    def never(*_: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr("prometar.clip.features.encode_image", never)
    require_equal_states(expected, train_first_epoch(second))


def train_first_epoch(run: Run) -> State:
    """Train the first epoch of a run without a session. Return its state."""
    state, _ = train_epoch(run, initial_state(run), stream_local(run.order, run.dataset.source))
    return state


def test_a_state_within_an_epoch_trains_the_remaining_steps_of_that_epoch() -> None:
    run = small_run(data__shots=3)
    rates = rates_of(run.config, 0)
    state = initial_state(run)
    for batch in islice(stream_local(run.order, run.dataset.source), 2):
        state, _ = train_step(run, state, batch, rates)
    assert 0 < state.step < run.order.steps_per_epoch

    state, _ = train_epoch(run, state, stream_local(run.order, run.dataset.source, state.step))

    assert state.step == run.order.steps_per_epoch
    require_equal_states(train_first_epoch(run), state)


def test_the_message_about_tensors_that_are_not_finite_names_the_step() -> None:
    run = small_run(data__shots=1)
    last_step = run.order.steps_per_epoch
    state = replace(initial_state(run), step=last_step - 1)
    momenta = {name: torch.full_like(each, 1e38) for name, each in state.optimizer.slots["momenta"].items()}
    state = replace(state, optimizer=replace(state.optimizer, slots={"momenta": momenta}))

    with pytest.raises(WorkError, match=f"learned tensors are not finite after step {last_step}"):
        train_epoch(run, state, stream_local(run.order, run.dataset.source, state.step))


NAME = "prompts/text.0"
LONG_HISTORY = json.dumps([{"epoch": epoch, "seconds": 1} for epoch in range(1, 9)])


def require_refusal(
    begun: Begun, folder: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str], message: str
) -> None:
    """Write a damaged checkpoint, and check that a session refuses it in one line.

    Args:
        begun: The run, and its whole checkpoint.
        folder: Folder of the damaged checkpoint.
        tensors: Tensors of the damaged checkpoint.
        metadata: Metadata of the damaged checkpoint.
        message: Regular expression that the message must contain.
    """
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, folder / CHECKPOINT, metadata)
    with pytest.raises(WorkError, match=message) as caught:
        Session(begun.run, folder)
    assert "Remove it to start over" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


# Functions that return tensors in place of that named `NAME`, given it, and parts of the message.
DAMAGED_TENSORS: dict[str, tuple[Callable[[torch.Tensor], dict[str, torch.Tensor]], str]] = {
    "not finite": (lambda tensor: {NAME: tensor * torch.nan}, r"prompts/text\.0 is not finite"),
    "missing": (lambda tensor: {}, r"prompts/text\.0 is missing, expected float"),
    "one too many": (
        lambda tensor: {NAME: tensor, "prompts/x": torch.ones(1)},
        r"prompts/x is unexpected",
    ),
    "another shape": (lambda tensor: {NAME: tensor[:, 1:]}, r"text\.0 is float \(4, \d+\)"),
    "integers": (lambda tensor: {NAME: tensor.int()}, r"text\.0 is torch.int32"),
    "without group": (lambda tensor: {NAME: tensor, "x": torch.ones(1)}, r"outdated \('x'\)"),
}


@pytest.mark.parametrize("kind", DAMAGED_TENSORS)
def test_a_checkpoint_with_damaged_tensors_is_refused(kind: str, begun: Begun, tmp_path: Path) -> None:
    damage, message = DAMAGED_TENSORS[kind]
    tensors, metadata = read_tensors(begun.checkpoint, "")
    damaged = damage(tensors.pop(NAME))
    require_refusal(begun, tmp_path, {**tensors, **damaged}, metadata, message)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"history": "[1]"}, "history.0 must be"),
        ({"history": "[" * 100_000}, "is corrupt"),
        ({"history": LONG_HISTORY}, "it contains 8 epochs, more than train.epochs"),
        ({"step": "x"}, "invalid literal for int"),
    ],
    ids=["history of numbers", "deep history", "long history", "step"],
)
def test_a_checkpoint_with_damaged_metadata_is_refused(
    damage: dict[str, str], message: str, begun: Begun, tmp_path: Path
) -> None:
    tensors, metadata = read_tensors(begun.checkpoint, "")
    require_refusal(begun, tmp_path, tensors, {**metadata, **damage}, message)


def test_logits_that_are_not_finite_have_no_score(tmp_path: Path) -> None:
    """If all logits were NaN, argmax would choose the first class."""
    run = small_run(objective="base_val")
    session = Session(run, tmp_path)
    infinite = replace(run.backbone.clip, logit_scale=torch.tensor(torch.inf))
    evaluations = {
        name: replace(evaluation, model=replace(evaluation.model, clip=infinite))
        for name, evaluation in run.evaluations.items()
    }
    session.run = replace(run, evaluations=evaluations)

    with pytest.raises(WorkError, match="Logits of tiny-plain in float32 are not finite"):
        session.score()


def test_each_step_of_coprompt_draws_one_text_which_depends_only_on_seed_and_step() -> None:
    run = small_run("coprompt", data__shots=2)
    assert run.model.frozen_text_CE is not None
    assert run.model.frozen_text_CE.ndim == 3, "a class has several texts"
    num_texts = len(run.model.frozen_text_CE)
    draws = [drawn_text(1, step, num_texts) for step in range(20)]
    assert len(set(draws)) > 5
    assert draws == [drawn_text(1, step, num_texts) for step in range(20)]


def test_each_step_of_coprompt_reads_two_views_of_its_images(tmp_path: Path) -> None:
    run = small_run("coprompt", data__shots=2)
    assert run.order.transform.views == 2
    batch = next(iter(stream_local(run.order, run.dataset.source)))
    assert batch.images.shape[-1] == 2 * 3, "two views of three colors"

    record = Session(run, tmp_path).run_epoch()

    assert record["direct_image"] > 0, "the frozen features are those of another view"


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """A file with two texts for each class of a small run."""
    classes = small_run("kgcoop", data__shots=1).dataset.classnames
    file = tmp_path / "texts.json"
    file.write_text(json.dumps({name: [f"a drawing of a {name}.", "a thing."] for name in classes}))
    return file


def test_texts_of_a_file_replace_the_templates(texts: Path) -> None:
    from_templates = small_run("kgcoop", data__shots=1).model.frozen_text_CE
    from_file = small_run("kgcoop", data__shots=1, regularizer__texts=str(texts)).model.frozen_text_CE
    assert from_templates is not None
    assert from_file is not None
    assert from_file.shape == from_templates.shape
    assert not torch.equal(from_file, from_templates)


def test_the_digest_of_a_run_depends_on_the_texts_of_a_file(texts: Path) -> None:
    before = small_run("kgcoop", data__shots=1, regularizer__texts=str(texts))
    changed = {name: [f"a photo of a {name}."] for name in before.dataset.classnames}
    texts.write_text(json.dumps(changed))
    after = small_run("kgcoop", data__shots=1, regularizer__texts=str(texts))
    assert after.digest != before.digest


def test_a_file_without_texts_for_a_class_is_refused(texts: Path) -> None:
    first, *_ = json.loads(texts.read_text())
    texts.write_text(json.dumps({first: ["x"]}))
    with pytest.raises(UserError, match="has no texts for"):
        small_run("kgcoop", data__shots=1, regularizer__texts=str(texts))
