"""The optimizers: which weights each moves and how, and the learning rate of a step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from training.config import OptimizerConfig
from training.optimizer import learning_rate, make_optimizer


@given(
    steps=st.integers(1, 500),
    warmup=st.integers(0, 50),
    schedule=st.sampled_from(["constant", "linear", "cosine"]),
    share=st.floats(0.05, 1),
    final=st.floats(0, 1),
)
def test_learning_rate_rises_then_falls_to_its_floor(steps, warmup, schedule, share, final):
    config = OptimizerConfig(
        learning_rate=1.0, warmup_steps=warmup, schedule=schedule, decay_share=share, final_share=final
    )
    rates = [learning_rate(config, step, steps) for step in range(steps)]
    assert all(0 < rate <= 1 or (final == 0 and rate >= 0) for rate in rates)
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    if schedule != "constant" and steps > warmup + 2 and steps * share >= 2:
        assert rates[-1] == pytest.approx(final, abs=1e-9)


class Network(nn.Module):
    """A layer of every kind."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(20, 16)
        self.first = nn.Conv2d(4, 32, 3)
        self.inner = nn.Conv2d(32, 24, 3)
        self.norm = nn.GroupNorm(4, 24)
        self.linear = nn.Linear(24, 48)
        self.frozen = nn.Linear(48, 48).requires_grad_(False)
        self.last = nn.Linear(48, 4)


def stepped(config: OptimizerConfig) -> tuple[Network, Network]:
    """A network before and after one step on random gradients."""
    torch.manual_seed(0)
    before, after = Network(), Network()
    before.load_state_dict(after.state_dict())
    for weight in after.parameters():
        if weight.requires_grad:
            weight.grad = torch.randn_like(weight)
    make_optimizer(after, config).step()
    return before, after


def test_muon_moves_hidden_layers_along_orthogonal_matrices():
    rate = 1e-2
    before, after = stepped(OptimizerConfig(name="muon", learning_rate=rate, weight_decay=0.0))
    for name in ("inner", "linear"):
        update = (getattr(before, name).weight - getattr(after, name).weight).flatten(1)
        stretch = torch.linalg.svdvals(update) / (rate * 0.2 * max(update.shape) ** 0.5)
        # Five Newton-Schulz steps bring every singular value near 1, not to it.
        assert stretch.min() > 0.5
        assert stretch.max() < 1.4


def test_muon_of_several_processes_is_that_of_one(tmp_path):
    for count in (1, 3):
        torch.multiprocessing.spawn(move, (count, tmp_path), nprocs=count)
    alone, *others = [torch.load(tmp_path / f"{count}-{rank}.pt") for count in (1, 3) for rank in range(count)]
    assert {"inner.weight/momentum_buffer", "linear.weight/momentum_buffer"} < alone.keys()
    for other in others:
        assert other.keys() == alone.keys()
        assert all(torch.equal(other[name], alone[name]) for name in alone)


def move(rank: int, count: int, folder: Path) -> None:
    """Take three steps as process `rank` of `count`, and keep the weights and the optimizer's state."""
    if count > 1:
        torch.distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=count)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = Network().to(memory_format=torch.channels_last)
    optimizer = make_optimizer(network, OptimizerConfig(name="muon", learning_rate=1e-2))
    for _ in range(3):
        for weight in network.parameters():
            if weight.requires_grad:
                weight.grad = torch.randn(weight.shape).contiguous(
                    memory_format=torch.channels_last if weight.ndim == 4 else torch.contiguous_format
                )
        optimizer.step()
    kept = {name: weight.detach() for name, weight in network.named_parameters()}
    for name, weight in network.named_parameters():
        kept |= {f"{name}/{key}": value for key, value in optimizer.state.get(weight, {}).items()}
    torch.save(kept, folder / f"{count}-{rank}.pt")


def test_muon_leaves_all_other_weights_to_adamw():
    options = {"learning_rate": 1e-2, "weight_decay": 0.1}
    _, by_muon = stepped(OptimizerConfig(name="muon", **options))
    before, by_adamw = stepped(OptimizerConfig(name="adamw", **options))
    for name, weight in by_adamw.named_parameters():
        one, first = by_muon.get_parameter(name), before.get_parameter(name)
        if name in ("inner.weight", "linear.weight"):
            assert not torch.allclose(one, weight)
        else:
            torch.testing.assert_close(one, weight)
            assert torch.equal(one, first) == name.startswith("frozen")


def test_only_matrices_are_decayed():
    for name in ("adamw", "muon"):
        for group in make_optimizer(Network(), OptimizerConfig(name=name, weight_decay=0.25)).param_groups:
            assert {p.ndim >= 2 for p in group["params"]} == {group["weight_decay"] == 0.25}
