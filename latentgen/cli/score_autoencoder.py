"""Measures how well an autoencoder rebuilds pictures: PSNR, SSIM, pictures a second, and a contact sheet.

    python scripts/score_autoencoder.py --model runs/emoji/autoencoder/model --data data/emoji --sheet rebuilt.png

The latent is the most probable one; pictures are compared unrounded, in [0, 1].
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from latentgen.cli import script
from latentgen.evaluation import Mean, psnr, ssim
from latentgen.hardware import parse_device, parse_dtype
from latentgen.models import AutoencoderKL
from pipelines import inputs
from pipelines.loading import load_autoencoder
from training.data import DataConfig, open_source, picture_tensor, scan
from training.pictures import sheet


def parser() -> argparse.ArgumentParser:
    """The arguments."""
    made = script.Parser("score_autoencoder.py", __doc__)
    add = made.add_argument
    add("--model", type=Path, required=True, help="folder of an autoencoder, or of a pipeline that has one")
    add("--data", required=True, help="parquet, a folder of pictures, a Hub data set, or shapes")
    add("--split", default="validation", help="default validation")
    add("--resolution", type=int, help="side of the pictures in pixels; default: what the model was trained at")
    add("--limit", type=int, help="only the first so many pictures")
    add("--batch-size", type=int, default=16, help="default 16")
    add("--device", help="cpu, cuda, ...; default: the fastest")
    add("--dtype", help="float32, float16 or bfloat16; default: what the device is fast at")
    add("--threads", type=int, help="CPU threads")
    add("--sheet", type=Path, help="PNG with pictures above what was made of them")
    add("--sheet-pictures", type=int, default=32, help="pictures on the sheet; default 32")
    add("--json", type=Path, help="file for the figures, those of every picture included")
    add("--overwrite", action="store_true", help="replace files that exist")
    return made


def main(words: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status, 2 for an error that the user can mend."""
    return script.run(lambda: _work(parser().parse_args(words)))


@torch.inference_mode()
def _work(options: argparse.Namespace) -> None:
    for name in ("batch_size", "sheet_pictures"):
        inputs.whole(f"--{name.replace('_', '-')}", getattr(options, name))
    if options.threads is not None:
        torch.set_num_threads(inputs.whole("--threads", options.threads))
    if options.sheet and options.sheet.suffix.lower() != ".png":
        raise ValueError(f"--sheet {options.sheet}; expected the name of a .png file")
    for path in filter(None, (options.sheet, options.json)):
        script.new_file(path, options.overwrite)
    device = parse_device(options.device)
    vae = load_autoencoder(options.model.expanduser(), parse_dtype(options.dtype, device))
    vae = vae.to(device, memory_format=torch.channels_last).eval()
    side = inputs.side("--resolution", options.resolution, vae.config.sample_size, vae.factor)
    config = DataConfig(options.data, options.split, resolution=side, limit=options.limit)
    source = open_source(config, captions=False)
    scanned = scan(source, max_bad_share=1, captions=False)
    for bad in scanned.bad:
        print(f"left out: {bad.id}: {bad.reason}", file=sys.stderr)
    good = scanned.good

    shown = set(good[:: -(-len(good) // options.sheet_pictures)]) if options.sheet else set()
    figures: dict[str, list[float]] = {"psnr": [], "ssim": []}
    pairs: list[tuple[Tensor, Tensor]] = []
    seconds = 0.0
    for rows in tqdm(torch.tensor(good).split(options.batch_size), desc="rebuilding", unit="batch"):
        pictures = torch.stack([picture_tensor(source, row, side) for row in rows.tolist()])
        if not seconds:
            rebuild(vae, pictures)  # the first call also sets things up
        started = time.perf_counter()
        rebuilt = rebuild(vae, pictures)
        seconds += time.perf_counter() - started
        unit, unit_rebuilt = ((batch + 1) / 2 for batch in (pictures, rebuilt))
        figures["psnr"] += psnr(unit_rebuilt, unit).tolist()
        figures["ssim"] += ssim(unit_rebuilt, unit).tolist()
        pairs += [(pictures[i], rebuilt[i]) for i, row in enumerate(rows.tolist()) if row in shown]

    means = {name: Mean.of(values) for name, values in figures.items()}
    per_second = len(good) / seconds
    print(f"{len(good)} pictures of {side}x{side}, split {options.split}; mean and its standard error:")
    print(f"PSNR {means['psnr'].mean:.3f} ± {means['psnr'].error:.3f} dB")
    print(f"SSIM {means['ssim'].mean:.4f} ± {means['ssim'].error:.4f}")
    print(f"{per_second:.1f} pictures a second (encode and decode, {vae.dtype}, {device})")
    if options.sheet:
        rebuilt_sheet(pairs).save(options.sheet)
        print(options.sheet)
    if options.json:
        ids = [source.id(row) for row in good]
        report: dict[str, Any] = {name: asdict(mean) for name, mean in means.items()}
        report["pictures_per_second"] = per_second
        report |= {"pictures": [dict(zip(("id", *figures), one)) for one in zip(ids, *figures.values())]}
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def rebuild(vae: AutoencoderKL, pictures: Tensor) -> Tensor:
    """Pictures (B, 3, H, W) in [-1, 1] through the autoencoder and back, float32 on the CPU."""
    given = pictures.to(vae.device, vae.dtype, memory_format=torch.channels_last)
    return vae.decode(vae.encode(given).latent_dist.mode()).sample.float().clamp(-1, 1).cpu()


def rebuilt_sheet(pairs: Sequence[tuple[Tensor, Tensor]], columns: int = 8) -> Image.Image:
    """Pictures in rows of `columns`, each row above what was made of it."""
    columns = min(columns, len(pairs))
    rows = []
    for start in range(0, len(pairs), columns):
        part = [*pairs[start : start + columns]]
        blank = [torch.ones_like(part[0][0])] * (columns - len(part))
        for which in (0, 1):
            rows += [pair[which] for pair in part] + blank
    return sheet(torch.stack(rows), columns)
