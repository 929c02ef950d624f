"""Pictures that are none, or too much, and every place of every API that takes one."""

from __future__ import annotations

import base64
import struct
import zipfile
import zlib
from collections.abc import Iterator
from io import BytesIO
from typing import Any

from llm.tiny_vision import picture, png


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_of(width: int, height: int, *more: bytes, depth: int = 8, colour: int = 0) -> bytes:
    """A PNG file that states this size; its pixels end early, and `more` chunks stand before them."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(bytes(1 << 20), 9))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(more) + pixels + chunk(b"IEND", b"")


def animation(kind: str, **options: Any) -> bytes:
    out = BytesIO()
    frames = [picture(20, 20), picture(20, 30).crop((0, 5, 20, 25))]
    frames[0].save(out, kind, save_all=True, append_images=frames[1:] * 3, **options)
    return out.getvalue()


def archive() -> bytes:
    """A zip file of a few kB that unfolds to 64 MB."""
    out = BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as folder:
        folder.writestr("picture.png", bytes(64 << 20))
    return out.getvalue()


def gif_of(width: int, height: int) -> bytes:
    """A GIF of one pixel whose frame states this size."""
    screen = b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0x80, 0, 0) + bytes(6)
    return screen + b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x02\x02\x44\x01\x00;"


def jpeg_of(width: int, height: int) -> bytes:
    out = BytesIO()
    picture(16, 16).save(out, "JPEG")
    raw = bytearray(out.getvalue())
    at = raw.index(b"\xff\xc0") + 5
    raw[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(raw)


def webp_of(width: int, height: int) -> bytes:
    """A lossless WebP that states this size and has no pixels."""
    bits = (width - 1) | (height - 1) << 14
    body = b"VP8L" + struct.pack("<I", 6) + b"\x2f" + struct.pack("<I", bits) + b"\0"
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


_FILL = zlib.compress(bytes(64 << 20))  # 64 MB in 64 kB

BOMBS: dict[str, bytes] = {
    "png that says a gigapixel": png_of(40_000, 40_000),
    "png that says 2^31 squared": png_of(2**31 - 1, 2**31 - 1),
    "png of 64 bits a pixel": png_of(60_000, 60_000, depth=16, colour=6),
    "png cut within its pixels": png()[:-40],
    "png cut within its head": png()[:20],
    "png that ends early": png_of(2000, 1000),
    "png whose text unfolds": png_of(2000, 1000, chunk(b"zTXt", b"a\0\0" + _FILL)),
    "png whose international text unfolds": png_of(2000, 1000, chunk(b"iTXt", b"a\0\1\0\0\0" + _FILL)),
    "png whose profile unfolds": png_of(2000, 1000, chunk(b"iCCP", b"a\0\0" + _FILL)),
    "animated png": animation("PNG"),
    "animated gif": animation("GIF"),
    "animated webp": animation("WEBP"),
    "gif whose frame is larger than its screen": gif_of(65_535, 65_535),
    "jpeg that says 4 gigapixels": jpeg_of(65_500, 65_500),
    "webp that says 268 megapixels": webp_of(16_383, 16_383),
    "line of 50 million pixels": png_of(50_000_000, 1),
    "zip": archive(),
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "nothing": b"",
}


def places(raw: bytes, file_id: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every place of every API that takes a picture's bytes, and those that take uploaded files."""
    encoded = base64.b64encode(raw).decode()
    url = f"data:image/png;base64,{encoded}"
    part = {"type": "image_url", "image_url": {"url": url}}
    stored = {"type": "image_url", "image_url": {"file_id": file_id}}
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    for shown in (part, stored):
        for turns in (
            [{"role": "user", "content": [shown]}],
            [{"role": "system", "content": [shown]}, {"role": "user", "content": "a"}],
            [
                {"role": "user", "content": "a"},
                {"role": "assistant", "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "a", "content": [shown]},
            ],
        ):
            yield "/v1/chat/completions", {"model": "tiny", "messages": turns, "max_tokens": 1}
            yield "/llama/v1/chat/completions", {"model": "tiny", "messages": turns}
    yield "/apply-template", {"model": "tiny", "messages": [{"role": "user", "content": [part]}]}
    block = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": encoded}}
    result = {"type": "tool_result", "tool_use_id": "a", "content": [block]}
    for turns in (
        [{"role": "user", "content": [block]}],
        [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "f", "input": {}}]},
            {"role": "user", "content": [result]},
        ],
    ):
        yield "/v1/messages", {"model": "tiny", "max_tokens": 1, "messages": turns}
        yield "/v1/messages/count_tokens", {"model": "tiny", "messages": turns}
    for given in ({"image_url": url}, {"file_id": file_id}):
        shown = {"type": "input_image", **given}
        asked = {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"}
        for items in (
            [{"role": "user", "content": [shown]}],
            [asked, {"type": "function_call_output", "call_id": "a", "output": [shown]}],
        ):
            yield "/v1/responses", {"model": "tiny", "input": items, "max_output_tokens": 1}
    yield "/api/chat", {"model": "tiny", "messages": [{"role": "user", "content": "a", "images": [encoded]}]}
    yield "/api/generate", {"model": "tiny", "prompt": "a", "images": [encoded]}
