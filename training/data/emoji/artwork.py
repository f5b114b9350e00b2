"""Owns the artwork: where each public source keeps the picture of an emoji, and how a file becomes 128 x 128 pixels."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from training.data.decoding import BadPictureError, decode
from training.data.emoji.unicode import TONES, bare

__all__ = ["SIDE", "STYLES", "Artwork", "draw", "open_artwork"]

SIDE = 128
_SUFFIXES = (".svg", ".png")


@dataclass
class Artwork:
    """The pictures of one style.

    Attributes:
        files: The file of each emoji, by code points without variation selectors.
        left_out: Files that are not used, with the reason.
    """

    files: dict[str, Path]
    left_out: dict[Path, str] = field(default_factory=dict)


def open_artwork(style: str, root: str | Path, names: Mapping[str, str]) -> Artwork:
    """Finds the artwork of a style in a checkout of its repository.

    Args:
        style: One of `STYLES`.
        root: The checkout.
        names: Every emoji's name, by code points without variation selectors, to notice files that say another name.

    Raises:
        FileNotFoundError: If the checkout has none of the folders in which its repository keeps its artwork.
        ValueError: For an unknown style.
    """
    if style not in STYLES:
        raise ValueError(f"unknown style {style!r}; expected one of: {', '.join(STYLES)}")
    return STYLES[style](Path(root), names)


def _folder(root: Path, places: tuple[str, ...], repository: str) -> Path:
    for place in places:
        if (root / place).is_dir():
            return root / place
    raise FileNotFoundError(f"{root} has none of the folders {', '.join(places)}; expected a checkout of {repository}")


def _noto(root: Path, names: Mapping[str, str]) -> Artwork:
    """emoji_u1f469_1f3fb_200d_1f680.svg in noto-emoji-svg/svg or noto-emoji/png/128."""
    places = ("svg", "2D/svg", "png/128", "2D/png/128")
    folder = _folder(root, places, "adobe-fonts/noto-emoji-svg or googlefonts/noto-emoji")
    files = {}
    for path in sorted(folder.glob("emoji_u*")):
        if path.suffix in _SUFFIXES:
            files[bare(path.stem.removeprefix("emoji_u").replace("_", "-"))] = _followed(path)
    # Pictures that stand for several emoji are listed, not copied: "1f46b;1f469_200d_1f91d_200d_1f468 # why".
    for listing in ("emoji_color_aliases.txt", "emoji_aliases.txt", "2D/emoji_aliases.txt"):
        if (root / listing).is_file():
            for line in (root / listing).read_text(encoding="utf-8").splitlines():
                alias, separator, target = line.partition("#")[0].strip().partition(";")
                if separator:
                    aim = bare(target.strip().replace("_", "-"))
                    if aim in files:
                        files.setdefault(bare(alias.strip().replace("_", "-")), files[aim])
    return Artwork(files)


def _followed(path: Path) -> Path:
    """The file that a symbolic link names, also where git wrote the link as a small text file (Windows)."""
    if path.stat().st_size < 256:
        text = path.read_bytes().strip()
        if text.endswith(path.suffix.encode()) and b"\n" not in text:
            target = path.parent / text.decode("utf-8", "replace")
            if target.is_file():
                return target
    return path


def _twemoji(root: Path, names: Mapping[str, str]) -> Artwork:
    """1f469-1f3fb-200d-1f680.svg in assets/svg, or .png in assets/72x72; numbers are not padded ("30-20e3")."""
    folder = _folder(root, ("assets/svg", "assets/72x72"), "jdecked/twemoji")
    files = {}
    for path in sorted(folder.iterdir()):
        if path.suffix in _SUFFIXES:
            files[bare("-".join(part.zfill(4) for part in path.stem.split("-")))] = path
    return Artwork(files)


def _fluent(kind: str) -> Callable[[Path, Mapping[str, str]], Artwork]:
    """Fluent's reader for one kind: assets/<Name>/[<Tone>/]<kind>/*.png|svg, where metadata.json has the code points.

    The order of the two folders has changed over time; both are read.
    """
    tone_folders = {"-".join(word.capitalize() for word in tone.split("-")): code for code, tone in TONES.items()}

    def reader(root: Path, names: Mapping[str, str]) -> Artwork:
        owners = {name.lower(): key for key, name in names.items()}
        artwork = Artwork({})
        for folder in sorted(_folder(root, ("assets",), "microsoft/fluentui-emoji").iterdir()):
            paths = [path for path in sorted(folder.rglob("*")) if path.suffix in _SUFFIXES]
            paths = [path for path in paths if kind in path.relative_to(folder).parts[:-1]]
            if not paths:
                continue
            try:
                facts = json.loads((folder / "metadata.json").read_text(encoding="utf-8"))
                by_tone = _fluent_codepoints(facts)
            except (OSError, ValueError, KeyError, AttributeError) as error:
                artwork.left_out |= dict.fromkeys(paths, f"metadata.json does not say which emoji this is: {error!r}")
                continue
            owner = owners.get(str(facts.get("cldr", "")).lower())
            if owner is not None and owner != by_tone[None]:
                reason = f"metadata.json names {facts['cldr']!r}, but has the code points of another emoji"
                artwork.left_out |= dict.fromkeys(paths, reason)
                continue
            for path in paths:
                parts = [part for part in path.relative_to(folder).parts[:-1] if part not in (kind, "Default")]
                if len(parts) > 1 or any(part not in tone_folders for part in parts):
                    artwork.left_out[path] = f"its folders {parts} do not say a skin tone"
                elif (tone := tone_folders[parts[0]] if parts else None) in by_tone:
                    artwork.files.setdefault(by_tone[tone], path)
                else:
                    artwork.left_out[path] = "metadata.json lists no code points for this skin tone"
        return artwork

    return reader


def _fluent_codepoints(facts: dict[str, Any]) -> dict[str | None, str]:
    """Reads an asset's code points by the code point of its skin tone; None for the toneless emoji."""
    spelt = [facts["unicode"], *facts.get("unicodeSkintones", [])]
    found: dict[str | None, str] = {}
    for text in spelt:
        parts = [part.zfill(4) for part in text.lower().split()]
        tones = {part for part in parts if part in TONES}
        if len(tones) <= 1:
            found.setdefault(next(iter(tones), None), bare("-".join(parts)))
    if None not in found:
        raise ValueError("no code points without skin tone")
    return found


