"""Owns the way from a picture file's bytes to RGB and to a tensor."""

from __future__ import annotations

import io
import re
import warnings

import numpy as np
import torch
from PIL import Image, ImageOps

__all__ = ["MAX_PIXELS", "BadPictureError", "decode", "to_image", "to_tensor"]

# Twice this is where Pillow itself refuses; a picture of this size takes half a gigabyte when decoded.
MAX_PIXELS = 89_478_485


class BadPictureError(ValueError):
    """A picture that cannot be used; its text is the reason."""


def to_image(picture: Image.Image) -> Image.Image:
    """Makes any PIL picture RGB: first frame, upright by its EXIF orientation, transparency on white, 16 bits to 8."""
    if getattr(picture, "n_frames", 1) > 1:
        picture.seek(0)
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I") or picture.mode == "F":
        # Pillow clips these to 0..255 when it converts them; "I;16" and what PNG reads as "I" hold 16 bits.
        values = np.asarray(picture, dtype=np.float64)
        if not np.isfinite(values).all():
            raise BadPictureError("holds NaN or infinity")
        most = values.max(initial=0.0)
        if picture.mode == "F" and most <= 1:
            values = values * 255
        elif picture.mode.startswith("I;") or most > 255:
            values = values / 257
        return Image.fromarray(np.clip(values + 0.5, 0, 255).astype(np.uint8)).convert("RGB")
    if picture.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    return picture.convert("RGB")


def decode(content: bytes) -> Image.Image:
    """Decodes a picture file's bytes to RGB, see `to_image`.

    Raises:
        BadPictureError: If the bytes are no picture, are cut short, or decode to more than `MAX_PIXELS` pixels.
    """
    try:
        with warnings.catch_warnings():
            # Pillow warns of a picture past MAX_PIXELS; we refuse it below by its size, before it is decoded.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = Image.open(io.BytesIO(content))
        if picture.width * picture.height > MAX_PIXELS:
            raise BadPictureError(
                f"too large: {picture.width} x {picture.height} pixels, at most {MAX_PIXELS} are decoded"
            )
        picture.load()
        return to_image(picture)
    except BadPictureError:
        raise
    except Image.DecompressionBombError as error:
        raise BadPictureError(f"too large: {error}") from error
    except Exception as error:
        text = re.sub(r"<_io\.BytesIO object at 0x[0-9a-f]+>", "its bytes", str(error))
        raise BadPictureError(f"cannot be decoded: {type(error).__name__}: {text}") from error


def to_tensor(image: Image.Image, resolution: int) -> torch.Tensor:
    """Scales an RGB picture's short side to `resolution` and cuts out its centre.

    A picture that already has that size passes through unchanged.

    Returns:
        float32 (3, resolution, resolution) in [-1, 1].
    """
    if image.size != (resolution, resolution):
        scale = resolution / min(image.size)
        width, height = (max(resolution, round(side * scale)) for side in image.size)
        left, top = (width - resolution) // 2, (height - resolution) // 2
        # Cropping through `box` scales only the part that stays; Lanczos widens with the scale, so it does not alias.
        stretch_x, stretch_y = image.width / width, image.height / height
        box = (left * stretch_x, top * stretch_y, (left + resolution) * stretch_x, (top + resolution) * stretch_y)
        image = image.resize((resolution, resolution), Image.Resampling.LANCZOS, box=box)
    pixels = torch.from_numpy(np.array(image.convert("RGB"), dtype=np.float32))
    return (pixels / 127.5 - 1.0).permute(2, 0, 1).contiguous()  # (H, W, 3) -> (3, H, W)
