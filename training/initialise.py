"""Starting weights that let a signal pass through a deep residual network unchanged."""

from __future__ import annotations

import torch
from torch import nn

from latentgen.models import AutoencoderKL, UNet2DConditionModel

# Share of torch's default random weights that is kept around the orthogonal centre.
_KEPT = 0.3
_LOGVAR = -6.0


@torch.no_grad()
def _orthogonal_centre(conv: nn.Conv2d) -> None:
    """Delta-orthogonal weights (section 4 of arXiv 1806.05393) with a share of the random ones around them."""
    centre = nn.init.orthogonal_(torch.empty(conv.out_channels, conv.in_channels))
    row, column = (size // 2 for size in conv.kernel_size)
    conv.weight.mul_(_KEPT if conv.kernel_size != (1, 1) else 0)
    conv.weight[:, :, row, column] += centre
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


def _start_as_identity(network: nn.Module) -> None:
    for name, module in network.named_modules():
        if name.endswith(("downsamplers.0.conv", "upsamplers.0.conv", "conv_shortcut")):
            _orthogonal_centre(module)
        elif name.rpartition(".")[2] == "conv2" and ".resnets." in name:
            # Each residual branch adds nothing at first, as in section 5.1 of arXiv 1706.02677.
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)


@torch.no_grad()
def initialise_autoencoder(vae: AutoencoderKL) -> None:
    """Pictures reach the latent and latents the picture from the first step, colours included.

    With torch's default weights a narrow autoencoder learns brightness first and finds colour thousands of pictures
    later. The posterior begins narrow (log-variance -6), so that noise does not hide what a channel begins to say.
    """
    _start_as_identity(vae)
    for conv in (vae.encoder.conv_in, vae.decoder.conv_in, vae.quant_conv, vae.post_quant_conv):
        if conv is not None:
            _orthogonal_centre(conv)
    if vae.quant_conv is not None and vae.quant_conv.bias is not None:
        channels = vae.config.latent_channels
        vae.quant_conv.weight[channels:] *= 0.1
        vae.quant_conv.bias[channels:] = _LOGVAR


@torch.no_grad()
def initialise_unet(unet: UNet2DConditionModel) -> None:
    """Residual branches and the output begin at zero, as in the denoisers of DDPM and ADM (arXiv 2105.05233)."""
    _start_as_identity(unet)
    for name, module in unet.named_modules():
        if name == "conv_out" or name.endswith(".proj_out"):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
