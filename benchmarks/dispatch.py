"""Time one core spends on dispatching a ProMetaR step: as it is, replayed from its trace, and compiled.

    python benchmarks/dispatch.py [--compile] [--dtype fp32] [--repeats 5] [--quick] [--json FILE]

The model has the 12 layers of ViT-B/16, but widths of 16 and 24. So kernels compute almost nothing, and a
step takes as long as torch needs to call them. The three variants take turns in one process:

- step: the step as training runs it;
- trace: its ATen operations, which `make_fx` has recorded, without the Python code around them;
- compiled (only with --compile): the trace after `torch.compile`, which merges kernels. Compilation takes
  minutes, and needs a C++ compiler.

A kernel is an ATen operation that is not a view, or a kernel that `torch.compile` has generated. Deviations
are the largest difference from the next state and the losses of `step`, relative to the largest value of each
tensor.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from common import Figures, describe, machine, parser_of, table
from counting import Kernels
from open_clip.model import CLIP
from torch.fx.experimental.proxy_tensor import make_fx
from torch.profiler import ProfilerActivity, profile

from prometar.clip.openclip import clip_architecture, tokenize
from prometar.clip.weights import from_state_dict
from prometar.config.settings import Config
from prometar.methods.composition import build
from prometar.methods.prompts import Tensors
from prometar.step.iteration import step
from prometar.step.meta_batch import embed_batch, leave_one_class_out
from prometar.step.prompted_clip import build_model, prompt_texts
from prometar.step.state import State
from prometar.step.updates import Rates
from prometar.training.backbone import DTYPES

NUM_CLASSES = 16
GENERATED = "graph_"
"""Prefix of the profiler's names of kernels that `torch.compile` has generated."""

ATEN = "aten::"
"""Prefix of the profiler's names of ATen operations."""
NO_KERNELS = (
    "as_strided",
    "detach",
    "empty",
    "expand",
    "permute",
    "resolve_",
    "select",
    "slice",
    "transpose",
    "view",
)
"""Starts of the names of ATen operations that only describe or allocate tensors, in compiled code."""

Step = Callable[[Tensors], Tensors]
"""Function from the tensors of a state to those of the next state, and the losses."""


def tiny_clip(layers: int) -> dict[str, Any]:
    """Return the configuration of a CLIP whose kernels take almost no time, in open_clip's format."""
    return {
        "embed_dim": 16,
        "vision_cfg": {
            "layers": layers,
            "width": 24,
            "head_width": 2,
            "image_size": 32,
            "patch_size": 16,
        },
        "text_cfg": {"width": 16, "heads": 8, "layers": layers},
        "quick_gelu": True,
    }


def step_of(dtype: torch.dtype, *, layers: int) -> tuple[Step, Tensors]:
    """Return a step of ProMetaR with the published settings, and the tensors of the first state.

    Weights, images and features are random. The labels of the batch of four are 0, 1, 1 and 2.
    """
    generator = torch.Generator().manual_seed(0)
    settings = tiny_clip(layers)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weights = CLIP(**settings).state_dict()
    clip = from_state_dict(weights, clip_architecture(settings)).to(dtype).folded()
    method = build(Config())
    names = [f"class number {number}" for number in range(NUM_CLASSES)]
    tokens = tokenize(prompt_texts(names, method.prompts, init="a photo of a", template="{}"))
    teacher_CE = F.normalize(torch.randn(NUM_CLASSES, clip.embed_dim, generator=generator), dim=-1)
    model = build_model(clip, method, tokens, teacher_CE.to(clip.working_dtype))
    start_of_prompts = tokens[0, 1 : 1 + method.prompts.num_context]
    leaves = method.initialize(clip, start_of_prompts, NUM_CLASSES, generator)
    gate = method.modulator.initialize(method.inputs(leaves), generator)
    start = State.start(leaves, gate, method.optimizer)
    pixels = torch.randn(4, 3, clip.image_size, clip.image_size, generator=generator).to(dtype)
    labels = torch.tensor([0, 1, 1, 2])
    rng = np.random.default_rng(0)
    selection = leave_one_class_out(labels, method.augmentation, rng, dtype=clip.working_dtype)
    rates = Rates(lr=2.5e-3, gate_lr=1e-6)
    counters = start.counters()

    def take_step(tensors: Tensors) -> Tensors:
        state = State.from_tensors(tensors, counters)
        batch, task = embed_batch(clip, method, pixels, labels, selection)
        after, losses = step(model, method, state, batch, task, rates)
        return {**after.tensors(), **losses}

    return take_step, start.tensors()


