"""What is to be written between two texts, where a model can do that."""

from __future__ import annotations

from puna.core import BadValue, Request, SamplingParams
from puna.server.errors import bad
from puna.server.served import ServedModel


def infill(model: ServedModel, prefix: str, suffix: str, params: SamplingParams) -> Request:
    """Raises ApiError, about the field `suffix`, for a model that cannot."""
    try:
        return model.infill_request(prefix, suffix, params)
    except BadValue as error:
        raise bad("suffix", f"this model continues texts only: {error}, or leave suffix out") from None
