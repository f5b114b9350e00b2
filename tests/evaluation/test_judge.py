"""The judge as a network and as a folder; its training is tested with the training tasks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from latentgen.evaluation import Judge, JudgeConfig
from latentgen.evaluation.judge import shrink

LABELS = {"concept": tuple(f"c{number}" for number in range(9)), "style": ("noto", "twemoji")}


def judge(**settings: object) -> Judge:
    torch.manual_seed(0)
    return Judge(
        JudgeConfig(labels=LABELS, widths=(8, 16), blocks=(1, 2), resolution=16, **settings), {"unseen": ["x"]}
    )


def pictures(count: int, side: int = 16) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_halving_is_smooth_and_keeps_flat_pictures_flat() -> None:
    flat = torch.full((1, 3, 32, 32), 0.25)
    assert torch.allclose(shrink(flat, 16), torch.full((1, 3, 16, 16), 0.25), atol=1e-6)
    stripes = torch.ones(1, 1, 32, 32)
    stripes[..., ::2] = -1
    # Stripes of one pixel cannot be shown at half the size: they must come out grey, not as all or nothing.
    assert shrink(stripes, 16)[..., 2:-2].abs().max() < 0.1
    assert shrink(flat, 32) is flat


def test_verdicts_are_the_most_likely_labels() -> None:
    network = judge().eval()
    given = pictures(3)
    verdicts = network.look(given, batch_size=2)
    logits = network(given)
    for row, verdict in enumerate(verdicts):
        order = logits["concept"][row].argsort(descending=True)
        assert verdict.labels["concept"] == tuple(LABELS["concept"][i] for i in order[:5])
        assert verdict.first("style") == LABELS["style"][int(logits["style"][row].argmax())]
        assert verdict.confidence["style"] == pytest.approx(F.softmax(logits["style"][row], 0).max().item(), abs=1e-5)


def test_pil_pictures_of_any_size_are_seen_as_tensors_are() -> None:
    network = judge().eval()
    arrays = np.random.default_rng(0).integers(0, 256, (2, 24, 24, 3), dtype=np.uint8)
    tensors = torch.from_numpy(arrays).permute(0, 3, 1, 2) / 127.5 - 1
    seen = network.look_at([Image.fromarray(array) for array in arrays])
    assert [one.labels for one in seen] == [one.labels for one in network.look(tensors)]
    assert network.look_at([]) == []
    with pytest.raises(ValueError, match="square"):
        network.look_at([Image.new("RGB", (8, 9))])


def test_looking_in_training_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="training mode"):
        judge().train().look(pictures(1))


def test_every_weight_gets_a_gradient() -> None:
    network = judge().train()
    sum(logits.square().sum() for logits in network(pictures(4)).values()).backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in network.parameters())


def test_surface_attributes_do_not_see_deep_features() -> None:
    network = judge(surface=("style",)).train()
    logits = network(pictures(4))
    for name, reaches in (("style", False), ("concept", True)):
        network.zero_grad()
        logits[name].square().sum().backward(retain_graph=True)
        deep = [parameter.grad for parameter in network.trunk.norm.parameters()]
        assert all((grad is not None) == reaches for grad in deep)


def test_a_saved_judge_says_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Judge(JudgeConfig(labels=LABELS, resolution=32), {"unseen": ["x"]}).train()
    network(pictures(4, 32))  # moves the statistics of the norms
    network.eval().save(tmp_path / "judge")
    loaded = Judge.load(tmp_path / "judge")
    assert loaded.config == network.config
    assert loaded.notes == {"unseen": ["x"]}
    for name, logits in network(pictures(2, 32)).items():
        assert torch.equal(loaded(pictures(2, 32))[name], logits)


def test_broken_folders_are_refused_with_their_reason(tmp_path: Path) -> None:
    folder = tmp_path / "judge"
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
        Judge.load(folder)
    judge().save(folder)
    good = (folder / "config.json").read_text()
    for broken in (
        "{",
        "{}",
        good.replace('"c0",', ""),
        good.replace("widths", "w"),
    ):
        (folder / "config.json").write_text(broken)
        with pytest.raises(ValueError, match="no judge that can be read"):
            Judge.load(folder)
    (folder / "config.json").write_text(good)
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:100])
    with pytest.raises(ValueError, match="no judge that can be read"):
        Judge.load(folder)
    assert json.loads(good)["notes"] == {"unseen": ["x"]}


@pytest.mark.parametrize(
    "settings",
    [
        {"labels": {}},
        {"labels": {"style": ("noto",)}},
        {"widths": (8,), "blocks": (1, 1)},
        {"widths": (0,), "blocks": (1,)},
        {"resolution": 8},
        {"dropout": 1.0},
        {"surface": ("colour",)},
    ],
)
def test_impossible_judges_are_refused(settings: dict) -> None:
    with pytest.raises(ValueError, match=r"expected|needs"):
        JudgeConfig(**{"labels": LABELS, **settings})
