"""Writing a pipeline as a folder that diffusers' StableDiffusionPipeline opens."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors.torch import save_file
from torch import nn

from pipelines.loading import INDEX, PARTS, SETTINGS, quiet_transformers


def save_folder(
    parts: Mapping[str, Any],
    folder: Path,
    generation: Mapping[str, Any],
    variant: str | None = None,
    max_shard_size: int | str | None = None,
) -> None:
    """Write all `parts` and the index that names them.

    The files are written in a hidden folder and moved to their places when all are there. The index comes last, so
    that a folder in which a save was cut off has none and is refused on loading. Files of an earlier save that have
    the same names are replaced, and so are its weights of the same variant; others stay.

    Args:
        parts: Every component of `PARTS`.
        folder: Where to; made if it is not there.
        generation: The pipeline's own defaults of a call.
        variant: Goes into the names of the weight files, such as "fp16".
        max_shard_size: U-Net and VAE weights beyond it are spread over several files.

    Raises:
        ValueError: A component is None, or diffusers has no class of its name.
        OSError: The folder cannot be written.
    """
    parts = {name: getattr(part, "_orig_mod", part) for name, part in parts.items()}  # what torch.compile wraps
    index = _index(parts, generation)
    _warn_of_extensions(parts)
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file; give the name of a folder")
    folder.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".saving-", dir=folder))
    try:
        for name, part in parts.items():
            _save_part(name, part, staging / name, variant, max_shard_size)
            _forget_origin(staging / name)
        (folder / INDEX).unlink(missing_ok=True)
        for name in parts:
            _replace(staging / name, folder / name, PARTS[name].stem, variant)
        (staging / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        os.replace(staging / INDEX, folder / INDEX)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _index(parts: Mapping[str, Any], generation: Mapping[str, Any]) -> dict[str, Any]:
    index: dict[str, Any] = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": diffusers.__version__,
        SETTINGS: {"generation": dict(generation)},
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
    }
    for name in sorted(PARTS):
        class_name = type(parts[name]).__name__
        library = "transformers" if name in ("text_encoder", "tokenizer") else "diffusers"
        if parts[name] is None:
            raise ValueError(f"this pipeline has no {name}; only a whole pipeline can be saved")
        if library == "diffusers" and not hasattr(diffusers, class_name):
            raise ValueError(f"diffusers has no {class_name} to open this {name} with; use a class that it has")
        index[name] = [library, _PUBLIC_NAMES.get(class_name, class_name)]
    return index


# transformers 5 gives this class a second name, which older versions do not know.
_PUBLIC_NAMES = {"TokenizersBackend": "PreTrainedTokenizerFast"}


def _warn_of_extensions(parts: Mapping[str, Any]) -> None:
    """Say what diffusers' pipeline would pass over in this model."""
    vae, schedule = parts["vae"].config, parts["scheduler"].config
    told = [f"the VAE's {name}" for name in ("shift_factor", "latents_mean", "latents_std") if vae.get(name)]
    if schedule.get("prediction_type") == "flow":
        told.append("prediction_type 'flow'")
    if schedule.get("beta_schedule") == "sigmoid" and type(parts["scheduler"]).__name__ != "DDPMScheduler":
        told.append("the sigmoid noise schedule")
    if told:
        warnings.warn(
            f"diffusers' StableDiffusionPipeline does not know {', '.join(told)}: it will not draw this model's "
            "pictures, latentgen does",
            stacklevel=4,
        )


def _save_part(name: str, part: Any, folder: Path, variant: str | None, max_shard_size: int | str | None) -> None:
    if PARTS[name].stem is None:
        part.save_pretrained(folder)
        if name == "tokenizer" and hasattr(part, "backend_tokenizer"):
            # vocab.json and merges.txt beside tokenizer.json: transformers before 5 reads no other.
            part.backend_tokenizer.model.save(str(folder))
        return
    options: dict[str, Any] = {"variant": variant} if variant else {}
    if max_shard_size is not None and name != "text_encoder":
        options["max_shard_size"] = max_shard_size
    # safetensors takes contiguous tensors only; channels_last ones are put back afterwards.
    strides = {key: tensor for key, tensor in part.state_dict(keep_vars=True).items() if not tensor.is_contiguous()}
    if strides:
        part.to(memory_format=torch.contiguous_format)
    try:
        with quiet_transformers():
            part.save_pretrained(folder, **options)
    finally:
        if strides:
            part.to(memory_format=torch.channels_last)
    if name == "text_encoder":
        _prefix_keys(part, folder)


def _forget_origin(folder: Path) -> None:
    """Take out where a part was read from: a place on this machine means nothing on others, and may be private."""
    for path in folder.glob("*config.json"):
        described = json.loads(path.read_text(encoding="utf-8"))
        kept = {key: value for key, value in described.items() if key not in ("_name_or_path", "name_or_path")}
        if len(kept) < len(described):
            path.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")


def _prefix_keys(text_encoder: nn.Module, folder: Path) -> None:
    """Write the tower's weights with the keys of transformers before 5.6, which every version of it reads."""
    (path,) = folder.glob("*.safetensors")
    weights = {f"text_model.{key.removeprefix('text_model.')}": t for key, t in text_encoder.state_dict().items()}
    save_file(weights, path, metadata={"format": "pt"})


def _replace(source: Path, target: Path, stem: str | None, variant: str | None) -> None:
    target.mkdir(exist_ok=True)
    new = {path.name for path in source.iterdir()}
    if stem is not None:
        for old in target.iterdir():
            same_variant = f".{variant}" in old.name if variant else old.name.startswith((f"{stem}.safe", f"{stem}-0"))
            if old.name.startswith(stem) and ".safetensors" in old.name and same_variant and old.name not in new:
                old.unlink()
    for path in source.iterdir():
        path.chmod(target.stat().st_mode & 0o666)  # safetensors' files are the owner's alone
        os.replace(path, target / path.name)
