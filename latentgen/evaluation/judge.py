"""The judge: a small network that tells from a picture alone what it shows, in which style and with which skin tone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from latentgen.evaluation.scoring import Verdict

WEIGHTS, CONFIG = "model.safetensors", "config.json"
_TOP = 5  # labels of each attribute that a verdict keeps
_SURFACE_WIDTH = 128


@dataclass(frozen=True)
class JudgeConfig:
    """What makes a judge.

    Args:
        labels: attribute -> its labels, in the order of the head's outputs.
        widths: Channels of each level of the trunk; each level after the first halves the size.
        blocks: Residual blocks of each of its levels.
        resolution: Side of the pictures that it sees, in pixels; others are scaled to it.
        dropout: Share of the deep features that training hides.
        surface: Attributes that are read from early features, such as style: where the deepest features name the
            thing that is shown, a network learns that a thing which it met in three styles is never in the fourth.
    """

    labels: Mapping[str, tuple[str, ...]]
    surface: tuple[str, ...] = ()
    widths: tuple[int, ...] = (24, 64, 128, 256)
    blocks: tuple[int, ...] = (1, 1, 1, 1)
    resolution: int = 64
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if not self.labels or any(len(names) < 2 for names in self.labels.values()):
            raise ValueError("a judge needs attributes with at least two labels each; the data has fewer")
        if not self.widths or len(self.widths) != len(self.blocks) or min(*self.widths, *self.blocks) < 1:
            raise ValueError(f"widths {self.widths} and blocks {self.blocks}; expected one number of each a level")
        if unknown := set(self.surface) - set(self.labels):
            raise ValueError(f"surface names {', '.join(sorted(unknown))}; expected some of {', '.join(self.labels)}")
        if self.resolution < 16 or not 0 <= self.dropout < 1:
            raise ValueError(f"resolution {self.resolution}, dropout {self.dropout}; expected at least 16, and [0, 1)")


def shrink(pictures: Tensor, side: int) -> Tensor:
    """Scale square pictures (B, 3, H, W) in [-1, 1] to (B, 3, side, side), smoothed so that nothing aliases."""
    if pictures.shape[-2:] == (side, side):
        return pictures
    scaled = F.interpolate(pictures, size=(side, side), mode="bicubic", antialias=True, align_corners=False)
    return scaled.clamp(-1, 1)


class _Block(nn.Module):
    """Residual block with its activations before its convolutions (Fig. 4e of arXiv 1603.05027)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.pool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm1(x))
        # Where the shape changes, what goes past the block is activated too (their code, not their figure).
        past = x if isinstance(self.shortcut, nn.Identity) else self.shortcut(self.pool(h))
        return past + self.conv2(F.relu(self.norm2(self.conv1(h))))


class _Trunk(nn.Module):
    """Pre-activation residual network; gives early and deep features, (B, C, h, w), of `widths` channels."""

    def __init__(self, config: JudgeConfig) -> None:
        super().__init__()
        widths = config.widths
        self.stem = nn.Conv2d(3, widths[0], 3, 2, padding=1, bias=False)
        levels = []
        for level, (inputs, outputs) in enumerate(zip([widths[0], *widths], widths, strict=False)):
            first = _Block(inputs, outputs, 2 if level else 1)
            levels.append(nn.Sequential(first, *(_Block(outputs, outputs, 1) for _ in range(config.blocks[level] - 1))))
        self.early, self.late = nn.Sequential(*levels[:2]), nn.Sequential(*levels[2:])
        self.norm = nn.BatchNorm2d(widths[-1])
        self.widths = widths[: len(self.early)][-1], widths[-1]

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        early = self.early(self.stem(pictures))
        return early, F.relu(self.norm(self.late(early)))


