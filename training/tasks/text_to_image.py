"""Task `text-to-image`: the U-Net that denoises cached latents under a frozen text tower."""

from __future__ import annotations

import math
import os
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import PartialState
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset, default_collate

from latentgen.conditioning import ClipConditioner
from latentgen.diffusion.level import diffuse
from latentgen.diffusion.objective import DENSITIES, WEIGHTINGS, draw_timesteps, loss_weight, require_learnable
from latentgen.diffusion.prediction import target
from latentgen.diffusion.schedule import noise_schedule
from latentgen.models import UNet2DConditionModel
from latentgen.models.digest import digest_of_weights
from latentgen.schedulers import DDIMScheduler
from pipelines import inputs
from pipelines.inputs import Generation
from pipelines.loading import load_autoencoder, load_text_tower
from pipelines.text_to_image import TextToImagePipeline, check_fit
from pipelines.weights import read_json
from training.config import LoopConfig, require_sizes
from training.data import DataConfig, Source, digest_of_rows, draws, open_source, scan
from training.data.held_out import held_out_source, rows_to_show
from training.data.latents import Latents, encode_latents
from training.data.order import normal, row_of_sample
from training.initialise import initialise_unet
from training.loop import Batch
from training.pictures import sheet
from training.run_folder import require_writable
from training.vocabulary import warn_of_long_captions


@dataclass
class DenoiserConfig:
    """Architecture of the U-Net; see `UNet2DConditionModel`.

    Args:
        init: folder of a U-Net to go on from; its own configuration then holds and the rest is ignored.
        block_out_channels: channels of each level, finest first.
        layers_per_block: residual blocks of each level.
        attention: for each level, whether it has self- and cross-attention; the middle always has.
        attention_heads: heads of the attentions of each level.
        norm_num_groups: groups of the group norms.
        pooled_text_heads: heads of the attention that pools the prompt's tokens into the timestep embedding, so that
            every residual block is told what the whole picture shows; 0 leaves that out, as Stable Diffusion does.
        time_scale_shift: the timestep embedding scales and shifts (arXiv 2102.09672), it is not only added.
    """

    init: str | None = None
    block_out_channels: tuple[int, ...] = (128, 256, 256)
    layers_per_block: int = 1
    attention: tuple[bool, ...] = (False, True, True)
    attention_heads: tuple[int, ...] = (4, 4, 4)
    norm_num_groups: int = 32
    pooled_text_heads: int = 0
    time_scale_shift: bool = False

    def __post_init__(self) -> None:
        require_sizes("model", self, "block_out_channels", "layers_per_block", "attention_heads", "norm_num_groups")
        if self.pooled_text_heads < 0:
            raise ValueError(f"model.pooled_text_heads is {self.pooled_text_heads}; expected heads, or 0 for none.")
        levels = len(self.block_out_channels)
        for name in ("attention", "attention_heads"):
            if len(getattr(self, name)) != levels:
                raise ValueError(
                    f"model.{name} has {len(getattr(self, name))} entries, but block_out_channels has {levels} levels: "
                    "give one for each."
                )


@dataclass
class DiffusionConfig:
    """The forward process and the objective.

    Args:
        prediction_type: what the network predicts.
        beta_schedule: noise schedule.
        num_train_timesteps: levels of the schedule.
        beta_start: first beta of the linear schedules.
        beta_end: last beta of the linear schedules.
        rescale_betas_zero_snr: end the schedule in pure noise (arXiv 2305.08891).
        weighting: weight of the loss by noise level: `simple`, `min_snr`, `p2`, ...
        gamma: the weighting's parameter; null takes its paper's.
        timestep_density: how training timesteps are drawn: `uniform`, `logit_normal` or `log_snr_normal`.
        density_mean: mean of the normal number behind the density.
        density_mean_end: what that mean has become at the end of the run, in a straight line; null keeps it. A run that
            begins at high noise learns sooner what a whole picture has where, and details after it (a curriculum from
            easy to hard, as in arXiv 2403.10348).
        density_deviation: its standard deviation.
        caption_dropout: share of samples that are shown the empty caption, for classifier-free guidance.
    """

    prediction_type: Literal["epsilon", "v_prediction", "sample"] = "v_prediction"
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "squaredcos_cap_v2"
    num_train_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    rescale_betas_zero_snr: bool = False
    weighting: str = "min_snr"
    gamma: float | None = None
    timestep_density: str = "uniform"
    density_mean: float = 0.0
    density_mean_end: float | None = None
    density_deviation: float = 1.0
    caption_dropout: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.caption_dropout < 1:
            raise ValueError(f"diffusion.caption_dropout is {self.caption_dropout}; expected a share in [0, 1)")
        if self.weighting not in ("simple", *WEIGHTINGS):
            raise ValueError(f"diffusion.weighting is {self.weighting!r}; choose simple, {', '.join(WEIGHTINGS)}")
        if self.timestep_density not in DENSITIES:
            raise ValueError(f"diffusion.timestep_density is {self.timestep_density!r}; choose {', '.join(DENSITIES)}")
        for name in ("gamma", "density_deviation"):
            if (value := getattr(self, name)) is not None and not 0 < value < math.inf:
                raise ValueError(f"diffusion.{name} is {value}; expected a finite number above 0")
        for name in ("density_mean", "density_mean_end"):
            if (value := getattr(self, name)) is not None and not math.isfinite(value):
                raise ValueError(f"diffusion.{name} is {value}; expected a finite number")

    def density_mean_at(self, share: float) -> float:
        """The mean when this share of the run, in [0, 1], is done."""
        end = self.density_mean if self.density_mean_end is None else self.density_mean_end
        return (1 - share) * self.density_mean + share * end

    def schedule_keywords(self) -> dict[str, Any]:
        """The keywords that schedule and scheduler share."""
        names = ("beta_schedule", "num_train_timesteps", "beta_start", "beta_end", "rescale_betas_zero_snr")
        return {name: getattr(self, name) for name in names}


