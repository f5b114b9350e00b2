"""Task `autoencoder`: the VAE that compresses pictures to latents, with its optional patch discriminator."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.data import Dataset, default_collate

from latentgen.evaluation import psnr
from latentgen.models import AutoencoderKL
from latentgen.models.digest import digest_of_weights
from pipelines.loading import load_autoencoder
from training.config import LoopConfig, require_sizes
from training.data import DataConfig, Source, digest_of_rows, draws, open_source, picture_tensor, scan
from training.data.held_out import held_out_source, rows_to_show
from training.data.order import normal, row_of_sample
from training.initialise import initialise_autoencoder
from training.loop import Batch
from training.perceptual import perceptual_distance
from training.pictures import sheet

_SHOWN = 64  # held-out pictures that a preview measures


@dataclass
class AutoencoderLossConfig:
    """Weights of the terms of the autoencoder's loss; a term of weight 0 is not computed.

    Args:
        l1: mean absolute error of pixels in [-1, 1].
        l2: mean squared error.
        edges: mean absolute error of horizontal and vertical differences of neighbouring pixels.
        kl: divergence of the posterior from the standard normal, in nats per picture, divided by the number of
            the picture's values.
        perceptual: distance in frozen features.
        perceptual_features: `lpips-vgg`, `lpips-alex`, `lpips-squeeze`, or a file or folder with SqueezeNet 1.0
            weights as safetensors.
        adversarial: loss of the patch discriminator; above 0 a discriminator is trained beside the autoencoder.
        adversarial_start: first step in which the discriminator plays.
        discriminator_channels: width of its first layer.
    """

    l1: float = 1.0
    l2: float = 0.0
    edges: float = 0.0
    kl: float = 1e-6
    perceptual: float = 0.0
    perceptual_features: str = "lpips-vgg"
    adversarial: float = 0.0
    adversarial_start: int = 0
    discriminator_channels: int = 64

    def __post_init__(self) -> None:
        weights = {name: getattr(self, name) for name in ("l1", "l2", "edges", "kl", "perceptual", "adversarial")}
        for name, weight in weights.items():
            if not 0 <= weight < float("inf"):
                raise ValueError(f"loss.{name} is {weight}, but must be a finite weight of at least 0.")
        require_sizes("loss", self, "discriminator_channels")
        if self.adversarial_start < 0:
            raise ValueError(f"loss.adversarial_start is {self.adversarial_start}; expected a step, 0 or more.")
        if self.l1 == self.l2 == self.perceptual == 0:
            raise ValueError("loss.l1, loss.l2 and loss.perceptual are all 0: nothing would be reconstructed.")


@dataclass
class AutoencoderModelConfig:
    """Architecture of the autoencoder; see `AutoencoderKL`.

    Args:
        init: folder of an autoencoder to go on from; its own configuration then holds and the rest is ignored.
        block_out_channels: channels of each resolution, finest first; each level halves the size.
        layers_per_block: residual blocks of each level.
        latent_channels: channels of the latents.
        norm_num_groups: groups of the group norms.
        mid_block_add_attention: self-attention at the coarsest level.
    """

    init: str | None = None
    block_out_channels: tuple[int, ...] = (32, 64, 128, 128)
    layers_per_block: int = 1
    latent_channels: int = 4
    norm_num_groups: int = 8
    mid_block_add_attention: bool = False

    def __post_init__(self) -> None:
        require_sizes("model", self, "block_out_channels", "layers_per_block", "latent_channels", "norm_num_groups")


@dataclass
class AutoencoderRecipe:
    """Everything that `latentgen train autoencoder` can be told.

    Args:
        output: folder of the run.
        data: pictures to learn from.
        validation: pictures for previews; null takes the split `validation` of `data`.
        model: architecture.
        loss: weights of the loss.
        loop: steps, batch, optimizer and intervals.
        crop: side of the random square that a sample shows, in pixels; 0 shows whole pictures.
    """

    output: str = "runs/autoencoder"
    data: DataConfig = field(default_factory=DataConfig)
    validation: DataConfig | None = None
    model: AutoencoderModelConfig = field(default_factory=AutoencoderModelConfig)
    loss: AutoencoderLossConfig = field(default_factory=AutoencoderLossConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    crop: int = 0

    def __post_init__(self) -> None:
        if self.crop < 0:
            raise ValueError(f"crop is {self.crop}; expected the side of a square in pixels, or 0 for whole pictures.")


def make_autoencoder(config: AutoencoderModelConfig, resolution: int) -> AutoencoderKL:
    """The network to train, from random weights or from `config.init`."""
    if config.init:
        vae = load_autoencoder(Path(config.init).expanduser(), torch.float32)
        vae.register_to_config(sample_size=resolution)
        return vae
    levels = len(config.block_out_channels)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        sample_size=resolution,
        force_upcast=False,
        scaling_factor=1.0,
        **{k: v for k, v in asdict(config).items() if k != "init"},
    )
    initialise_autoencoder(vae)
    return vae


class Reconstruction(nn.Module):
    """The autoencoder and its loss.

    The discriminator judges with detached weights: its gradient reaches the pictures and never itself.
    """

    def __init__(self, vae: AutoencoderKL, config: AutoencoderLossConfig, discriminator: nn.Module | None):
        super().__init__()
        self.vae, self.config = vae, config
        # Held in lists, so that neither counts as a part of this module.
        self._judge = [discriminator]
        self._perceptual = [perceptual_distance(config.perceptual_features)] if config.perceptual else []

    def inputs(self) -> dict[str, str]:
        """Digest of the perceptual features, where there are any."""
        return {"loss.perceptual_features": digest_of_weights(*self._perceptual)} if self._perceptual else {}

    def to_frozen(self, device: torch.device) -> None:
        """Moves the perceptual features."""
        for network in self._perceptual:
            network.to(device).to(memory_format=torch.channels_last)

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor], Batch]:
        """Loss of images (B, 3, H, W) in [-1, 1] with posterior noise (B, C, h, w); leaves their reconstruction."""
        images = batch["image"].contiguous(memory_format=torch.channels_last)
        posterior = self.vae.encode(images).latent_dist
        pictures = self.vae.decode(posterior.mean + posterior.std * batch["noise"]).sample
        config, error = self.config, (pictures - images).float()
        terms = {"l1": error.abs().mean(), "l2": error.square().mean()}
        if config.edges:
            terms["edges"] = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
        if config.kl:
            terms["kl"] = posterior.kl().float().mean() / images[0].numel()
        if config.perceptual:
            terms["perceptual"] = self._perceptual[0](pictures, images).float()
        judge = self._judge[0]
        if judge is not None and batch["adversarial"]:
            weights = {k: v.detach() for k, v in judge.named_parameters()}
            terms["adversarial"] = -functional_call(judge, weights, (pictures,)).float().mean()
        loss = sum(getattr(config, name) * term for name, term in terms.items())
        return loss, {name: term.detach() for name, term in terms.items()}, {"reconstruction": pictures.detach()}


class Discrimination(nn.Module):
    """The patch discriminator and its hinge loss (Eq. 2 of Geometric GAN, arXiv 1705.02894)."""

    def __init__(self, discriminator: nn.Module):
        super().__init__()
        self.discriminator = discriminator

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of real images and the reconstructions that the autoencoder left in the batch."""
        real = self.discriminator(batch["image"]).float()
        fake = self.discriminator(batch["reconstruction"]).float()
        loss = (torch.relu(1 - real).mean() + torch.relu(1 + fake).mean()) / 2
        return loss, {"logits_real": real.detach().mean(), "logits_fake": fake.detach().mean()}


