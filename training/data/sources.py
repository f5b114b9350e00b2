"""Owns the way from a named source of captioned pictures to its rows."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image

from training.data.captions import NOTHING, CaptionTemplate, CaptionWeights, caption_template, column_kind
from training.data.decoding import BadPictureError, decode, to_tensor

__all__ = ["DataConfig", "Source", "TableSource", "open_source", "picture_tensor"]

SHAPES = "shapes"
_PICTURES = "image"  # the column of a folder's pictures
_SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}


class MissingSplitError(ValueError):
    """The source has no split of that name, or no row in it."""


@dataclass
class DataConfig:
    """Names a source of captioned pictures.

    Args:
        path: A parquet file, a glob of parquet files, a folder of parquet files, a folder of pictures (captions in its
            metadata.jsonl or metadata.csv, or one folder a class), a data set's id on the Hub ("owner/name"), or
            "shapes", the procedural world that needs no files.
        split: The split to read: train, validation, test, or another name that the source has.
        image_column: The column that holds the pictures.
        caption_column: The column that holds the captions, each a text or a list of texts of which training draws one.
        caption_template: In place of a caption column: "emoji" (worded from name, keywords, style and skin_tone), or a
            sentence with columns in braces, such as "a photo of a {label}".
        caption_weights: How often each wording of the emoji template is drawn.
        resolution: The side of the square pictures that training sees, in pixels.
        limit: Reads only the first so many rows; null reads all.
        max_bad_share: The share of rows that may be bad (not decodable, without caption); above it training refuses to
            begin.
        length: How many scenes a split of shapes has.
        seed: The seed of the scenes of shapes.
        revision: The revision of a Hub data set: a branch, tag or commit.
    """

    path: str = SHAPES
    split: str = "train"
    image_column: str = _PICTURES
    caption_column: str | None = None
    caption_template: str | None = None
    caption_weights: CaptionWeights = field(default_factory=CaptionWeights)
    resolution: int = 64
    limit: int | None = None
    max_bad_share: float = 0.05
    length: int = 100_000
    seed: int = 0
    revision: str | None = None

    def __post_init__(self) -> None:
        """Checks the numbers.

        Raises:
            ValueError: For a resolution, limit or length below 1, or a share outside [0, 1].
        """
        for name in ("resolution", "limit", "length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"data.{name} is {value}; expected a whole number of at least 1")
        if not 0 <= self.max_bad_share <= 1:
            raise ValueError(f"data.max_bad_share is {self.max_bad_share}; expected a share between 0 and 1")


class Source(Protocol):
    """Captioned pictures by index; every answer is a pure function of its arguments."""

    fingerprint: str
    """Tells the content (pictures, rows and their order) apart; the same in every run."""

    def __len__(self) -> int:
        """The number of rows."""

    def image(self, index: int) -> Image.Image:
        """The picture, RGB, upright, on white. Raises `BadPictureError`."""

    def row(self, index: int) -> dict[str, Any]:
        """The other columns."""

    def id(self, index: int) -> str:
        """A name of the row for messages."""

    def caption(self, index: int, rng: np.random.Generator | None = None) -> str:
        """The canonical caption, or with `rng` one of the wordings that training sees; empty where there is none."""


def digest_of_rows(source: Source, rows: Sequence[int]) -> str:
    """Tells apart what runs are trained on: the source's content, and which of its rows."""
    return _digest(f"{source.fingerprint} {list(rows)}".encode())


def picture_tensor(source: Source, index: int, resolution: int) -> torch.Tensor:
    """A row's picture as `to_tensor` gives it: float32 (3, resolution, resolution) in [-1, 1].

    Raises:
        BadPictureError: It cannot be used; the text names the row.
    """
    try:
        return to_tensor(source.image(index), resolution)
    except BadPictureError as error:
        raise BadPictureError(f"{source.id(index)}: {error}") from error


# --- tables


