"""Modulators, which combine the gradients of the task loss (g_task) and of the regularizer (g_reg)."""

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from prometar.errors import UserError
from prometar.methods.prompts import Leaves, Tensors, is_token_name, sample_linear
from prometar.methods.section import ComponentSection, Kinds

if TYPE_CHECKING:
    import torch


class Modulator(ComponentSection):
    """Base class of modulators, which compute the gradient g = g_task + m * g_reg of each input.

    Inputs are the results of `Method.inputs`: prompt tokens, and the learned tensors of other components.
    """

    @property
    def constant(self) -> float | None:
        """m if it is constant (one backward pass then suffices), else None."""
        return None

    def initialize(self, inputs: Tensors, generator: "torch.Generator") -> Leaves:
        """Return the initial learnable tensors (default: none), given the results of `Method.inputs`."""
        return {}

    def __call__(self, gate: Leaves, g_task: Tensors, g_reg: Tensors) -> Tensors:
        """Return g for each input. `gate` contains the modulator's learnable tensors."""
        assert self.constant is not None
        return {name: g_task[name] + self.constant * g_reg[name] for name in g_task}


class Add(Modulator):
    """m = 1, so that g is the gradient of task loss + regularizer."""

    kind: Literal["add"] = "add"

    @property
    def constant(self) -> float:
        return 1.0


class Constant(Modulator):
    """m = value."""

    kind: Literal["constant"] = "constant"
    value: float = Field(default=0.5, ge=0, le=1)

    @property
    def constant(self) -> float:
        return self.value


class Gate(Modulator):
    """Gate of ProMetaR: m = sigmoid(W_out W_in [g_task ; g_reg]).

    The prompt of each layer (P tokens of width D) has its own W_in (P*D/reduction, 2*P*D) and its own square
    W_out. Both have no bias. Each entry of m weights `reduction` consecutive scalars of g_reg (row-major).
    For learned tensors that are not tokens of a layer, m = 1.
    Source: ProMetaR. As in its published code, there is no nonlinearity between W_in and W_out.
    """

    kind: Literal["gate"] = "gate"
    reduction: int = Field(default=8, ge=1)

    def initialize(self, inputs: Tensors, generator: "torch.Generator") -> Leaves:
        """Return random initial matrices for the tokens of each layer.

        Raises:
            UserError: `reduction` does not divide the number of scalars of a prompt.
        """
        gate: Leaves = {}
        for name, leaf in inputs.items():
            if not is_token_name(name):
                continue
            size = leaf.numel()
            if size % self.reduction:
                raise UserError(
                    f"modulator.reduction {self.reduction} does not divide {size}, the size of {name}. "
                    f"Set it to a divisor of {size}."
                )
            hidden = size // self.reduction
            gate[f"{name}.in"] = sample_linear((hidden, 2 * size), 2 * size, like=leaf, generator=generator)
            gate[f"{name}.out"] = sample_linear((hidden, hidden), hidden, like=leaf, generator=generator)
        return gate

    def __call__(self, gate: Leaves, g_task: Tensors, g_reg: Tensors) -> Tensors:
        import torch

        modulated: Tensors = {}
        names_by_shape: dict[torch.Size, list[str]] = {}
        for name, g in g_task.items():
            if is_token_name(name):
                names_by_shape.setdefault(g.shape, []).append(name)
            else:
                modulated[name] = g + g_reg[name]
        # Prompts of L layers with one shape are stacked, so only matrix products need a kernel per layer.
        # The matrices are not stacked, because copies of them would take longer than the kernels.
        for shape, names in names_by_shape.items():
            pairs: list[torch.Tensor] = []
            for name in names:
                pairs += [g_task[name], g_reg[name]]
            both_L2PD = torch.stack(pairs).unflatten(0, (-1, 2))
            products: list[torch.Tensor] = []
            for name, task_and_reg in zip(names, both_L2PD.flatten(1).unbind(), strict=True):
                hidden = gate[f"{name}.in"] @ task_and_reg
                products.append(gate[f"{name}.out"] @ hidden)
            m = torch.sigmoid(torch.stack(products))
            # Each row contains the `reduction` scalars that share an entry of m.
            rows_task, rows_reg = both_L2PD.view(len(names), 2, -1, self.reduction).unbind(1)
            g_LPD = torch.addcmul(rows_task, m.unsqueeze(-1), rows_reg).view(-1, *shape)
            for name, g_PD in zip(names, g_LPD.unbind(), strict=True):
                modulated[name] = g_PD
        return modulated


class Projection(Modulator):
    """Projection of ProGrad: g = g_task - `share` * projection of g_task onto g_reg if the two conflict.

    They conflict if their dot product is negative. Otherwise, g = g_task. For each layer's prompt, m is the
    scalar max(0, -share <g_task, g_reg> / |g_reg|^2), so the norm of g_reg has no effect on g.
    Source: "Prompt-aligned Gradient for Prompt Tuning", ICCV 2023 (published: share 1).
    """

    kind: Literal["projection"] = "projection"
    share: float = Field(default=1.0, ge=0, le=1)

    def __call__(self, gate: Leaves, g_task: Tensors, g_reg: Tensors) -> Tensors:
        import torch

        modulated: Tensors = {}
        for name, task_gradient in g_task.items():
            reg_gradient = g_reg[name]
            product = (task_gradient * reg_gradient).sum()
            square = reg_gradient.square().sum()
            # g_reg is 0 for prompts on which the regularizer does not depend.
            divisor = torch.where(square > 0, square, 1)
            m = -self.share * product.clamp(max=0) / divisor
            modulated[name] = task_gradient + m * reg_gradient
        return modulated


MODULATORS = Kinds({"add": Add, "constant": Constant, "gate": Gate, "projection": Projection}, default="gate")
