"""Text to token ids and back.

Knows nothing of chat formats (chat.py) and of answers that grow token by token (stream.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Set
from functools import cached_property
from pathlib import Path
from typing import Any

from puna.core import BadInput, BadValue, closest
from puna.text.special import SpecialTokens
from puna.text.vocabulary import Vocabulary, read_vocabulary


class Tokenizer:
    """Encodes and decodes.

    `bos_id` is the token that begins a text, or None; `add_bos` whether `encode` puts it there. `end_ids` are
    those after which an answer is over. `special_ids` are control tokens: text from users never becomes one.
    `chat_template` is the file's Jinja template, or None. `infill_ids` has Code Llama's tokens PRE, SUF and
    MID, where the vocabulary has them.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        v = vocabulary
        self._tokens, self._names, self._encoder = v.tokens, v.names, v.encoder
        self._strips_space = v.space_prefix
        self._special = SpecialTokens(v.names)
        self._user_defined = SpecialTokens({name: i for name, i in v.names.items() if i not in v.special_ids})
        self.vocab_size = len(v.tokens)
        self.bos_id, self.eos_id, self.add_bos = v.bos_id, v.eos_id, v.add_bos
        self.end_ids, self.special_ids = v.end_ids, v.special_ids
        self.chat_template, self.infill_ids = v.chat_template, v.infill_ids

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> Tokenizer:
        """The tokenizer that GGUF metadata describes (keys `tokenizer.*`, arrays as sequences).

        Raises BadFile where they are missing or contradict each other, Unsupported for a kind of vocabulary
        or a pre-tokenizer that is not known, by its name.
        """
        return cls(read_vocabulary(metadata))

    @classmethod
    def from_folder(cls, folder: Path, vocab_size: int | None = None) -> Tokenizer:
        """The tokenizer of a folder in Hugging Face's or Meta's layout; see files.read_folder."""
        from puna.text.files import read_folder

        return cls(read_vocabulary(read_folder(folder, vocab_size)))

    def encode(self, text: str, *, bos: bool | None = None, special: bool = False) -> list[int]:
        """Token ids of `text`, after the token that begins a text where the file asks for one (`bos`
        overrides).

        With `special`, names of control tokens become those tokens, and a text that already begins with the
        BOS token gets no second one. Without, no control token can come of `text`. A file's wish for an end
        token after the text (add_eos_token) is not followed: a prompt that has ended has no continuation.

        Raises BadInput for a text that is no Unicode (lone surrogates).
        """
        return self.encode_parts(self.split(text, special=special), bos=bos)

    def split(self, text: str, *, special: bool) -> list[str | int]:
        """`text` cut at tokens known by name: user-defined ones, and with `special` control tokens."""
        return (self._special if special else self._user_defined).split(text)

    def least_tokens(self, n_characters: int) -> int:
        """How many tokens a text of so many characters has at least: all as long as the longest."""
        return -(-n_characters // self._longest)

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self._tokens), default=1) or 1

    @cached_property
    def control_tokens(self) -> SpecialTokens:
        """The control tokens alone, by name."""
        return SpecialTokens({name: i for name, i in self._names.items() if i in self.special_ids})

    def encode_parts(self, parts: Iterable[str | int], *, bos: bool | None = None) -> list[int]:
        """Token ids of texts, in which no name is recognised, and of ids, which stand for themselves."""
        ids: list[int] = []
        for part in parts:
            if isinstance(part, int):
                ids.append(part)
            else:
                _check_unicode(part)
                ids += self._encoder.encode(part)
        wanted = self.add_bos if bos is None else bos
        if wanted and self.bos_id is not None and ids[:1] != [self.bos_id]:
            ids.insert(0, self.bos_id)
        return ids

    def decode(self, ids: Iterable[int], *, skip_special: bool = False, continuing: bool = False) -> str:
        """The text of `ids`; bytes that are not UTF-8 become U+FFFD, one for each maximal subpart (Unicode
        3.9).

        A SentencePiece vocabulary puts a space before every text, which is taken off again unless the ids are
        `continuing` some other text. Raises BadValue for an id outside the vocabulary.
        """
        spell = self.speller(skip_special=skip_special, continuing=continuing)
        return b"".join(map(spell, ids)).decode("utf-8", "replace")

    def speller(
        self, *, skip_special: bool = False, shown: Set[int] = frozenset(), continuing: bool = False
    ) -> Callable[[int], bytes]:
        """A function to call with each id of a text in turn; it gives the bytes that the id adds to it.

        Special tokens that are `shown` are not skipped.
        """
        hidden = self.special_ids - shown if skip_special else frozenset[int]()
        at_start = self._strips_space and not continuing

        def spell(token_id: int) -> bytes:
            nonlocal at_start
            piece = b"" if token_id in hidden else self.token_bytes(token_id)
            if at_start and token_id not in self.special_ids:
                at_start = False
                return piece.removeprefix(b" ")
            return piece

        return spell

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes a token stands for; of a control token, its name. BadValue outside the vocabulary."""
        if not 0 <= token_id < self.vocab_size:
            raise BadValue(f"a token id must be from 0 to {self.vocab_size - 1}, got {token_id}")
        return self._tokens[token_id]

    def has(self, name: str) -> bool:
        """Whether a control token of that name is in the vocabulary."""
        return self._names.get(name) in self.special_ids

    def id(self, name: str) -> int:
        """The id of a control or user-defined token such as "<|eot_id|>"; BadValue if none is named so."""
        if name not in self._names:
            raise BadValue(f"the vocabulary has no special token {name!r}{closest(name, list(self._names))}")
        return self._names[name]


def _check_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        if 0xDC80 <= code <= 0xDCFF:  # where Python hides a byte of an argument that it could not decode
            raise BadInput(
                f"text must be Unicode, found the byte 0x{code - 0xDC00:02x} at character {error.start}, "
                "which is no UTF-8; convert the text, as iconv does"
            ) from None
        raise BadInput(
            f"text must be Unicode, found half a surrogate pair (U+{code:04X}) at "
            f"character {error.start}; decode it as UTF-16 or take it out"
        ) from None