class PictureSamples(Dataset):
    """Sample number -> picture (whole or a random crop) and the noise of its posterior draw."""

    def __init__(self, source: Source, rows: list[int], seed: int, resolution: int, crop: int, latent: tuple[int, int]):
        self.source, self.rows, self.seed, self.resolution, self.crop = source, rows, seed, resolution, crop
        channels, factor = latent
        side = (crop or resolution) // factor
        self.latent = (channels, side, side)

    def __getitem__(self, number: int) -> Batch:
        row = self.rows[row_of_sample(number, len(self.rows), self.seed)]
        image = picture_tensor(self.source, row, self.resolution)
        if self.crop:
            top, left = draws(self.seed, "crop", number).integers(0, self.resolution - self.crop + 1, 2)
            image = image[:, top : top + self.crop, left : left + self.crop]
        return {
            "row": self.source.id(row),
            "image": image,
            "noise": normal(self.latent, self.seed, "posterior", number),
        }


class AutoencoderTask:
    """See the module. Opens the data and checks all settings when made, before any training.

    Raises:
        ValueError, FileNotFoundError: what is wrong with the recipe or the data.
    """

    name = "autoencoder"

    def __init__(self, recipe: AutoencoderRecipe, output: Path):
        self.recipe = recipe
        resolution = recipe.data.resolution
        torch.manual_seed(recipe.loop.seed)
        self.vae = make_autoencoder(recipe.model, resolution)
        side = recipe.crop or resolution
        if side > resolution or side % self.vae.factor or resolution % self.vae.factor:
            raise ValueError(
                f"crop {recipe.crop} and data.resolution {resolution} must be multiples of the autoencoder's factor "
                f"{self.vae.factor}, and the crop no larger than the resolution."
            )
        discriminator = None
        if recipe.loss.adversarial:
            from latentgen.models import PatchDiscriminator

            discriminator = PatchDiscriminator(base_channels=recipe.loss.discriminator_channels)
        self.reconstruction = Reconstruction(self.vae, recipe.loss, discriminator)
        self.players: dict[str, nn.Module] = {"autoencoder": self.reconstruction}
        if discriminator is not None:
            self.players["discriminator"] = Discrimination(discriminator)
        self.source = open_source(recipe.data, captions=False)
        self.rows = scan(self.source, output / "quarantine.jsonl", recipe.data.max_bad_share, captions=False).good
        self.inputs = {"data": digest_of_rows(self.source, self.rows)} | self.reconstruction.inputs()
        if recipe.validation:
            held_out: Source | None = open_source(recipe.validation, captions=False)
        else:
            held_out = held_out_source(recipe.data, captions=False)
        self.shown = rows_to_show(held_out, self.source, self.rows, _SHOWN, captions=False)

    def averaged(self, player: str) -> nn.Module | None:
        """The autoencoder itself is averaged, the discriminator is not."""
        return self.vae if player == "autoencoder" else None

    def compiled(self) -> list[nn.Module]:
        """Encoder and decoder."""
        return [self.vae.encoder, self.vae.decoder]

    def is_active(self, player: str, step: int) -> bool:
        """The discriminator begins at its own step."""
        return player == "autoencoder" or step >= self.recipe.loss.adversarial_start

    def samples(self, seed: int) -> Dataset:
        """See `PictureSamples`."""
        latent = (self.vae.config.latent_channels, self.vae.factor)
        return PictureSamples(self.source, self.rows, seed, self.recipe.data.resolution, self.recipe.crop, latent)

    def collate(self, items: list[Batch]) -> Batch:
        """Stacks samples."""
        return default_collate(items)

    def prepare(self, batch: Batch, step: int) -> Batch:
        """Notes whether the discriminator plays in this step."""
        return batch | {"adversarial": self.is_active("discriminator", step)}

    def to(self, device: torch.device) -> None:
        """Moves the perceptual features."""
        self.reconstruction.to_frozen(device)

    def preview(self, device: torch.device) -> tuple[Image.Image, dict[str, float]]:
        """Held-out pictures above their reconstructions, and the mean PSNR in dB."""
        resolution = self.recipe.data.resolution
        images = torch.stack([picture_tensor(self.shown.source, row, resolution) for row in self.shown.rows])
        images = images.to(device)
        pictures = torch.cat([self.vae(part).sample for part in images.split(8)]).clamp(-1, 1)
        shown = torch.cat([images[:8], pictures[:8], images[8:16], pictures[8:16]])
        decibels = psnr(pictures.float().cpu() / 2 + 0.5, images.cpu() / 2 + 0.5)
        return sheet(shown, columns=8), {self.shown.name("psnr"): decibels.mean().item()}

    def export(self, folder: Path) -> None:
        """Saves the autoencoder with latents of zero mean and unit variance on the training pictures."""
        device = next(self.vae.parameters()).device
        chosen = [
            self.rows[row_of_sample(i, len(self.rows), self.recipe.loop.seed)] for i in range(min(512, len(self.rows)))
        ]
        images = torch.stack([picture_tensor(self.source, row, self.recipe.data.resolution) for row in chosen])
        normalise_latents(self.vae, images.to(device))
        self.vae.save_pretrained(folder)


