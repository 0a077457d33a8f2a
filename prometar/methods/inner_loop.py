"""Inner loops: in the meta phase, adapt the prompts to support images before computing the query loss."""

from typing import Literal

from pydantic import Field

from prometar.methods.prompts import Leaves, Tensors
from prometar.methods.section import ComponentSection, Kinds


class NoInnerLoop(ComponentSection):
    """No inner loop, and thus no meta phase: `component` returns None."""

    kind: Literal["none"] = "none"

    def component(self) -> None:
        return None


class InnerSGD(ComponentSection):
    """One SGD step on the prompts theta: theta' = theta - lr * g.

    g is the gradient of the loss on support images, changed by the modulator.

    `outer_weight`: weight of the query loss at theta'.

    `order`:

    - "second": g is differentiated with respect to theta.
    - "first": d theta' / d theta is treated as the identity, like in first-order MAML (ICML 2017). The gate
      (the modulator's learnable tensors) still receives gradients, because g depends on the gate directly.
    """

    kind: Literal["sgd"] = "sgd"
    lr: float = Field(default=5e-4, ge=0, le=1e30)
    order: Literal["first", "second"] = "second"
    outer_weight: float = Field(default=5e-4, ge=0)

    @property
    def second_order(self) -> bool:
        return self.order == "second"

    def __call__(self, prompts: Leaves, gradient: Tensors) -> Tensors:
        import torch

        gradients = [gradient[name] for name in prompts]  # in the order of the prompts
        adapted = torch._foreach_add(list(prompts.values()), gradients, alpha=-self.lr)
        return dict(zip(prompts, adapted, strict=True))


INNER_LOOPS = Kinds({"none": NoInnerLoop, "sgd": InnerSGD}, default="sgd")
