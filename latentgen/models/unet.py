"""The denoiser: a U-Net over latents that is told the noise level and reads the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.utils import BaseOutput, scale_lora_layers, unscale_lora_layers
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn

from latentgen.configuration import one_of
from latentgen.models.base import StrictModel, at_least, required
from latentgen.models.embeddings import TextTimeEmbedding, TimestepEmbedding, Timesteps
from latentgen.models.resnet import activation
from latentgen.models.transformer import TextAttention, TextProjections
from latentgen.models.unet_blocks import build_levels

# What diffusers adds to the score of a masked word; finite, so that a prompt masked whole is read evenly, not as NaN.
_MASKED = -10000.0

# diffusers' keywords for networks of other families, and the only values that are accepted here.
_ONLY = {
    "num_attention_heads": (None,),
    "dual_cross_attention": (False,),
    "resnet_skip_time_act": (False,),
    "resnet_out_scale_factor": (1.0,),
    "time_embedding_type": ("positional",),
    "attention_type": ("default", None),
    "mid_block_only_cross_attention": (None, False),
    "cross_attention_norm": (None,),
    "addition_embed_type": (None, "text", "text_time"),
    "encoder_hid_dim_type": (None, "text_proj"),
    "class_embed_type": (None, "timestep", "identity", "projection", "simple_projection"),
}


@dataclass
class UNet2DConditionOutput(BaseOutput):
    """What `UNet2DConditionModel.forward` returns: the prediction, (B, out_channels, H, W)."""

    sample: Tensor


class UNet2DConditionModel(StrictModel, PeftAdapterMixin):
    """Text-conditional U-Net of latent diffusion (arXiv 2112.10752) in the variants of Stable Diffusion 1, 2 and XL.

    Keywords, defaults and state-dict keys are those of diffusers' class of the same name.

    Args:
        sample_size: Height and width of the latents it was trained at; information only.
        in_channels: Channels of the input.
        out_channels: Channels of the prediction.
        center_input_sample: Map the input from [0, 1] to [-1, 1] first.
        flip_sin_to_cos: Cosines before sines in the timestep's embedding.
        freq_shift: See `Timesteps`.
        down_block_types: "DownBlock2D" or "CrossAttnDownBlock2D" for each level.
        mid_block_type: "UNetMidBlock2DCrossAttn", "UNetMidBlock2D" or None.
        up_block_types: "UpBlock2D" or "CrossAttnUpBlock2D" for each level, lowest resolution first.
        only_cross_attention: Both attentions of a block look at the text; one value or one a level.
        block_out_channels: Channels of each level.
        layers_per_block: Residual blocks on the way down (one more on the way up); one value or one a level.
        downsample_padding: See `Downsample2D`.
        mid_block_scale_factor: Divides the sums in the bottleneck's residual blocks.
        dropout: Probability in the residual blocks.
        act_fn: Nonlinearity of convolutional parts and timestep embedding.
        norm_num_groups: Groups of every group normalisation.
        norm_eps: Added to the variance in the residual blocks' normalisations.
        cross_attention_dim: Size of a text token; one value or one a level.
        transformer_layers_per_block: Depth of the transformers; one value, one a level, or a list for each level.
        reverse_transformer_layers_per_block: The same for the way up, lowest resolution first; None mirrors it.
        encoder_hid_dim: Size of the text tokens given, where they are projected to `cross_attention_dim` first.
        encoder_hid_dim_type: "text_proj" with `encoder_hid_dim`.
        attention_head_dim: The NUMBER of heads, one value or one a level. (The name is a mistake of the first
            published checkpoints that every configuration since has kept.)
        num_attention_heads: Must be None, for that reason.
        dual_cross_attention: Must be False.
        use_linear_projection: Transformers are entered and left by linear layers, not by 1x1 convolutions.
        class_embed_type: None, "timestep", "identity", "projection" or "simple_projection".
        addition_embed_type: "text_time" adds pooled text and sizes to the timestep embedding (section 2.2 of
            arXiv 2307.01952); "text" adds the text tokens, pooled here (DeepFloyd IF).
        addition_time_embed_dim: Size of the embedding of one such number.
        num_class_embeds: Number of classes, where `class_embed_type` is None.
        upcast_attention: Scores in float32; here they always are.
        resnet_time_scale_shift: "default" or "scale_shift".
        resnet_skip_time_act: Must be False.
        resnet_out_scale_factor: Must be 1.
        time_embedding_type: Must be "positional".
        time_embedding_dim: Size of the timestep embedding; None is four times the first level's channels.
        time_embedding_act_fn: A nonlinearity on the finished embedding.
        timestep_post_act: A nonlinearity on the timestep's part of it.
        time_cond_proj_dim: Size of forward's `timestep_cond`.
        conv_in_kernel: Kernel of the first convolution.
        conv_out_kernel: Kernel of the last convolution.
        projection_class_embeddings_input_dim: Size of the vector that goes into the added embedding.
        attention_type: Must be "default" or None.
        class_embeddings_concat: The class embedding is appended to the timestep's, not added.
        mid_block_only_cross_attention: Must be None or False.
        cross_attention_norm: Must be None.
        addition_embed_type_num_heads: Heads of the attention that pools the tokens for "text"; else 64, its default.

    Raises:
        ValueError: A value that is not supported, or that contradicts another.
    """

    _supports_gradient_checkpointing = True
    _skip_layerwise_casting_patterns: Any = ["norm"]
    _repeated_blocks = ["BasicTransformerBlock"]

    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] | None = None,
        in_channels: int = 4,
        out_channels: int = 4,
        center_input_sample: bool = False,
        flip_sin_to_cos: bool = True,
        freq_shift: int = 0,
        down_block_types: tuple[str, ...] = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        mid_block_type: str | None = "UNetMidBlock2DCrossAttn",
        up_block_types: tuple[str, ...] = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        only_cross_attention: bool | tuple[bool, ...] = False,
        block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280),
        layers_per_block: int | tuple[int, ...] = 2,
        downsample_padding: int = 1,
        mid_block_scale_factor: float = 1,
        dropout: float = 0.0,
        act_fn: str = "silu",
        norm_num_groups: int = 32,
        norm_eps: float = 1e-5,
        cross_attention_dim: int | tuple[int, ...] = 1280,
        transformer_layers_per_block: int | tuple[int | tuple[int, ...], ...] = 1,
        reverse_transformer_layers_per_block: tuple[int | tuple[int, ...], ...] | None = None,
        encoder_hid_dim: int | None = None,
        encoder_hid_dim_type: str | None = None,
        attention_head_dim: int | tuple[int, ...] = 8,
        num_attention_heads: int | tuple[int, ...] | None = None,
        dual_cross_attention: bool = False,
        use_linear_projection: bool = False,
        class_embed_type: str | None = None,
        addition_embed_type: str | None = None,
        addition_time_embed_dim: int | None = None,
        num_class_embeds: int | None = None,
        upcast_attention: bool | None = False,
        resnet_time_scale_shift: str = "default",
        resnet_skip_time_act: bool = False,
        resnet_out_scale_factor: float = 1.0,
        time_embedding_type: str = "positional",
        time_embedding_dim: int | None = None,
        time_embedding_act_fn: str | None = None,
        timestep_post_act: str | None = None,
        time_cond_proj_dim: int | None = None,
        conv_in_kernel: int = 3,
        conv_out_kernel: int = 3,
        projection_class_embeddings_input_dim: int | None = None,
        attention_type: str | None = "default",
        class_embeddings_concat: bool = False,
        mid_block_only_cross_attention: bool | None = None,
        cross_attention_norm: str | None = None,
        addition_embed_type_num_heads: int = 64,
    ) -> None:
        super().__init__()
        config = self.config
        for name, choices in _ONLY.items():
            one_of(name, config[name], choices)
        at_least("sample_size", sample_size, 1)
        at_least("downsample_padding", downsample_padding, 0)
        widths = tuple(block_out_channels)
        temb_channels = time_embedding_dim or 4 * widths[0]

        self.conv_in = nn.Conv2d(in_channels, widths[0], conv_in_kernel, padding=(conv_in_kernel - 1) // 2)
        self.time_proj = Timesteps(widths[0], flip_sin_to_cos, freq_shift)
        self.time_embedding = TimestepEmbedding(widths[0], temb_channels, act_fn, timestep_post_act, time_cond_proj_dim)
        self.time_embed_act = None if time_embedding_act_fn is None else activation(time_embedding_act_fn)
        self.act = activation(act_fn)
        self.class_embedding = _class_embedding(config, temb_channels)
        if addition_embed_type is not None:
            self.add_embedding = _added_embedding(config, temb_channels)
        if addition_embed_type == "text_time":
            self.add_time_proj = Timesteps(config.addition_time_embed_dim, flip_sin_to_cos, freq_shift)
        if addition_embed_type != "text":
            one_of("addition_embed_type_num_heads", addition_embed_type_num_heads, (64,))
        self.encoder_hid_proj = None
        if encoder_hid_dim is not None:
            self.register_to_config(encoder_hid_dim_type="text_proj")
            self.encoder_hid_proj = nn.Linear(encoder_hid_dim, _one_value("cross_attention_dim", cross_attention_dim))
        elif encoder_hid_dim_type is not None:
            required(config, "encoder_hid_dim")

        self.down_blocks, self.mid_block, self.up_blocks = build_levels(
            config, 2 * temb_channels if class_embeddings_concat else temb_channels
        )
        self.conv_norm_out = nn.GroupNorm(norm_num_groups, widths[0], eps=norm_eps)
        self.conv_act = activation(act_fn)
        self.conv_out = nn.Conv2d(widths[0], out_channels, conv_out_kernel, padding=(conv_out_kernel - 1) // 2)

        self._text_layers = [module for module in self.modules() if isinstance(module, TextAttention)]
        for slot, layer in enumerate(self._text_layers):
            layer.slot = slot

    @apply_forward_hook
    def project_text(self, embeddings: Tensor, mask: Tensor | None = None) -> TextProjections:
        """Compute what depends on the prompt alone, its keys and values first, so that sampling need not at every step.

        Args:
            embeddings: The text encoder's tokens, (B, L, E).
            mask: (B, L), true or 1 where a token counts; None where all do.

        Returns:
            A value for forward's `encoder_hidden_states`.
        """
        pooled = self.add_embedding(embeddings) if self.config.addition_embed_type == "text" else None
        if self.encoder_hid_proj is not None:
            embeddings = self.encoder_hid_proj(embeddings)
        bias = None
        if mask is not None:
            bias = ((1 - mask.to(embeddings.dtype)) * _MASKED)[:, None, None, :]  # (B, L) -> (B, 1, 1, L)
        return TextProjections([layer.project(embeddings) for layer in self._text_layers], bias, pooled)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor | TextProjections,
        class_labels: Tensor | None = None,
        timestep_cond: Tensor | None = None,
        attention_mask: Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        added_cond_kwargs: dict[str, Tensor] | None = None,
        down_block_additional_residuals: Sequence[Tensor] | None = None,
        mid_block_additional_residual: Tensor | None = None,
        down_intrablock_additional_residuals: Sequence[Tensor] | None = None,
        encoder_attention_mask: Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet2DConditionOutput | tuple[Tensor]:
        """Predict from noisy latents.

        Args:
            sample: Noisy latents, (B, in_channels, H, W), any H and W.
            timestep: One for all, or (B,).
            encoder_hidden_states: Text tokens (B, L, E), or what `project_text` made of them.
            class_labels: Classes (B,), or their vectors, as `class_embed_type` says.
            timestep_cond: (B, time_cond_proj_dim), added to the timestep's embedding.
            attention_mask: Must be None.
            cross_attention_kwargs: {"scale": s} scales the LoRA adapters for this call.
            added_cond_kwargs: {"text_embeds": (B, P), "time_ids": (B, n)} where `addition_embed_type` is "text_time".
            down_block_additional_residuals: A ControlNet's, one for each feature map of the way down.
            mid_block_additional_residual: A ControlNet's, for the bottleneck.
            down_intrablock_additional_residuals: Must be None.
            encoder_attention_mask: (B, L), true or 1 where a text token counts. Goes to `project_text` instead where
                that was called.
            return_dict: Return a named output, not a tuple.

        Raises:
            ValueError: An argument that is not supported, or that the configuration has no place for.
        """
        one_of("attention_mask", attention_mask, (None,))
        one_of("down_intrablock_additional_residuals", down_intrablock_additional_residuals, (None,))
        if (down_block_additional_residuals is None) != (mid_block_additional_residual is None):
            raise ValueError("pass down_block_additional_residuals and mid_block_additional_residual both, or neither")
        if isinstance(encoder_hidden_states, TextProjections) and encoder_attention_mask is not None:
            raise ValueError("the text is already projected; give the mask to project_text, not to forward")
        lora_scale = _lora_scale(cross_attention_kwargs)
        if lora_scale is not None:
            scale_lora_layers(self, lora_scale)
        try:
            text = encoder_hidden_states
            if not isinstance(text, TextProjections):
                text = self.project_text(text, encoder_attention_mask)
            temb = self._embed_time(sample, timestep, text.pooled, class_labels, timestep_cond, added_cond_kwargs)
            sample = self._denoise(sample, temb, text, down_block_additional_residuals, mid_block_additional_residual)
        finally:
            if lora_scale is not None:
                unscale_lora_layers(self, lora_scale)
        return UNet2DConditionOutput(sample=sample) if return_dict else (sample,)

    def _denoise(
        self,
        x: Tensor,
        temb: Tensor,
        text: TextProjections,
        control: Sequence[Tensor] | None,
        mid_control: Tensor | None,
    ) -> Tensor:
        """Down, through the bottleneck, and up again: (B, in_channels, H, W) -> (B, out_channels, H, W)."""
        if self.config.center_input_sample:
            x = 2 * x - 1.0
        x = self.conv_in(x)
        skips = [x]
        for block in self.down_blocks:
            x, seen = block(x, temb, text)
            skips += seen
        if control is not None:
            if len(control) != len(skips):
                raise ValueError(
                    f"{len(control)} down_block_additional_residuals; this network has {len(skips)} places"
                )
            skips = [skip + extra for skip, extra in zip(skips, control, strict=True)]
        if self.mid_block is not None:
            x = self.mid_block(x, temb, text)
        if mid_control is not None:
            x = x + mid_control
        for block in self.up_blocks:
            x = block(x, temb, text, skips)
        return self.conv_out(self.conv_act(self.conv_norm_out(x)))

    def _embed_time(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        pooled: Tensor | None,
        class_labels: Tensor | None,
        timestep_cond: Tensor | None,
        added: dict[str, Tensor] | None,
    ) -> Tensor:
        """All that is said of a picture as a whole as one vector, (B, T), after the nonlinearity of the blocks."""
        batch, dtype = len(sample), sample.dtype
        timesteps = torch.as_tensor(timestep, device=sample.device).expand(batch)
        temb = self.time_embedding(self.time_proj(timesteps).to(dtype), timestep_cond)
        if self.class_embedding is not None:
            if class_labels is None:
                raise ValueError("this network is class-conditional; pass class_labels")
            if self.config.class_embed_type == "timestep":
                class_labels = self.time_proj(class_labels).to(dtype)
            classes = self.class_embedding(class_labels).to(dtype)
            temb = torch.cat([temb, classes], dim=-1) if self.config.class_embeddings_concat else temb + classes
        elif class_labels is not None:
            raise ValueError("class_labels were given, but this network has no class embedding")
        expected = {"text_embeds", "time_ids"} if self.config.addition_embed_type == "text_time" else set()
        added = added or {}
        if expected != set(added):
            raise ValueError(f"added_cond_kwargs has {sorted(added)}; this network expects {sorted(expected)}")
        if expected:
            text_embeds, time_ids = added["text_embeds"], added["time_ids"]
            sizes = self.add_time_proj(time_ids.flatten()).reshape(batch, -1)  # (B, n) -> (B, n * dim)
            temb = temb + self.add_embedding(torch.cat([text_embeds, sizes], dim=-1).to(dtype))
        if pooled is not None:
            temb = temb + pooled.to(dtype)
        if self.time_embed_act is not None:
            temb = self.time_embed_act(temb)
        return self.act(temb)


def _one_value(name: str, value: Any) -> int:
    if isinstance(value, (list, tuple)):
        raise ValueError(f"{name}={value!r}; expected one value where encoder_hid_dim or addition_embed_type is given")
    return value


def _class_embedding(config: Any, temb_channels: int) -> nn.Module | None:
    """The layer that embeds class labels, None where there are no classes."""
    kind = config.class_embed_type
    if kind is None:
        return None if config.num_class_embeds is None else nn.Embedding(config.num_class_embeds, temb_channels)
    if kind == "identity":
        return nn.Identity()
    if kind == "timestep":
        return TimestepEmbedding(config.block_out_channels[0], temb_channels, config.act_fn)
    required(config, "projection_class_embeddings_input_dim")
    layer = {"projection": TimestepEmbedding, "simple_projection": nn.Linear}[kind]
    return layer(config.projection_class_embeddings_input_dim, temb_channels)


def _added_embedding(config: Any, temb_channels: int) -> nn.Module:
    """The layer whose result is added to the timestep's embedding."""
    if config.addition_embed_type == "text_time":
        required(config, "addition_time_embed_dim", "projection_class_embeddings_input_dim")
        return TimestepEmbedding(config.projection_class_embeddings_input_dim, temb_channels)
    tokens = config.encoder_hid_dim or _one_value("cross_attention_dim", config.cross_attention_dim)
    return TextTimeEmbedding(tokens, temb_channels, config.addition_embed_type_num_heads)


def _lora_scale(kwargs: dict[str, Any] | None) -> float | None:
    """The scale asked for, None where none is."""
    unknown = set(kwargs or ()) - {"scale"}
    if unknown:
        raise ValueError(f"cross_attention_kwargs has {sorted(unknown)}; only 'scale' is supported")
    return (kwargs or {}).get("scale")
