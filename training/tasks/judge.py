"""Task `judge`: the network that tells what a picture shows, for scoring; it learns from every split of the data."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset, default_collate

from latentgen.evaluation.judge import Judge, JudgeConfig, shrink
from latentgen.evaluation.scoring import CONCEPT, STYLE, alike_concepts, lot
from training.config import LoopConfig
from training.data import DataConfig, Source, draws, open_source, scan, to_tensor
from training.data.distortion import DICE, DistortionConfig, distort
from training.data.held_out import held_out_source
from training.data.order import normal, row_of_sample
from training.loop import Batch


@dataclass
class JudgeModelConfig:
    """Structure of the judge; see `latentgen.evaluation.judge.JudgeConfig`.

    Args:
        surface: attributes that are read from early features.
        widths: channels of each level of the trunk.
        blocks: residual blocks of each level.
        dropout: share of the deep features that training hides.
    """

    surface: tuple[str, ...] = ()
    widths: tuple[int, ...] = (24, 64, 128, 256)
    blocks: tuple[int, ...] = (1, 1, 1, 1)
    dropout: float = 0.0


@dataclass
class JudgeRecipe:
    """Everything that `latentgen train judge` can be told.

    Args:
        output: folder of the run.
        data: pictures with the columns of `attributes`, and `id`; the judge learns from this split and from
            `validation` together.
        attributes: columns to recognise, and the weight of each one's loss.
        model: structure of the network.
        distortion: what is done to the pictures that it learns from.
        held_out_share: share of the rows that it does not see: all pictures of a concept in one style, of a concept
            that it sees in another style.
        smoothing: share of a label's weight that is spread over all labels.
        loop: steps, batch, optimizer and intervals.
    """

    output: str = "runs/judge"
    data: DataConfig = field(default_factory=DataConfig)
    attributes: dict[str, float] = field(default_factory=lambda: {"concept": 1.0, "style": 0.3, "skin_tone": 0.3})
    model: JudgeModelConfig = field(default_factory=JudgeModelConfig)
    distortion: DistortionConfig = field(default_factory=DistortionConfig)
    held_out_share: float = 0.08
    smoothing: float = 0.1
    loop: LoopConfig = field(default_factory=LoopConfig)

    def __post_init__(self) -> None:
        for name in ("held_out_share", "smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be a share in [0, 1).")
        if not self.attributes or min(self.attributes.values()) < 0:
            raise ValueError(f"attributes are {self.attributes}, but must be columns with weights of at least 0.")


# --- the data


class _Remembered:
    """A source whose pictures, once decoded, are kept small as bytes (3, side, side)."""

    def __init__(self, source: Source, side: int) -> None:
        self.source, self.side, self.kept = source, side, dict[int, Tensor]()

    def __len__(self) -> int:
        return len(self.source)

    def image(self, index: int) -> Any:
        picture = self.source.image(index)
        pixels = shrink(to_tensor(picture, min(picture.size))[None], self.side)[0]
        self.kept[index] = ((pixels + 1) * 127.5).round().to(torch.uint8)
        return picture

    def __getattr__(self, name: str) -> Any:
        return getattr(self.source, name)


@dataclass(frozen=True)
class RealPictures:
    """All good rows of the splits of a data set.

    Attributes:
        rows: The columns other than the picture.
        pictures: (N, 3, side, side), bytes.
        digests: Equal for equal pictures.
    """

    rows: list[dict[str, Any]]
    pictures: Tensor
    digests: list[str]


def read_pictures(config: DataConfig, side: int, quarantine: Path | None = None) -> RealPictures:
    """Reads the split that a configuration names and the split `validation`, each picture once.

    Bad pictures are left out and listed in `quarantine`-SPLIT.jsonl.

    Raises:
        ValueError, FileNotFoundError: The data cannot be read, or too much of it is bad.
    """
    held_out = held_out_source(config)
    sources = {config.split: open_source(config)} | ({"validation": held_out} if held_out else {})
    rows, pictures = [], []
    for split, source in sources.items():
        remembered = _Remembered(source, side)
        listed = quarantine and quarantine.with_name(f"{quarantine.name}-{split}.jsonl")
        for index in scan(remembered, listed, config.max_bad_share).good:  # type: ignore[arg-type]
            if index not in remembered.kept:
                remembered.image(index)
            rows.append({"id": source.id(index), **source.row(index)})
            pictures.append(remembered.kept[index])
    digests = [hashlib.blake2b(picture.numpy().tobytes(), digest_size=16).hexdigest() for picture in pictures]
    return RealPictures(rows, torch.stack(pictures), digests)


def hold_out(
    rows: Sequence[Mapping[str, Any]], alike: Mapping[tuple[str, str], frozenset[str]], share: float, seed: int
) -> list[bool]:
    """Says of each row whether the judge shall not see it, by lot.

    What is held out is a concept in a style, with all its skin tones and with the concepts that this style draws with
    the same picture. Each of these concepts stays in another style. Styles are drawn from alike.

    Args:
        rows: With the columns concept and style.
        alike: See `alike_concepts`.
        share: Of the rows, about.
        seed: Of the lots; a lot hangs on it and on names alone.
    """
    styles: dict[str, set[str]] = defaultdict(set)
    sizes: dict[tuple[str, str], int] = defaultdict(int)
    for row in rows:
        styles[row[CONCEPT]].add(row[STYLE])
        sizes[row[CONCEPT], row[STYLE]] += 1
    held: dict[str, set[str]] = defaultdict(set)  # concept -> styles
    count = 0
    for concept, style in sorted(sizes, key=lambda pair: lot(seed, *pair)):
        if count >= share * len(rows):
            break
        group = [one for one in _connected(concept, style, alike) if style not in held[one]]
        if group and all(styles[one] - held[one] - {style} for one in group):
            for one in group:
                held[one].add(style)
                count += sizes[one, style]
    return [row[STYLE] in held[row[CONCEPT]] for row in rows]


def _connected(concept: str, style: str, alike: Mapping[tuple[str, str], frozenset[str]]) -> set[str]:
    """A concept and those that share a picture with it, or with one of those, in this style."""
    found, new = set(), {concept}
    while new:
        found |= new
        new = set().union(*(alike.get((one, style), frozenset()) for one in new)) - found
    return found


def labels_of(rows: Sequence[Mapping[str, Any]], attributes: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Each attribute's labels in alphabetical order.

    Raises:
        ValueError: A row lacks one of the columns.
    """
    if missing := [name for name in attributes if any(not isinstance(row.get(name), str) for row in rows)]:
        raise ValueError(f"the judge needs the column {', '.join(missing)} with a text in every row of the data")
    return {name: tuple(sorted({row[name] for row in rows})) for name in attributes}


