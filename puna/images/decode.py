"""Files of pictures, to upright RGB.

Four formats are read, each by its own class of Pillow, so that no other decoder ever sees foreign bytes. The
size is known before anything is decoded. Nothing is fetched: an address is refused. Animations are refused
rather than cut to a frame; of a JPEG with further pictures behind it (MPO) the photo is read. Transparency is
put on white, as Meta does; colour profiles are not applied, as the models were trained without them.
"""

from __future__ import annotations

import base64
import binascii
import os
import struct
import threading
import warnings
import zlib
from collections.abc import Callable
from contextlib import nullcontext
from io import BytesIO

import numpy as np
from PIL import Image as pil
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from puna.core import BadFile, BadInput

Picture = pil.Image
Source = bytes | str | os.PathLike[str] | Picture

MAX_BYTES = 64 << 20  # of a file
MAX_PIXELS = 64_000_000  # up to 900 MB while one is decoded; photos of 50 megapixels fit
LARGE_PIXELS = 4_000_000  # of pictures that are decoded one at a time, as each takes up to 14 bytes a pixel
MAX_ASPECT = 10_000  # beyond that the shorter side is less than a pixel in any model's tiles

_large = threading.Lock()
FORMATS = "JPEG, PNG, WebP or GIF"
warnings.filterwarnings(
    "ignore", category=UserWarning, module=r"PIL\."
)  # of damaged metadata: pixels are whole
_ORIENTATION = 0x0112  # the EXIF tag
_UPRIGHT = {
    2: pil.Transpose.FLIP_LEFT_RIGHT,
    3: pil.Transpose.ROTATE_180,
    4: pil.Transpose.FLIP_TOP_BOTTOM,
    5: pil.Transpose.TRANSPOSE,
    6: pil.Transpose.ROTATE_270,
    7: pil.Transpose.TRANSVERSE,
    8: pil.Transpose.ROTATE_90,
}
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBX", "RGBA", "RGBa", "CMYK", "YCbCr")

# What Pillow raises on damaged files.
_FAILURES = (
    OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, EOFError, AttributeError,
    RuntimeError, NotImplementedError, MemoryError, AssertionError, UserWarning, struct.error, zlib.error,
    pil.DecompressionBombError, pil.DecompressionBombWarning,
)  # fmt: skip


def open_picture(source: Source) -> Picture:
    """The picture upright, in RGB.

    Raises BadFile for a file that is no picture, damaged, or too large; BadInput for anything else that no
    model can be shown: animations, odd kinds of pixels, and sides of which one has no pixels left.
    """
    if isinstance(source, pil.Image):
        return _decoded(source, "the image")
    if isinstance(source, bytes | bytearray | memoryview):
        return _open(bytes(source), "the image")
    if not isinstance(source, str | os.PathLike):
        raise BadInput(
            "an image must be a path, the bytes of a file, or a picture of Pillow, found a "
            f"{type(source).__name__}"
        )
    return _open(read_file(source), str(source))


