"""What classifiers of texts have in common: the text that they judge, and a thread to do it in."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from puna.core import BadValue
from puna.safety.verdict import Turn, Verdict


def last_text(conversation: Sequence[Turn], who: str) -> str:
    """The text of the last turn, its parts joined by line feeds.

    Raises BadValue for a conversation without turns, and for images, which none of these can see.
    """
    if not conversation:
        raise BadValue("a conversation to be judged must have a message, got none")
    content = conversation[-1][1]
    if isinstance(content, str):
        return content
    if any(part.get("type") != "text" for part in content):
        raise BadValue(f"{who} judges texts only, got an image; ask a guard that sees, such as llama-guard-4")
    return "\n".join(part["text"] for part in content)


def readable(text: str) -> str:
    """As UTF-8 can have it: halves of surrogate pairs, which some JSON has, become "?"."""
    return text.encode("utf-8", "replace").decode("utf-8")


_THREADS = 4  # one text that takes long does not hold up all others


class InThread:
    """Judges texts in threads of its own, so that an event loop goes on and no pool of others' fills."""

    def __init__(self, name: str, judge_texts: Callable[[Sequence[str]], Sequence[Verdict]]) -> None:
        self.name = name
        self._judge = judge_texts
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="puna-safety")  # ends with the object

    async def judge(self, conversations: Sequence[Sequence[Turn]]) -> Sequence[Verdict]:
        """See puna.safety.verdict.Classifier. Raises BadValue, and what the judge of texts raises."""
        texts = [last_text(conversation, self.name) for conversation in conversations]
        if not texts:
            return []
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._judge, texts)
