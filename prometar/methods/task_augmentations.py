"""Task augmentations. They mix a meta task's query images with its support images (the rest of the batch)."""

from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

from pydantic import Field

from prometar.methods.section import ComponentSection, CustomSection, Kinds

if TYPE_CHECKING:
    from numpy.random import Generator
    from torch import Tensor


class Mix(NamedTuple):
    """Sampled parameters that mix Q query images with support images.

    Args:
        lam: (Q,) share of each query image in its mix. The support image's share is 1 - lam.
        partner: (Q,) index of each query image's partner, the support image that is mixed into it.
        box: (Q, 4) top, bottom, left and right edges of the replaced box relative to the image size, or None.
    """

    lam: "Tensor"
    partner: "Tensor"
    box: "Tensor | None" = None


class Augmentation(ComponentSection):
    """Base class of task augmentations. `mixes_pixels`: True to mix pixels, False to mix features."""

    KIND_FIELD: ClassVar[str] = "augmentation"
    mixes_pixels: ClassVar[bool] = False

    def draw(self, num_query: int, num_support: int, rng: "Generator") -> Mix | None:
        """Sample the mix of the query images, or return None (the default) to mix nothing."""
        return None

    def mixed_images(self, query_Q3HW: "Tensor", partners_Q3HW: "Tensor", mix: Mix) -> "Tensor":
        """Return the query images mixed with their partners. Only called if `mixes_pixels`."""
        raise NotImplementedError


class NoAugmentation(Augmentation):
    """No task augmentation."""

    augmentation: Literal["none"] = "none"


class _BetaMix(Augmentation):
    """Base class that samples lam from Beta(mixup_alpha, mixup_beta), and partners uniformly."""

    mixup_alpha: float = Field(default=0.5, gt=0)
    mixup_beta: float = Field(default=0.5, gt=0)

    def draw(self, num_query: int, num_support: int, rng: "Generator") -> Mix:
        import torch

        lam = rng.beta(self.mixup_alpha, self.mixup_beta, size=num_query).astype("float32")
        partner = rng.integers(num_support, size=num_query)
        return Mix(torch.from_numpy(lam), torch.from_numpy(partner))


class FeatureMixup(_BetaMix):
    """Mixture of unnormalized image features: lam * query + (1 - lam) * partner.

    Source: ProMetaR, which follows MetaMix (ICML 2021) and uses Beta(0.5, 0.5).
    """

    augmentation: Literal["feature_mixup"] = "feature_mixup"


class InputMixup(_BetaMix):
    """Mixture of images: lam * query + (1 - lam) * partner, with lam and partner drawn as in `FeatureMixup`.

    Source: "mixup" (ICLR 2018), applied to query and support images.
    """

    augmentation: Literal["input_mixup"] = "input_mixup"
    mixes_pixels: ClassVar[bool] = True

    def mixed_images(self, query_Q3HW: "Tensor", partners_Q3HW: "Tensor", mix: Mix) -> "Tensor":
        lam = mix.lam.to(query_Q3HW)[:, None, None, None]
        return lam * query_Q3HW + (1 - lam) * partners_Q3HW


class CutMix(_BetaMix):
    """Query image with a box replaced by the same box of a support image.

    The box has sqrt(1 - x) times the height and width of the image, with x ~ Beta(mixup_alpha, mixup_beta).
    Its center is uniform in the image, and it is clipped to the image. Pixels partly in the box are mixed in
    proportion, so `Mix.lam`, the fraction of the image outside the box, is exact at any resolution.
    Source: "CutMix" (ICCV 2019), applied to query and support images.
    """

    augmentation: Literal["cutmix"] = "cutmix"
    mixes_pixels: ClassVar[bool] = True

    def draw(self, num_query: int, num_support: int, rng: "Generator") -> Mix:
        import torch

        mix = super().draw(num_query, num_support, rng)
        half_side = (1 - mix.lam.double()).sqrt() / 2
        center_y, center_x = torch.from_numpy(rng.random((2, num_query)))
        edges = [center_y - half_side, center_y + half_side, center_x - half_side, center_x + half_side]
        box = torch.stack(edges, dim=1).clamp(0, 1)
        top, bottom, left, right = box.unbind(dim=1)
        area = (bottom - top) * (right - left)
        return Mix((1 - area).float(), mix.partner, box.float())

    def mixed_images(self, query_Q3HW: "Tensor", partners_Q3HW: "Tensor", mix: Mix) -> "Tensor":
        assert mix.box is not None
        top, bottom, left, right = mix.box.to(query_Q3HW).unbind(dim=1)
        height, width = query_Q3HW.shape[-2:]
        rows = _coverage(top, bottom, height)
        columns = _coverage(left, right, width)
        mask = rows[:, None, :, None] * columns[:, None, None, :]
        return query_Q3HW + mask * (partners_Q3HW - query_Q3HW)


def _coverage(start_Q: "Tensor", stop_Q: "Tensor", side: int) -> "Tensor":
    """Return the fraction (Q, side) of each pixel that lies between start and stop (0 to 1)."""
    import torch

    pixel = torch.arange(side, device=start_Q.device, dtype=start_Q.dtype)
    begin = torch.maximum(start_Q[:, None] * side, pixel)
    return (torch.minimum(stop_Q[:, None] * side, pixel + 1) - begin).clamp(min=0)


class CustomAugmentation(CustomSection):
    """A custom augmentation."""

    KIND_FIELD: ClassVar[str] = "augmentation"
    augmentation: str


AUGMENTATIONS = Kinds(
    {"none": NoAugmentation, "feature_mixup": FeatureMixup, "input_mixup": InputMixup, "cutmix": CutMix},
    default="feature_mixup",
    custom=CustomAugmentation,
)
