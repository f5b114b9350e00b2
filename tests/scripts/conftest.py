"""A tiny judge for the tiny emoji tables, and a pipeline that draws pictures of a size that it can look at."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest

from training.tasks.judge import trained_judge

TINY_JUDGE = """
data: {resolution: 16, caption_template: emoji}
model: {widths: [8, 16], blocks: [1, 1]}
held_out_share: 0.3
loop:
  steps: 30
  batch_size: 16
  mixed_precision: 'no'
  sample_every: 0
  optimizer: {learning_rate: 0.01, warmup_steps: 2}
"""


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps what `datasets` writes out of the user's cache."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def judge_recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipes") / "judge.yaml"
    path.write_text(TINY_JUDGE)
    return path


@pytest.fixture(scope="session")
def tiny_judge(judge_recipe: Path, emoji_tables: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_judge(judge_recipe, str(emoji_tables), tmp_path_factory.mktemp("judges"))
