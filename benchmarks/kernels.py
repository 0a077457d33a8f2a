"""Exact counts of kernels, bytes and operations of one ProMetaR step, from fake tensors.

    python benchmarks/kernels.py [--backbone ViT-B-16-quickgelu] [--classes 16] [--dtype fp32]
        [--places] [--methods] [--quick] [--json FILE]

Tensors have shapes but no data. A kernel is an ATen operation that torch dispatches and that is not a view.
Its bytes are those of all its operands and results. Operations are the multiplications and additions of
matrix products and convolutions.

`--places` groups kernels by the function of prometar that dispatches them. `--methods` counts two steps of
each method with its default batch size: the first one, and one with cached features.
"""

import json
import sys
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import BACKBONE, ROOT, machine, parser_of, table
from counting import Kernels, Rehearsal, kernels_of, operator_name, rehearse
from torch.utils.flop_counter import FlopCounterMode

from prometar.config.recipes import METHODS
from prometar.config.settings import Config, configure
from prometar.methods.composition import build
from prometar.training.backbone import DTYPES


def calling_function(_: object) -> str:
    """Return the innermost function of prometar that dispatches the current operation."""
    # Frame 0 is this function, and frame 1 is `Kernels`.
    for frame, _ in traceback.walk_stack(sys._getframe(2)):
        file = frame.f_code.co_filename
        if file.startswith(str(ROOT / "prometar")):
            return f"{Path(file).relative_to(ROOT / 'prometar')}:{frame.f_code.co_qualname}"
    return "outside"


def count(rehearsal: Rehearsal, *, places: bool = False) -> tuple[Kernels, int]:
    """Return the kernels of a step, and its number of operations."""
    with rehearsal.mode, FlopCounterMode(display=False) as flops:
        rehearsal()
    name_of = calling_function if places else operator_name
    return kernels_of(rehearsal, name_of), flops.get_total_flops()


def method_rows(values: dict[str, Any], **settings: Any) -> list[tuple[Any, ...]]:
    """Return a row per learning method: batch, kernels, GB, TFLOP, and GB and TFLOP with cached features."""
    rows: list[tuple[Any, ...]] = []
    for name in METHODS:
        config = configure(name, values)
        if build(config).is_untrained:
            continue
        first = rehearse(config, **settings)
        uncached, flops = count(first)
        later = replace(first, cache={})
        with later.mode:
            later()  # fills the cache
        cached, cached_flops = count(later)
        rows.append(
            (
                name,
                config.train.batch_size,
                uncached.kernels.total(),
                uncached.bytes.total() / 1e9,
                flops / 1e12,
                cached.bytes.total() / 1e9,
                cached_flops / 1e12,
            )
        )
    return rows


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--backbone", default=BACKBONE, help="CLIP backbone")
    parser.add_argument("--classes", type=int, default=16, help="number of classes")
    parser.add_argument("--dtype", default="fp32", choices=DTYPES, help="precision")
    parser.add_argument("--methods", action="store_true", help="count a step of each method")
    parser.add_argument("--places", action="store_true", help="group by function of prometar, not operator")
    parser.add_argument("--quick", action="store_true", help="use the backbone mini")
    parser.add_argument("--json", type=Path, help="file for all counts")
    args = parser.parse_args()
    if args.quick:
        args.backbone = "mini"
    weights = None if args.backbone == "mini" else "random"
    values = {"backbone.name": args.backbone, "backbone.pretrained": weights}
    if args.methods:
        rows = method_rows(values, num_classes=args.classes, dtype=DTYPES[args.dtype])
        print(f"{args.backbone}, {args.classes} classes, {args.dtype}")
        print(table(("method", "batch", "kernels", "GB", "TFLOP", "GB cached", "TFLOP cached"), rows))
        return
    config = Config().override(values)
    rehearsal = rehearse(config, num_classes=args.classes, dtype=DTYPES[args.dtype])
    counted, flops = count(rehearsal, places=args.places)
    kernels = counted.kernels.total()
    size = counted.bytes.total()
    print(f"{args.backbone}, {args.classes} classes, batch {config.train.batch_size}, {args.dtype}")
    print(table(("kernels", "views", "GB", "TFLOP"), [(kernels, counted.views, size / 1e9, flops / 1e12)]))
    print()
    most_frequent = counted.kernels.most_common(16)
    groups = [(name, number, counted.bytes[name] / 1e9) for name, number in most_frequent]
    print(table(("place" if args.places else "operator", "kernels", "GB"), groups))
    if args.json:
        by = {name: [number, counted.bytes[name]] for name, number in counted.kernels.most_common()}
        figures = {"kernels": kernels, "views": counted.views, "bytes": size, "flops": flops, "by": by}
        args.json.write_text(json.dumps({"eager": figures, "machine": machine()}, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
