"""Typed configuration that every training task shares; a recipe is one of the tasks' dataclasses as YAML."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass
class OptimizerConfig:
    """The optimizer and its learning-rate schedule.

    Args:
        name: `adamw` (Loshchilov & Hutter, arXiv 1711.05101), or `muon` (K. Jordan 2024, scaled as in arXiv
            2502.16982), which orthogonalises the updates of hidden layers and needs far fewer steps from random
            weights, at some more work a step; AdamW moves the other layers then.
        learning_rate: the highest rate, reached after warm-up.
        warmup_steps: steps of linear rise from 0.
        schedule: how the rate goes on after the warm-up.
        decay_share: for `linear` and `cosine`, the last share of all steps over which the rate falls to
            `final_share`; 1 falls from the end of the warm-up.
        final_share: rate at the last step as a share of `learning_rate`.
        momentum: Muon's decay rate.
        betas: Adam's two decay rates.
        epsilon: Adam's guard against division by zero.
        weight_decay: decoupled decay of weights that are matrices or convolutions.
        max_grad_norm: gradients are scaled down to this norm; 0 turns clipping off.
    """

    name: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 1e-4
    warmup_steps: int = 100
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    decay_share: float = 1.0
    final_share: float = 0.01
    momentum: float = 0.95
    betas: tuple[float, float] = (0.9, 0.99)
    epsilon: float = 1e-8
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        _require(self.learning_rate > 0, "learning_rate", self.learning_rate, "a number above 0")
        _require(self.warmup_steps >= 0, "warmup_steps", self.warmup_steps, "0 or more")
        _require(0 < self.decay_share <= 1, "decay_share", self.decay_share, "a share in (0, 1]")
        _require(0 <= self.final_share <= 1, "final_share", self.final_share, "a share in [0, 1]")
        _require(0 <= self.momentum < 1, "momentum", self.momentum, "a share in [0, 1)")
        _require(all(0 <= beta < 1 for beta in self.betas), "betas", self.betas, "two shares in [0, 1)")
        _require(self.epsilon > 0, "epsilon", self.epsilon, "a number above 0")
        _require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "0 or more")
        _require(self.max_grad_norm >= 0, "max_grad_norm", self.max_grad_norm, "0 (off) or more")


@dataclass
class LoopConfig:
    """What the shared loop does, whatever the task.

    Args:
        steps: optimizer steps of the whole run.
        batch_size: samples of one optimizer step, over all processes and accumulation steps together; so
            the same configuration takes the same steps on one machine or many.
        gradient_accumulation: parts that a process's share of the batch is split into to save memory.
        seed: with the step it determines everything random in the run.
        ema_decay: decay of the averaged weights that are previewed and saved; 0 turns averaging off.
        mixed_precision: `auto` takes bf16 where the device computes in it natively, else `no`.
        compile: compile the task's networks with torch.compile; needs a C++ compiler on the CPU.
        workers: processes that prepare data; 0 prepares in the training process.
        log_every: steps between scalars in TensorBoard.
        sample_every: steps between pictures of progress; 0 for none.
        checkpoint_every: steps between checkpoints.
        keep_checkpoints: newest checkpoints that are kept.
        threads: CPU threads for computing; 0 leaves torch's default.
    """

    steps: int = 1000
    batch_size: int = 16
    gradient_accumulation: int = 1
    seed: int = 0
    ema_decay: float = 0.999
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    compile: bool = False
    workers: int = 0
    log_every: int = 20
    sample_every: int = 500
    checkpoint_every: int = 500
    keep_checkpoints: int = 2
    threads: int = 0
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def __post_init__(self) -> None:
        for name in (
            "steps",
            "batch_size",
            "gradient_accumulation",
            "log_every",
            "checkpoint_every",
            "keep_checkpoints",
        ):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "a whole number of at least 1")
        for name in ("seed", "workers", "sample_every", "threads"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        _require(self.seed < 2**63, "seed", self.seed, "below 2 to the power of 63")
        _require(0 <= self.ema_decay < 1, "ema_decay", self.ema_decay, "a share in [0, 1)")

    def part_size(self, processes: int) -> int:
        """Samples that each of `processes` computes at once.

        Raises:
            ValueError: The batch cannot be divided so.
        """
        parts = processes * self.gradient_accumulation
        if self.batch_size % parts:
            raise ValueError(
                f"batch_size {self.batch_size} cannot be divided into {processes} process(es) x "
                f"{self.gradient_accumulation} accumulation step(s): choose a multiple of {parts}."
            )
        return self.batch_size // parts


def require_sizes(section: str, settings: object, *names: str) -> None:
    """Sees that settings are whole numbers of at least 1, or lists of them that are not empty.

    Raises:
        ValueError: One is not; the text names it.
    """
    for name in names:
        value = getattr(settings, name)
        sizes = value if isinstance(value, (tuple, list)) else [value]
        if not sizes or min(sizes) < 1:
            told = list(value) if isinstance(value, tuple) else value
            raise ValueError(f"{section}.{name} is {told}; expected whole numbers of at least 1.")


def _require(condition: bool, name: str, value: object, expected: str) -> None:
    if not condition:
        raise ValueError(f"{name} is {value!r}, but must be {expected}.")