class TableSource:
    """A source over a `datasets.Dataset` with an image column; pictures are decoded when asked for."""

    def __init__(self, dataset: Any, config: DataConfig, content: str, captions: bool = True) -> None:
        import datasets

        columns = dataset.column_names
        _require_columns(columns, [config.image_column], "data.image_column", config.path)
        self._captions: CaptionTemplate | None = _captions_of(config, columns) if captions else None
        if self._captions:
            _require_columns(columns, list(self._captions.columns), "the caption", config.path)
            _require_kinds(dataset.features, self._captions, config.path)
        dataset = _with_image_column(dataset, config.image_column)
        feature = dataset.features[config.image_column]
        if not isinstance(feature, datasets.Image):
            raise ValueError(
                f"the column {config.image_column!r} of {config.path} holds {feature}, not pictures; "
                f"set data.image_column to one of: {', '.join(_image_columns(dataset)) or 'none there are'}"
            )
        if not len(dataset):
            raise MissingSplitError(
                f"the split {config.split!r} of {config.path} is empty; training needs at least one row"
            )
        if config.limit is not None:
            dataset = dataset.select(range(min(config.limit, len(dataset))))
        self._column = config.image_column
        self._images = dataset.select_columns([self._column]).cast_column(self._column, datasets.Image(decode=False))
        self._rows = dataset.remove_columns(_image_columns(dataset))
        self.left_out: dict[str, str] = {}
        labels = (
            (name, feature) for name, feature in self._rows.features.items() if isinstance(feature, datasets.ClassLabel)
        )
        self._labels = dict(labels)
        facts = {"content": content, "rows": len(dataset), "image": self._column, "split": config.split}
        self.fingerprint = _digest(json.dumps(facts, sort_keys=True).encode())

    def __len__(self) -> int:
        """The number of rows."""
        return len(self._images)

    def image(self, index: int) -> Image.Image:
        """The picture, RGB, upright, on white.

        Raises:
            BadPictureError: If there is none or it cannot be decoded.
        """
        value = self._images[index][self._column]
        if value is None:
            raise BadPictureError("no picture in this row")
        content = value["bytes"]
        if content is None:
            try:
                content = Path(value["path"]).read_bytes()
            except OSError as error:
                raise BadPictureError(f"cannot be read: {error.strerror or error}") from error
        return decode(content)

    def row(self, index: int) -> dict[str, Any]:
        """The columns that are no pictures; class numbers are replaced by their names."""
        row = dict(self._rows[index]) if self._rows.column_names else {}
        for name, feature in self._labels.items():
            if row[name] is not None and row[name] < 0:  # the Hub's sign for "no label"
                row[name] = None
            elif row[name] is not None:
                row[name] = feature.int2str(row[name]).replace("_", " ")
        return row

    def id(self, index: int) -> str:
        """The row's id column, else its file name, else its number."""
        row = self.row(index)
        if named := row.get("id") or row.get("file_name"):
            return str(named)
        value = self._images[index][self._column] or {}
        return str(value.get("path") or f"row {index}")

    def caption(self, index: int, rng: np.random.Generator | None = None) -> str:
        """The canonical caption, or with `rng` one of the wordings that training sees; empty where there is none."""
        if self._captions is None:
            return ""
        row = self.row(index)
        return self._captions.canonical(row) if rng is None else self._captions.draw(row, rng)


def _with_image_column(dataset: Any, column: str) -> Any:
    """Takes encoded pictures for pictures, as pandas and pyarrow write them: bytes, or a struct of bytes and path."""
    import datasets

    feature = dataset.features[column]
    of_bytes = isinstance(feature, datasets.Value) and feature.dtype in ("binary", "large_binary")
    if of_bytes or (isinstance(feature, dict) and set(feature) == {"bytes", "path"}):
        return dataset.cast_column(column, datasets.Image())
    return dataset


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _require_columns(columns: Sequence[str], wanted: Sequence[str], what: str, path: str) -> None:
    missing = [name for name in wanted if name not in columns]
    if missing:
        raise ValueError(
            f"{what} asks for the column {', '.join(map(repr, missing))}, which {path} does not have; "
            f"it has: {', '.join(columns) or 'none'}"
        )


def _require_kinds(features: Mapping[str, Any], captions: CaptionTemplate, path: str) -> None:
    for name, kinds in captions.columns.items():
        kind = column_kind(features[name])
        if kind not in (*kinds, NOTHING):
            raise ValueError(
                f"the column {name!r} of {path} holds {kind}, but captions are made from {' or '.join(kinds)} there; "
                "set data.caption_column or data.caption_template"
            )


def _image_columns(dataset: Any) -> list[str]:
    import datasets

    return [name for name, feature in dataset.features.items() if isinstance(feature, datasets.Image)]


