"""The optimizers by name, their groups of parameters, and the learning rate of a step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from pytorch_optimizer import Muon
from torch import Tensor, distributed, nn

from training.config import OptimizerConfig

# Channels that both sides of a layer must have for Muon to move it: latents, pixels and scalars have fewer.
_HIDDEN = 16


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """Learning rate of step `step` of `steps`: a function of the step alone, whatever the number of processes."""
    warmup = min(1.0, (step + 1) / (config.warmup_steps + 1))
    falls_from = max(config.warmup_steps, steps * (1 - config.decay_share))
    progress = min(1.0, max(0.0, (step - falls_from) / max(1e-9, steps - 1 - falls_from)))
    shape = {"constant": 1.0, "linear": 1 - progress, "cosine": (1 + math.cos(math.pi * progress)) / 2}
    floor = 1.0 if config.schedule == "constant" else config.final_share
    return config.learning_rate * warmup * (floor + (1 - floor) * shape[config.schedule])


def make_optimizer(module: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """The optimizer that `config` names, over the trained parameters; vectors (biases, norms) are not decayed.

    Muon moves the weights of linear and convolution layers between hidden features, and AdamW, in the same object,
    everything else: embeddings, the first and last layers, biases and norms.
    """
    trained = [p for p in module.parameters() if p.requires_grad]
    hidden = _hidden_weights(module) if config.name == "muon" else set()
    matrices = [p for p in trained if p.ndim >= 2 and p not in hidden]
    groups: list[dict[str, Any]] = [{"params": kind} for kind in (matrices, [p for p in trained if p.ndim < 2]) if kind]
    if config.name == "muon":
        groups = [group | {"use_muon": False} for group in groups]
        groups += [{"params": [p for p in trained if p in hidden], "use_muon": True}] if hidden else []
    for group in groups:
        _set_hyperparameters(group, config)
    if config.name == "adamw":
        return torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)
    several = distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
    # With this scale an update is as long as AdamW's, so the two share one learning rate.
    return (SharedMuon if several else Muon)(
        groups, lr=config.learning_rate, adamw_lr=config.learning_rate, use_adjusted_lr=True
    )


class SharedMuon(Muon):
    """Muon of several processes that hold the same weights and gradients: each moves some hidden weights for all.

    To orthogonalise costs the same whatever the batch, so each would else do all of it. Weights and moments are sent
    round, and every process has the whole state.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step; every process must take it."""
        groups = [group["params"] for group in self.param_groups if group["use_muon"]]
        shares = _deal([p for group in groups for p in group if p.grad is not None], distributed.get_world_size())
        own = distributed.get_rank()
        for share in shares[:own] + shares[own + 1 :]:
            for weight in share:
                weight.grad = None  # whose turn it is not is passed over
        loss = super().step(closure)
        for owner, share in enumerate(shares):
            tensors = [tensor for weight in share for tensor in (weight, self._momentum(weight))]
            if tensors:
                _send_round(tensors, owner)
        return loss

    def _momentum(self, weight: Tensor) -> Tensor:
        if not self.state[weight]:
            self.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
        return self.state[weight]["momentum_buffer"]


def _deal(weights: Sequence[Tensor], count: int) -> list[list[Tensor]]:
    """Weights in `count` shares that are about the same work to orthogonalise."""
    work = {weight: weight.numel() * min(weight.shape[0], weight[0].numel()) for weight in weights}
    shares: list[list[Tensor]] = [[] for _ in range(count)]
    for weight in sorted(weights, key=work.__getitem__, reverse=True):
        min(shares, key=lambda share: sum(work[one] for one in share)).append(weight)
    return shares


def _send_round(tensors: Sequence[Tensor], owner: int) -> None:
    """Give `tensors` in every process the values that they have in process `owner`; one message for all."""
    values = torch.cat([tensor.flatten() for tensor in tensors])
    distributed.broadcast(values, owner)
    for tensor, part in zip(tensors, values.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view(tensor.shape))


def _set_hyperparameters(group: dict[str, Any], config: OptimizerConfig) -> None:
    """Give a group of an optimizer's parameters what `config` says, the learning rate excepted."""
    group["weight_decay"] = config.weight_decay if any(p.ndim >= 2 for p in group["params"]) else 0.0
    if group.get("use_muon"):
        group["momentum"] = config.momentum
    else:
        group |= {"betas": config.betas, "eps": config.epsilon}


def _hidden_weights(module: nn.Module) -> set[Tensor]:
    layers = [layer for layer in module.modules() if isinstance(layer, (nn.Linear, nn.Conv2d))]
    return {layer.weight for layer in layers if layer.weight.requires_grad and min(layer.weight.shape[:2]) >= _HIDDEN}
