"""The one training loop: a task brings its modules, samples and losses, everything else happens here."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any, NoReturn, Protocol

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DataLoaderConfiguration, parse_flag_from_env
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from latentgen.hardware import default_dtype
from training import checkpoint
from training.checkpoint import Player
from training.config import LoopConfig
from training.ema import Ema
from training.interrupt import ENDING, Interrupts
from training.optimizer import learning_rate, make_optimizer
from training.run_folder import MODEL, RECIPE

Batch = dict[str, Any]


class Task(Protocol):
    """What a task adds to the loop.

    `players` are the modules to train, in the order in which they move within a step (an autoencoder, then its
    discriminator). A player's forward takes the batch and returns its loss, a dictionary of scalars to log, and, where
    players after it need them, a dictionary of tensors that their batch gets.

    `inputs` are digests, by name, of what the run is made from, its data and the frozen networks: it goes on with the
    same or not at all.
    """

    name: str
    players: dict[str, nn.Module]
    inputs: dict[str, str]

    def averaged(self, player: str) -> nn.Module | None:
        """The part of a player that is followed by a moving average, or None."""

    def compiled(self) -> list[nn.Module]:
        """The networks that torch.compile is to take."""

    def is_active(self, player: str, step: int) -> bool:
        """Whether a player moves in this step."""

    def samples(self, seed: int) -> Dataset:
        """Map-style data set: a sample's number in the run -> its tensors, as a pure function of (seed, number).

        Every item names its row under "row" (a text that leads the user to the picture).
        """

    def collate(self, items: list[Batch]) -> Batch:
        """Makes one batch of several samples."""

    def prepare(self, batch: Batch, step: int) -> Batch:
        """Adds to a batch on the device, under autocast, what frozen networks compute and what depends on the step."""

    def to(self, device: torch.device) -> None:
        """Moves the frozen networks that are no part of a player."""

    def preview(self, device: torch.device) -> tuple[Image.Image | None, dict[str, float]]:
        """A picture of progress and scalars measured on held-out data, both with the averaged weights."""

    def export(self, folder: Path) -> None:
        """Writes the finished model, with the averaged weights."""


class _Numbers(torch.utils.data.Sampler[int]):
    """Numbers of the samples that this process shows, from a given step on."""

    def __init__(self, config: LoopConfig, first_step: int, process: int, processes: int):
        share = config.batch_size // processes
        self.batches = range(first_step * config.batch_size, config.steps * config.batch_size, config.batch_size)
        self.first, self.share = process * share, share

    def __iter__(self) -> Iterator[int]:
        for start in self.batches:
            yield from range(start + self.first, start + self.first + self.share)

    def __len__(self) -> int:
        return len(self.batches) * self.share


def _leave_signals_to_the_loop(worker: int) -> None:
    """For the processes that prepare data: who stops the whole group stops them too, before the loop could save."""
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)


class Loop:
    """Trains a task for the configured number of steps.

    Args:
        task: modules, samples and losses.
        config: the shared configuration.
        output: folder of the run; checkpoints, pictures, scalars and the finished model are written into it.
        recipe: the whole configuration as YAML, kept beside the run.

    Raises:
        ValueError: before any work, where the batch cannot be divided over processes and accumulation.
    """

    def __init__(self, task: Task, config: LoopConfig, output: Path, recipe: str):
        if config.threads:
            torch.set_num_threads(config.threads)
        self.task, self.config, self.output, self.recipe = task, config, output, recipe
        self.accelerator = Accelerator(
            mixed_precision=_precision(config),
            log_with="tensorboard",
            project_dir=output,
            dataloader_config=DataLoaderConfiguration(dispatch_batches=False),
        )
        self.part_size = config.part_size(self.accelerator.num_processes)
        task.to(self.accelerator.device)
        self.wrapped: dict[str, nn.Module] = {}
        self.players: dict[str, Player] = {}
        for name, module in task.players.items():
            module = module.to(self.accelerator.device).to(memory_format=torch.channels_last)
            averaged = task.averaged(name) if config.ema_decay else None
            optimizer = make_optimizer(module, config.optimizer)
            self.wrapped[name], prepared = self.accelerator.prepare(module, optimizer)
            self.players[name] = Player(module, prepared, Ema(averaged, config.ema_decay) if averaged else None)
        for network in task.compiled() if config.compile else []:
            network.compile()

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.output / "checkpoints"

    def run(self, resume: bool = False) -> Path:
        """Trains to the end, previews and exports; returns the folder of the finished model."""
        first = self._begin(resume)
        if self.accelerator.is_main_process:
            self.output.mkdir(parents=True, exist_ok=True)
            (self.output / RECIPE).write_text(self.recipe, encoding="utf-8")
        config, task = self.config, self.task
        self.accelerator.init_trackers("tensorboard")
        # Before signals are only noted: encoding the pictures may take long, and there is nothing to save yet.
        batches = self._batches(self._loader(first))
        hidden = not self.accelerator.is_main_process
        bar = tqdm(total=config.steps, initial=first, desc=task.name, unit="step", disable=hidden)
        with Interrupts() as interrupts, bar:
            for step in range(first, config.steps):
                started = time.perf_counter()
                scalars = self.train_step(step, batches)
                bar.update()
                if step % config.log_every == 0 or step + 1 == config.steps:
                    scalars |= {"samples_per_second": config.batch_size / (time.perf_counter() - started)}
                    bar.set_postfix({k: f"{v:.4g}" for k, v in scalars.items()})
                    self.accelerator.log(scalars, step=step)
                last = step + 1 == config.steps
                leave = self._any(bool(interrupts.received))
                if last or (step + 1) % config.checkpoint_every == 0 or leave:
                    self._save(step + 1)
                if config.sample_every and (last or (step + 1) % config.sample_every == 0):
                    self._preview(step + 1)
                if leave and not last:
                    stopper = interrupts.received or "a signal to another process"
                    raise KeyboardInterrupt(
                        f"stopped by {stopper} after step {step + 1}; the checkpoint is written: "
                        "the same command with --resume goes on from it"
                    )
        return self._finish()

    def _any(self, flag: bool) -> bool:
        """Whether it holds in any process: they must leave after the same step."""
        if self.accelerator.num_processes == 1:
            return flag
        return bool(self.accelerator.reduce(torch.tensor(float(flag), device=self.accelerator.device), "sum") > 0)

    def train_step(self, step: int, batches: Iterator[Batch]) -> dict[str, float]:
        """One optimizer step of every active player on one batch; returns the means of what they log."""
        rate = learning_rate(self.config.optimizer, step, self.config.steps)
        fetched = [next(batches) for _ in range(self.config.gradient_accumulation)]
        # After the batches: a data loader draws from the generator when it begins.
        torch.manual_seed(int(np.random.SeedSequence([self.config.seed, step]).generate_state(1)[0]))
        with self.accelerator.autocast():
            parts = [self.task.prepare(batch, step) for batch in fetched]
        scalars: dict[str, float] = {"learning_rate": rate}
        for name, player in self.players.items():
            if self.task.is_active(name, step):
                for group in player.optimizer.param_groups:
                    group["lr"] = rate
                scalars |= self._move(name, player, parts, step)
        return scalars

    def _move(self, name: str, player: Player, parts: list[Batch], step: int) -> dict[str, float]:
        module = self.wrapped[name]
        module.train()
        logged: list[dict[str, Tensor]] = []
        for part in parts:
            sync = part is parts[-1]
            with nullcontext() if sync else self.accelerator.no_sync(module), self.accelerator.autocast():
                loss, scalars, *left = module(part)
            if not torch.isfinite(loss):
                self._fail(f"the loss of {name} is {loss.item()}", parts, step)
            self.accelerator.backward(loss / len(parts))
            for tensors in left:
                part.update(tensors)
            logged.append({"loss" if name == next(iter(self.players)) else f"{name}_loss": loss.detach(), **scalars})
        limit = self.config.optimizer.max_grad_norm or math.inf
        norm = self.accelerator.clip_grad_norm_(module.parameters(), limit)
        if norm is not None and not torch.isfinite(norm) and self.accelerator.mixed_precision != "fp16":
            self._fail(f"the gradient norm of {name} is {norm.item()}", parts, step)
        player.optimizer.step()
        player.optimizer.zero_grad(set_to_none=True)
        if player.ema:
            player.ema.update(step)
        if step % self.config.log_every and step + 1 != self.config.steps:
            return {}
        means = {k: torch.stack([entry[k].detach().float() for entry in logged]).mean() for k in logged[0]}
        return {k: self.accelerator.reduce(v, "mean").item() for k, v in means.items()} | {
            f"{name}_gradient_norm": float(norm)
        }

    def _fail(self, what: str, parts: list[Batch], step: int) -> None:
        rows = [row for part in parts for row in part["row"]]
        self._stop(f"{what}. Samples of that step: {', '.join(rows)}", step)

    def _stop(self, what: str, step: int) -> NoReturn:
        good = checkpoint.list_checkpoints(self.checkpoints)
        raise FloatingPointError(
            f"Training stopped at step {step}: {what}. The last good checkpoint is "
            f"{good[-1] if good else 'not yet written'}: look at the samples, lower loop.optimizer.learning_rate, and "
            "go on with --resume."
        )

    def _begin(self, resume: bool) -> int:
        saved = checkpoint.newest(self.checkpoints, resume)
        if saved is None:
            return 0
        return checkpoint.restore(saved, self.players, self.task.inputs, self.accelerator.scaler)

    def _loader(self, first_step: int) -> DataLoader:
        config, accelerator = self.config, self.accelerator
        return DataLoader(
            self.task.samples(config.seed),
            sampler=_Numbers(config, first_step, accelerator.process_index, accelerator.num_processes),
            batch_size=self.part_size,
            num_workers=config.workers,
            worker_init_fn=_leave_signals_to_the_loop,
            collate_fn=self.task.collate,
            persistent_workers=config.workers > 0,
        )

    def _batches(self, loader: DataLoader) -> Iterator[Batch]:
        device = self.accelerator.device
        for batch in loader:
            yield {k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()}

    def _save(self, step: int) -> None:
        for name, player in self.players.items():
            averages = player.ema.averages.values() if player.ema else ()
            if not all(torch.isfinite(weight).all() for weight in (*player.module.parameters(), *averages)):
                self._stop(f"the weights of {name} are no longer finite, so they are not saved", step - 1)
        checkpoint.save(
            self.checkpoints,
            step,
            self.players,
            self.task.inputs,
            keep=self.config.keep_checkpoints,
            is_main=self.accelerator.is_main_process,
            scaler=self.accelerator.scaler,
        )
        self.accelerator.wait_for_everyone()

    @torch.no_grad()
    def _preview(self, step: int) -> None:
        if not self.accelerator.is_main_process:
            return
        with self._averaged_weights():
            picture, scalars = self.task.preview(self.accelerator.device)
        self.accelerator.log(scalars, step=step)
        if scalars:
            tqdm.write(f"step {step}: " + ", ".join(f"{k} {v:.4g}" for k, v in scalars.items()))
        if picture is not None:
            folder = self.output / "samples"
            folder.mkdir(parents=True, exist_ok=True)
            picture.save(folder / f"step-{step:08d}.png")
            tracker = self.accelerator.get_tracker("tensorboard")
            tracker.log_images({"samples": np.asarray(picture)[None]}, step=step, dataformats="NHWC")

    def _finish(self) -> Path:
        model = self.output / MODEL
        if self.accelerator.is_main_process:
            with self._averaged_weights(), checkpoint.whole_folder(model) as part:
                self.task.export(part)
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()
        return model

    def _averaged_weights(self) -> ExitStack:
        stack = ExitStack()
        for player in self.players.values():
            player.module.eval()
            if player.ema:
                stack.enter_context(player.ema.swapped_in())
        return stack


def _precision(config: LoopConfig) -> str:
    if config.mixed_precision != "auto":
        return config.mixed_precision
    return "bf16" if default_dtype(this_process().device) == torch.bfloat16 else "no"


def this_process() -> PartialState:
    """Which process of how many this is, and its device, the CPU where ACCELERATE_USE_CPU says so."""
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
