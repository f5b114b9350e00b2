"""The losses of a text tower: CLIP's contrast, reading the caption back, and a teacher's nearness."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPModel

# Of the nearness of texts, in SEED's notation; the teacher's is sharper, as there.
_TEACHER_TEMPERATURE, _STUDENT_TEMPERATURE = 0.05, 0.07


class Recall(nn.Module):
    """Reads a caption back from its summary alone, each token by its place, as TSDAE does (arXiv 2104.06979).

    The summary must hold the whole caption then, who has what included. It is read through noise, half as strong as
    itself, so that it says everything loudly.
    """

    def __init__(self, size: int, places: int, vocabulary: int):
        super().__init__()
        self.summary, self.place = nn.Linear(size, 4 * size), nn.Embedding(places, 4 * size)
        self.token = nn.Linear(4 * size, vocabulary)

    def forward(self, summaries: Tensor, noise: Tensor, input_ids: Tensor, end: int) -> Tensor:
        """Mean over captions (B, L) of the mean cross-entropy of their tokens up to the end mark.

        Summaries and noise are (B, D). A caption counts the same whatever its length, and so on every process.
        """
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        states = self.summary(nn.functional.layer_norm(summaries, summaries.shape[-1:]) + noise / 2)
        logits = self.token(nn.functional.gelu(states[:, None] + self.place(places)))
        terms = nn.functional.cross_entropy(logits.float().transpose(1, 2), input_ids, reduction="none")
        ended = input_ids == end
        said = (ended.cumsum(1) - ended.long() == 0).float()
        return ((terms * said).sum(1) / said.sum(1)).mean()


class Contrast(nn.Module):
    """CLIP with its symmetric cross-entropy (Fig. 3 of CLIP, arXiv 2103.00020), and two terms beside it by weight.

    One is that of `Recall`. The teacher's is that of SEED (arXiv 2101.04731): how near a text is to all the texts of
    the batch must come out the same from a linear view of the tower's summary as from the teacher itself, whose
    embeddings have `teacher_size` features; 0 is no teacher.
    """

    def __init__(self, clip: CLIPModel, recall_weight: float = 0.0, teacher_size: int = 0, teacher_weight: float = 1.0):
        super().__init__()
        self.clip, self.recall_weight, self.teacher_weight = clip, recall_weight, teacher_weight
        text = clip.config.text_config
        self.to_teacher = nn.Linear(text.hidden_size, teacher_size) if teacher_size else None
        sizes = text.hidden_size, text.max_position_embeddings, text.vocab_size
        self.recall = Recall(*sizes) if recall_weight else None

    def forward(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of images (B, 3, H, W) with captions (B, L); the teacher's (B + W, D) covers W more texts."""
        summaries = self.clip.text_model(input_ids=batch["input_ids"]).pooler_output
        texts = nn.functional.normalize(self.clip.text_projection(summaries), dim=-1)
        vision = self.clip.vision_model(pixel_values=batch["image"]).pooler_output
        pictures = nn.functional.normalize(self.clip.visual_projection(vision), dim=-1)
        texts, pictures = _of_all_processes(texts), _of_all_processes(pictures)
        # CLIP keeps the scale at or under 100 for stability (section 2.5).
        logits = self.clip.logit_scale.clamp(max=4.6052).exp() * (texts @ pictures.T).float()
        diagonal = torch.arange(len(logits), device=logits.device)
        cross = nn.functional.cross_entropy
        loss = (cross(logits, diagonal) + cross(logits.T, diagonal)) / 2
        scalars = {"contrastive": loss.detach(), "accuracy": (logits.argmax(1) == diagonal).float().mean()}
        if self.recall is not None:
            end = self.clip.config.text_config.eos_token_id
            term = self.recall(summaries, batch["noise"], batch["input_ids"], end)
            scalars |= {"recall": term.detach()}
            loss = loss + self.recall_weight * term
        if self.to_teacher is not None:
            if "words" in batch:
                summaries = torch.cat([summaries, self.clip.text_model(input_ids=batch["words"]).pooler_output])
            views, taught = (_of_all_processes(x.float()) for x in (self.to_teacher(summaries), batch["teacher"]))
            term, cosine = imitation(views, taught)
            scalars |= {"teacher": term.detach(), "teacher_cosine": cosine.detach()}
            loss = loss + self.teacher_weight * term
        return loss, scalars


def imitation(views: Tensor, taught: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the views' (N, D) nearness to a teacher's embeddings (N, D), and the mean cosine of both.

    All embeddings are taken from the teacher's mean: what all texts share tells none from another.
    """
    taught = nn.functional.normalize(taught - taught.mean(0), dim=-1)
    views = nn.functional.normalize(views, dim=-1)
    expected = (taught @ taught.T / _TEACHER_TEMPERATURE).softmax(-1)
    term = nn.functional.cross_entropy(views @ taught.T / _STUDENT_TEMPERATURE, expected)
    return term, (views * taught).sum(-1).mean()


def _of_all_processes(features: Tensor) -> Tensor:
    """Features (B, D) of the whole batch, from every process in order, with gradient to each."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return features
    from torch.distributed.nn.functional import all_gather

    return torch.cat(all_gather(features))