class JudgeSamples(Dataset):
    """Sample number -> a picture as bytes, its labels' numbers and the dice of its distortion."""

    def __init__(self, data: RealPictures, chosen: list[int], labels: Mapping[str, tuple[str, ...]], seed: int) -> None:
        self.data, self.chosen, self.seed = data, chosen, seed
        numbers = {name: {label: number for number, label in enumerate(of)} for name, of in labels.items()}
        self.labels = [{name: of[data.rows[row][name]] for name, of in numbers.items()} for row in chosen]

    def __getitem__(self, number: int) -> Batch:
        which = row_of_sample(number, len(self.chosen), self.seed)
        row, side = self.chosen[which], self.data.pictures.shape[-1]
        dice = draws(self.seed, "distortion", number).random(DICE, dtype=np.float32)
        return {
            "row": self.data.rows[row]["id"],
            "picture": self.data.pictures[row],
            "dice": torch.from_numpy(dice),
            "noise": normal((3, side, side), self.seed, "distortion noise", number),
            **self.labels[which],
        }


# --- the task


class Recognition(nn.Module):
    """The judge and its loss, cross-entropy of each attribute."""

    def __init__(self, judge: Judge, recipe: JudgeRecipe) -> None:
        super().__init__()
        self.judge, self.recipe = judge, recipe

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of distorted pictures (B, 3, H, W) in [-1, 1], and the share of each attribute that is right."""
        logits = self.judge(batch["distorted"])
        smoothing = self.recipe.smoothing
        losses = [
            weight * F.cross_entropy(logits[name].float(), batch[name], label_smoothing=smoothing)
            for name, weight in self.recipe.attributes.items()
        ]
        right = {name: (logits[name].argmax(1) == batch[name]).float().mean() for name in self.recipe.attributes}
        return torch.stack(losses).sum(), {f"right_{name}": share.detach() for name, share in right.items()}


class JudgeTask:
    """See the module. Reads the data and checks all settings when made, before any training.

    Raises:
        ValueError, FileNotFoundError: what is wrong with the recipe or the data.
    """

    name = "judge"

    def __init__(self, recipe: JudgeRecipe, output: Path):
        self.recipe = recipe
        self.data = read_pictures(recipe.data, recipe.data.resolution, output / "quarantine")
        self.inputs = {"data": hashlib.blake2b(repr(self.data.digests).encode(), digest_size=16).hexdigest()}
        labels = labels_of(self.data.rows, [*recipe.attributes])
        self.alike = alike_concepts(self.data.rows, self.data.digests)
        held = hold_out(self.data.rows, self.alike, recipe.held_out_share, recipe.loop.seed)
        self.chosen = [index for index, is_held in enumerate(held) if not is_held]
        self.unseen = [index for index, is_held in enumerate(held) if is_held]
        torch.manual_seed(recipe.loop.seed)
        self.judge = Judge(JudgeConfig(labels=labels, resolution=recipe.data.resolution, **asdict(recipe.model)))
        self.players: dict[str, nn.Module] = {"judge": Recognition(self.judge, recipe)}

    def averaged(self, player: str) -> nn.Module:
        """The judge."""
        return self.judge

    def compiled(self) -> list[nn.Module]:
        """The judge."""
        return [self.judge]

    def is_active(self, player: str, step: int) -> bool:
        """Always."""
        return True

    def samples(self, seed: int) -> Dataset:
        """See `JudgeSamples`."""
        return JudgeSamples(self.data, self.chosen, self.judge.config.labels, seed)

    def collate(self, items: list[Batch]) -> Batch:
        """Stacks samples."""
        return default_collate(items)

    def prepare(self, batch: Batch, step: int) -> Batch:
        """Distorts the pictures, in float32: their places are not to be rounded."""
        pictures = batch["picture"].float() / 127.5 - 1
        with torch.autocast(pictures.device.type, enabled=False):
            return batch | {"distorted": distort(pictures, batch["dice"], batch["noise"], self.recipe.distortion)}

    def to(self, device: torch.device) -> None:
        """There are no frozen networks."""

    def preview(self, device: torch.device) -> tuple[None, dict[str, float]]:
        """Share of the pictures not seen of which each attribute is right."""
        if not self.unseen:
            return None, {}
        verdicts = self.judge.look(self.data.pictures[self.unseen].float() / 127.5 - 1)
        rows = [self.data.rows[index] for index in self.unseen]
        pairs = list(zip(rows, verdicts, strict=True))
        return None, {
            f"unseen_{name}": sum(verdict.first(name) == row[name] for row, verdict in pairs) / len(pairs)
            for name in self.judge.config.labels
        }

    def export(self, folder: Path) -> None:
        """Saves the judge, with the ids of the rows that it has not seen and its accuracy on them."""
        _, unseen = self.preview(next(self.judge.parameters()).device)
        self.judge.notes = {
            "unseen": sorted(self.data.rows[index]["id"] for index in self.unseen),
            "alike": [[*key, *sorted(others)] for key, others in sorted(self.alike.items())],
            "accuracy_on_unseen": unseen,
            "pictures": len(self.chosen),
            "samples": self.recipe.loop.steps * self.recipe.loop.batch_size,
            "seed": self.recipe.loop.seed,
        }
        self.judge.save(folder)


# --- a judge that is trained once


def trained_judge(recipe: Path, data: str, root: Path, overrides: Sequence[str] = ()) -> Path:
    """Folder of the finished judge for this recipe and data; it is trained, or gone on with, where it is not there.

    Args:
        recipe: YAML file with the settings of `JudgeRecipe`.
        data: Path of the data, in place of the recipe's.
        root: The run's folder is made in it; its name is a digest of recipe, overrides and data.
        overrides: More settings, as `--loop.steps=100`.

    Raises:
        ValueError, OSError: Bad settings or data.
    """
    from training.command import train

    if not recipe.is_file():
        raise FileNotFoundError(f"there is no recipe {recipe} for the judge; name a YAML file")
    splits = [DataConfig(path=data, caption_template="emoji")]
    splits.append(replace(splits[0], split="validation"))
    sources = [open_source(splits[0]), held_out_source(splits[0])]
    parts = [recipe.read_bytes(), *overrides, *(source.fingerprint for source in sources if source)]
    output = root / hashlib.blake2b(repr(parts).encode(), digest_size=8).hexdigest()
    model = output / "model"
    if not model.is_dir():
        train("judge", ["--config", str(recipe), *overrides, f"--data.path={data}", f"--output={output}", "--resume"])
    return model
