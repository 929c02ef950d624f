"""Files of pictures: every kind of pixels, upright, and a sentence for what is none."""

from __future__ import annotations

import os
import random
import struct
import zlib
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as pil
from PIL import ImageOps

from puna.core import BadFile, BadInput
from puna.images import decode
from puna.images.decode import from_data_url, open_picture, to_data_url

Colour = tuple[int, int, int]


def encoded(picture: pil.Image, kind: str = "PNG", **options: Any) -> bytes:
    out = BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def gradient(mode: str = "RGB") -> pil.Image:
    y, x, c = np.ogrid[:30, :40, :3]
    return pil.fromarray((x * 4 + y * 2 + c * 9).astype(np.uint8)).convert(mode)


@pytest.mark.parametrize(
    ("kind", "options"),
    [("PNG", {}), ("WEBP", {"lossless": True}), ("GIF", {}), ("JPEG", {"quality": 95, "subsampling": 0})],
)
def test_formats(kind: str, options: dict[str, Any], tmp_path: Path) -> None:
    picture = gradient("L" if kind == "GIF" else "RGB").convert("RGB")
    raw = encoded(picture if kind != "GIF" else picture.convert("L"), kind, **options)
    file = tmp_path / "picture"
    file.write_bytes(raw)
    opened = pil.open(BytesIO(raw))
    for source in (raw, bytearray(raw), str(file), file, opened, from_data_url(to_data_url(raw))):
        found = open_picture(source)
        assert found.mode == "RGB"
        off = np.abs(np.asarray(found).astype(int) - np.asarray(picture)).max()
        assert off <= (8 if kind == "JPEG" else 0)
    assert to_data_url(raw).startswith(f"data:image/{kind.lower()};base64,")


def pixel(picture: pil.Image, **options: Any) -> Colour:
    found = open_picture(encoded(picture, **options)).getpixel((0, 0))
    assert isinstance(found, tuple)
    return found[0], found[1], found[2]


def test_transparency_is_put_on_white() -> None:
    assert pixel(pil.new("RGBA", (2, 2), (200, 0, 0, 0))) == (255, 255, 255)
    assert pixel(pil.new("RGBA", (2, 2), (200, 0, 0, 51))) == (244, 204, 204)
    assert pixel(pil.new("LA", (2, 2), (0, 51))) == (204, 204, 204)
    assert pixel(pil.new("L", (2, 2), 7), transparency=7) == (255, 255, 255)
    assert pixel(pil.new("RGB", (2, 2), (1, 2, 3)), transparency=(1, 2, 3)) == (255, 255, 255)
    palette = pil.new("P", (2, 2), 1)
    palette.putpalette([9, 9, 9, 10, 20, 30])
    assert pixel(palette) == (10, 20, 30)
    assert pixel(palette, transparency=1) == (255, 255, 255)
    assert pixel(palette, transparency=b"\xff\x33") == (206, 208, 210)


