"""Checkpoints: folders of safetensors and JSON that are there whole or not at all."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

from training.ema import Ema

NAME = re.compile(r"step-(\d{8})")


class Player:
    """A trained module with its optimizer and, where wanted, its moving average."""

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer, ema: Ema | None):
        self.module, self.optimizer, self.ema = module, optimizer, ema

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All tensors and all other values of the state. Every process of a distributed run must call it."""
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        # An optimizer that has not moved yet is left out: asked for its state, torch would take a step with it.
        moved = [self.optimizer] if self.optimizer.state else []
        # torch's types for these cover sharded forms that full states do not take.
        states: tuple[Any, Any] = get_state_dict(self.module, moved, options=options)
        weights, optimizer = states
        tensors = {f"module/{name}": weight for name, weight in weights.items()}
        for name, moments in optimizer.get("state", {}).items():
            tensors |= {f"optimizer/{name}/{key}": torch.as_tensor(value) for key, value in moments.items()}
        if self.ema:
            tensors |= {f"ema/{name}": average.cpu() for name, average in self.ema.averages.items()}
        return {k: v.contiguous() for k, v in tensors.items()}, {"param_groups": optimizer.get("param_groups")}

    def load_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Takes up what `state` returned; an optimizer's settings stay those that it was made with."""
        parts: dict[str, dict[str, Any]] = {"module": {}, "optimizer": {}, "ema": {}}
        for name, value in tensors.items():
            part, _, key = name.partition("/")
            parts[part][key] = value
        if parts["ema"] and not self.ema:
            raise ValueError("the checkpoint holds moving averages, but loop.ema_decay is 0: give it the run's value.")
        optimizer: dict[str, Any] = {}
        for name, value in parts["optimizer"].items():
            parameter_name, _, key = name.rpartition("/")
            optimizer.setdefault(parameter_name, {})[key] = value
        groups = self.optimizer.param_groups
        settings = [{k: v for k, v in group.items() if k not in ("params", "step")} for group in groups]
        set_state_dict(
            self.module,
            [self.optimizer] if optimizer else [],
            model_state_dict=parts["module"],
            optim_state_dict={"state": optimizer, "param_groups": values["param_groups"]},
            options=StateDictOptions(full_state_dict=True),
        )
        for group, made_with in zip(self.optimizer.param_groups, settings, strict=True):
            group |= made_with
        for parameter, moments in self.optimizer.state.items():
            for key, value in moments.items():
                # Fused optimizers walk through memory: moments must lie as the weights do, channels_last included.
                if value.shape == parameter.shape:
                    moments[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        if self.ema:
            self.ema.load(parts["ema"])


def save(
    folder: Path, step: int, players: Mapping[str, Player], *, keep: int, is_main: bool, scaler: Any = None
) -> Path:
    """Writes the checkpoint of `step` and then removes all but the newest `keep`.

    The files are written and flushed under another name, which is changed as the last act: a process killed
    at any moment leaves either the whole checkpoint or none of it. `scaler` is fp16's loss scaler, where there is one.
    """
    target = folder / f"step-{step:08d}"
    states = {name: player.state() for name, player in players.items()}
    if not is_main:
        return target
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(".part-*"):
        shutil.rmtree(leftover)
    part = folder / f".part-{step:08d}"
    part.mkdir()
    for name, (tensors, values) in states.items():
        save_file(tensors, part / f"{name}.safetensors")
        (part / f"{name}.json").write_text(json.dumps(values))
    state = {"step": step, "players": list(players), "scaler": scaler.state_dict() if scaler else None}
    (part / "state.json").write_text(json.dumps(state))
    put_in_place(part, target)
    for old in list_checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return target


def put_in_place(part: Path, target: Path) -> None:
    """Renames the finished folder `part` to `target`, when all of it is on the disk; replaces an older `target`."""
    for path in [*part.rglob("*"), part]:
        _flush(path)
    older = target.with_name(f".old-{target.name}")
    shutil.rmtree(older, ignore_errors=True)
    if target.exists():
        os.replace(target, older)
    os.replace(part, target)
    _flush(target.parent)
    shutil.rmtree(older, ignore_errors=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def list_checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints in `folder`, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if NAME.fullmatch(p.name) and (p / "state.json").is_file())


def newest(folder: Path, resume: bool) -> Path | None:
    """The checkpoint to go on from, None for a new run. Raises FileExistsError where there is one but no `resume`."""
    saved = list_checkpoints(folder)
    if saved and not resume:
        raise FileExistsError(
            f"{folder.parent} already holds a run at {saved[-1].name}: pass --resume to go on with it, or choose "
            "another --output."
        )
    return saved[-1] if saved else None


def restore(checkpoint: Path, players: Mapping[str, Player], scaler: Any = None) -> int:
    """Loads a checkpoint into the players, and fp16's loss scaler, and returns its step.

    Raises:
        ValueError: It is another task's or another network's.
    """
    state = json.loads((checkpoint / "state.json").read_text())
    if state["players"] != list(players):
        raise ValueError(
            f"{checkpoint} holds {', '.join(state['players'])}, but this run trains {', '.join(players)}: "
            "resume it with the recipe that it was begun with."
        )
    for name, player in players.items():
        tensors = load_file(checkpoint / f"{name}.safetensors")
        try:
            player.load_state(tensors, json.loads((checkpoint / f"{name}.json").read_text()))
        except (RuntimeError, KeyError) as error:
            raise ValueError(
                f"{checkpoint} does not fit the {name} of this recipe: {error}; resume it with the recipe that it was "
                "begun with, which is recipe.yaml in its run's folder."
            ) from error
    if scaler and state.get("scaler"):
        scaler.load_state_dict(state["scaler"])
    return state["step"]
