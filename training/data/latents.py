"""Latents of a source, computed once: the posterior's mean and deviation of every picture, kept on disk."""

from __future__ import annotations

import hashlib
import os
import platform
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
    share: tuple[int, int] = (0, 1),
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
        share: which process this is and how many there are; each encodes a part, and the first puts them together.

    Raises:
        FloatingPointError: The autoencoder makes NaN or infinity of a picture.
        OSError: The latents cannot be kept.
    """
    parts = ["float32", source.fingerprint, str(rows), str(resolution), digest_of_weights(vae)]
    file = folder / f"latents-{hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()}.safetensors"
    own, count = share
    # Machines that keep their cache in one place have shares of their own.
    shares = [file.with_name(f"{file.stem}.{platform.node()}-{number}-of-{count}") for number in range(count)]
    if not _is_whole(file):
        if file.exists():
            warnings.warn(f"{file} is damaged: latents are computed again", stacklevel=2)
        # Whole batches, so that the same pictures are encoded together whoever does it.
        batches = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
        begin, end = (len(batches) * number // count for number in (own, own + 1))
        if not _is_whole(shares[own]):
            _keep(_encode(source, batches[begin:end], vae, resolution, quiet=own > 0), shares[own])
        if own == 0:
            _wait_for(*shares)
            encoded = [load_file(one) for one in shares]
            _keep({name: torch.cat([one[name] for one in encoded]) for name in ("mean", "std")}, file)
            for one in shares:
                one.unlink()
        _wait_for(file)
    return Latents(**load_file(file))


def _encode(
    source: Source, batches: list[list[int]], vae: AutoencoderKL, resolution: int, quiet: bool
) -> dict[str, Tensor]:
    device = next(vae.parameters()).device
    shape = (0, vae.config.latent_channels, resolution // vae.factor, resolution // vae.factor)
    means, stds = [torch.empty(shape)], [torch.empty(shape)]  # a process may have nothing to do
    for rows in tqdm(batches, desc="encoding pictures", unit="batch", disable=quiet):
        images = torch.stack([picture_tensor(source, row, resolution) for row in rows])
        with torch.autocast(device.type, enabled=False):
            posterior = vae.encode(images.to(device, memory_format=torch.channels_last)).latent_dist
            mean = vae.scale_latents(posterior.mean)
            # scale_latents is affine: what it makes of 1 and of 0 tells by how much it stretches.
            one = torch.ones_like(mean[:1])
            std = posterior.std * (vae.scale_latents(one) - vae.scale_latents(0 * one))
        if not (mean.isfinite().all() and std.isfinite().all()):
            ids = ", ".join(source.id(row) for row in rows)
            raise FloatingPointError(f"the autoencoder makes NaN or infinity of a picture among {ids}")
        means.append(mean.float().cpu().contiguous())
        stds.append(std.float().cpu().contiguous())
    return {"mean": torch.cat(means), "std": torch.cat(stds)}


def _wait_for(*files: Path) -> None:
    while not all(_is_whole(file) for file in files):
        time.sleep(0.2)


def _is_whole(file: Path) -> bool:
    try:
        check_weights(file)
    except (ValueError, FileNotFoundError):
        return False
    return True


def _keep(tensors: dict[str, Tensor], file: Path) -> None:
    part = file.with_name(f"{file.name}.part-{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, part)
        os.replace(part, file)
    except (OSError, SafetensorError) as error:
        part.unlink(missing_ok=True)
        raise OSError(
            f"the latents cannot be kept in {file.parent} ({error}): make room, or set another cache"
        ) from error