STYLES: dict[str, Callable[[Path, Mapping[str, str]], Artwork]] = {
    "fluent-3d": _fluent("3D"),
    "fluent-flat": _fluent("Flat"),
    "noto": _noto,
    "twemoji": _twemoji,
}


def draw(path: Path) -> Image.Image:
    """Draws a file as RGB on white, 128 x 128, aspect kept, centred.

    Raises:
        BadPictureError: If the file is no picture.
        ValueError: If it is an SVG and no rasteriser is installed.
    """
    picture = decode(_rasterised(path) if path.suffix == ".svg" else path.read_bytes())
    scale = SIDE / max(picture.size)
    size = [max(1, round(length * scale)) for length in picture.size]
    if list(picture.size) != size:
        picture = picture.resize((size[0], size[1]), Image.Resampling.LANCZOS)
    page = Image.new("RGB", (SIDE, SIDE), "white")
    page.paste(picture, ((SIDE - size[0]) // 2, (SIDE - size[1]) // 2))
    return page


def _rasterised(path: Path) -> bytes:
    try:
        import resvg_py
    except ImportError as error:
        raise ValueError(
            f"{path.name} is an SVG, and no rasteriser is installed; install one with: pip install 'latentgen[prepare]'"
        ) from error
    try:
        # Twice the size, then scaled down: finer edges than the rasteriser's own.
        text = path.read_text(encoding="utf-8")
        return bytes(resvg_py.svg_to_bytes(svg_string=text, width=2 * SIDE, height=2 * SIDE, skip_system_fonts=True))
    except ValueError as error:
        raise BadPictureError(f"cannot be drawn: {error}") from error
