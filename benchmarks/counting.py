"""Exact counts of kernels, bytes and memory of a training step.

The step runs on fake tensors, which have shapes, but no data. So counting is fast and needs no memory for the
weights.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from prometar.clip.features import FeatureCache
from prometar.clip.model import tensors_of
from prometar.clip.openclip import clip_without_weights, load_tokenizer
from prometar.config.settings import Config
from prometar.methods.composition import Method, build
from prometar.methods.task_augmentations import Mix
from prometar.step.iteration import step
from prometar.step.meta_batch import Embeddings, MetaTask, Partners, embed_batch
from prometar.step.prompted_clip import PromptedClip, build_model, prompt_texts
from prometar.step.state import State
from prometar.step.updates import Rates


@dataclass(frozen=True)
class Rehearsal:
    """One training step of a configuration: embed the images, then run the direct and the meta phase.

    Without learned tensors, both phases are omitted. Enter `mode` before you call a rehearsal.

    Attributes:
        mode: Mode to which all tensors belong. Fake tensors have shapes, but no data.
        model: Prompted CLIP of the training classes.
        method: The method of the configuration.
        state: State before the step.
        pixels_B3HW: Normalized images of the batch.
        labels_B: Labels of the batch.
        num_query: Number of images in the query. The rest of the batch is the support.
        cache: Features from earlier calls. None if features are not cached.
    """

    mode: FakeTensorMode
    model: PromptedClip
    method: Method
    state: State
    pixels_B3HW: Tensor
    labels_B: Tensor
    num_query: int
    cache: FeatureCache | None = None

    def __call__(self) -> object:
        """Run the step, and return its results, which the caller keeps alive or discards."""
        model = self.model
        method = self.method
        whole, task = embed_batch(model.clip, method, self.pixels_B3HW, self.labels_B, None, cache=self.cache)
        if not self.state.leaves:
            return whole
        num_support = len(self.labels_B) - self.num_query
        if method.inner is not None and num_support:
            task = _task(whole, num_support)
        return step(model, method, self.state, whole, task, Rates(lr=2.5e-3, gate_lr=1e-6))


def _task(whole: Embeddings, num_support: int) -> MetaTask:
    """Return a task whose support is the first `num_support` images. The query is all other images, mixed.

    Only shapes matter, so any tensor of the right shape will do. Labels stand for indices of rows, weights
    stand for shares, and the last support image stands for the image with which the query is mixed.
    """
    support = Embeddings._make(None if part is None else part[:num_support] for part in whole)
    labels_Q = whole.labels[num_support:]
    weights_Q = whole.weights[num_support:]
    partners = Partners(
        query_share=weights_Q,
        partner_share=weights_Q,
        batch_rows=labels_Q,
        image_rows=labels_Q,
        mix=Mix(lam=weights_Q, partner=labels_Q),
    )
    query = Embeddings(
        images=whole.images[num_support - 1 :],
        labels=labels_Q,
        weights=weights_Q,
        frozen=None if whole.frozen is None else whole.frozen[num_support:],
        partners=partners,
        partner_labels=labels_Q,
    )
    return support, query


def rehearse(
    config: Config,
    *,
    num_classes: int,
    dtype: torch.dtype = torch.float32,
    num_query: int | None = None,
) -> Rehearsal:
    """Return the rehearsal of a configuration.

    Args:
        config: Configuration of the run.
        num_classes: Number of training classes.
        dtype: Data type of the towers.
        num_query: Number of images in the query. Default: half of the batch.
    """
    method = build(config)
    clip = clip_without_weights(config.backbone.name).to(dtype)
    names = [f"class number {number}" for number in range(num_classes)]
    texts = prompt_texts(names, method.prompts, init=config.prompts.init, template="a {}.")
    tokens = load_tokenizer(config.backbone.name)(texts)
    mode = FakeTensorMode()
    with mode:
        # Within the mode, torch.empty returns fake tensors.
        clip = tree_map_only(Tensor, lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype), clip)
        if not method.changes_blocks:
            clip = clip.folded()
        frozen = torch.empty(num_classes, clip.embed_dim, dtype=clip.working_dtype)
        if method.changes("text"):
            model = build_model(clip, method, tokens, frozen)
        else:  # texts without prompts would be encoded here
            model = PromptedClip(clip, method, frozen, frozen)
        generator = torch.Generator().manual_seed(0)
        prompts = method.initialize(clip, torch.arange(method.prompts.num_context), num_classes, generator)
        gate = method.modulator.initialize(method.inputs(prompts), generator)
        state = State.start(prompts, gate, method.optimizer)
        size = config.train.batch_size
        pixels = torch.empty(size, 3, clip.image_size, clip.image_size, dtype=dtype)
        labels = torch.zeros(size, dtype=torch.long)
    if num_query is None:
        num_query = (size + 1) // 2
    return Rehearsal(mode, model, method, state, pixels, labels, num_query)


def operator_name(operator: Any) -> str:
    """Return the name of an operator, such as "mul" for aten.mul.Tensor."""
    name: str = operator.overloadpacket.__name__
    return name


@dataclass
class Kernels(TorchDispatchMode):
    """Mode that counts dispatched kernels and their bytes by `name_of` the operator.

    A kernel is an ATen operation that is not a view. Its bytes are those of all its operands and results.

    Args:
        name_of: Function of an operator that returns the name under which a kernel is counted.

    Attributes:
        views: Number of views.
        kernels: Number of kernels by name.
        bytes: Bytes of kernels by name.
    """

    name_of: Callable[[Any], str] = operator_name
    views: int = 0
    kernels: Counter[str] = field(default_factory=Counter)
    bytes: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operator(*args, **(kwargs or {}))
        if operator.namespace != "aten":
            return result
        if operator.is_view or operator.overloadpacket is torch.ops.aten._unsafe_view:
            self.views += 1
            return result
        name = self.name_of(operator)
        tensors = tree_leaves((args, kwargs, result))
        self.kernels[name] += 1
        for tensor in tensors:
            if isinstance(tensor, Tensor):
                self.bytes[name] += tensor.numel() * tensor.element_size()
        return result


def kernels_of(rehearsal: Rehearsal, name_of: Callable[[Any], str] = operator_name) -> Kernels:
    """Count the kernels of one step."""
    with rehearsal.mode, Kernels(name_of) as counted:
        rehearsal()
    return counted


@dataclass(frozen=True)
class Memory:
    """Bytes of tensors before a step, and their peak during the step.

    Other memory of the process (torch itself, workspaces of libraries, cached free blocks) is not counted.
    """

    before: int
    peak: int


def memory_of(config: Config, *, num_classes: int, dtype: torch.dtype = torch.float32) -> Memory:
    """Return the memory of one step of a configuration. Counting takes a second or two.

    The step is the one with the highest peak. Its support is all images but one, because the gradients of the
    support are differentiated.
    """
    rehearsal = rehearse(config, num_classes=num_classes, dtype=dtype, num_query=1)
    tensors = [*rehearsal.state.tensors().values(), *tensors_of(rehearsal.model.clip)]
    tensors += [rehearsal.pixels_B3HW, rehearsal.labels_B]
    with rehearsal.mode, _Live() as live:
        before = live.note(tensors)
        rehearsal()
    return Memory(before, live.peak)


@dataclass
class _Live(TorchDispatchMode):
    """Mode that counts the bytes of all existing storages of the tensors it has seen.

    Attributes:
        peak: Largest number of bytes so far.
    """

    peak: int = 0
    _bytes: dict[StorageWeakRef, int] = field(default_factory=dict)
    _total: int = 0

    def __post_init__(self) -> None:
        super().__init__()

    def note(self, tensors: list[Tensor]) -> int:
        """Count `tensors` too. Return an upper bound of the live bytes, which is exact at a new peak."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            reference = StorageWeakRef(storage)
            if reference not in self._bytes:
                self._bytes[reference] = storage.nbytes()
                self._total += storage.nbytes()
        # Freed storages are subtracted only if there may be a new peak, to save time.
        if self._total > self.peak:
            self._bytes = {each: size for each, size in self._bytes.items() if not each.expired()}
            self._total = sum(self._bytes.values())
            self.peak = max(self.peak, self._total)
        return self._total

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operator(*args, **(kwargs or {}))
        self.note([each for each in tree_leaves(result) if isinstance(each, Tensor)])
        return result
