"""An iteration on fake tensors: shapes without data, to count what it does before anything runs."""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from prometar.clip.features import Seen
from prometar.clip.openclip import outline, tokenizer_of
from prometar.config.settings import Config
from prometar.methods.composition import Method, build
from prometar.methods.prompts import enters_images
from prometar.step.iteration import Rates, step
from prometar.step.meta_batch import Batch, Images, Query, Shares, Task, embed_batch
from prometar.step.prompted_clip import Model, build_model, prompt_texts
from prometar.step.state import State

RATES = Rates(2.5e-3, 1e-6)


@dataclass(frozen=True)
class Rehearsal:
    """One iteration of a configuration: its images are embedded, then the direct and the meta phase.

    Without learnable prompts there is no phase. `num_query`: images of the batch in the query. `seen`: what
    earlier calls have computed. Enter `mode`, to which all tensors belong, around a call.
    """

    mode: FakeTensorMode
    model: Model
    method: Method
    state: State
    pixels_B3HW: Tensor
    labels_B: Tensor
    num_query: int
    seen: Seen = field(default_factory=Seen)

    def __call__(self) -> object:
        uses_images = self.method.uses_images
        whole = embed_batch(
            self.model.clip, self.pixels_B3HW, self.labels_B, seen=self.seen, teach=uses_images
        )
        if not self.state.prompts:
            return whole
        return step(self.model, self.method, self.state, Batch(whole, self._task(whole)), RATES)

    def _task(self, whole: Images) -> Task | None:
        num_support = len(whole.labels) - self.num_query
        if self.method.inner is None or not num_support:
            return None
        support = Images._make(None if part is None else part[:num_support] for part in whole)
        _, labels, share, frozen = Images._make(
            None if part is None else part[num_support:] for part in whole
        )
        shares, tokens = Shares(share, share, labels, labels), whole.tokens[num_support - 1 :]
        return Task(support, Query(tokens, labels, share, shares, frozen))


def rehearse(
    config: Config,
    *,
    num_classes: int,
    dtype: torch.dtype = torch.float32,
    num_query: int | None = None,
) -> Rehearsal:
    """A rehearsal of a configuration's training on so many classes, towers in `dtype`.

    num_query: Images of a batch that are the query; None: half of them.
    """
    method, clip = build(config), outline(config.backbone.name).to(dtype)
    names = [f"class number {number}" for number in range(num_classes)]
    texts = prompt_texts(names, method.prompts, init=config.prompts.init, template="a {}.")
    tokens = tokenizer_of(config.backbone.name)(texts)
    with (mode := FakeTensorMode()):
        clip = clip.map(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype)).folded()
        clip = replace(clip, image_prompts=enters_images(method.prompts))
        frozen = torch.empty(num_classes, clip.embed_dim, dtype=clip.working_dtype)
        if method.prompts.num_context:
            model = build_model(clip, method.prompts, tokens, frozen)
        else:  # texts that nothing enters are read, and here are none
            model = Model(clip, method.prompts, frozen, frozen)
        generator = torch.Generator().manual_seed(0)
        prompts = method.prompts.initialize(clip, torch.arange(method.prompts.num_context), generator)
        gate = method.modulator.initialize(method.prompts.tokens(prompts), generator)
        state, size, side = State.start(prompts, gate), config.train.batch_size, clip.image_size
        pixels, labels = torch.empty(size, 3, side, side, dtype=dtype), torch.zeros(size, dtype=torch.long)
    num_query = (size + 1) // 2 if num_query is None else num_query
    return Rehearsal(mode, model, method, state, pixels, labels, num_query)
