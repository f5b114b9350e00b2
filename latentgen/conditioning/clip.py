"""`ClipConditioner`: a frozen CLIP text tower and its tokenizer, from sentences to `TextConditioning`."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from latentgen.conditioning.text import TextConditioning

if TYPE_CHECKING:
    from transformers import CLIPTextModel, PreTrainedTokenizerBase

_PROBED = 8  # numbers of each weight that tell whether a tower has changed


class ClipConditioner:
    """Encodes prompts as Stable Diffusion 1 and 2 do: padded to the context, every token's last state.

    Args:
        tokenizer: The tokenizer that the tower was trained with.
        text_encoder: transformers' `CLIPTextModel`; it is put in evaluation mode and its weights are frozen.
        clip_skip: How many of the last layers to leave out: 0 or None takes the last layer's states, 1 the
            next-to-last's, passed through the tower's final normalisation.
        tell_cuts: Whether to warn of prompts that are longer than the context.

    Raises:
        ValueError: `clip_skip` leaves no layer.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        text_encoder: CLIPTextModel,
        clip_skip: int | None = None,
        tell_cuts: bool = True,
    ) -> None:
        layers = text_encoder.config.num_hidden_layers
        if clip_skip is not None and not (isinstance(clip_skip, int) and 0 <= clip_skip < layers):
            raise ValueError(f"clip_skip={clip_skip!r}; expected a whole number from 0 to {layers - 1}, or None")
        self.tokenizer = tokenizer
        self.text_encoder = text_encoder.requires_grad_(False).eval()
        self.clip_skip, self.tell_cuts = clip_skip or 0, tell_cuts
        self._empty: TextConditioning | None = None
        self._empty_made_with: tuple | None = None

    @property
    def max_length(self) -> int:
        """Tokens a prompt may have, start and end marks included."""
        # A tokenizer that was never told its limit says 1e30.
        return min(self.tokenizer.model_max_length, self.text_encoder.config.max_position_embeddings)

    def __call__(self, prompts: Sequence[str]) -> TextConditioning:
        """Encode `prompts`; equal prompts are encoded once, the empty one once in this object's life.

        Warns:
            UserWarning: A prompt is longer than the context; the warning shows the words that were cut.

        Raises:
            ValueError: `prompts` is not a list of strings.
        """
        if isinstance(prompts, str) or not prompts or not all(isinstance(prompt, str) for prompt in prompts):
            raise ValueError(f"prompts={prompts!r}; expected a list with at least one string")
        parts = {"": self.empty()} if "" in prompts else {}
        unique = [prompt for prompt in dict.fromkeys(prompts) if prompt]
        if unique:
            encoded = self._encode(unique)
            parts |= {prompt: encoded.rows(slice(i, i + 1)) for i, prompt in enumerate(unique)}
        if len(unique) == len(prompts):
            return encoded
        return TextConditioning.cat([parts[prompt] for prompt in prompts])

    def empty(self) -> TextConditioning:
        """The empty prompt, a batch of one: what classifier-free guidance and caption dropout condition on."""
        made_with = self._fingerprint()
        if self._empty is None or made_with is None or made_with != self._empty_made_with:
            # Inference tensors could not be given to a training step later.
            with torch.inference_mode(False):
                self._empty = self._encode([""])
            self._empty_made_with = made_with
        return self._empty

    def _fingerprint(self) -> tuple | None:
        """What tells a moved, cast, trained, merged or reloaded tower from the one before: some of every weight.

        The tensors' versions would not do: EMA models and adapters write through `.data`. None for a tower that is
        offloaded, whose weights are not there.
        """
        weights = [p.detach() for p in self.text_encoder.parameters()]
        if any(weight.is_meta for weight in weights):
            return None
        probes = torch.cat([weight.reshape(-1)[:_PROBED].to(weights[0].device, torch.float32) for weight in weights])
        return tuple((weight.device, weight.dtype) for weight in weights), tuple(probes.tolist())

    @torch.no_grad()
    def _encode(self, prompts: list[str]) -> TextConditioning:
        ids, mask = self._tokenize(prompts)
        reads_mask = getattr(self.text_encoder.config, "use_attention_mask", False)
        output = self.text_encoder(
            ids, attention_mask=mask if reads_mask else None, output_hidden_states=self.clip_skip > 0
        )
        states = output.last_hidden_state
        if self.clip_skip:
            states = self.text_encoder.final_layer_norm(output.hidden_states[-1 - self.clip_skip])
        return TextConditioning(states, pooled=output.pooler_output)

    def _tokenize(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        # verbose=False: the tokenizer's own notice about long input does not say what is lost.
        whole = self.tokenizer(prompts, verbose=False)["input_ids"] if self.tell_cuts else ()
        for prompt, tokens in zip(prompts, whole, strict=self.tell_cuts):
            if len(tokens) > self.max_length:
                from_start = self.tokenizer.truncation_side == "left"
                lost = tokens[1 : 1 - self.max_length] if from_start else tokens[self.max_length - 1 : -1]
                cut = str(self.tokenizer.decode(lost)).strip()
                warnings.warn(
                    f"the prompt {_shortened(prompt)!r} is {len(tokens)} tokens long and this model reads "
                    f"{self.max_length}; cut from its {'beginning' if from_start else 'end'}: {cut!r}",
                    stacklevel=2,
                )
        batch = self.tokenizer(
            prompts, padding="max_length", max_length=self.max_length, truncation=True, return_tensors="pt"
        )
        # Where an offloaded tower will compute is known to its hooks alone; they move what they are given.
        device = "cpu" if self.text_encoder.device.type == "meta" else self.text_encoder.device
        return batch["input_ids"].to(device), batch["attention_mask"].to(device)


def _shortened(text: str, length: int = 40) -> str:
    return text if len(text) <= length else text[:length].rstrip() + "..."
