"""The public face of latentgen; lazy (PEP 562), so that `import latentgen` loads neither torch nor a network."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# name -> module that owns it, imported at the first use of the name
_OWNERS = {
    "AutoencoderKL": "latentgen.models",
    "ClipConditioner": "latentgen.conditioning",
    "DDIMScheduler": "latentgen.schedulers",
    "DDPMScheduler": "latentgen.schedulers",
    "TextConditioning": "latentgen.conditioning",
    "TextToImageOutput": "pipelines",
    "TextToImagePipeline": "pipelines",
    "UNet2DConditionModel": "latentgen.models",
}

__all__ = ["__version__", *_OWNERS]

if TYPE_CHECKING:
    from latentgen.conditioning import ClipConditioner as ClipConditioner
    from latentgen.conditioning import TextConditioning as TextConditioning
    from latentgen.models import AutoencoderKL as AutoencoderKL
    from latentgen.models import UNet2DConditionModel as UNet2DConditionModel
    from latentgen.schedulers import DDIMScheduler as DDIMScheduler
    from latentgen.schedulers import DDPMScheduler as DDPMScheduler
    from pipelines import TextToImageOutput as TextToImageOutput
    from pipelines import TextToImagePipeline as TextToImagePipeline


def __getattr__(name: str) -> Any:
    """Import the module that owns `name` when it is first asked for."""
    owner = _OWNERS.get(name)
    if owner is None:
        raise AttributeError(f"module 'latentgen' has no attribute {name!r}; it offers {', '.join(__all__)}")
    value = getattr(importlib.import_module(owner), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
