"""Where the time of an iteration goes: matrix products, attention, normalising, copies, Python.

    python benchmarks/shares.py [--classes 24 100] [--dtype fp32] [--repeats 1] [--threads 2] [--quick]
        [--json FILE]

Our iteration of `step.py`, ViT-B/16 with random weights, by torch's profiler. An operator's own time counts
to one group; `outside` is the rest of the wall clock: Python, autograd's bookkeeping, the profiler itself.
"""

import argparse
import time

import torch
from common import BACKBONE, Figures, arguments, describe, in_turn, median_of, table, tell, write_json
from step import DTYPES, iteration
from torch.profiler import ProfilerActivity, profile

GROUPS = {
    "products": ("mm", "addmm", "conv", "linear", "dot"),
    "products in attention": ("bmm", "baddbmm", "matmul"),
    "softmax": ("softmax",),
    "normalising": ("layer_norm", "rsqrt", "var", "mean"),
    "activations": ("silu", "gelu", "sigmoid"),
    "copies": ("copy_", "cat", "clone", "contiguous", "index", "fill", "zero", "empty", "expand", "_to_copy"),
}


def group_of(operator: str) -> str:
    """The first group that an operator's name belongs to; products by their whole name."""
    name = operator.removeprefix("aten::")
    for group, words in GROUPS.items():
        if name in words or ("products" not in group and any(word in name for word in words)):
            return group
    return "convolution" if "conv" in name else "sums and elementwise products"


def measure(classes: int, backbone: str, dtype: str, threads: int) -> Figures:
    """Share of the wall clock by group."""
    torch.set_num_threads(threads)
    run = iteration("ours", classes, backbone, dtype)
    run()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        started = time.perf_counter()
        run()
        seconds = time.perf_counter() - started
    spent: Figures = {}
    for event in profiler.key_averages():
        if event.key.startswith("aten::"):
            group = group_of(event.key)
            spent[group] = spent.get(group, 0.0) + event.self_cpu_time_total / 1e6
    spent["outside"] = seconds - sum(spent.values())
    return {group: own / seconds for group, own in spent.items()} | {"seconds": seconds}


def main() -> None:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--classes", type=int, nargs="+", default=[24, 100])
        parser.add_argument("--dtype", default="fp32", choices=DTYPES)
        parser.add_argument("--backbone", default=BACKBONE)

    args = arguments(__doc__, add, repeats=1)
    if args.side:
        return tell(measure(**args.side))
    if args.quick:
        args.backbone, args.classes = "mini", [4]
    common = {"backbone": args.backbone, "dtype": args.dtype, "threads": args.threads}
    rounds = in_turn([{"classes": classes, **common} for classes in args.classes], args)
    print(f"{args.backbone}, batch 4, {describe(args.threads, args.dtype)}")
    groups = [name for name in rounds[0][0] if name not in {"seconds", "classes", *common}]
    groups.sort(key=lambda name: -median_of(rounds[0], name))
    head = ("part", *(f"{classes} classes" for classes in args.classes))
    rows = [(name, *(f"{100 * median_of(side, name):.1f} %" for side in rounds)) for name in groups]
    print(table(head, [*rows, ("seconds", *(median_of(side, "seconds") for side in rounds))]))
    return write_json(args, rounds)


if __name__ == "__main__":
    main()
