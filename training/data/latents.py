"""Latents of a source, computed once: the posterior's mean and deviation of every picture, kept on disk."""

from __future__ import annotations

import hashlib
import os
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm

from latentgen.models import AutoencoderKL
from latentgen.models.digest import digest_of_weights
from pipelines.weights import check_weights
from training.data.sources import Source, picture_tensor


@dataclass(frozen=True)
class Latents:
    """Posterior of every row in the denoiser's units: `mean` and `std`, both (N, C, h, w) float32."""

    mean: Tensor
    std: Tensor


@torch.no_grad()
def encode_latents(
    source: Source,
    rows: list[int],
    vae: AutoencoderKL,
    resolution: int,
    folder: Path,
    batch_size: int = 16,
    by_another: bool = False,
) -> Latents:
    """Encodes the rows' pictures, or reads what an earlier call with the same pictures and weights has kept.

    It computes in float32 even where autocast is on: what is kept is used by runs of every precision.

    Args:
        source: where the pictures come from.
        rows: rows that are encoded, in this order.
        vae: the frozen autoencoder, on the device to compute on.
        resolution: side of the pictures in pixels.
        folder: the file, named by what it depends on, is kept here; it appears whole or not at all.
        batch_size: pictures encoded at a time.
        by_another: another process of this machine encodes them; this one waits for its file.

    Raises:
        FloatingPointError: The autoencoder makes NaN or infinity of a picture.
        OSError: The latents cannot be kept.
    """
    parts = ["float32", source.fingerprint, str(rows), str(resolution), digest_of_weights(vae)]
    file = folder / f"latents-{hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()}.safetensors"
    while by_another and not _is_whole(file):
        time.sleep(1)
    if not by_another and not _is_whole(file):
        device = next(vae.parameters()).device
        means, stds = [], []
        for start in tqdm(range(0, len(rows), batch_size), desc="encoding pictures", unit="batch"):
            images = torch.stack([picture_tensor(source, row, resolution) for row in rows[start : start + batch_size]])
            with torch.autocast(device.type, enabled=False):
                posterior = vae.encode(images.to(device, memory_format=torch.channels_last)).latent_dist
                mean = vae.scale_latents(posterior.mean)
                # scale_latents is affine: what it makes of 1 and of 0 tells by how much it stretches.
                one = torch.ones_like(mean[:1])
                std = posterior.std * (vae.scale_latents(one) - vae.scale_latents(0 * one))
            if not (mean.isfinite().all() and std.isfinite().all()):
                ids = ", ".join(source.id(row) for row in rows[start : start + batch_size])
                raise FloatingPointError(f"the autoencoder makes NaN or infinity of a picture among {ids}")
            means.append(mean.float().cpu().contiguous())
            stds.append(std.float().cpu().contiguous())
        _keep({"mean": torch.cat(means), "std": torch.cat(stds)}, file)
    return Latents(**load_file(file))


def _is_whole(file: Path) -> bool:
    if not file.is_file():
        return False
    try:
        check_weights(file)
    except ValueError as error:
        warnings.warn(f"latents are computed again: {error}", stacklevel=3)
        return False
    return True


def _keep(tensors: dict[str, Tensor], file: Path) -> None:
    part = file.with_suffix(f".part-{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, part)
        os.replace(part, file)
    except (OSError, SafetensorError) as error:
        part.unlink(missing_ok=True)
        raise OSError(
            f"the latents cannot be kept in {file.parent} ({error}): make room, or set another cache"
        ) from error
