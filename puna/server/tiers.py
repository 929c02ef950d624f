"""OpenAI's service tiers as priorities in the engine.

A key has a priority of its own (tenants.limits). A request may ask for less: "default" is that of a key which
says nothing, "flex" lies below it, for work that can wait. "priority" is for keys that have one above 0.

https://platform.openai.com/docs/api-reference/chat/create#chat-create-service_tier
"""

from __future__ import annotations

from typing import Literal

from puna.server.errors import ApiError

Asked = Literal["auto", "default", "flex", "priority"]
Tier = Literal["default", "flex", "priority"]

FLEX = -100


def priority_of(asked: Asked | None, own: int) -> int:
    """The priority of a request by a key whose `own` is given. Raises ApiError 403."""
    if asked in (None, "auto"):
        return own
    if asked == "priority" and own <= 0:
        raise ApiError(
            403,
            f"service_tier priority needs a key with a priority above 0, this one has {own}; ask for auto, "
            "default or flex, or the operator for another key",
            kind="permission_error",
            param="service_tier",
            code="service_tier_not_allowed",
        )
    return min(own, {"priority": own, "default": 0, "flex": FLEX}[str(asked)])


def tier_of(priority: int) -> Tier:
    """The tier that a request was served in."""
    return "priority" if priority > 0 else "default" if priority > FLEX else "flex"
