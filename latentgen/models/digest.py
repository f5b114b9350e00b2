"""Which model this is, told from its content and not from where it lies."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import torch
from torch import nn


def digest_of_weights(*networks: nn.Module) -> str:
    """Digest of networks' weights, in whatever format they are held, and of the settings that diffusers' mixin keeps.

    Names that begin with an underscore are left out of the settings: they say where a model was loaded from.
    """
    digest = hashlib.blake2b(digest_size=16)
    for network in networks:
        settings = getattr(network, "config", None)
        if isinstance(settings, Mapping):
            told = {name: value for name, value in settings.items() if not name.startswith("_")}
            digest.update(json.dumps(told, sort_keys=True, default=str).encode())
        for name, weight in sorted(network.state_dict().items()):
            digest.update(name.encode())
            digest.update(weight.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()
