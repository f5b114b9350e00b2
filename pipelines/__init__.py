"""How a model is used: from a prompt to a picture; one file a pipeline."""

from __future__ import annotations

from pipelines.text_to_image import TextToImageOutput, TextToImagePipeline

__all__ = ["TextToImageOutput", "TextToImagePipeline"]
