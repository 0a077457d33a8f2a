"""Gradient alignment: the cosine of support and query gradients along a run.

The meta phase lowers the query loss at theta - lr g_support, to first order L_query - lr g_support .
g_query: it asks for support and query gradients that agree. `Alignment` measures their cosine along a run,
with or without a meta phase, on the same tasks.

Source: ProMetaR (CVPR 2024), its analysis; there as an argument, here as a measurement.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from html import escape
from itertools import cycle, groupby
from pathlib import Path
from statistics import fmean, mean

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from prometar.data.streaming.stream import Batch
from prometar.device import send
from prometar.errors import UserError
from prometar.io.files import read_bytes, write_atomically
from prometar.methods.augmentations import NoAugmentation
from prometar.methods.composition import Method
from prometar.methods.modulators import Add
from prometar.methods.prompts import Leaves
from prometar.methods.regularizers import Regularizer
from prometar.step.iteration import Rates, step
from prometar.step.meta_batch import Images, make_batch, one_class_out, task_rng
from prometar.step.state import State
from prometar.training.run import Run
from prometar.training.run_result import STRICT

FILE = "alignment.jsonl"
_STILL = Rates(prompt_lr=0.0, gate_lr=0.0, momentum=0.0, weight_decay=0.0)
Record = dict[str, int | float]


@dataclass
class Alignment:
    """Watch that writes a record to FILE in the run's folder every `every` steps.

    A record contains `step` (0-based), `epoch` (1-based), `cosine` over all prompts, `text` and `vision` over
    those of a tower (if it has any), and the norms of both gradients.
    """

    folder: Path
    every: int = 20

    def __call__(self, run: Run, state: State, pictures: Batch) -> None:
        if state.step % self.every:
            return
        found = measure(run, state, pictures)
        if found is not None:
            path, epoch = self.folder / FILE, state.step // run.plan.steps_per_epoch + 1
            # A resumed run repeats steps.
            earlier = [each for each in read(path) if each["step"] < state.step] if path.exists() else []
            records = [*earlier, {"step": state.step, "epoch": epoch, **found}]
            write_atomically(path, "".join(json.dumps(record) + "\n" for record in records).encode())


def measure(run: Run, state: State, pictures: Batch) -> Record | None:
    """Return cosines of the modulated support gradient and the query's task gradient.

    The task is that of the step's meta phase, without augmentation of the query. Returns None if the batch
    contains one class only, or nothing is learned.
    """
    method, clip, labels = run.method, run.backbone.clip, torch.from_numpy(pictures.labels)
    rng = task_rng(run.config.train.seed, state.step)
    selection = one_class_out(labels, NoAugmentation(), rng, dtype=clip.working_dtype)
    if selection is None or not state.prompts:
        return None
    images = run.backbone.normalize(torch.from_numpy(pictures.images))
    _, task = make_batch(clip, method, images, labels, send(selection, images.device))
    assert task is not None
    support, query = task
    plain = replace(method, regularizer=Regularizer(), modulator=Add())
    return _cosines(_gradient(run, method, state, support), _gradient(run, plain, state, query))


def _gradient(run: Run, method: Method, state: State, images: Images) -> Leaves:
    """Return the gradient of the direct phase: the momenta of a step with lr 0."""
    after, _ = step(run.model, replace(method, inner=None), state, images, None, _STILL)
    return after.prompt_momenta


def _cosines(support: Leaves, query: Leaves) -> Record:
    found: Record = {"cosine": _cosine(support, query)}
    for tower in ("text", "vision"):
        own = {name: leaf for name, leaf in support.items() if name.startswith(f"{tower}.")}
        if own:
            found[tower] = _cosine(own, query)
    return found | {"support_norm": float(_flat(support).norm()), "query_norm": float(_flat(query).norm())}


def _cosine(a: Leaves, b: Leaves) -> float:
    one, other = _flat(a), _flat({name: b[name] for name in a})
    product = one.norm() * other.norm()
    return float((one @ other / product).clamp(-1, 1)) if product > 0 else 0.0


def _flat(leaves: Leaves) -> Tensor:
    return torch.cat([leaf.flatten() for leaf in leaves.values()]).double()


_RECORD = TypeAdapter(Record, config=STRICT)


def read(path: Path) -> list[Record]:
    """Read a run's records. Incomplete lines are ignored.

    Raises:
        UserError: the file is missing.
    """
    try:
        lines = read_bytes(path).decode(errors="replace").splitlines()
    except OSError:
        fix = "train the run with `prometar train --alignment-every 20`"
        raise UserError(f"there is no {path}: {fix}") from None
    records: list[Record] = []
    for line in lines:
        with suppress(ValidationError):
            record = _RECORD.validate_json(line)
            if {"step", "epoch", "cosine"} <= record.keys():
                records.append(record)
    return records


def mean_cosine(folder: Path) -> float | None:
    """Return the mean cosine along a run; None if nothing was measured."""
    cosines = [record["cosine"] for record in read(folder / FILE)] if (folder / FILE).is_file() else []
    return mean(cosines) if cosines else None


def summary(records: Sequence[Record]) -> str:
    """Describe the cosines along a run, and in its first and last quarter."""
    cosines = [record["cosine"] for record in records]
    if not cosines:
        return "no batch contained two classes"
    quarter = max(1, len(cosines) // 4)
    first, last = mean(cosines[:quarter]), mean(cosines[-quarter:])
    return (
        f"gradient alignment (cosine of support and query gradient): mean {mean(cosines):.3f} over "
        f"{len(cosines)} steps, {first:.3f} in the first quarter, {last:.3f} in the last, positive in "
        f"{mean(cosine > 0 for cosine in cosines):.0%}"
    )


def page(runs: Mapping[str, Sequence[Record]]) -> str:
    """Return an HTML page: each run's cosines by step, and their means by epoch."""
    import plotly.graph_objects as go  # slow to import, and part of an extra
    from plotly.colors import qualitative

    figure = go.Figure()
    for colour, (name, records) in zip(cycle(qualitative.Plotly), runs.items(), strict=False):
        steps, cosines = [r["step"] for r in records], [r["cosine"] for r in records]
        points = {"color": colour, "size": 4, "opacity": 0.4}
        figure.add_scatter(x=steps, y=cosines, mode="markers", marker=points, showlegend=False)
        line = _by_epoch(records)
        figure.add_scatter(**line, mode="lines+markers", line={"color": colour}, name=escape(name))
    figure.update_layout(
        template="plotly_white",
        title="Gradient alignment: cosine of the modulated support gradient and the query gradient",
        xaxis_title="step",
        yaxis={"title": "cosine", "range": [-1, 1], "zeroline": True},
        legend={"orientation": "h", "y": -0.2},
    )
    return str(figure.to_html(include_plotlyjs=True, full_html=True))


def _by_epoch(records: Sequence[Record]) -> dict[str, list[float]]:
    epochs = [list(group) for _, group in groupby(records, key=lambda record: record["epoch"])]
    axes = {"x": "step", "y": "cosine"}
    return {axis: [fmean(r[name] for r in epoch) for epoch in epochs] for axis, name in axes.items()}
