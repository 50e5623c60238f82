"""Random views of an image: two alike, or two global and some local."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from distill.data.augment import RandomView
from distill.encoders import Encoder
from distill.objectives.protocol import Objective, ObjectiveOptions, Views


class ViewOptions(ObjectiveOptions):
    """Strength of the augmentations; the defaults are BYOL's on ImageNet (2020, appendix B).

    For images of 32 pixels: ``colour: 0.5``, ``blur: [0, 0]``, ``min_scale: 0.2``.
    """

    min_scale: float = Field(0.08, gt=0, le=1, description="smallest crop, share of the area")
    colour: float = Field(1.0, ge=0, description="factor on the ranges of the colour jitter")
    jitter: tuple[float, float, float, float] = Field(
        (0.4, 0.4, 0.2, 0.1), description="brightness, contrast, saturation, hue"
    )
    grey: float = Field(0.2, ge=0, le=1, description="probability")
    blur: tuple[float, float] = Field((1.0, 0.1), description="probability, per (global) view")
    solarize: tuple[float, float] = Field((0.0, 0.2), description="probability, per view")

    def view(
        self,
        size: tuple[int, int],
        scale: tuple[float, float],
        blur: float,
        solarize: float,
        encoder: Encoder,
    ) -> RandomView:
        """One view of these strengths; several times faster than lightly's transforms on PIL."""
        return RandomView(
            size,
            scale,
            [self.colour * span for span in self.jitter],
            self.grey,
            blur,
            solarize,
            encoder.mean,
            encoder.std,
        )


class TwoViews:
    """An image, uint8 [3, H, W], to two views, float32 [3, *size]."""

    def __init__(self, options: ViewOptions, size: tuple[int, int], encoder: Encoder) -> None:
        scale = (options.min_scale, 1.0)
        self.views = [
            options.view(size, scale, blur, solarize, encoder)
            for blur, solarize in zip(options.blur, options.solarize, strict=True)
        ]

    def __call__(self, image: Tensor) -> list[Tensor]:
        pixels = image.permute(1, 2, 0).numpy()
        return [view(pixels) for view in self.views]


class TwoViewObjective(Objective):
    """A method of two random views."""

    @classmethod
    def views(  # type: ignore[override]
        cls, options: ViewOptions, size: tuple[int, int], encoder: Encoder
    ) -> Views:
        """Two views of an image."""
        return TwoViews(options, size, encoder)


class MultiCropOptions(ViewOptions):
    """Two global and several local views (Caron et al. 2020, 2021).

    Global crops cover ``min_scale`` to all of the image, local ones ``local_scale``.
    """

    min_scale: float = Field(0.4, gt=0, le=1, description="smallest global crop, share of area")
    local_views: int = Field(6, ge=0)
    local_scale: tuple[float, float] = Field((0.05, 0.4), description="share of the area")
    local_size: float = Field(
        0.43, gt=0, le=1, description="side of local views relative to global ones: 96 of 224"
    )
    local_blur: float = Field(0.5, ge=0, le=1)


class MultiCrop:
    """An image, uint8 [3, H, W], to two global views [3, *size] and local ones, smaller.

    A transformer's local views have a multiple of its patch.
    """

    def __init__(self, options: MultiCropOptions, size: tuple[int, int], encoder: Encoder) -> None:
        wide = (options.min_scale, 1.0)
        self.globals = [
            options.view(size, wide, blur, solarize, encoder)
            for blur, solarize in zip(options.blur, options.solarize, strict=True)
        ]
        small = self.local_size(options.local_size, size, encoder)
        self.local = options.view(small, options.local_scale, options.local_blur, 0.0, encoder)
        self.count = options.local_views

    @staticmethod
    def local_size(share: float, size: tuple[int, int], encoder: Encoder) -> tuple[int, int]:
        """Height and width of local views in pixels."""
        unit = encoder.model.patch_embed.patch_size if encoder.is_vit else (1, 1)
        height, width = (max(round(s * share / u), 1) * u for s, u in zip(size, unit, strict=True))
        return height, width

    def __call__(self, image: Tensor) -> list[Tensor]:
        pixels = image.permute(1, 2, 0).numpy()
        return [v(pixels) for v in self.globals] + [self.local(pixels) for _ in range(self.count)]
