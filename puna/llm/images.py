"""Pictures in messages: prepared for the model, and placed in its prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from puna.core import BadFile, BadInput, Image, PlacedImage, PromptTooLong, Request
from puna.model.config import ModelConfig
from puna.model.vision_config import Llama4VisionConfig, VisionConfig
from puna.runtime.images import MAX_SEEN
from puna.text.tokenizer import Tokenizer

_TYPES = ("image", "image_url")


def take_images(
    messages: Sequence[Mapping[str, Any]], config: ModelConfig, name: str, room: int
) -> tuple[list[Mapping[str, Any]], list[Image]]:
    """The messages with {"type": "image", "tiles"} for each picture, and the pictures, prepared.

    `name` is the model's, for errors, and so is what a part has under "at": where it stands for whoever sent
    it, in place of the number of the message. Raises BadInput for a model that sees no images, for too many
    of them, and for parts that are none; PromptTooLong once they have more tokens than `room`; what prepare()
    raises, with that place.
    """
    images: list[Image] = []
    _check_number(sum(map(_n_images, messages)), config, name, room)
    n_tokens = 0

    def plain(i: int, part: Any) -> Any:
        nonlocal n_tokens
        if not isinstance(part, Mapping) or part.get("type") not in _TYPES:
            _check_text(i, part)
            return part
        try:
            image = prepared(_source(part), config, name)
        except BadInput as error:
            raise type(error)(f"{part.get('at', f'message {i}')}: {error}") from None
        images.append(image)
        n_tokens += _least_tokens(config) * (1 if config.cross_attention else len(image.pixels))
        if n_tokens > room:  # what is prepared of a small file may be large: no more of them
            raise PromptTooLong(
                f"the prompt has at least {n_tokens} tokens, but the context holds {room}; {n_tokens} of the "
                "tokens are images: take some out, or make them smaller"
            )
        return {"type": "image", "tiles": (image.columns, image.rows)}

    turns = [*messages]
    for i, message in enumerate(messages):
        content = message.get("content") if isinstance(message, Mapping) else None
        if isinstance(content, list | tuple):
            turns[i] = {**message, "content": [plain(i, part) for part in content]}
    return turns, images


def _n_images(message: Any) -> int:
    content = message.get("content") if isinstance(message, Mapping) else None
    parts = content if isinstance(content, list | tuple) else ()
    return sum(isinstance(part, Mapping) and part.get("type") in _TYPES for part in parts)


def _least_tokens(config: ModelConfig) -> int:
    """Of a picture in one tile."""
    return config.vision.tokens_per_tile if isinstance(config.vision, Llama4VisionConfig) else 1


def _check_number(n: int, config: ModelConfig, name: str, room: int) -> None:
    """Before any is prepared: an image of a pixel becomes a whole tile."""
    if config.cross_attention and n > MAX_SEEN:
        raise BadInput(
            f"messages for {name} must have at most {MAX_SEEN} images together, found {n}; take some out "
            "(Llama 3.2 Vision was trained on one)"
        )
    least = _least_tokens(config)
    if n * least > room:
        raise PromptTooLong(
            f"the prompt has {n} images of at least {least} tokens each, but the context holds {room}; take "
            "some out"
        )


def _check_text(i: int, part: Any) -> None:
    """A template would print whatever stands in place of a text."""
    if isinstance(part, Mapping) and part.get("type") == "text" and not isinstance(part.get("text"), str):
        raise BadInput(
            f'message {i}: a part must be {{"type": "text", "text": …}} with a text, found {part!r:.80}'
        )


def prepared(source: Any, config: ModelConfig, name: str) -> Image:
    """Raises BadInput for a model that sees no images, and what prepare() raises."""
    vision = encoder_of(config, name)
    from puna.images import prepare  # Pillow, which takes a while

    return prepare(source, vision)


def encoder_of(config: ModelConfig, name: str) -> VisionConfig:
    """Raises BadInput for a model that has none."""
    if config.vision is None:
        raise BadInput(
            f"{name} is a text model and sees no images, it was given one; use a vision model (Llama 3.2 "
            "Vision, Llama 4)"
        )
    return config.vision


def place(
    config: ModelConfig, tokenizer: Tokenizer, ids: list[int], images: Sequence[Image]
) -> tuple[list[int], tuple[PlacedImage, ...]]:
    """The ids that the model reads, and where in them its images stand.

    Meta's tokenizer of Llama 3.2 calls 128011 <|image|>, a token that its code replaces by the first row
    behind the vocabulary, 128256, which is the id in other files. Raises BadFile where the tokens are not of
    this model.
    """
    from puna.text.formats import image_positions

    positions = image_positions(tokenizer, ids)
    vision = config.vision
    per_tile = vision.tokens_per_tile if isinstance(vision, Llama4VisionConfig) else None
    expected = [1 if per_tile is None else per_tile * len(image.pixels) for image in images]
    if [len(places) for places in positions] != expected:
        raise BadFile(
            "the tokens of images must be those of the model's generation, the tokenizer has others; bring "
            "the tokenizer of this model"
        )
    if config.n_image_embeddings:
        ids = [*ids]
        for places in positions:
            ids[places[0]] = config.vocab_size
    placed = tuple(PlacedImage(*pair) for pair in zip(images, positions, strict=True))
    return ids, placed


def explained(error: PromptTooLong, request: Request) -> PromptTooLong:
    """The error, saying how much of the prompt is images where that is most of what can be saved."""
    n_tokens = sum(len(placed.positions) for placed in request.images)
    if n_tokens <= len(request.images):
        return error
    return PromptTooLong(f"{error}; {n_tokens} of the tokens are images")


def _source(part: Mapping[str, Any]) -> Any:
    """The picture of a part of a message, as prepare() takes it."""
    if part["type"] == "image":
        if part.get("image") is None:
            raise BadInput('an image must be given as {"type": "image", "image": path or bytes}, it has none')
        return part["image"]
    from puna.images.decode import from_data_url

    inner = part.get("image_url")
    url = inner.get("url") if isinstance(inner, Mapping) else None
    if not isinstance(url, str):
        raise BadInput(
            'an image_url must be {"type": "image_url", "image_url": {"url": "data:image/…;base64,…"}}, '
            f"found {part!r:.80}"
        )
    return from_data_url(url)
