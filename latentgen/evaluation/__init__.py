"""Measures of pictures and of how they fit their prompts; nothing here generates."""

from __future__ import annotations

from latentgen.evaluation.clip_score import ClipScore
from latentgen.evaluation.frechet import FeatureStatistics, frechet_distance
from latentgen.evaluation.images import psnr, ssim
from latentgen.evaluation.judge import Judge, JudgeConfig
from latentgen.evaluation.scoring import Case, Verdict
from latentgen.evaluation.statistics import Mean, Share
from latentgen.evaluation.timing import interleaved, median_ratio

__all__ = [
    "Case",
    "ClipScore",
    "FeatureStatistics",
    "Judge",
    "JudgeConfig",
    "Mean",
    "Share",
    "Verdict",
    "frechet_distance",
    "interleaved",
    "median_ratio",
    "psnr",
    "ssim",
]