@torch.no_grad()
def normalise_latents(vae: AutoencoderKL, images: Tensor) -> None:
    """Changes the 1x1 convolutions around the latent so that each channel has mean 0 and deviation 1 on `images`.

    What the autoencoder makes of a picture stays the same: with z' = (z - mean) / std, the rows of `quant_conv`
    that give mean and log-variance take up the change and the columns of `post_quant_conv` undo it. So a pipeline
    that knows a scaling factor only (here 1) meets latents that are as the diffusion process assumes them.

    An autoencoder without these convolutions gets one shift and one factor for all channels in its configuration.
    """
    z = torch.cat([vae.encode(part).latent_dist.mean for part in images.split(8)])
    first, last = vae.quant_conv, vae.post_quant_conv
    if first is None or first.bias is None or last is None or last.bias is None:
        vae.register_to_config(
            shift_factor=z.mean().item(), scaling_factor=1 / z.std().item(), latents_mean=None, latents_std=None
        )
        return
    # A channel that says nothing stays as small as it is.
    mean, std = z.mean((0, 2, 3)), z.std((0, 2, 3)).clamp(min=1e-4)
    channels = vae.config.latent_channels
    last.bias += (last.weight[:, :, 0, 0] * mean).sum(1)
    last.weight *= std[:, None, None]
    first.bias[:channels] = (first.bias[:channels] - mean) / std
    first.weight[:channels] /= std[:, None, None, None]
    first.bias[channels:] -= 2 * std.log()
    vae.register_to_config(scaling_factor=1.0, shift_factor=None, latents_mean=None, latents_std=None)
