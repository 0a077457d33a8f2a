"""Parity of a GPU with float64: trajectories, their deviations relative to the movement, and bounds.

A trajectory trains without warm-up, with a meta phase that matters (a large inner step and a large weight of
the query loss), and scores every epoch. It is compared with one in float64. Deviations are relative to how
far training has moved, so an error in a gradient cannot hide behind a small learning rate.

The bounds were set before the first run on a GPU, from runs on CPUs (`python benchmarks/gpu_parity.py`).
TF32 is emulated there: the factors of matrix products are rounded to 10 mantissa bits.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from math import inf, nan
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch
from common import BACKBONE, Figures, parser_of, table
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from prometar.config.settings import Config
from prometar.device import default_device, to_cpu
from prometar.training.run import Run, build_run
from prometar.training.session import Session

MINI: dict[str, Any] = {"backbone.name": "mini"}
RANDOM_CLIP: dict[str, Any] = {"backbone.name": BACKBONE, "backbone.pretrained": "random"}
SETTINGS: dict[str, Any] = {
    "data.shots": 1,
    "train.epochs": 2,  # 8 steps: in longer trajectories, rounding errors of bf16 grow to the movement itself
    "train.batch_size": 4,
    "optim.warmup_epochs": 0,
    "optim.gate_schedule": "configured",
    "optim.gate_lr": 0.25,  # otherwise, the movement of the gate is close to the resolution of float32
    "optim.eps": 1e-3,  # otherwise, Adam turns the rounding errors of gradients near 0 into whole steps
    "inner.lr": 0.1,
    "inner.outer_weight": 0.5,
}
"""Settings of a trajectory. Those that a method lacks are ignored."""
OBJECTIVE = "drift"  # scores each epoch, with a continuous value: the divergence from the frozen CLIP
EMULATED_TF32 = "tf32"
SMALLEST_DIVERGENCE = 0.01
"""Smallest divergence in nats to which deviations are relative. After so few steps, methods whose learning
rate is small diverge by less than 1e-6, which is close to the resolution of float32."""

STATE_GROUPS = ("prompts", "prompt_momenta", "gate", "gate_momenta")
GROUPS = (*STATE_GROUPS, "losses", "divergence", "accuracy")
"""What is compared. `accuracy`: base accuracy in points, all others relative to the movement."""


BOUNDS: dict[str, dict[str, float]] = {
    "fp64": dict.fromkeys(GROUPS, 1e-8),
    "fp32": {**dict.fromkeys(GROUPS, 1e-4), "accuracy": 0.5},
    "tf32": {**dict.fromkeys(GROUPS, 0.1), "accuracy": 2.0},
    "bf16": {**dict.fromkeys(GROUPS, 0.3), "accuracy": 4.0},
}
"""Largest accepted deviations, four to ten times those on a CPU. Planted faults exceed all of them
(tests/tools/test_gpu_parity.py)."""


def run_of(
    precision: str,
    backbone: Mapping[str, Any] = MINI,
    *,
    method: str = "prometar",
    device: torch.device | None = None,
    objective: str = OBJECTIVE,
    **settings: Any,
) -> Run:
    """Build the run of a trajectory on `textures`. `train__epochs=1` changes a setting.

    `device`: by default the GPU, or the CPU if there is none.
    """
    changes = {name.replace("__", "."): value for name, value in settings.items()}
    values = {**SETTINGS, **backbone, "backbone.precision": precision, **changes}
    with patch("prometar.training.backbone.default_device", lambda: device or default_device()):
        return build_run(Config(method=method).override(values), objective)


@dataclass(frozen=True)
class Trajectory:
    """A trained run.

    Args:
        start, end: Tensors of the first and the last state, in float64 on the host, named "<group>/<leaf>".
        history: One record per epoch, with losses and scores.
    """

    start: dict[str, Tensor]
    end: dict[str, Tensor]
    history: list[dict[str, float]]

    def save(self, folder: Path) -> None:
        """Write the trajectory to a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.start, folder / "start.safetensors")
        save_file(self.end, folder / "end.safetensors")
        (folder / "history.json").write_text(json.dumps(self.history), "utf-8")

    @staticmethod
    def load(folder: Path) -> "Trajectory":
        """Read a trajectory that `save` wrote."""
        history = json.loads((folder / "history.json").read_text("utf-8"))
        start, end = (load_file(folder / f"{name}.safetensors") for name in ("start", "end"))
        return Trajectory(start, end, history)

    def equals(self, other: "Trajectory") -> bool:
        """Return True if tensors, losses and scores are equal bit for bit."""
        same_tensors = self.end.keys() == other.end.keys() and all(
            torch.equal(tensor, other.end[name]) for name, tensor in self.end.items()
        )
        return same_tensors and self.history == other.history