def _captions_of(config: DataConfig, columns: Sequence[str]) -> CaptionTemplate:
    template = caption_template(config.caption_template, config.caption_column, config.caption_weights)
    if template is None:
        usual = next((name for name in ("caption", "text", "captions", "prompt") if name in columns), None)
        template = caption_template(column=usual)
    if template is None:
        raise ValueError(
            f"{config.path} has no column named caption or text; set data.caption_column to the column that holds the "
            f"captions, or data.caption_template; it has: {', '.join(columns)}"
        )
    return template


# --- opening


def open_source(config: DataConfig, captions: bool = True) -> Source:
    """Opens the source that a configuration names.

    Args:
        config: What to open.
        captions: Whether captions are wanted; without, none need be there, and every caption is empty.

    Raises:
        FileNotFoundError: If nothing is at `config.path`.
        MissingSplitError: If the split is missing (the text lists those there are) or empty.
        ValueError: If a column is missing, or the files cannot be read.
    """
    if config.path == SHAPES:
        from training.data.shapes import ShapesSource

        return ShapesSource.from_config(config)
    splits = _parquet_files(config.path)
    if splits is not None:
        if config.split not in splits:
            raise MissingSplitError(f"data.split is {config.split!r}; {config.path} has: {', '.join(splits)}")
        files = splits[config.split]
        _require_rows(files, config)
        dataset = _load("parquet", config, data_files={config.split: [str(file) for file in files]})
        return TableSource(dataset, config, _fingerprint(files), captions)
    folder = Path(os.path.abspath(Path(config.path).expanduser()))
    if folder.is_dir():
        return _open_pictures(folder, config, captions)
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", config.path):
        raise FileNotFoundError(
            f"data.path is {config.path!r}: no such file or folder; expected parquet, a folder of pictures, "
            f"a Hub data set 'owner/name', or '{SHAPES}'"
        )
    dataset = _load(config.path, config, revision=config.revision)
    return TableSource(dataset, config, str(getattr(dataset, "_fingerprint", config.path)), captions)


def _open_pictures(folder: Path, config: DataConfig, captions: bool) -> TableSource:
    """A folder of pictures. Its own folders name splits if all of them do, or some name several."""
    from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

    files = sorted(
        file
        for file in folder.rglob("*")
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    )
    if not captions and config.image_column == _PICTURES:
        # Metadata would leave out the pictures that it does not name.
        files = [file for file in files if not _is_metadata(file)]
    pictures = [file for file in files if file.suffix.lower() in ImageFolder.EXTENSIONS]
    if not pictures:
        raise ValueError(f"{folder} holds no pictures and no parquet files; expected one or the other")
    tops = {file.relative_to(folder).parts[0] for file in pictures if file.parent != folder}
    names = {top: _split_word(top) for top in tops}
    known = set(filter(None, names.values()))
    # A lone "train" among other folders may be a class.
    by_split = len(known) > 1 or (bool(known) and None not in names.values())
    splits: dict[str, list[Path]] = {}
    for file in files:
        top = file.relative_to(folder).parts[0]
        splits.setdefault((names.get(top) if by_split else "train") or "", []).append(file)
    # What lies beside the folders of the splits (a licence, a README) belongs to none; metadata does to all.
    others = splits.pop("", [])
    beside = [file for file in others if file.parent == folder and _is_metadata(file)]
    if unused := sorted(set(others).intersection(pictures)):
        warnings.warn(
            f"{len(unused)} pictures of {folder} lie beside the folders of its splits ({', '.join(sorted(splits))}) "
            f"and are not used, the first is {unused[0].relative_to(folder)}",
            stacklevel=2,
        )
    # train first: its folders tell the builder the classes.
    in_order = sorted(splits, key=lambda split: (split != "train", split))
    data_files = {split: [str(file) for file in [*splits[split], *beside]] for split in in_order}
    dataset = _load("imagefolder", config, data_files=data_files)
    own = set(splits[config.split])
    if beside and config.image_column in dataset.column_names:
        # Metadata of all splits give every split all rows.
        places = _places(dataset, config.image_column)
        dataset = dataset.select([row for row, place in enumerate(places) if place in own])
    source = TableSource(dataset, config, _fingerprint([*sorted(own), *beside]), captions)
    missing = own.intersection(pictures).difference(_places(dataset, config.image_column))
    source.left_out = {str(file): "no row in the metadata file" for file in sorted(missing)}
    return source


