"""Weight files of a model folder: which ones to read, and whether they are whole, told from their headers alone."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

_PICKLED = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
# safetensors' own limit on its JSON header.
_LONGEST_HEADER = 100_000_000


def weight_name(names: Collection[str], stem: str, variant: str | None, where: str) -> str:
    """The file among `names` that holds a component's weights, or the index of its shards.

    Args:
        names: File names in the component's folder.
        stem: "diffusion_pytorch_model" for diffusers' models, "model" for transformers'.
        variant: Such as "fp16"; a component without that variant gives its plain weights.
        where: The folder, for messages.

    Raises:
        FileNotFoundError: There are no weights, or only those of another variant.
        ValueError: There are only pickled weights.
    """
    plain = [f"{stem}.safetensors", f"{stem}.safetensors.index.json"]
    asked = [f"{stem}.{variant}.safetensors", f"{stem}.safetensors.index.{variant}.json"] if variant else plain
    # Of a whole file and shards side by side, transformers reads the file and diffusers the shards.
    order = 1 if stem == "model" else -1
    for name in [*asked[::order], *plain[::order]]:
        if name in names:
            return name
    whole, index = rf"{stem}\.(\w+)\.safetensors", rf"{stem}\.safetensors\.index\.(\w+)\.json"
    others = {match.group(1) for name in names if (match := re.fullmatch(whole, name) or re.fullmatch(index, name))}
    if others:
        choices = " or ".join(f"variant={other!r}" for other in sorted(others))
        raise FileNotFoundError(f"{where} has no {asked[0]}, but other weights; pass {choices} to load those")
    pickled = sorted(name for name in names if name.endswith(_PICKLED))
    if pickled:
        raise ValueError(
            f"{where} has its weights only as {pickled[0]}, a pickle, which may run code when it is read and is "
            f"therefore refused; convert it to {asked[0]}"
        )
    raise FileNotFoundError(f"{where}/{asked[0]} is missing; the model folder is not complete")


def shard_names(names: Collection[str], stem: str, weights: str) -> list[str]:
    """Every file among `names` that belongs to `weights`, itself included; its shards when it is an index."""
    if not weights.endswith(".json"):
        return [weights]
    variant = re.fullmatch(rf"{stem}\.safetensors\.index\.?(\w*)\.json", weights)
    tag = rf"\.{variant.group(1)}" if variant and variant.group(1) else ""
    # diffusers has written the variant before and after the shard's number.
    shard = re.compile(rf"{stem}(?:{tag}-\d+-of-\d+|-\d+-of-\d+{tag})\.safetensors")
    return [weights, *(name for name in sorted(names) if shard.fullmatch(name))]


def check_weights(path: Path) -> None:
    """Check that `path`, a safetensors file or the index of several, is whole; no tensor is read.

    Raises:
        FileNotFoundError: A shard that the index names is not there.
        ValueError: Something else than safetensors, cut short, or an index that points outside its folder.
    """
    if path.suffix != ".json":
        _check_safetensors(path)
        return
    shards = read_json(path).get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(name, str) for name in shards.values()):
        raise ValueError(f"{path} has no weight_map of tensor names to files; the model folder is damaged")
    for name in sorted(set(shards.values())):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ValueError(f"{path} names {name!r}; expected the plain name of a .safetensors file beside it")
        if not (path.parent / name).is_file():
            raise FileNotFoundError(f"{path.parent / name} is missing, but {path.name} names it")
        _check_safetensors(path.parent / name)


def read_json(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not JSON, or not an object.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; the model folder is not complete")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); the model folder is damaged") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}; expected a JSON object")
    return content


def _check_safetensors(path: Path) -> None:
    """Layout: 8 bytes of little-endian header length, a JSON header with each tensor's byte range, then the bytes."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if size < 8 or length > min(size - 8, _LONGEST_HEADER):
            # The bytes b"PK" open torch's zip of pickles, 0x80 a bare pickle.
            kind = "a pickle" if start[:2] == b"PK" or start[:1] == b"\x80" else "cut short or no safetensors file"
            raise ValueError(f"{path} is {kind}; expected whole safetensors weights, fetch or save them again")
        header = file.read(length)
    try:
        tensors = json.loads(header)
        tensors.pop("__metadata__", None)
        end = max((int(tensor["data_offsets"][1]) for tensor in tensors.values()), default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} has no readable safetensors header; fetch or save it again") from error
    if end != size - 8 - length:
        raise ValueError(
            f"{path} has {size - 8 - length} bytes of weights where its header announces {end}; it was cut short or "
            "damaged, fetch or save it again"
        )