def read_file(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a picture's file. Raises BadFile where it cannot be read or is too large, BadInput for an
    address.
    """
    name = os.fspath(path)
    if "://" in name or name.startswith("data:"):
        raise BadInput(
            f"an image must be a path, or bytes; addresses are not opened, found {name!r:.80}; fetch it first"
        )
    try:
        with open(path, "rb") as file:
            return file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # the latter for a null byte in the name
        reason = error.strerror if isinstance(error, OSError) else error
        raise BadFile(f"{name!r} cannot be read as an image: {reason}; name another file") from None


def from_data_url(url: str) -> bytes:
    """The bytes in `data:image/…;base64,…`. Raises BadInput for any other address."""
    head, comma, body = url[:200].partition(",")
    if not comma or not head.lower().startswith("data:image/") or not head.lower().endswith(";base64"):
        raise BadInput(
            "an image_url must be a data URL, data:image/jpeg;base64,…, and no other address is opened, "
            f"found {url!r:.80}; send the picture itself"
        )
    body = url[len(head) + 1 :]
    try:
        return base64.b64decode("".join(body.split()), validate=True)
    except (binascii.Error, ValueError):
        raise BadInput(
            f"the data URL of an image must be base64 of {len(body):,} characters, found something else; "
            "encode it again"
        ) from None


def to_data_url(raw: bytes) -> str:
    """The file's bytes as OpenAI's API takes them."""
    kind = _kind(raw) or "octet-stream"
    return f"data:image/{kind.lower()};base64,{base64.b64encode(raw).decode()}"


def _open(raw: bytes, name: str) -> Picture:
    if len(raw) > MAX_BYTES:
        raise BadFile(
            f"{name} must have at most {MAX_BYTES >> 20} MiB to be read as an image; make it smaller"
        )
    kind = _kind(raw)
    if kind is None:
        found = f"one that begins with {raw[:12]!r}" if raw else "an empty one"
        raise BadFile(f"{name} must be a {FORMATS} file, found {found}; convert it")
    try:
        picture: Picture = _READERS[kind](BytesIO(raw))
    except _FAILURES as error:
        raise _damaged(name, kind, error) from None
    _check_size(picture, name)
    try:
        is_animated = getattr(picture, "is_animated", False)
    except _FAILURES as error:
        raise _damaged(name, kind, error) from None
    if is_animated:
        raise BadInput(f"{name} must be one picture, found an animation; save the frame that is meant")
    return _decoded(picture, name)


_READERS: dict[str, Callable[[BytesIO], Picture]] = {
    "JPEG": JpegImageFile, "PNG": PngImageFile, "WEBP": WebPImageFile, "GIF": GifImageFile,
}  # fmt: skip


def _kind(raw: bytes) -> str | None:
    """The format by a file's first bytes."""
    if raw.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if raw.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if raw.startswith(b"RIFF") and raw[8:12] == b"WEBP":
        return "WEBP"
    return "GIF" if raw.startswith((b"GIF87a", b"GIF89a")) else None


def _check_size(picture: Picture, name: str) -> None:
    width, height = picture.size
    found = f"found {width:,} by {height:,}"
    if min(width, height) < 1 or width * height > MAX_PIXELS:
        raise BadFile(f"{name} must have from 1 to {MAX_PIXELS:,} pixels, {found}; make it smaller")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise BadInput(
            f"{name} must have sides at most {MAX_ASPECT:,} to 1, {found}; a model would see nothing of it"
        )


def _decoded(picture: Picture, name: str) -> Picture:
    _check_size(picture, name)
    width, height = picture.size
    try:
        with _large if width * height > LARGE_PIXELS else nullcontext():
            picture.load()
            turn = _UPRIGHT.get(_orientation(picture))
            rgb = _rgb(picture, name)
            return rgb if turn is None else rgb.transpose(turn)
    except _FAILURES as error:
        raise _damaged(name, picture.format or picture.mode, error) from None


def _damaged(name: str, kind: str, error: BaseException) -> BadFile:
    reason = f": {error}" if str(error) else ""
    return BadFile(f"{name} is a damaged or cut {kind} image{reason}; get the file again")


def _orientation(picture: Picture) -> int:
    """1 where it is not stated, or stated by damaged metadata: the pixels are whole all the same."""
    try:
        stated = picture.getexif().get(_ORIENTATION, 1)
    except _FAILURES:
        return 1
    return stated if isinstance(stated, int) else 1


def _rgb(picture: Picture, name: str) -> Picture:
    """Eight bits a colour; what is transparent becomes white."""
    if picture.mode.startswith("I;16"):
        picture = _of_16_bits(picture)
    if picture.mode not in _MODES:
        raise BadInput(
            f"{name} must have grey values, colours, a palette, or CMYK, of 8 or 16 bits, found Pillow's "
            f"mode {picture.mode!r}; convert it"
        )
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    picture = picture.convert("RGBA")
    flat = pil.new("RGB", picture.size, "white")
    flat.paste(picture, mask=picture.getchannel("A"))
    return flat


def _of_16_bits(picture: Picture) -> Picture:
    """The upper bytes of grey values, which is what Pillow keeps of colours of 16 bits."""
    levels = np.asarray(picture)
    grey = pil.fromarray((levels >> 8).astype(np.uint8))
    transparent = picture.info.get("transparency")
    if isinstance(transparent, int):
        grey.putalpha(pil.fromarray(np.where(levels == transparent, 0, 255).astype(np.uint8)))
    return grey
