"""How much an engine does at once."""

from __future__ import annotations

from dataclasses import dataclass

from puna.core import BadValue


@dataclass(frozen=True, slots=True)
class EngineConfig:
    max_step_tokens: int = 512  # tokens of one step: decoding sequences first, the rest prefill
    max_running: int = 64  # sequences that hold blocks at a time
    max_logits_bytes: int = 64 << 20  # float32 logits of one step
    max_guesses: int = 8  # guessed tokens of one step, all sequences together; 0: no speculation
    ageing_steps: int = 200  # steps of waiting that weigh as much as one priority
    crowd: int = 16  # answers under way from which on short prompts get a step of their own

    def __post_init__(self) -> None:
        for name, least in [
            ("max_step_tokens", 1),
            ("max_running", 1),
            ("max_logits_bytes", 1),
            ("max_guesses", 0),
            ("ageing_steps", 1),
            ("crowd", 1),
        ]:
            if getattr(self, name) < least:
                raise BadValue(f"{name} must be {least} or more, got {getattr(self, name)}")

    def max_rows(self, vocab_size: int) -> int:
        """Rows of logits that a step may ask for."""
        return max(1, min(self.max_step_tokens, self.max_logits_bytes // (4 * vocab_size)))