def deviation(found: Tensors, expected: Tensors) -> float:
    """Return the largest difference relative to the largest absolute value of each tensor."""
    relative = [
        float((found[name] - tensor).abs().max() / tensor.abs().max().clamp_min(1e-30))
        for name, tensor in expected.items()
    ]
    return max(relative)


def milliseconds(function: Callable[[], object], *, calls: int) -> float:
    """Return the CPU time of the fastest of several calls."""
    times: list[float] = []
    for _ in range(calls):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return 1e3 * min(times)


def num_kernels(function: Callable[[], object]) -> int:
    """Return the number of kernels of a function that is not compiled."""
    with Kernels() as counted:
        function()
    return counted.kernels.total()


def num_compiled_kernels(function: Callable[[], object]) -> int:
    """Return the number of kernels of a compiled function: generated ones, and those of ATen operations."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        function()
    events = profiled.events()
    assert events is not None
    generated = 0
    called = 0
    for event in events:
        if event.name.startswith(GENERATED):
            generated += 1
        is_part_of_another = event.cpu_parent is not None and event.cpu_parent.name.startswith(ATEN)
        if event.name.startswith(ATEN) and not is_part_of_another:
            called += not event.name.removeprefix(ATEN).startswith(NO_KERNELS)
    return generated + called


def compiled(trace: torch.fx.GraphModule) -> Step:
    """Return the trace, compiled for the CPU of this machine."""
    trace.graph.eliminate_dead_code()
    trace.recompile()
    # The option names generated kernels in profiles.
    function: Step = torch.compile(trace, dynamic=False, options={"cpp.enable_kernel_profile": True})
    return torch.no_grad()(function)


def measure(args: Any) -> Figures:
    """Return the kernels, times and deviations of all variants."""
    calls = 2 if args.quick else 40
    take_step, tensors = step_of(DTYPES[args.dtype], layers=1 if args.quick else 12)
    expected = take_step(tensors)
    trace = make_fx(take_step)(tensors)
    variants: dict[str, Step] = {"step": take_step, "trace": torch.no_grad()(trace)}
    kernels = {name: num_kernels(lambda step=each: step(tensors)) for name, each in variants.items()}  # type: ignore[misc]
    seconds: float | None = None
    if args.compile:
        start = time.monotonic()
        variants["compiled"] = compiled(make_fx(take_step)(tensors))
        variants["compiled"](tensors)  # compiles at the first call
        seconds = time.monotonic() - start
        kernels["compiled"] = num_compiled_kernels(lambda: variants["compiled"](tensors))
    times: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(args.repeats):
        order = list(variants) if turn % 2 == 0 else list(reversed(variants))
        for name in order:
            times[name].append(milliseconds(lambda step=variants[name]: step(tensors), calls=calls))  # type: ignore[misc]
    return {
        "kernels": kernels,
        "milliseconds": times,
        "deviations": {name: deviation(each(tensors), expected) for name, each in variants.items()},
        "compilation_seconds": seconds,
        "machine": machine(),
    }


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--compile", action="store_true", help="also compile the trace, which takes minutes")
    parser.add_argument("--dtype", default="fp32", choices=DTYPES, help="precision")
    parser.add_argument("--repeats", type=int, default=5, help="turns, whose median is reported")
    parser.add_argument("--quick", action="store_true", help="one layer and few calls")
    parser.add_argument("--json", type=Path, help="file for all measurements")
    args = parser.parse_args()
    torch.set_num_threads(1)
    figures = measure(args)
    whole = median(figures["milliseconds"]["step"])
    rows: list[tuple[Any, ...]] = []
    for name, times in figures["milliseconds"].items():
        each = median(times)
        rows.append((name, figures["kernels"][name], each, each / whole, figures["deviations"][name]))
    print(describe(1, args.dtype))
    print(table(("variant", "kernels", "ms", "ratio", "deviation"), rows))
    if args.compile:
        print(f"compilation: {figures['compilation_seconds']:.0f} s")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
