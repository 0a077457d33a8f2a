"""Task augmentations: mix the query images of a meta task with support images."""

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, NamedTuple

from pydantic import Field

from prometar.methods.part import BUILT_IN, CUSTOM, ORIGIN, Custom, Part

if TYPE_CHECKING:
    from numpy.random import Generator
    from torch import Tensor


class Mix(NamedTuple):
    """Per query image: its own share `lam` (Q,) and a partner (Q,), an index into the support.

    box (Q, 4): for a mix of regions, top, bottom, left, right of the partner's, as shares of the image side.
    """

    lam: "Tensor"
    partner: "Tensor"
    box: "Tensor | None" = None


class Augmentation(Part):
    """Base class of augmentations. `of_images`: pixels are mixed, by `mixed_images`, rather than features."""

    CHOOSER: ClassVar[str] = "augmentation"
    of_images: ClassVar[bool] = False

    def draw(self, num_query: int, num_support: int, rng: "Generator") -> Mix | None:
        """Draw the mix of each query image (default: none)."""
        return None

    def mixed_images(self, query_Q3HW: "Tensor", partners_Q3HW: "Tensor", mix: Mix) -> "Tensor":
        """Return query images with their partners mixed in; called only if `of_images`."""
        raise NotImplementedError


class NoAugmentation(Augmentation):
    """Identity: the query images as they are."""

    augmentation: Literal["none"] = "none"


class _Mixup(Augmentation):
    """lam ~ Beta(mixup_alpha, mixup_beta), and a partner drawn uniformly with replacement."""

    mixup_alpha: float = Field(default=0.5, gt=0)
    mixup_beta: float = Field(default=0.5, gt=0)

    def draw(self, num_query: int, num_support: int, rng: "Generator") -> Mix:
        import torch

        lam = torch.from_numpy(rng.beta(self.mixup_alpha, self.mixup_beta, size=num_query).astype("float32"))
        return Mix(lam, torch.from_numpy(rng.integers(num_support, size=num_query)))


class FeatureMixup(_Mixup):
    """Mixed feature lam f(query) + (1 - lam) f(support), on un-normalised features.

    Source: ProMetaR (released: 0.5, 0.5), after MetaMix, ICML 2021.
    """

    augmentation: Literal["feature_mixup"] = "feature_mixup"


class InputMixup(_Mixup):
    """x = lam x_query + (1 - lam) x_support.

    Source: "mixup", ICLR 2018; here between query and support, and with the same draws as `FeatureMixup`.
    """

    augmentation: Literal["input_mixup"] = "input_mixup"
    of_images: ClassVar[bool] = True

    def mixed_images(self, query_Q3HW: "Tensor", partners_Q3HW: "Tensor", mix: Mix) -> "Tensor":
        lam = mix.lam.to(query_Q3HW)[:, None, None, None]
        return lam * query_Q3HW + (1 - lam) * partners_Q3HW


class CutMix(_Mixup):
    """A box of a support image in each query image; lam is the share of the image outside of the box.

    The box's sides are sqrt(1 - l) of the image's, l ~ Beta(mixup_alpha, mixup_beta). Its centre is uniform,
    and it is clipped at the image's edges. A pixel that the box's edge crosses is mixed by the covered share,
    so lam is the exact share of the query for every image size.

    Source: "CutMix", ICCV 2019; here between query and support.
    """

    augmentation: Literal["cutmix"] = "cutmix"
    of_images: ClassVar[bool] = True

    def draw(self, num_query: int, num_support: int, rng: "Generator") -> Mix:
        import torch

        mix = super().draw(num_query, num_support, rng)
        half = (1 - mix.lam.double()).sqrt() / 2
        down, right = torch.from_numpy(rng.random((2, num_query)))
        edges = [down - half, down + half, right - half, right + half]
        box = torch.stack(edges, dim=1).clamp(0, 1)
        area = (box[:, 1] - box[:, 0]) * (box[:, 3] - box[:, 2])
        return Mix((1 - area).float(), mix.partner, box.float())

    def mixed_images(self, query_Q3HW: "Tensor", partners_Q3HW: "Tensor", mix: Mix) -> "Tensor":
        assert mix.box is not None
        box, (height, width) = mix.box.to(query_Q3HW), query_Q3HW.shape[-2:]
        rows, columns = _covered(box[:, 0], box[:, 1], height), _covered(box[:, 2], box[:, 3], width)
        mask = rows[:, None, :, None] * columns[:, None, None, :]
        return query_Q3HW + mask * (partners_Q3HW - query_Q3HW)


def _covered(start_Q: "Tensor", stop_Q: "Tensor", side: int) -> "Tensor":
    """Return (Q, side): the share of each pixel between start and stop, which are shares of the side."""
    import torch

    pixel = torch.arange(side, device=start_Q.device, dtype=start_Q.dtype)
    begin = torch.maximum(start_Q[:, None] * side, pixel)
    return (torch.minimum(stop_Q[:, None] * side, pixel + 1) - begin).clamp(min=0)


class CustomAugmentation(Custom):
    """A custom augmentation."""

    CHOOSER: ClassVar[str] = "augmentation"
    augmentation: str


_BuiltIn = Annotated[
    NoAugmentation | FeatureMixup | InputMixup | CutMix, Field(discriminator="augmentation"), BUILT_IN
]
AnyAugmentation = Annotated[_BuiltIn | Annotated[CustomAugmentation, CUSTOM], ORIGIN]
