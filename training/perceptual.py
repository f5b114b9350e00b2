"""Frozen image features whose distance stands for what the eye sees, as a term of the autoencoder's loss."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

# Statistics of ImageNet in RGB, as torchvision's classifiers expect them.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Outputs that are compared: after the first ReLU and before each pooling, as LPIPS taps SqueezeNet.
SQUEEZENET1_0_TAPS = (1, 5, 10, 12)


class SqueezeNetFeatures(nn.Module):
    """Perceptual distance in SqueezeNet 1.0's features, without learnt layer weights.

    Each tapped feature map is scaled to unit length along its channels, as in LPIPS (Eq. 1 of arXiv 1801.03924
    with w = 1).

    Args:
        path: safetensors file with torchvision's `squeezenet1_0` state dict, or the folder that holds it.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, path: str | Path):
        super().__init__()
        from torchvision.models import squeezenet1_0

        path = Path(path).expanduser()
        file = path / "model.safetensors" if path.is_dir() else path
        if not file.is_file():
            raise FileNotFoundError(
                f"The perceptual features {file} are not there: give the path of a safetensors file with torchvision's "
                "squeezenet1_0 state dict, or set loss.perceptual to 0."
            )
        network = squeezenet1_0(weights=None)
        try:
            network.load_state_dict({k: v.float() for k, v in load_file(file).items()})
        except (RuntimeError, SafetensorError) as error:
            raise ValueError(
                f"loss.perceptual_features {str(file)!r} does not hold torchvision's squeezenet1_0 state dict: {error}"
            ) from error
        self.features = network.features[: max(SQUEEZENET1_0_TAPS) + 1].eval().requires_grad_(False)
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(STD)[:, None, None], persistent=False)

    def _taps(self, images: Tensor) -> list[Tensor]:
        x = ((images + 1) / 2 - self.mean) / self.std
        taps = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in SQUEEZENET1_0_TAPS:
                taps.append(nn.functional.normalize(x, dim=1, eps=1e-6))
        return taps

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        """Distance of pictures (B, 3, H, W) in [-1, 1], averaged over the batch: a scalar with gradient to both."""
        pairs = zip(self._taps(images), self._taps(targets), strict=True)
        return torch.stack([(a - b).square().sum(1).mean() for a, b in pairs]).sum()


def perceptual_distance(name: str) -> nn.Module:
    """Perceptual distance by name: `lpips-alex`, `lpips-vgg`, `lpips-squeeze` or the path of SqueezeNet 1.0 weights.

    The `lpips-*` networks are torchmetrics'; their ImageNet weights are fetched by torchvision where it may.

    Raises:
        FileNotFoundError: The file is not there, or torchvision cannot fetch the weights.
        ValueError: The file holds other weights.
    """
    kind, _, network = name.partition("-")
    if kind == "lpips" and network in ("alex", "vgg", "squeeze"):
        from torchmetrics.functional.image.lpips import _LPIPS

        try:
            return _Mean(_LPIPS(net=network).eval().requires_grad_(False))
        except OSError as error:
            raise FileNotFoundError(
                f"the ImageNet weights of {name} are not here and cannot be fetched ({error}): go online once, give "
                "loss.perceptual_features a file with SqueezeNet 1.0 weights, or set loss.perceptual to 0."
            ) from error
    return SqueezeNetFeatures(name)


class _Mean(nn.Module):
    def __init__(self, distance: nn.Module):
        super().__init__()
        self.distance = distance

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        return self.distance(images, targets).mean()
