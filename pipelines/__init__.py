"""How a model is used: from a prompt to a picture; one file a pipeline. Lazy, as the face of latentgen is."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_OWNERS = {
    "TextToImageOutput": "pipelines.text_to_image",
    "TextToImagePipeline": "pipelines.text_to_image",
}

__all__ = [*_OWNERS]

if TYPE_CHECKING:
    from pipelines.text_to_image import TextToImageOutput as TextToImageOutput
    from pipelines.text_to_image import TextToImagePipeline as TextToImagePipeline


def __getattr__(name: str) -> Any:
    """Import the pipeline when it is first asked for: the command line checks its arguments without torch."""
    if name not in _OWNERS:
        raise AttributeError(f"module 'pipelines' has no attribute {name!r}; it offers {', '.join(__all__)}")
    return getattr(import_module(_OWNERS[name]), name)
