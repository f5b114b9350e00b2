"""How close pictures are to the pictures that they should be: PSNR and SSIM."""

from __future__ import annotations

import torch
from torch import Tensor


def psnr(pictures: Tensor, targets: Tensor) -> Tensor:
    """Peak signal-to-noise ratio, -10 log10(mean squared error), of each picture.

    Args:
        pictures: (B, C, H, W) in [0, 1].
        targets: The same shape and range.

    Returns:
        (B,) in dB, float64; infinite where picture and target are equal.

    Raises:
        ValueError: The shapes differ, or values leave [0, 1].
    """
    check_pair(pictures, targets)
    return -10 * torch.log10((pictures.double() - targets.double()).square().mean((1, 2, 3)))


def ssim(pictures: Tensor, targets: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004, Eq. 13) of each picture, in windows of 11x11 with deviation 1.5.

    Args:
        pictures: (B, C, H, W) in [0, 1], at least 11 pixels high and wide.
        targets: The same shape and range.

    Returns:
        (B,) at most 1, float64.

    Raises:
        ValueError: The shapes differ, values leave [0, 1], or the pictures are too small.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    check_pair(pictures, targets)
    if min(pictures.shape[-2:]) < 11:
        raise ValueError(f"pictures of {tuple(pictures.shape[-2:])} pixels; SSIM needs at least 11 on each side")
    return structural_similarity_index_measure(
        # In float32 the variances, differences of large sums, are wrong in the fourth digit of the result.
        pictures.double(),
        targets.double(),
        data_range=1.0,
        reduction="none",
    ).reshape(len(pictures))


def check_pair(pictures: Tensor, targets: Tensor) -> None:
    """Check that two batches of pictures can be compared.

    Raises:
        ValueError: They cannot.
    """
    if pictures.shape != targets.shape or pictures.ndim != 4 or not len(pictures):
        raise ValueError(
            f"pictures {tuple(pictures.shape)} and targets {tuple(targets.shape)}; expected one shape (B, C, H, W)"
        )
    for name, values in (("pictures", pictures), ("targets", targets)):
        low, high = values.min().item(), values.max().item()
        if not (low >= 0 and high <= 1):  # so written, NaN fails too
            raise ValueError(f"{name} range over [{low:g}, {high:g}]; expected [0, 1]: scale and clamp them")
