"""What the models were trained to be told of tools and dates, word by word, and calls as they write them.

The sentences are Meta's, from the prompt_format.md of each generation in llama-models: other words work less
well. They are data here, errors of grammar included.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

from puna.core import BadInput
from puna.text.formats.base import Call, Options, ToolStyle, to_json
from puna.text.tools import CODE_INTERPRETER

CUTOFF = "December 2023"  # of what the 3.x models know

_JSON = (
    "Answer the user's question by making use of the following functions if needed.\n"
    "If none of the function can be used, please say so.\n"
    "Here is a list of functions in JSON format:\n{definitions}\n\n"
    "Return function calls in JSON format."
)
_FUNCTION = (
    "You have access to the following functions:\n\n{definitions}\n\n"
    "Think very carefully before calling functions.\n"
    "If you choose to call a function ONLY reply in the following format with no prefix or suffix:\n\n"
    '<function=example_function_name>{{"example_name": "example_value"}}</function>\n\n'
    "Reminder:\n"
    "- If looking for real time information use relevant functions before falling back to brave_search\n"
    "- Function calls MUST follow the specified format, start with <function= and end with </function>\n"
    "- Required parameters MUST be specified\n"
    "- Only call one function at a time\n"
    "- Put the entire function call reply on one line"
)
_PYTHONIC = (
    "You are an expert in composing functions. You are given a question and a set of possible functions.\n"
    "Based on the question, you will need to make one or more function/tool calls to achieve the purpose.\n"
    "If none of the function can be used, point it out. If the given question lacks the parameters required "
    "by the function,\n"
    "also point it out. You should only return the function call in tools call sections.\n\n"
    "If you decide to invoke any of the function(s), you MUST put it in the format of "
    "[func_name1(params_name1=params_value1, params_name2=params_value2...), func_name2(params)]\n"
    "You SHOULD NOT include any other text in the response.\n\n"
    "Here is a list of functions in JSON format that you can invoke.\n\n"
)
_LLAMA4 = (
    "You are a helpful assistant and an expert in function composition. You can answer general "
    "questions using your internal knowledge OR invoke functions when necessary. Follow these strict"
    " guidelines:\n"
    "\n"
    "1. FUNCTION CALLS:\n"
    "- ONLY use functions that are EXPLICITLY listed in the function list below\n"
    "- If NO functions are listed (empty function list []), respond ONLY with internal knowledge or "
    '"I don\'t have access to [Unavailable service] information"\n'
    "- If a function is not in the list, respond ONLY with internal knowledge or \"I don't have "
    'access to [Unavailable service] information"\n'
    "- If ALL required parameters are present AND the query EXACTLY matches a listed function's "
    "purpose: output ONLY the function call(s)\n"
    "- Use exact format: [func_name1(param1=value1, param2=value2), func_name2(...)]\n"
    "Examples:\n"
    'CORRECT: [get_weather(location="Vancouver"), calculate_route(start="Boston", end="New York")] '
    "<- Only if get_weather and calculate_route are in function list\n"
    'INCORRECT: get_weather(location="New York")\n'
    'INCORRECT: Let me check the weather: [get_weather(location="New York")]\n'
    'INCORRECT: [get_events(location="Singapore")] <- If function not in list\n'
    "\n"
    "2. RESPONSE RULES:\n"
    "- For pure function requests matching a listed function: ONLY output the function call(s)\n"
    "- For knowledge questions: ONLY output text\n"
    "- For missing parameters: ONLY request the specific missing parameters\n"
    '- For unavailable services (not in function list): output ONLY with internal knowledge or "I '
    "don't have access to [Unavailable service] information\". Do NOT execute a function call.\n"
    "- If the query asks for information beyond what a listed function provides: output ONLY with "
    "internal knowledge about your limitations\n"
    "- NEVER combine text and function calls in the same response\n"
    "- NEVER suggest alternative functions when the requested service is unavailable\n"
    "- NEVER create or invent new functions not listed below\n"
    "\n"
    "3. STRICT BOUNDARIES:\n"
    "- ONLY use functions from the list below - no exceptions\n"
    "- NEVER use a function as an alternative to unavailable information\n"
    "- NEVER call functions not present in the function list\n"
    "- NEVER add explanatory text to function calls\n"
    "- NEVER respond with empty brackets\n"
    "- Use proper Python/JSON syntax for function calls\n"
    "- Check the function list carefully before responding\n"
    "\n"
    "4. TOOL RESPONSE HANDLING:\n"
    "- When receiving tool responses: provide concise, natural language responses\n"
    "- Don't repeat tool response verbatim\n"
    "- Don't add supplementary information\n"
    "\n"
    "Here is a list of functions in JSON format that you can invoke:\n"
)


def system_text(options: Options, given: str | None, *, is_ipython: bool) -> str | None:
    """The system message: environment, dates, tools, and what the conversation's own says; None for none.

    `is_ipython` formats (3.x) have an environment and state dates; those that call in Python have their tools
    here, the others in a message of the user (`request_text`).
    """
    sections = []
    if is_ipython and (options.builtin_tools or (options.tools and options.tool_style == "json")):
        named = [name for name in options.builtin_tools if name != CODE_INTERPRETER]
        sections.append("Environment: ipython\n" + (f"Tools: {', '.join(named)}" if named else ""))
    if is_ipython and options.date is not None:
        sections.append(f"Cutting Knowledge Date: {CUTOFF}\nToday Date: {_day(options.date)}\n")
    if options.tools and options.tool_style == "pythonic":
        words = _PYTHONIC if is_ipython else _LLAMA4
        sections.append(words + to_json([_function(tool) for tool in options.tools], indent=4))
    if given is not None:
        sections.append(given)
    return "\n".join(sections) if sections else None


def request_text(options: Options) -> str | None:
    """The message of the user that defines tools; None where the system message does."""
    if not options.tools or options.tool_style == "pythonic":
        return None
    if options.tool_style == "json":
        whole = [{"type": "function", "function": _function(tool)} for tool in options.tools]
        return _JSON.format(definitions="\n".join(to_json(tool, indent=4) for tool in whole))
    return _FUNCTION.format(definitions="\n\n".join(map(_in_a_line, map(_function, options.tools))))


def call_text(calls: Sequence[Call], style: ToolStyle, *, builtin: bool) -> str:
    """Calls as the model writes them; `builtin`: this is one of a tool that it knows without definition."""
    if builtin:
        return _builtin(calls[0])
    if style == "pythonic":
        return f"[{', '.join(map(_pythonic, calls))}]"
    if style == "function":
        return "".join(f"<function={call.name}>{to_json(call.arguments)}</function>" for call in calls)
    return "".join(
        to_json({"type": "function", "name": call.name, "parameters": call.arguments}) for call in calls
    )


def _builtin(call: Call) -> str:
    wanted = "code" if call.name == CODE_INTERPRETER else "query"
    value = call.arguments.get(wanted)
    if not isinstance(value, str):
        raise BadInput(
            f"a call of {call.name} must have a text named {wanted!r}, found {call.arguments!r:.80}"
        )
    return value if wanted == "code" else f'{call.name}.call(query="{value}")'


def _pythonic(call: Call) -> str:
    return f"{call.name}({', '.join(f'{name}={_literal(value)}' for name, value in call.arguments.items())})"


def _literal(value: Any) -> str:
    """Python's, with strings between double quotes as Meta writes them."""
    if isinstance(value, str):
        return to_json(value)
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_literal(k)}: {_literal(v)}' for k, v in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_literal, value))}]"
    if value is None or isinstance(value, bool | int | float):
        return str(value)
    raise BadInput(f"arguments of tools must be plain data as JSON has it, found a {type(value).__name__}")


def _function(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a definition that says what the function is."""
    inner = tool.get("function", tool) if isinstance(tool, Mapping) else None
    if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str):
        raise BadInput(
            'a tool must be {"type": "function", "function": {"name": …, "parameters": …}}, found '
            f"{tool!r:.80}"
        )
    return {key: inner[key] for key in ("name", "description", "parameters") if key in inner}


def _in_a_line(function: Mapping[str, Any]) -> str:
    about = function.get("description", "")
    return f"Use the function '{function['name']}' to '{about}':\n{to_json(function)}"


def _day(day: date) -> str:
    """21 September 2024, whatever language the machine speaks."""
    return f"{day.day} {_MONTHS[day.month - 1]} {day.year}"


_MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
    "November", "December",
)  # fmt: skip