def _is_metadata(file: Path) -> bool:
    return file.name.startswith("metadata.")


def _places(dataset: Any, column: str) -> list[Path]:
    """The files of a column of pictures."""
    import datasets

    values = dataset.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    return [
        Path(os.path.abspath(value["path"])) for value in values.with_format("arrow")[:][column].to_pylist() if value
    ]


def _load(builder: str, config: DataConfig, **arguments: Any) -> Any:
    import datasets

    try:
        found = datasets.load_dataset(builder, **{key: value for key, value in arguments.items() if value is not None})
    except (datasets.exceptions.DatasetNotFoundError, ConnectionError) as error:
        raise FileNotFoundError(
            f"data.path is {config.path!r}: no such file or folder here, and the Hub does not give it ({error})"
        ) from error
    except (datasets.exceptions.DatasetGenerationError, FileNotFoundError, ValueError) as error:
        raise ValueError(f"{config.path} cannot be read as a data set: {error.__cause__ or error}") from error
    if config.split not in found:
        raise MissingSplitError(f"data.split is {config.split!r}; {config.path} has: {', '.join(found)}")
    return found[config.split]


def _parquet_files(path: str) -> dict[str, list[Path]] | None:
    """Returns the parquet files at a path by split, or None where it names none."""
    place = Path(path).expanduser()
    if glob.has_magic(path) and not place.exists():
        files = [Path(name) for name in sorted(glob.glob(str(place), recursive=True))]
        if not files:
            raise FileNotFoundError(f"data.path is {path!r}: no file matches; expected parquet files")
        # The folder that all matches are in: names below it may name splits.
        place = next(folder for folder in place.parents if not glob.has_magic(str(folder)))
    elif place.is_file():
        files = [place]
    else:
        found = sorted(place.rglob("*.parquet")) if place.is_dir() else []
        # "._train.parquet" is what macOS leaves on other systems; metadata.parquet tells about a folder's pictures.
        files = [file for file in found if not file.name.startswith(".") and not _is_metadata(file)]
    if not files:
        return None
    wrong = [file for file in files if file.suffix != ".parquet"]
    if wrong:
        raise ValueError(
            f"data.path is {path!r}, which names {wrong[0].name}; expected .parquet files or a folder of pictures"
        )
    splits: dict[str, list[Path]] = {}
    for file in files:
        splits.setdefault(_split_of(file, place), []).append(file)
    return splits


def _require_rows(files: Sequence[Path], config: DataConfig) -> None:
    import pyarrow.parquet

    rows = 0
    for file in files:
        try:
            rows += pyarrow.parquet.ParquetFile(file).metadata.num_rows
        except (OSError, ValueError) as error:
            raise ValueError(f"{file} cannot be read as parquet: {error}") from error
    if not rows:
        raise MissingSplitError(
            f"the split {config.split!r} of {config.path} is empty; training needs at least one row"
        )


def _split_word(name: str) -> str | None:
    """The split that a name begins with ("train-00000-of-00002", "val"), or None."""
    first = re.split(r"[^a-z]", name.lower())[0]
    return next((split for split, words in _SPLIT_WORDS.items() if first in words), None)


def _split_of(file: Path, root: Path) -> str:
    """Reads a split from a file's name or its folders' below `root`; a file that names none is train."""
    places = [file.stem, *(parent.name for parent in file.parents if root in parent.parents)]
    return next(filter(None, map(_split_word, places)), "train")


def _fingerprint(files: Sequence[Path], whole: int = 1 << 30) -> str:
    """Digests files: names and content; past a gigabyte in all, their sizes, times, and first and last mebibyte."""
    digest = hashlib.blake2b(digest_size=16)
    small = sum(file.stat().st_size for file in files) <= whole
    for file in files:
        status = file.stat()
        digest.update(f"{file.name}\0{status.st_size}\0".encode())
        with file.open("rb") as stream:
            if small:
                while block := stream.read(1 << 20):
                    digest.update(block)
            else:
                digest.update(str(status.st_mtime_ns).encode() + stream.read(1 << 20))
                stream.seek(max(0, status.st_size - (1 << 20)))
                digest.update(stream.read())
    return digest.hexdigest()
