"""Two views of an image with the region that they share, to align their dense maps."""

from __future__ import annotations

import torch
from lightly.transforms.gaussian_blur import GaussianBlur
from lightly.transforms.torchvision_v2_compatibility import torchvision_transforms as LT
from torch import Tensor
from torchvision.ops import roi_align
from torchvision.transforms import v2 as T
from torchvision.transforms.v2.functional import resized_crop, to_pil_image

from distill.encoders import Encoder
from distill.objectives.masking import block_mask
from distill.objectives.views import ViewOptions

Box = tuple[int, int, int, int]  # y, x, height, width
_ATTEMPTS = 10
_LEAST_SHARED = 0.01  # of the second crop


class AlignedViews:
    """An image to two views, what they share, and what is hidden from the trunk.

    Gives views [3, H, W] twice, float32; regions [5] twice: x0, y0, x1, y1 of the shared region as
    shares of the (flipped) view, and 1 where it was flipped; masks [h, w] twice, one cell a cell of
    the trunk.
    """

    def __init__(
        self, options: ViewOptions, ratio: float, size: tuple[int, int], encoder: Encoder
    ) -> None:
        self.size, self.ratio = size, ratio
        self.grid = (size[0] // encoder.stride, size[1] // encoder.stride)
        self.crop = T.RandomResizedCrop(size, (options.min_scale, 1.0), antialias=True)
        jitter = T.ColorJitter(*(options.colour * value for value in options.jitter))
        self.colour = [
            T.Compose(
                [
                    T.RandomApply([jitter], 0.8),
                    T.RandomGrayscale(options.grey),
                    T.RandomSolarize(128, solarize),
                    GaussianBlur(prob=blur),
                    LT.ToTensor(),
                    T.Normalize(list(encoder.mean), list(encoder.std)),
                ]
            )
            for blur, solarize in zip(options.blur, options.solarize, strict=True)
        ]

    def __call__(self, image: Tensor) -> list[Tensor]:
        boxes = self._boxes(image)
        views, regions = [], []
        for box, colour in zip(boxes, self.colour, strict=True):
            view = resized_crop(image, *box, list(self.size), antialias=True)
            flipped = bool(torch.rand(()) < 0.5)
            view = view.flip(-1) if flipped else view
            views.append(colour(to_pil_image(view)))
            regions.append(region_within(box, shared(*boxes), flipped))
        masks = [block_mask(self.grid, self.ratio) for _ in boxes]
        return [*views, *regions, *masks]

    def _boxes(self, image: Tensor) -> tuple[Box, Box]:
        first = self._draw(image)
        for _ in range(_ATTEMPTS):
            second = self._draw(image)
            common = shared(first, second)
            if common[2] * common[3] >= max(1, _LEAST_SHARED * second[2] * second[3]):
                return first, second
        return first, first

    def _draw(self, image: Tensor) -> Box:
        drawn = self.crop.make_params([image])
        return drawn["top"], drawn["left"], drawn["height"], drawn["width"]


def shared(a: Box, b: Box) -> Box:
    """The intersection of two crops; height and width 0 where there is none."""
    y, x = max(a[0], b[0]), max(a[1], b[1])
    bottom, right = min(a[0] + a[2], b[0] + b[2]), min(a[1] + a[3], b[1] + b[3])
    return y, x, max(bottom - y, 0), max(right - x, 0)


def region_within(box: Box, region: Box, flipped: bool) -> Tensor:
    """``region`` of the image as x0, y0, x1, y1 in [0, 1] of the view of ``box``, and the flip."""
    y, x, height, width = box
    x0, x1 = (region[1] - x) / width, (region[1] + region[3] - x) / width
    y0, y1 = (region[0] - y) / height, (region[0] + region[2] - y) / height
    if flipped:
        x0, x1 = 1 - x1, 1 - x0
    return torch.tensor([x0, y0, x1, y1, float(flipped)])


def aligned(dense: Tensor, region: Tensor) -> Tensor:
    """The shared region of maps [B, C, h, w] on a grid of h x w, as it lies in the image.

    Args:
        region: [B, 5] of ``AlignedViews``.
    """
    height, width = dense.shape[-2:]
    scale = region.new_tensor([width, height, width, height])
    index = torch.arange(len(dense), device=dense.device, dtype=region.dtype)
    rois = torch.cat([index[:, None], region[:, :4] * scale], dim=1).to(dense.dtype)
    out = roi_align(dense, rois, (height, width), aligned=True)
    return torch.where(region[:, 4].bool()[:, None, None, None], out.flip(-1), out)
