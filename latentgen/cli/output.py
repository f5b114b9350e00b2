"""Where generated pictures go: names, checks that come before any work, and files that are whole or not there."""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

# suffix -> Pillow's format and options
FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    ".png": ("PNG", {}),
    ".jpg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".jpeg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".webp": ("WEBP", {"quality": 95}),
}
_IMAGE_DESCRIPTION = 0x010E  # EXIF
_LONGEST_IN_EXIF = 2000  # letters of one value


def plan(out: str | None, prompts: Sequence[str], seeds: Sequence[int]) -> list[Path]:
    """A path for each picture, of which `prompts` and `seeds` name one each.

    A folder (one that exists, or any name without a suffix, or with a slash at its end) gets names made of prompt and
    seed; None is the current folder. A file name is taken as it is for one picture, and numbered for several.

    Raises:
        ValueError: It is empty, or the suffix is not that of a format in FORMATS.
    """
    if out is not None and not out.strip():
        raise ValueError("--out is empty; give it the name of a file or a folder, or leave it out")
    path = Path(out or ".")
    if path.name.lower() in FORMATS and not path.is_dir():
        raise ValueError(f"--out {out} is a suffix without a name; write it as picture{path.name}")
    if out is None or out.endswith(("/", os.sep)) or path.is_dir() or not path.suffix:
        return [path / f"{name}.png" for name in _names(prompts, seeds)]
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"--out {out} has the suffix {path.suffix!r}; use {', '.join(FORMATS)}, or a folder's name")
    if len(seeds) == 1:
        return [path]
    return [path.with_name(f"{path.stem}-{i}{path.suffix}") for i in range(len(seeds))]


def check(paths: Sequence[Path], overwrite: bool) -> None:
    """Check that every path can be written, without leaving anything behind.

    Raises:
        ValueError: Two pictures have the same path.
        FileExistsError: A file is there already and `overwrite` is false.
        OSError: A folder cannot be made or written.
    """
    if len(set(paths)) != len(paths):
        raise ValueError("two pictures have the same prompt and seed, so their files have one name; leave one out")
    for path in paths:
        if path.is_dir():
            raise IsADirectoryError(f"{path} is a folder; give --out another name")
        if os.path.lexists(path) and not overwrite:
            raise FileExistsError(f"{path} exists; choose another --out, or pass --overwrite to replace it")
    for folder in {_nearest(path.parent) for path in paths}:
        if not folder.is_dir():
            raise NotADirectoryError(f"{folder} is a file, no folder can be made in it; choose another --out")
        try:
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise OSError(f"{folder} cannot be written ({error.strerror}); choose another --out") from error


def save(picture: Image, path: Path, parameters: Mapping[str, Any], overwrite: bool) -> None:
    """Write a picture with what it was made from: PNG text, or the EXIF description of JPEG and WebP.

    The file appears under its name when it is complete.

    Raises:
        FileExistsError: There is a file by now and `overwrite` is false.
        OSError: It cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    kind, options = FORMATS[path.suffix.lower()]
    described = _png_text(parameters) if kind == "PNG" else _exif(parameters)
    unfinished = path.parent / f".latentgen-{os.getpid()}{path.suffix}"
    try:
        picture.save(unfinished, format=kind, **options, **described)
        if os.path.lexists(path) and not overwrite:
            raise FileExistsError(f"{path} was made while this picture was drawn; pass --overwrite to replace it")
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def tell(path: Path) -> None:
    """Print a path, whatever letters the terminal's encoding lacks."""
    encoding = sys.stdout.encoding or "utf-8"
    print(str(path).encode(encoding, "backslashreplace").decode(encoding), flush=True)


def _png_text(parameters: Mapping[str, Any]) -> dict[str, Any]:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    for name, value in parameters.items():
        info.add_text(name, str(value))
    return {"pnginfo": info}


def _exif(parameters: Mapping[str, Any]) -> dict[str, Any]:
    from PIL.Image import Exif

    exif = Exif()
    exif[_IMAGE_DESCRIPTION] = json.dumps({name: _cut(value) for name, value in parameters.items()})
    return {"exif": exif}


def _cut(value: Any) -> Any:
    # EXIF holds 64 kB in all, and JSON writes a letter beyond ASCII with 6 bytes, or 12.
    return value if len(str(value)) <= _LONGEST_IN_EXIF else str(value)[:_LONGEST_IN_EXIF]


def _names(prompts: Sequence[str], seeds: Sequence[int]) -> list[str]:
    """Of prompt and seed; prompts that differ only in what a name leaves out are numbered."""
    alike: dict[str, list[str]] = {}
    for prompt in dict.fromkeys(prompts):
        alike.setdefault(_slug(prompt), []).append(prompt)
    number = {prompt: i for same in alike.values() for i, prompt in enumerate(same)}
    return [
        "-".join([_slug(prompt), *([f"{number[prompt] + 1}"] if number[prompt] else []), str(seed)])
        for prompt, seed in zip(prompts, seeds, strict=True)
    ]


def _nearest(folder: Path) -> Path:
    """The first of `folder` and the folders around it that exists."""
    return next((one for one in (folder, *folder.parents) if os.path.lexists(one)), Path("."))


def _slug(prompt: str, length: int = 48) -> str:
    words = re.sub(r"[\W_]+", "-", prompt.lower()).strip("-")
    # Whole letters, and few enough bytes for every file system.
    return words.encode()[:length].decode(errors="ignore").strip("-") or "picture"