def test_other_kinds_of_pixels() -> None:
    assert pixel(pil.new("1", (2, 2), 1)) == (255, 255, 255)
    grey = pil.fromarray(np.full((2, 2), 0x1280, np.uint16))
    assert pixel(grey) == (0x12,) * 3
    assert pixel(grey, transparency=0x1280) == (255, 255, 255)
    cmyk = open_picture(encoded(pil.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG")).getpixel((0, 0))
    assert isinstance(cmyk, tuple)
    assert np.abs(np.array(cmyk) - (255, 0, 0)).max() <= 3
    for mode in ("I", "F"):
        with pytest.raises(BadInput, match=f"found Pillow's mode '{mode}'; convert it"):
            open_picture(pil.new(mode, (2, 2)))


def png_of(head: bytes, rows: bytes) -> bytes:
    """A file of these numbers alone."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    chunks = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def test_colours_of_16_bits() -> None:
    """Pillow cannot write them: two pixels by hand."""

    head = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    row = b"\0" + struct.pack(">6H", 0x1234, 0x5678, 0x9ABC, 0xFFFF, 0, 0x8000)
    png = png_of(head, row)
    assert np.array_equal(np.asarray(open_picture(png)), [[[0x12, 0x56, 0x9A], [0xFF, 0, 0x80]]])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_are_turned_upright(orientation: int) -> None:
    """A picture stored in each way that EXIF knows comes out as the one that was stored."""
    upright = gradient()
    inverse = {6: 8, 8: 6}.get(orientation, orientation)
    turn = decode._UPRIGHT.get(inverse)
    stored = upright if turn is None else upright.transpose(turn)
    exif = pil.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(np.asarray(open_picture(encoded(stored, exif=exif))), np.asarray(upright))


def test_the_tag_means_what_pillow_says() -> None:
    for orientation in range(10):
        exif = pil.Exif()
        exif[0x0112] = orientation
        raw = encoded(gradient(), exif=exif)
        assert np.array_equal(
            np.asarray(open_picture(raw)), np.asarray(ImageOps.exif_transpose(pil.open(BytesIO(raw))))
        )


def animation(kind: str) -> bytes:
    return encoded(gradient(), kind, save_all=True, append_images=[gradient().rotate(90)])


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF"])
def test_animations_are_refused(kind: str) -> None:
    with pytest.raises(BadInput, match="must be one picture, found an animation; save the frame"):
        open_picture(animation(kind))
    frame = pil.open(BytesIO(animation(kind)))
    frame.seek(1)  # who chose a frame means it
    assert open_picture(frame).size == frame.size


def test_of_several_pictures_in_a_jpeg_the_first_is_seen() -> None:
    """Phones put previews and depth behind a photo (MPO); every viewer shows the first."""
    raw = encoded(gradient(), "MPO", save_all=True, append_images=[pil.new("RGB", (9, 9))])
    assert open_picture(raw).size == gradient().size


def claimed(width: int, height: int) -> bytes:
    """A PNG of one pixel that says to have many."""
    raw = bytearray(encoded(pil.new("L", (1, 1))))
    raw[16:24] = struct.pack(">II", width, height)
    raw[29:33] = struct.pack(">I", zlib.crc32(raw[12:29]))
    return bytes(raw)


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        (b"", "the image must be a JPEG, PNG, WebP or GIF file, found an empty one; convert it"),
        (b"GIF87", "found one that begins with b'GIF87'; convert it"),
        (b"BM6\x01aaaaaaaaaaaaaaa", r"found one that begins with b'BM6"),
        (b"\xff\xd8\xff\xe0", "is a damaged or cut JPEG image: .*; get the file again"),
        (b"\x89PNG\r\n\x1a\n", "is a damaged or cut PNG image"),
        (b"RIFF\0\0\0\0WEBP", "is a damaged or cut WEBP image"),
        (b"GIF89a", "is a damaged or cut GIF image"),
        (encoded(gradient())[:-60], "is a damaged or cut PNG image"),
        (encoded(gradient(), "JPEG")[:-60], "is a damaged or cut JPEG image"),
        (encoded(gradient(), "WEBP")[:-60], "is a damaged or cut WEBP image"),
        (
            png_of(struct.pack(">IIBBBBB", 8, 8, 8, 3, 0, 0, 0), (b"\0" + b"\7" * 8) * 8),
            "damaged or cut PNG image; get",
        ),
        (claimed(8001, 8000), "from 1 to 64,000,000 pixels, found 8,001 by 8,000; make it smaller"),
        (claimed(200_000, 200_000), "found 200,000 by 200,000"),
        (encoded(pil.new("L", (1, 10_001))), "sides at most 10,000 to 1, found 1 by 10,001"),
    ],
)
def test_what_is_no_picture(raw: bytes, sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence):
        open_picture(raw)


def test_large_files_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "large.png"
    with file.open("wb") as out:
        out.truncate(1 << 40)
    monkeypatch.setattr(decode, "MAX_BYTES", 1 << 20)
    with pytest.raises(BadFile, match=r"large.png must have at most 1 MiB to be read as an image; make it"):
        open_picture(file)


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        (
            "https://example.org/a.png",
            "addresses are not opened, found 'https://example.org/a.png'; fetch it",
        ),
        ("data:image/png;base64,AAAA", "addresses are not opened"),
        ("nothing.png", "'nothing.png' cannot be read as an image: No such file or directory; name another"),
        ("a\0b", "cannot be read as an image: embedded null byte"),
        (".", "cannot be read as an image: Is a directory"),
        (5, "must be a path, the bytes of a file, or a picture of Pillow, found a int"),
    ],
)
def test_what_names_no_picture(source: Any, sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence):
        open_picture(source)


@pytest.mark.parametrize(
    "url",
    ["http://example.org/a.png", "/etc/passwd", "file:///etc/passwd", "data:text/plain;base64,AAAA",
     "data:image/png,AAAA", "data:image/png;base64", ""],
)  # fmt: skip
def test_only_data_urls_are_urls(url: str) -> None:
    with pytest.raises(BadInput, match=r"must be a data URL, .* no other address is opened, found"):
        from_data_url(url)


def test_base64_is_checked() -> None:
    assert from_data_url("DATA:IMAGE/png;charset=x;base64,QU\nJD") == b"ABC"
    for body in ("A", "????", "QUJD=QUJD"):
        with pytest.raises(BadInput, match="must be base64"):
            from_data_url(f"data:image/png;base64,{body}")


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of damaged metadata
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF"])
def test_damage_is_an_error_with_a_name(kind: str) -> None:
    exif = pil.Exif()
    exif[0x0112] = 6
    whole = encoded(gradient(), kind, **({} if kind == "GIF" else {"exif": exif}))
    rng = random.Random(len(kind))
    for _ in range(150):
        raw = bytearray(whole)
        for _ in range(rng.choice([1, 3, 20])):
            at = rng.randrange(8, len(raw))
            raw[at] = rng.choice([0, 255, rng.randrange(256)])
        raw = raw[: rng.choice([len(raw), rng.randrange(len(raw))])]
        with suppress(BadInput):
            assert open_picture(bytes(raw)).mode == "RGB"


def test_a_pipe_is_a_file(tmp_path: Path) -> None:
    """As shells make of <(command)."""
    readable, writable = os.pipe()
    os.write(writable, encoded(gradient()))
    os.close(writable)
    assert open_picture(f"/dev/fd/{readable}").size == (40, 30)
    os.close(readable)