@dataclass
class PreviewConfig:
    """Pictures of progress, and what the saved model draws with by default.

    Args:
        prompts: captions that are drawn, one seed each; empty takes captions of the validation data.
        count: pictures where the captions are taken from the data.
        columns: pictures in a row of the sheet.
        num_inference_steps: sampling steps.
        guidance_scale: strength of classifier-free guidance.
        eta: share of fresh noise in each step, 0 for DDIM's none to 1 for as much as DDPM's.
    """

    prompts: list[str] = field(default_factory=list)
    count: int = 32
    columns: int = 8
    num_inference_steps: int = 25
    guidance_scale: float = 4.0
    eta: float = 0.0

    def __post_init__(self) -> None:
        for name in ("count", "columns"):
            inputs.whole(f"preview.{name}", getattr(self, name))
        if self.prompts:
            inputs.prompt_list(self.prompts)
        self.generation()

    def generation(self) -> Generation:
        """The same as a pipeline takes it."""
        return Generation(self.num_inference_steps, self.guidance_scale, eta=self.eta)


@dataclass
class TextToImageRecipe:
    """Everything that `latentgen train text-to-image` can be told.

    Args:
        output: folder of the run.
        vae: folder of the frozen autoencoder.
        text_encoder: folder that holds the frozen `text_encoder` and its `tokenizer`.
        data: captioned pictures.
        cache: folder of the latents that are computed once.
        model: architecture of the U-Net.
        diffusion: process and objective.
        preview: pictures of progress.
        save_dtype: number format of the finished model.
        loop: steps, batch, optimizer and intervals.
    """

    vae: str
    text_encoder: str
    output: str = "runs/text_to_image"
    data: DataConfig = field(default_factory=DataConfig)
    cache: str = "runs/cache"
    model: DenoiserConfig = field(default_factory=DenoiserConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    preview: PreviewConfig = field(default_factory=PreviewConfig)
    save_dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    loop: LoopConfig = field(default_factory=LoopConfig)

    def __post_init__(self) -> None:
        if self.preview.num_inference_steps > self.diffusion.num_train_timesteps:
            raise ValueError(
                f"preview.num_inference_steps is {self.preview.num_inference_steps}, but the schedule has "
                f"diffusion.num_train_timesteps {self.diffusion.num_train_timesteps}: use no more."
            )


def make_unet(config: DenoiserConfig, sample_size: int, channels: int, text_dim: int) -> UNet2DConditionModel:
    """The network to train, from random weights or from `config.init`."""
    if config.init:
        unet = UNet2DConditionModel.from_pretrained(Path(config.init).expanduser())
        unet.register_to_config(sample_size=sample_size)
        return unet
    down = tuple("CrossAttnDownBlock2D" if attends else "DownBlock2D" for attends in config.attention)
    up = tuple("CrossAttnUpBlock2D" if attends else "UpBlock2D" for attends in reversed(config.attention))
    pooled = {"addition_embed_type": "text", "addition_embed_type_num_heads": config.pooled_text_heads}
    unet = UNet2DConditionModel(
        sample_size=sample_size,
        in_channels=channels,
        out_channels=channels,
        down_block_types=down,
        up_block_types=up,
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        cross_attention_dim=text_dim,
        # diffusers' name for the number of heads, as in Stable Diffusion 1.
        attention_head_dim=tuple(config.attention_heads),
        norm_num_groups=config.norm_num_groups,
        use_linear_projection=True,
        resnet_time_scale_shift="scale_shift" if config.time_scale_shift else "default",
        **(pooled if config.pooled_text_heads else {}),
    )
    initialise_unet(unet)
    return unet


class Denoising(nn.Module):
    """The U-Net and its weighted squared error (Eq. 14 of DDPM, arXiv 2006.11239, for any prediction type)."""

    def __init__(self, unet: UNet2DConditionModel, config: DiffusionConfig):
        super().__init__()
        self.unet, self.config = unet, config
        self.schedule = noise_schedule(**config.schedule_keywords())
        require_learnable(config.prediction_type, self.schedule.log_snr)

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of latents `x0` (B, C, h, w), noise `eps`, `timesteps` (B,) on the CPU, text `embeddings` (B, L, D)."""
        config, x0, eps, timesteps = self.config, batch["x0"], batch["eps"], batch["timesteps"]
        level = self.schedule.level(timesteps)
        weight = loss_weight(level.log_snr, config.prediction_type, config.weighting, config.gamma).to(x0)
        level = level.to(x0)
        x = diffuse(x0, eps, level).contiguous(memory_format=torch.channels_last)
        out = self.unet(x, timesteps.to(x.device), batch["embeddings"]).sample
        error = (out.float() - target(config.prediction_type, x0, eps, level)).square().mean((1, 2, 3))
        return (weight * error).mean(), {"mse": error.detach().mean()}


class LatentSamples(Dataset):
    """Sample number -> latent, noise, place in the schedule and caption, each drawn for that number alone."""

    def __init__(self, source: Source, rows: list[int], latents: Latents, recipe: TextToImageRecipe, seed: int):
        self.source, self.rows, self.latents, self.seed = source, rows, latents, seed
        self.batch_size, self.config = recipe.loop.batch_size, recipe.diffusion

    def __getitem__(self, number: int) -> Batch:
        place = row_of_sample(number, len(self.rows), self.seed)
        row, rng = self.rows[place], draws(self.seed, "caption", number)
        dropped = rng.random() < self.config.caption_dropout
        mean, std = self.latents.mean[place], self.latents.std[place]
        noise = normal((2, *mean.shape), self.seed, "noise", number)
        return {
            "row": self.source.id(row),
            "caption": "" if dropped else self.source.caption(row, rng),
            "x0": mean + std * noise[0],
            "eps": noise[1],
            "u": self._place(number),
        }

    def _place(self, number: int) -> np.float64:
        """Uniform in [0, 1); the samples of one step are spread evenly (appendix I.1 of VDM, arXiv 2107.00630)."""
        step, index = divmod(number, self.batch_size)
        return np.float64((draws(self.seed, "time", step).random() + index / self.batch_size) % 1)


class TextToImageTask:
    """See the module. Opens the data and checks all settings when made, before any training."""

    name = "text-to-image"

    def __init__(self, recipe: TextToImageRecipe, output: Path):
        self.recipe = recipe
        self.vae = load_autoencoder(Path(recipe.vae).expanduser(), torch.float32).eval().requires_grad_(False)
        self.conditioner = load_conditioner(recipe.text_encoder)
        resolution, factor = recipe.data.resolution, self.vae.factor
        if resolution % factor:
            raise ValueError(f"data.resolution {resolution} must be a multiple of the autoencoder's factor {factor}.")
        torch.manual_seed(recipe.loop.seed)
        self.unet = make_unet(
            recipe.model,
            resolution // factor,
            self.vae.config.latent_channels,
            self.conditioner.text_encoder.config.hidden_size,
        )
        if recipe.model.init:
            _warn_of_another_prediction(Path(recipe.model.init).expanduser(), recipe.diffusion.prediction_type)
        check_fit(self.vae, self.conditioner.text_encoder, self.unet)
        self.cache = Path(recipe.cache).expanduser()
        require_writable(self.cache, "cache")
        self.denoising = Denoising(self.unet, recipe.diffusion)
        self.players: dict[str, nn.Module] = {"denoiser": self.denoising}
        self.source = open_source(recipe.data)
        self.rows = scan(self.source, output / "quarantine.jsonl", recipe.data.max_bad_share).good
        self.inputs = {
            "data": digest_of_rows(self.source, self.rows),
            "vae": digest_of_weights(self.vae),
            "text_encoder": digest_of_weights(self.conditioner.text_encoder),
        }
        warn_of_long_captions(self.source, self.rows, self.conditioner.tokenizer, self.conditioner.max_length)
        self.prompts = recipe.preview.prompts or self._held_out_captions()

    def _held_out_captions(self) -> list[str]:
        held_out = held_out_source(self.recipe.data)
        shown = rows_to_show(held_out, self.source, self.rows, self.recipe.preview.count)
        return [shown.source.caption(row) for row in shown.rows]

    def averaged(self, player: str) -> nn.Module | None:
        """The U-Net is averaged."""
        return self.unet

    def compiled(self) -> list[nn.Module]:
        """The U-Net."""
        return [self.unet]

    def is_active(self, player: str, step: int) -> bool:
        """Always."""
        return True

    def samples(self, seed: int) -> Dataset:
        """See `LatentSamples`; the processes of a machine encode the pictures where that was not done before."""
        share = (PartialState().local_process_index, int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
        latents = encode_latents(self.source, self.rows, self.vae, self.recipe.data.resolution, self.cache, share=share)
        return LatentSamples(self.source, self.rows, latents, self.recipe, seed)

    def collate(self, items: list[Batch]) -> Batch:
        """Stacks samples; the places in the schedule stay in numpy, whose float64 some accelerators do not have."""
        places = np.array([item.pop("u") for item in items])
        return default_collate(items) | {"u": places}

    def prepare(self, batch: Batch, step: int) -> Batch:
        """Adds the captions' embeddings and the timesteps."""
        config, log_snr = self.recipe.diffusion, self.denoising.schedule.log_snr
        mean = config.density_mean_at(step / self.recipe.loop.steps)
        places, deviation = torch.from_numpy(batch["u"]), config.density_deviation
        drawn = draw_timesteps(places, log_snr, config.timestep_density, mean, deviation)
        return batch | {"embeddings": self.conditioner(batch["caption"]).embeddings, "timesteps": drawn}

    def to(self, device: torch.device) -> None:
        """Moves the frozen networks; on the CPU the U-Net attends by plain products, whose gradients are fast there."""
        if device.type == "cpu":
            self.unet.set_attention_backend("math")
        self.vae.to(device, memory_format=torch.channels_last)
        self.conditioner.text_encoder.to(device)

    def pipeline(self) -> TextToImagePipeline:
        """The pipeline that users call, around these very networks."""
        config = self.recipe.diffusion
        scheduler = DDIMScheduler(
            prediction_type=config.prediction_type,
            timestep_spacing="trailing",
            clip_sample=False,
            set_alpha_to_one=True,
            # diffusers forces this when it opens a folder; trailing spacing has no use for it.
            steps_offset=1,
            **config.schedule_keywords(),
        )
        return TextToImagePipeline(
            vae=self.vae,
            text_encoder=self.conditioner.text_encoder,
            tokenizer=self.conditioner.tokenizer,
            unet=self.unet,
            scheduler=scheduler,
            generation=self.recipe.preview.generation(),
        )

    def preview(self, device: torch.device) -> tuple[Image.Image, dict[str, float]]:
        """The preview prompts as the user's pipeline draws them, seeds 0, 1, 2, ..."""
        pipe = self.pipeline()
        pipe.set_progress_bar_config(disable=True)
        pictures: list[Tensor] = []
        for start in range(0, len(self.prompts), 16):
            drawn: Any = pipe(self.prompts[start : start + 16], seed=start, output_type="pt")
            pictures.append(drawn.images)
        return sheet(torch.cat(pictures) * 2 - 1, columns=self.recipe.preview.columns), {}

    def export(self, folder: Path) -> None:
        """Saves the whole pipeline as a diffusers folder."""
        dtype = getattr(torch, self.recipe.save_dtype)
        pipe = self.pipeline()
        for part in (self.vae, self.conditioner.text_encoder, self.unet):
            if part.dtype != dtype:
                part.to(dtype)
        pipe.save_pretrained(folder)


def _warn_of_another_prediction(unet: Path, prediction_type: str) -> None:
    """Say where the U-Net to go on from was trained to predict something else, as its pipeline's scheduler tells."""
    scheduler = unet.parent / "scheduler" / "scheduler_config.json"
    if scheduler.is_file() and (other := read_json(scheduler).get("prediction_type", "epsilon")) != prediction_type:
        warnings.warn(
            f"the U-Net in {unet} predicts {other!r}, and is trained to predict {prediction_type!r} from here on; set "
            f"diffusion.prediction_type to {other} to go on with what it has learnt",
            stacklevel=3,
        )


def load_conditioner(folder: str) -> ClipConditioner:
    """The frozen text tower in `folder`/text_encoder with the tokenizer in `folder`/tokenizer."""
    root = Path(folder).expanduser()
    for part in ("text_encoder", "tokenizer"):
        if not (root / part).is_dir():
            raise FileNotFoundError(
                f"text_encoder {folder!r} has no folder {part}: give a run's `model` folder of `latentgen train "
                "text-encoder`, or a diffusers pipeline's folder."
            )
    # The dtype that it was saved in may be a half one, in which CPUs are slow and no optimizer of ours computes.
    return ClipConditioner(*load_text_tower(root, torch.float32), tell_cuts=False)
