"""Sheets of pictures for the eye."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor


def sheet(pictures: Tensor, columns: int, gap: int = 2) -> Image.Image:
    """One RGB image that shows pictures (N, 3, H, W) in [-1, 1] row by row on white."""
    count, _, height, width = pictures.shape
    rows = -(-count // columns)
    pixels = ((pictures.float().clamp(-1, 1) + 1) * 127.5).round().to("cpu", torch.uint8).permute(0, 2, 3, 1)
    page = torch.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, dtype=torch.uint8)
    for index, picture in enumerate(pixels):
        top, left = (index // columns) * (height + gap), (index % columns) * (width + gap)
        page[top : top + height, left : left + width] = picture
    return Image.fromarray(page.numpy())