class Judge(nn.Module):
    """A trunk, its features pooled over all places, and one head for each attribute.

    Args:
        config: Its structure and labels.
        notes: Plain values that are kept with it, such as how it was trained and what it has not seen.
    """

    def __init__(self, config: JudgeConfig, notes: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.config, self.notes = config, dict(notes or {})
        self.trunk = _Trunk(config)
        early, deep = self.trunk.widths
        self.heads = nn.ModuleDict()
        for name, labels in config.labels.items():
            if name in config.surface:
                hidden = nn.Linear(2 * early, _SURFACE_WIDTH)
                head = [nn.BatchNorm1d(2 * early), hidden, nn.ReLU(), nn.Linear(_SURFACE_WIDTH, len(labels))]
            else:
                head = [nn.BatchNorm1d(deep), nn.Dropout(config.dropout), nn.Linear(deep, len(labels))]
            self.heads[name] = nn.Sequential(*head)

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        """Logits (B, labels) of each attribute for pictures (B, 3, H, W) in [-1, 1]."""
        pictures = shrink(pictures, self.config.resolution).contiguous(memory_format=torch.channels_last)
        early, deep = self.trunk(pictures)
        surface = torch.cat([early.mean((2, 3)), early.amax((2, 3))], 1)
        pooled = deep.mean((2, 3))
        return {name: head(surface if name in self.config.surface else pooled) for name, head in self.heads.items()}

    @torch.no_grad()
    def look(self, pictures: Tensor, batch_size: int = 64) -> list[Verdict]:
        """What the judge sees in pictures (B, 3, H, W) in [-1, 1]; it must be in evaluation mode.

        Raises:
            ValueError: It is in training mode, where a verdict would hang on the other pictures of the batch.
        """
        if self.training:
            raise ValueError("the judge is in training mode; call eval() before it looks at pictures")
        device = next(self.parameters()).device
        verdicts = []
        for part in pictures.split(batch_size):
            shares = {name: logits.float().softmax(1).cpu() for name, logits in self(part.to(device)).items()}
            tops = {name: share.topk(min(_TOP, share.shape[1])) for name, share in shares.items()}
            for row in range(len(part)):
                labels = {
                    name: tuple(self.config.labels[name][i] for i in top.indices[row].tolist())
                    for name, top in tops.items()
                }
                verdicts.append(Verdict(labels, {name: top.values[row, 0].item() for name, top in tops.items()}))
        return verdicts

    def look_at(self, pictures: Sequence[Image.Image]) -> list[Verdict]:
        """What the judge sees in square PIL pictures of any size."""
        side = self.config.resolution
        return self.look(torch.cat([shrink(_tensor(picture), side) for picture in pictures])) if pictures else []

    def save(self, folder: Path) -> None:
        """Write `config.json` and `model.safetensors` into a folder, which is made if it is not there."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file({key: value.contiguous().cpu() for key, value in self.state_dict().items()}, folder / WEIGHTS)
        described = {**asdict(self.config), "labels": {k: list(v) for k, v in self.config.labels.items()}}
        text = json.dumps({"judge": described, "notes": self.notes}, indent=1)
        (folder / CONFIG).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Judge:
        """Read what `save` wrote, in evaluation mode.

        Raises:
            FileNotFoundError: A file is missing.
            ValueError: A file is damaged or does not fit the other.
        """
        for name in (CONFIG, WEIGHTS):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"{folder / name} is missing; expected the folder of a judge, or leave it out")
        try:
            described = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
            settings: dict[str, Any] = {
                k: tuple(v) if isinstance(v, list) else v for k, v in described["judge"].items()
            }
            settings["labels"] = {name: tuple(labels) for name, labels in settings["labels"].items()}
            judge = cls(JudgeConfig(**settings), described["notes"])
            judge.load_state_dict(load_file(folder / WEIGHTS))
        except (KeyError, TypeError, AttributeError, RuntimeError, SafetensorError, json.JSONDecodeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"{folder} holds no judge that can be read ({reason}); train it again") from error
        return judge.eval()


def _tensor(picture: Image.Image) -> Tensor:
    """A square PIL picture as (1, 3, H, W) in [-1, 1]."""
    if picture.width != picture.height:
        raise ValueError(f"a picture of {picture.width}x{picture.height}; the judge looks at square ones")
    pixels = torch.frombuffer(bytearray(picture.convert("RGB").tobytes()), dtype=torch.uint8)
    return (pixels.reshape(1, picture.height, picture.width, 3).permute(0, 3, 1, 2).float() / 127.5) - 1
