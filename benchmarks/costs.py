"""Cost of a default study with ViT-B/16 on each benchmark: runs, steps, memory and hours.

    python benchmarks/costs.py [--method mmrl] [--rates 2 10 30] [--doc docs/performance.md]

Nothing is downloaded or trained. The numbers of classes and images are the published ones. Runs, steps and
memory are the estimates of `search.py --plan`. Hours are steps divided by each number of --rates, in steps
per second.
"""

import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path

from common import BACKBONE, parser_of, publish, table

from prometar.clip.openclip import load_backbone
from prometar.config.recipes import METHODS
from prometar.data.datasets.benchmarks import BENCHMARKS
from prometar.data.datasets.dataset import Dataset, Item, RenderedSource
from prometar.training.memory import Footprint
from tune.config import StudyConfig
from tune.stages.plan import TOTAL, plan_study


def outline(name: str, root: str | None = None) -> Dataset:
    """Return a dataset with as many classes as a benchmark, and enough images for 16 shots.

    Args:
        name: Name of the benchmark.
        root: Not used. Dataset loaders receive the value of --data-root.
    """
    benchmark = BENCHMARKS[name]

    def items(split: str, num_images: int) -> tuple[Item, ...]:
        """Return some images of each class."""
        return tuple(
            Item(f"{split}/{label}/{image}", label, f"class {label}")
            for label in range(benchmark.num_classes)
            for image in range(num_images)
        )

    return Dataset(
        name=name,
        title=benchmark.title,
        train=items("train", 36),  # 16 shots, and 20 validation images if the benchmark has no split `val`
        val=items("val", 20 if benchmark.sizes["val"] else 0),
        test=items("test", 1),  # every class needs a test image
        source=RenderedSource("cells"),  # any source: no image is read
        template="{}",
    )


def __getattr__(name: str) -> Callable[..., Dataset]:
    """Return the loader of a benchmark's outline, so that `costs:NAME` is a custom dataset."""
    if name not in BENCHMARKS:
        raise AttributeError(name)
    return partial(outline, name)


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--rates", nargs="+", type=float, default=[2.0, 10.0, 30.0], help="steps per second")
    parser.add_argument("--method", default="prometar", choices=METHODS, help="method of the study")
    parser.add_argument("--doc", type=Path, help="document whose block `costs` is replaced by the table")
    parser.add_argument("--quick", action="store_true", help="two benchmarks only")
    args = parser.parse_args()
    clip = load_backbone(BACKBONE, "random").clip
    trained = [name for name, row in BENCHMARKS.items() if row.sizes["train"]]
    rows = []
    for name in trained[:2] if args.quick else trained:
        config = StudyConfig.of(
            dataset=f"costs:{name}",
            method=args.method,
            backbone=BACKBONE,
            pretrained="openai",
            trials=40,
        )
        plan = plan_study(config)
        splits = list(itertools.chain.from_iterable(plan.splits.values()))
        memory = Footprint.of(clip, splits).memory_bytes(config.baseline) / 2**30
        total = plan.stages[TOTAL]
        hours = [f"{total.steps / rate / 3600:,.1f}" for rate in args.rates]
        num_classes = len(splits[0].classnames)
        rows.append((name, num_classes, total.runs, f"{total.steps:,}", f"{memory:.1f}", *hours))
    hours_heads = [f"hours at {rate:g}/s" for rate in args.rates]
    head = ("dataset", "base classes", "runs", "steps", "GiB per trial", *hours_heads)
    publish(table(head, rows), args.doc, "costs")


if __name__ == "__main__":
    main()
