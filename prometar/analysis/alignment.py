"""Gradient alignment: the cosine of the angle between support and query gradients during training.

A meta task takes one class of a batch as query, and the other classes as support. To first order, the meta
phase minimizes L_query - lr * dot(g_support, g_query). Here, L_query is the query loss, lr is the learning
rate of the inner step, and g_support and g_query are the gradients of both losses. Thus the meta phase favors
gradients that agree. The paper of ProMetaR (CVPR 2024) derives this effect but does not measure it.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from html import escape
from itertools import cycle
from pathlib import Path
from statistics import fmean

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from prometar.data.streaming.stream import Batch
from prometar.device import send
from prometar.errors import UserError
from prometar.io.files import cannot_write_error, read_bytes, write_atomically
from prometar.methods.composition import Method
from prometar.methods.modulators import Add
from prometar.methods.optimizers import SGD
from prometar.methods.prompts import Tensors
from prometar.methods.regularizers import Regularizer
from prometar.methods.task_augmentations import NoAugmentation
from prometar.step.iteration import step
from prometar.step.meta_batch import Embeddings, embed_batch, leave_one_class_out, meta_task_rng
from prometar.step.state import State
from prometar.step.updates import Rates
from prometar.training.epoch import model_of_step, normalized_views
from prometar.training.run import Run
from prometar.training.run_result import RECORD_CONFIG

ALIGNMENT_FILE = "alignment.jsonl"
AlignmentRecord = dict[str, int | float]


@dataclass
class AlignmentRecorder:
    """Step callback that appends a record to alignment.jsonl if the step is divisible by `every`.

    A record contains `step` (0-based) and `epoch` (1-based), the cosine of the support and query gradients
    for all prompts (`cosine`) and for each tower with prompts (`text`, `vision`), and the norms of these
    gradients (`support_norm`, `query_norm`).

    Args:
        folder: Folder of alignment.jsonl, which is created if it does not exist.
        every: Number of steps from one record to the next.

    Raises:
        InfrastructureError: the file cannot be written.
    """

    folder: Path
    every: int = 20
    _next_step: int | None = field(default=None, init=False)

    def __call__(self, run: Run, state: State, batch: Batch) -> None:
        if self._next_step != state.step:
            # A resumed run repeats the steps after its checkpoint.
            self._drop_records_from(state.step)
        self._next_step = state.step + 1
        if state.step % self.every != 0:
            return
        measured = measure_alignment(run, state, batch)
        if measured is None:
            return
        epoch = state.step // run.order.steps_per_epoch + 1
        record: AlignmentRecord = {"step": state.step, "epoch": epoch, **measured}
        path = self.folder / ALIGNMENT_FILE
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as file:
                file.write(_lines([record]))
        except OSError as error:
            raise cannot_write_error(path, error) from None

    def _drop_records_from(self, step: int) -> None:
        """Drop the records of `step` and of later steps."""
        path = self.folder / ALIGNMENT_FILE
        if not path.exists():
            return
        kept = [record for record in read_alignment(path) if record["step"] < step]
        write_atomically(path, _lines(kept).encode())


def _lines(records: Iterable[AlignmentRecord]) -> str:
    """Return records as JSON Lines."""
    return "".join(json.dumps(record) + "\n" for record in records)


def measure_alignment(run: Run, state: State, batch: Batch) -> AlignmentRecord | None:
    """Compare the modulated support gradient with the gradient of the query loss.

    The modulated gradient combines task loss and regularizer. For all methods, the meta task is sampled as in
    the meta phase, but without augmentation.

    Returns:
        Cosines and norms (see `AlignmentRecorder`), or None if the batch has a single class or the run has no
        prompts.
    """
    method = run.method
    clip = run.backbone.clip
    labels = torch.from_numpy(batch.labels)
    rng = meta_task_rng(run.config.train.seed, state.step)
    selection = leave_one_class_out(labels, NoAugmentation(), rng, dtype=clip.working_dtype)
    if selection is None or not state.leaves:
        return None
    images, second_view = normalized_views(run, torch.from_numpy(batch.images))
    selection = send(selection, images.device)
    _, meta_task = embed_batch(clip, method, images, labels, selection, second_view_B3HW=second_view)
    assert meta_task is not None
    support, query = meta_task
    # The query loss is the task loss alone: no term of a regularizer is added to it.
    query_method = replace(method, regularizer=Regularizer(), modulator=Add())
    g_support = _gradient(run, method, state, support)
    g_query = _gradient(run, query_method, state, query)

    record: AlignmentRecord = {"cosine": _cosine(g_support, g_query)}
    for tower in ("text", "vision"):
        tower_gradient = {name: leaf for name, leaf in g_support.items() if name.startswith(f"{tower}.")}
        if tower_gradient:
            record[tower] = _cosine(tower_gradient, g_query)
    record["support_norm"] = float(_flat(g_support).norm())
    record["query_norm"] = float(_flat(g_query).norm())
    return record


def _gradient(run: Run, method: Method, state: State, batch: Embeddings) -> Tensors:
    """Return the gradient of the prompts in the direct phase of a step on `batch`.

    The step uses SGD with an lr of 0, so it changes no leaf. Momentum coefficient and weight decay are 0,
    too, so the momentum buffers contain the gradient after the step.
    """
    recorder = SGD(momentum=0.0, weight_decay=0.0)
    method = replace(method, inner=None, optimizer=recorder)
    start = State.start(state.leaves, state.gate, recorder)
    after, _ = step(model_of_step(run, state.step), method, start, batch, None, Rates(lr=0.0, gate_lr=0.0))
    return after.optimizer.slots["momenta"]


def _cosine(a: Tensors, b: Tensors) -> float:
    """Return the cosine of two gradients over the tensors of `a`, or 0 if one gradient is 0."""
    flat_a = _flat(a)
    flat_b = _flat({name: b[name] for name in a})
    norms = flat_a.norm() * flat_b.norm()
    if norms > 0:
        return float((flat_a @ flat_b / norms).clamp(-1, 1))
    return 0.0


def _flat(tensors: Tensors) -> Tensor:
    """Return all tensors as one vector in float64."""
    return torch.cat([tensor.flatten() for tensor in tensors.values()]).double()


_RECORD = TypeAdapter(AlignmentRecord, config=RECORD_CONFIG)


def read_alignment(path: Path) -> list[AlignmentRecord]:
    """Read the records of a run. Incomplete lines are ignored.

    Raises:
        UserError: the file is missing or unreadable.
    """
    try:
        lines = read_bytes(path).decode(errors="replace").splitlines()
    except OSError:
        raise UserError(f"Cannot read {path}. Run `prometar train --alignment-every 20 --out NEW`.") from None
    records: list[AlignmentRecord] = []
    for line in lines:
        with suppress(ValidationError):
            record = _RECORD.validate_json(line)
            if {"step", "epoch", "cosine"} <= record.keys():
                records.append(record)
    return records


def mean_cosine(folder: Path) -> float | None:
    """Return the mean cosine of a run, or None if it has no records."""
    path = folder / ALIGNMENT_FILE
    if not path.is_file():
        return None
    cosines = [record["cosine"] for record in read_alignment(path)]
    return fmean(cosines) if cosines else None


def summary(records: Sequence[AlignmentRecord]) -> str:
    """Summarize the cosines of a run in one line, including the means in the first and last quarter."""
    cosines = [record["cosine"] for record in records]
    if not cosines:
        return "no records"
    quarter = max(1, len(cosines) // 4)
    first = fmean(cosines[:quarter])
    last = fmean(cosines[-quarter:])
    share_positive = fmean(cosine > 0 for cosine in cosines)
    return (
        f"gradient alignment (cosine of support and query gradient): mean {fmean(cosines):.3f} over "
        f"{len(cosines)} records, {first:.3f} in the first quarter, {last:.3f} in the last, positive in "
        f"{share_positive:.0%} of the records"
    )


def render_page(runs: Mapping[str, Sequence[AlignmentRecord]]) -> str:
    """Return an HTML page that plots the cosines of each run over its steps, and the mean of each epoch."""
    import plotly.graph_objects as go  # optional dependency that is slow to import
    from plotly.colors import qualitative

    figure = go.Figure()
    colors = cycle(qualitative.Plotly)
    for name, records in runs.items():
        color = next(colors)
        steps = [record["step"] for record in records]
        cosines = [record["cosine"] for record in records]
        style = {"color": color, "size": 4, "opacity": 0.4}
        figure.add_scatter(x=steps, y=cosines, mode="markers", marker=style, showlegend=False)

        by_epoch: dict[float, list[AlignmentRecord]] = {}
        for record in records:
            by_epoch.setdefault(record["epoch"], []).append(record)
        mean_steps = [fmean(record["step"] for record in group) for group in by_epoch.values()]
        mean_cosines = [fmean(record["cosine"] for record in group) for group in by_epoch.values()]
        figure.add_scatter(
            x=mean_steps, y=mean_cosines, mode="lines+markers", line={"color": color}, name=escape(name)
        )
    figure.update_layout(
        template="plotly_white",
        title="Gradient alignment: cosine of the modulated support gradient and the query gradient",
        xaxis_title="step",
        yaxis={"title": "cosine", "range": [-1, 1], "zeroline": True},
        legend={"orientation": "h", "y": -0.2},
    )
    return str(figure.to_html(include_plotlyjs=True, full_html=True))
