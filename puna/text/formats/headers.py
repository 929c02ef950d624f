"""Messages between headers: ChatML, and Llama 3 to 4.

    <|start_header_id|>{role}<|end_header_id|>, an empty line, text, <|eot_id|>

Sources: Meta's llama-models at a9c89c4: ChatFormat of llama3 and llama4 (chat_format.py, tool_utils.py) and
the prompt_format.md of each generation. Where the documents show what models say and ChatFormat renders
something else, the documents are followed: calls of builtin tools begin with <|python_tag|> and end in eom,
and parallel calls are one list, whose strings are escaped.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from puna.core import BadInput
from puna.text.formats.base import Call, Image, Options, Parts, ToolStyle, Turn, refuse_tools, text_of
from puna.text.formats.images import image_ids
from puna.text.formats.instructions import call_text, request_text, system_text
from puna.text.tokenizer import Tokenizer
from puna.text.tools import tool_names

_BUILTIN = ("brave_search", "wolfram_alpha", "code_interpreter")  # that models know without definition

End = Literal["eot", "eom"]


@dataclass(frozen=True, slots=True)
class HeaderFormat:
    """One generation; called, it builds a prompt."""

    bos: str = "<|begin_of_text|>"
    header: tuple[str, str] = ("<|start_header_id|>", "<|end_header_id|>")
    eot: str = "<|eot_id|>"
    eom: str = "<|eom_id|>"
    tool_style: ToolStyle | None = None  # how calls were trained; None: not at all
    has_builtin_tools: bool = False
    images: Literal["none", "mark", "tiles"] = "none"
    call_end: End = "eot"  # after calls of tools that the request defines
    result_end: End = "eot"

    def __call__(self, tokenizer: Tokenizer, options: Options) -> Parts:
        self._check(options)
        options = replace(options, tool_style=options.tool_style or self.tool_style)
        parts: Parts = [tokenizer.id(self.bos)]
        for turn in self._with_instructions(options):
            parts += self._message(tokenizer, turn, options)
        if options.continue_final_message:
            return parts[:-1]  # without the token that ends the message
        return parts + self._header(tokenizer, "assistant") if options.add_generation_prompt else parts

    def _check(self, options: Options) -> None:
        if self.tool_style is None:
            refuse_tools(options)
        known = _BUILTIN if self.has_builtin_tools else ()
        for name in options.builtin_tools:
            if name not in known:
                raise BadInput(
                    f"models of the format {options.chat_format} know no builtin tool {name!r:.80}"
                    f"{', but ' + ', '.join(known) if known else ''}; define it among the tools"
                )
        if any(turn.role == "system" for turn in options.messages[1:]):
            raise BadInput("a system message must be the first of a conversation, found one further on")

    def _with_instructions(self, options: Options) -> list[Turn]:
        """The messages, with what the format says of tools and dates."""
        turns = list(options.messages)
        given = text_of(turns.pop(0), options) if turns[0].role == "system" else None
        request = request_text(options)
        if request is not None:
            turns.insert(0, Turn("user", (request,)))
        system = system_text(options, given, is_ipython=self.has_builtin_tools)
        return turns if system is None else [Turn("system", (system,)), *turns]

    def _message(self, tokenizer: Tokenizer, turn: Turn, options: Options) -> Parts:
        parts = self._header(tokenizer, "ipython" if turn.role == "tool" else turn.role)
        for part in turn.content:
            parts += self._image(tokenizer, part, options) if isinstance(part, Image) else [part]
        end: End = self.result_end if turn.role == "tool" else "eot"
        if turn.calls:
            calls, end = self._calls(tokenizer, turn.calls, options)
            parts += calls
        if turn.stop_reason is not None:
            end = "eom" if turn.stop_reason == "end_of_message" else "eot"
        return [*parts, tokenizer.id(self.eom if end == "eom" else self.eot)]

    def _calls(self, tokenizer: Tokenizer, calls: tuple[Call, ...], options: Options) -> tuple[Parts, End]:
        style = options.tool_style or "json"
        known = _BUILTIN if self.has_builtin_tools else ()
        if not any(call.name in known and call.name not in tool_names(options.tools) for call in calls):
            return [call_text(calls, style, builtin=False)], self.call_end
        if len(calls) > 1:
            raise BadInput(f"a message can have one call of a builtin tool and no other, found {len(calls)}")
        return [tokenizer.id("<|python_tag|>"), call_text(calls, style, builtin=True)], "eom"

    def _image(self, tokenizer: Tokenizer, image: Image, options: Options) -> Parts:
        if self.images == "none":
            text_of(Turn("user", (image,)), options)
        if self.images == "mark":
            return [tokenizer.id("<|image|>")]
        return [*image_ids(tokenizer, *image.tiles, patches=options.patches)]

    def _header(self, tokenizer: Tokenizer, role: str) -> Parts:
        before, after = self.header
        return [tokenizer.id(before), role, tokenizer.id(after), "\n\n"]


LLAMA3 = HeaderFormat()
LLAMA31 = HeaderFormat(tool_style="json", has_builtin_tools=True)
LLAMA32 = HeaderFormat(tool_style="pythonic", has_builtin_tools=True)
LLAMA32_VISION = HeaderFormat(tool_style="json", has_builtin_tools=True, images="mark")
LLAMA33 = LLAMA32
LLAMA4 = HeaderFormat(
    header=("<|header_start|>", "<|header_end|>"),
    eot="<|eot|>",
    eom="<|eom|>",
    tool_style="pythonic",
    images="tiles",
    call_end="eom",
    result_end="eom",
)


def chatml(tokenizer: Tokenizer, options: Options) -> Parts:
    """<|im_start|>{role} text <|im_end|>, each header and message on lines of their own."""
    refuse_tools(options)
    start, end = tokenizer.id("<|im_start|>"), tokenizer.id("<|im_end|>")
    parts: Parts = []
    for turn in options.messages:
        parts += [start, f"{turn.role}\n{text_of(turn, options)}", end, "\n"]
    if options.continue_final_message:
        return parts[:-2]
    return [*parts, start, "assistant\n"] if options.add_generation_prompt else parts