def train(run: Run, *, sessions: int = 1) -> Trajectory:
    """Train a run in one session, or in several, each of which resumes the one before."""
    history: list[dict[str, Any]] = []
    start: dict[str, Tensor] = {}
    end: dict[str, Tensor] = {}
    epochs = run.config.train.epochs
    with TemporaryDirectory() as folder:
        for number in range(1, sessions + 1):
            with closing(Session(run, Path(folder))) as session:
                start = start or _tensors(session)
                while len(session.history) < epochs * number // sessions:
                    session.run_epoch()
                history = session.history
                end = _tensors(session)
    without_time = [{name: value for name, value in each.items() if name != "seconds"} for each in history]
    return Trajectory(start, end, without_time)


def _tensors(session: Session) -> dict[str, Tensor]:
    tensors = to_cpu(session.state.tensors())
    return {name: tensor.double().clone() for name, tensor in tensors.items()}


def deviations(found: Trajectory, reference: Trajectory) -> Figures:
    """Return the largest deviation of each group that the reference has.

    A group's deviation is |x - x'| / |x' - x'_0| over all its tensors. x' is the reference, x'_0 its start (0
    for momenta). A cross-entropy's is max |y - y'| / (max y' - min y') over the epochs. The divergence's is
    max |y - y'| / max y', where max y' is at least `SMALLEST_DIVERGENCE`.
    """
    result: Figures = {}
    for group in STATE_GROUPS:
        names = [name for name in reference.end if name.startswith(f"{group}/")]
        if names:
            difference = _norm([found.end[name] - reference.end[name] for name in names])
            movement = _norm([reference.end[name] - reference.start[name] for name in names])
            result[group] = _ratio(difference, movement)
    for name in reference.history[0]:
        values = [float(record.get(name, nan)) for record in found.history]
        expected_values = [float(record[name]) for record in reference.history]
        largest = _largest_difference(values, expected_values)
        if name == "divergence":
            result["divergence"] = _ratio(largest, max(SMALLEST_DIVERGENCE, *expected_values))
        elif name == "base":
            result["accuracy"] = largest
        elif "ce" in name or "loss" in name:
            moved = max(expected_values) - min(expected_values)
            result["losses"] = max(result.get("losses", 0.0), _ratio(largest, moved))
    return result


def _norm(tensors: list[Tensor]) -> float:
    return float(torch.cat([each.flatten() for each in tensors]).norm())


def _largest_difference(values: list[float], expected: list[float]) -> float:
    differences = [abs(one - other) for one, other in zip(values, expected, strict=True)]
    return max(each if each == each else inf for each in differences)  # NaN becomes infinite


def _ratio(difference: float, movement: float) -> float:
    """Return difference / movement, or infinity if it is not finite. Equal values deviate by 0."""
    if difference == 0:
        return 0.0
    ratio = difference / movement if movement else inf
    return ratio if ratio == ratio else inf


def violations(found: Mapping[str, float], bounds: Mapping[str, float]) -> dict[str, str]:
    """Return each group whose deviation exceeds its bound, with both numbers."""
    return {
        group: f"{deviation:.2g} > {bounds[group]:.2g}"
        for group, deviation in found.items()
        if not deviation <= bounds[group]
    }


class RoundedToTF32(TorchDispatchMode):
    """Mode that rounds the float32 factors of matrix products to TF32, to emulate a GPU on a CPU."""

    _PRODUCTS = (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm, torch.ops.aten.baddbmm)

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if operator.overloadpacket in self._PRODUCTS:
            number = len(args) - 2  # the factors are the last two tensors
            args = (*args[:number], *tree_map_only(Tensor, rounded_to_tf32, args[number:]))
        return operator(*args, **(kwargs or {}))


def rounded_to_tf32(values: Tensor) -> Tensor:
    """Return float32 values rounded to 10 mantissa bits, to nearest even. Other dtypes are not changed."""
    if values.dtype != torch.float32:
        return values
    bits = values.contiguous().view(torch.int32)
    last_bit = (bits >> 13) & 1
    return ((bits + 0xFFF + last_bit) & ~0x1FFF).view(torch.float32)


@contextmanager
def emulated(precision: str) -> Iterator[None]:
    """Emulate TF32 on a CPU. Other precisions are computed as they are."""
    if precision != EMULATED_TF32 or torch.cuda.is_available():
        yield
    else:
        with RoundedToTF32():
            yield


def main() -> None:
    """Measure the deviations on this CPU, from which the bounds are set."""
    parser = parser_of(__doc__)
    parser.add_argument("--precisions", nargs="+", default=["fp32", "tf32", "bf16"], help="precisions")
    parser.add_argument("--vit", action="store_true", help="ViT-B/16 with random weights instead of mini")
    parser.add_argument("--method", default="prometar", help="method")
    parser.add_argument("--set", type=json.loads, default={}, help="other settings, as JSON")
    args = parser.parse_args()
    backbone = RANDOM_CLIP if args.vit else MINI
    changes = {name.replace(".", "__"): value for name, value in args.set.items()}
    reference = train(run_of("fp64", backbone, method=args.method, **changes))
    rows = []
    for precision in args.precisions:
        with emulated(precision):
            found = deviations(train(run_of(precision, backbone, method=args.method, **changes)), reference)
        rows.append((precision, *(found.get(group, "-") for group in GROUPS)))
        print(rows[-1], flush=True)
    print(table(("precision", *GROUPS), rows))


if __name__ == "__main__":
    main()
