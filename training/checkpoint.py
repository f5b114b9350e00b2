"""Checkpoints: folders of safetensors and JSON that are there whole or not at all."""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

from pipelines.weights import check_weights, read_json
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
    folder: Path,
    step: int,
    players: Mapping[str, Player],
    inputs: Mapping[str, str],
    *,
    keep: int,
    is_main: bool,
    scaler: Any = None,
) -> Path:
    """Writes the checkpoint of `step` and then removes all that are older but the newest `keep`.

    `inputs` are digests of what the run is made from, `scaler` is fp16's loss scaler, where there is one.

    Raises:
        OSError: It cannot be written; the older ones are kept.
    """
    target = folder / f"step-{step:08d}"
    states = {name: player.state() for name, player in players.items()}
    if not is_main:
        return target
    for leftover in folder.glob(".part-*"):
        shutil.rmtree(leftover)
    with whole_folder(target) as part:
        for name, (tensors, values) in states.items():
            save_file(tensors, part / f"{name}.safetensors")
            (part / f"{name}.json").write_text(json.dumps(values))
        state = {"step": step, "players": list(players), "inputs": dict(inputs)}
        state["scaler"] = scaler.state_dict() if scaler else None
        (part / "state.json").write_text(json.dumps(state))
    until_here = [saved for saved in list_checkpoints(folder) if step_of(saved) <= step]
    for old in until_here[:-keep]:
        shutil.rmtree(old)
    return target


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """Gives a folder to write into that becomes `target`, and replaces an older one, when the block ends well.

    It has another name until all of it is on the disk: a process killed at any moment leaves the whole of `target` or
    nothing of it.

    Raises:
        OSError: It cannot be written; nothing of it is left, and what was there before is.
    """
    part = target.with_name(f".part-{target.name}")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        yield part
        _put_in_place(part, target)
    except BaseException as error:
        shutil.rmtree(part, ignore_errors=True)
        if not isinstance(error, (OSError, SafetensorError)):
            raise
        raise OSError(
            f"{target} cannot be written ({error}); what was saved before is kept: make room there, and go on with "
            "--resume."
        ) from error


def _put_in_place(part: Path, target: Path) -> None:
    readable = part.stat().st_mode & 0o666
    for path in [*part.rglob("*"), part]:
        if path.is_file():
            path.chmod(readable)  # safetensors' files are the owner's alone
        _flush(path)
    older = target.with_name(f".old-{target.name}")
    shutil.rmtree(older, ignore_errors=True)
    if target.exists():
        os.replace(target, older)
    os.replace(part, target)
    _flush(target.parent)
    shutil.rmtree(older, ignore_errors=True)


def _flush(path: Path) -> None:
    if path.is_dir() and os.name == "nt":
        return  # Windows opens no folders
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if NAME.fullmatch(p.name) and (p / "state.json").is_file())


def step_of(checkpoint: Path) -> int:
    """The number of steps that led to a checkpoint."""
    return int(checkpoint.name.removeprefix("step-"))


def newest(folder: Path, resume: bool) -> Path | None:
    """The newest checkpoint that is whole, to go on from; None where a run has yet to begin.

    Warns:
        UserWarning: A newer one is damaged and passed over.

    Raises:
        FileExistsError: There is one, but no `resume`.
        ValueError: There are some, but all are damaged.
    """
    saved = list_checkpoints(folder)
    if not saved:
        return None
    if not resume:
        raise FileExistsError(
            f"{folder.parent} already holds a run at {saved[-1].name}: pass --resume to go on with it, or choose "
            "another --output."
        )
    for one in reversed(saved):
        problem = _damage(one)
        if not problem:
            return one
        warnings.warn(f"{one} is damaged and passed over: {problem}", stacklevel=2)
    raise ValueError(f"no checkpoint in {folder} can be read ({problem}): choose another --output to begin anew.")


def _damage(checkpoint: Path) -> str:
    """What is wrong with a checkpoint's files, read from their headers alone; empty where nothing is."""
    try:
        for name in read_json(checkpoint / "state.json")["players"]:
            read_json(checkpoint / f"{name}.json")
            check_weights(checkpoint / f"{name}.safetensors")
    except (OSError, ValueError, KeyError, TypeError) as error:
        return str(error)
    return ""


def restore(checkpoint: Path, players: Mapping[str, Player], inputs: Mapping[str, str], scaler: Any = None) -> int:
    """Loads a checkpoint into the players, and fp16's loss scaler, and returns its step.

    Raises:
        ValueError: It is another task's or another network's, or was made from other inputs.
    """
    state = json.loads((checkpoint / "state.json").read_text())
    begun = state.get("inputs", {})
    changed = [name for name in begun if begun[name] != inputs.get(name)]
    if changed:
        raise ValueError(
            f"{checkpoint} was made with another content of {' and of '.join(changed)}: give the run what it was begun "
            "with, or begin a new one in another --output."
        )
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
