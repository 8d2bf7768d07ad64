"""How are images read from a folder? Each file is a record, and its pixels are what they are.

The rule is that of :mod:`client.device.reading.source`. A pixel keeps the value that the file gives
it, so the schema's bounds must be those of such a file (0 to 255). An image of another size or
another kind of colour is refused, because resizing it or mixing its channels is preprocessing that
nobody agreed to. Orientation tags are not followed.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from client.device.bounds import Bounds, batch_of
from client.device.reading.source import Batch, Source, missing
from common.data.schema import Schema
from common.errors import DataError
from common.inference import Array

SUFFIXES = (".jpeg", ".jpg", ".png")
_FORMATS = ("JPEG", "PNG")
_MODES = {1: ("L", "I;16"), 3: ("RGB",)}  # Pillow's words, by the number of channels


def open_images(folder: Path, schema: Schema) -> Source:
    """Every PNG and JPEG below a folder, in the order of their names."""
    modes = _MODES.get(schema.shape[0], ())
    if schema.kind != "image" or not modes:
        raise DataError(
            f"{folder}: this model takes no images of one or three channels",
            hint="save the records as .npy, or rows of a table as .csv",
        )
    try:
        import PIL.Image  # noqa: F401  (whether it is there)
    except ModuleNotFoundError as error:
        raise missing("images", "images") from error
    files = sorted(
        file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file()
    )
    if not files:
        raise DataError(f"{folder} holds no {', '.join(SUFFIXES)}")
    bounds, most = Bounds(schema), batch_of(schema)

    def batches() -> Iterator[Batch]:
        for start in range(0, len(files), most):
            part = files[start : start + most]
            names = tuple(str(file.relative_to(folder)) for file in part)
            images = [bounds.check(_image(file, schema, modes), source=str(file)) for file in part]
            yield Batch(np.concatenate(images), start + len(part), names)

    return Source(str(folder), "records", len(files), batches)


def _image(file: Path, schema: Schema, modes: tuple[str, ...]) -> Array:
    """One image as a record, (1, C, H, W); its size is looked at before it is decoded."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file, formats=_FORMATS) as image:
            size, mode = (image.height, image.width), image.mode
            if size != schema.shape[1:] or mode not in modes:
                raise DataError(
                    f"{file} has {size[0]} x {size[1]} pixels of {mode}, where the model takes "
                    f"{schema.shape[1]} x {schema.shape[2]} of {' or '.join(modes)}",
                    hint="convert it as the training images were converted",
                )
            pixels = np.asarray(image)  # (H, W) or (H, W, C)
    except (UnidentifiedImageError, Image.DecompressionBombError, SyntaxError) as error:
        raise DataError(f"cannot read {file}: it is no PNG or JPEG, or damaged") from error
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {file}: it is damaged") from error
    channels = pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)  # (C, H, W)
    return channels[None]
