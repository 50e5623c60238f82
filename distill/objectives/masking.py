"""What masked methods share: random masks, a learned content of hidden cells, a pixel head."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from distill.encoders import Encoder
from edge_runtime.errors import InputError

Grid = tuple[int, int]


def require_multiple(size: Grid, encoder: Encoder, method: str) -> None:
    """Refuses an image size (height, width) that is no whole number of the trunk's cells.

    Raises:
        InputError: names the nearest size that is.
    """
    stride = encoder.stride
    if any(side % stride for side in size):
        near = [max(round(side / stride), 1) * stride for side in size]
        raise InputError(
            f"{method} predicts whole cells of {stride} px, which a size of {size[0]}x{size[1]} "
            f"is not made of; give size=[{near[0]},{near[1]}]"
        )


def random_mask(grid: Grid, ratio: float) -> Tensor:
    """Bool [h, w] with a fixed number of random cells hidden; one is left at least."""
    count = grid[0] * grid[1]
    hidden = torch.randperm(count)[: max(1, min(round(ratio * count), count - 1))]
    return torch.zeros(count, dtype=torch.bool).index_fill_(0, hidden, True).unflatten(0, grid)


def block_mask(grid: Grid, ratio: float) -> Tensor:
    """Bool [h, w]: rectangles that hide exactly ``ratio`` of the cells, at least one.

    Blockwise masking (Bao et al. 2022, BEiT, algorithm 1): rectangles of an aspect between 0.3 and
    1 / 0.3 until the share is reached; single cells fill what no rectangle fits into any more.
    """
    height, width = grid
    mask = torch.zeros(height, width, dtype=torch.bool)
    target = max(1, round(ratio * height * width))
    for _ in range(10):
        left = target - int(mask.sum())
        if left <= 0:
            break
        u = torch.rand(4).tolist()
        area = left * (0.3 + 0.7 * u[0])
        aspect = 0.3 ** (1 - 2 * u[1])
        h = min(height, max(1, round((area * aspect) ** 0.5)))
        w = min(width, max(1, round((area / aspect) ** 0.5)))
        y, x = int(u[2] * (height - h + 1)), int(u[3] * (width - w + 1))
        trial = mask.clone()
        trial[y : y + h, x : x + w] = True
        if int(trial.sum()) <= target:
            mask = trial
    free = (~mask).flatten().nonzero().flatten()
    extra = free[torch.randperm(len(free))[: target - int(mask.sum())]]
    mask.view(-1)[extra] = True
    return mask


class MaskFill(nn.Module):
    """Replaces the hidden cells of an image by a learned content.

    For a transformer the content is one patch of pixels, which its linear patch embedding turns
    into what SimMIM (Xie et al. 2022, section 3.2) calls the mask token. For a convolutional trunk,
    which has no tokens, it is one colour.
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.side = encoder.stride if encoder.is_vit else 1
        self.content = nn.Parameter(torch.zeros(1, 3, self.side, self.side))

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        """Images [B, 3, H, W] without what ``mask`` [B, h, w] hides.

        A cell of the mask is H / h pixels, for a transformer whole patches.
        """
        height, width = image.shape[-2:]
        content = self.content.repeat(1, 1, height // self.side, width // self.side)
        return torch.where(at_pixels(mask, (height, width))[:, None], content, image)


def at_pixels(mask: Tensor, size: Grid) -> Tensor:
    """A mask of cells [B, h, w] as one of pixels [B, H, W]."""
    rows = mask.repeat_interleave(size[0] // mask.shape[-2], dim=-2)
    return rows.repeat_interleave(size[1] // mask.shape[-1], dim=-1)


class PixelHead(nn.Module):
    """Dense features [B, C, h, w] to pixels [B, 3, h * stride, w * stride], linearly.

    A 1x1 convolution and a pixel shuffle (SimMIM, section 3.3: the lightest head is the best one).
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.predict = nn.Conv2d(encoder.dense_channels, 3 * encoder.stride**2, 1)
        self.shuffle = nn.PixelShuffle(encoder.stride)

    def forward(self, dense: Tensor) -> Tensor:
        """Predicted normalised pixels."""
        pixels: Tensor = self.shuffle(self.predict(dense))
        return pixels
