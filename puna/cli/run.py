"""Answer one prompt.

    puna run smollm2 "Why is the sky blue?"
    puna run smollm2 < question.txt           or: some command | puna run smollm2 -
    puna run "Why is the sky blue?"           a single argument with a space in it is a prompt for smollm2
    puna run MODEL "What is this?" --image photo.jpg         a vision model looks at it; or - from a pipe

The prompt is one user message, put to the model by its chat template; with --raw the text itself is
continued. The text comes out as it is made. With --json, one object when it is complete.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from puna.cli.common import add_json, model_path, not_text, print_json
from puna.cli.options import add_loading, add_sampling, load, read_sampling
from puna.cli.terminal import rate, write
from puna.core import BadInput, Completion, TokenLogprob, UnknownModel

if TYPE_CHECKING:
    from puna.llm import LLM
    from puna.llm.answer import Answer

HELP = "answer one prompt"

DEFAULT_MODEL = "smollm2"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", metavar="MODEL", nargs="?", help=f"name, .gguf file, folder or source ({DEFAULT_MODEL})"
    )
    parser.add_argument("prompt", metavar="PROMPT", nargs="?", help="text; - or nothing: from stdin")
    parser.add_argument("-y", "--yes", action="store_true", help="pull a missing model without asking")
    parser.add_argument("--system", metavar="TEXT", help="a system message before the prompt")
    parser.add_argument(
        "--image",
        metavar="FILE",
        action="append",
        default=[],
        dest="images",
        help="a JPEG, PNG, WebP or GIF picture for the model to see, - from stdin; may be repeated",
    )
    parser.add_argument("--raw", action="store_true", help="continue the text itself, without chat template")
    parser.add_argument(
        "--special", action="store_true", help="with --raw: names of control tokens are control tokens"
    )
    parser.add_argument(
        "--logprobs", metavar="N", type=int, help="with --json: of each token, and of the N likeliest"
    )
    parser.add_argument("--stats", action="store_true", help="say on stderr how fast it was")
    add_json(parser)
    add_sampling(parser)
    add_loading(parser)


def run(args: argparse.Namespace) -> int:
    check_usage(args)
    params = read_sampling(args, logprobs=args.logprobs)
    args.model, prompt = _model_and_prompt(args.model, args.prompt)
    if prompt is None and "-" in args.images:
        raise BadInput("stdin can be the prompt or an image, not both; give the prompt as an argument")
    path = _path(args, prompt)
    images = _images(path, args.images)
    if prompt is None:
        prompt = _read_stdin()
    with load(path, args) as llm:
        if args.raw:
            answer = llm.stream(prompt, params, special=args.special)
        else:
            system = [] if args.system is None else [{"role": "system", "content": args.system}]
            content = [*images, {"type": "text", "text": prompt}] if images else prompt
            answer = llm.stream([*system, {"role": "user", "content": content}], params)
        if args.json:
            print_json(_report(args.model, llm, answer))
        else:
            _print(answer)
        if args.stats:
            print(_stats(llm, answer), file=sys.stderr)
    return 0


def check_usage(args: argparse.Namespace) -> None:
    """Raise BadInput for options that make no sense together."""
    if args.logprobs is not None and not args.json:
        raise BadInput("--logprobs needs --json to be seen; add it")
    if args.special and not args.raw:
        raise BadInput("--special needs --raw: a chat template has its own control tokens; add it")
    if args.raw and args.system is not None:
        raise BadInput("--system needs a chat template, which --raw leaves out; use one of the two")
    if args.raw and args.images:
        raise BadInput("--image needs a chat template, which --raw leaves out; use one of the two")
    if args.images.count("-") > 1:
        raise BadInput("stdin is one image, it is named twice; name files")


def _model_and_prompt(model: str | None, prompt: str | None) -> tuple[str, str | None]:
    """Which of two optional arguments is which; no prompt means stdin."""
    if model is not None and prompt is None and _is_prompt(model):
        model, prompt = DEFAULT_MODEL, model
    return DEFAULT_MODEL if model is None else model, None if prompt == "-" else prompt


def _path(args: argparse.Namespace, prompt: str | None) -> Path:
    try:
        return model_path(args)
    except UnknownModel as error:
        if prompt is None and sys.stdin.isatty():
            raise UnknownModel(f'{error}; a prompt comes after the model: puna run MODEL "PROMPT"') from None
        raise


def _is_prompt(text: str) -> bool:
    """No name of a model has a space in it, and files that do exist."""
    return any(map(str.isspace, text)) and not Path(text).exists()


def _images(path: Path, names: Sequence[str]) -> list[dict[str, Any]]:
    """Parts of a message; what is wrong with them is known before the model is loaded."""
    if not names:
        return []
    from puna.images.decode import open_picture
    from puna.llm.images import encoder_of
    from puna.weights.load import open_checkpoint

    with open_checkpoint(path) as checkpoint:
        encoder_of(checkpoint.config, path.stem)
    pictures = [open_picture(sys.stdin.buffer.read() if name == "-" else name) for name in names]
    return [{"type": "image", "image": picture} for picture in pictures]


def _read_stdin() -> str:
    if sys.stdin.isatty():
        raise BadInput('give a prompt: puna run MODEL "PROMPT", or through a pipe')
    try:
        text = sys.stdin.read()
    except UnicodeDecodeError as error:
        raise BadInput(f"the prompt on stdin {not_text(error)}") from None
    if not text:
        raise BadInput("the prompt on stdin must not be empty")
    return text


def _print(answer: Answer) -> None:
    ends_line = False
    for text in answer:
        write(text)
        ends_line = text.endswith("\n")
    if not ends_line:
        write("\n")


def _stats(llm: LLM, answer: Answer) -> str:
    timing = answer.timing
    return (
        f"loaded in {llm.load_seconds:.2f} s; prompt {rate(timing.n_computed, timing.prompt_tok_s)}; "
        f"answer {rate(timing.n_tokens, timing.decode_tok_s)}; {answer.result().finish_reason}"
    )


def _report(model: str, llm: LLM, answer: Answer) -> dict[str, Any]:
    """What --json prints; seconds, and tokens per second."""
    result, timing = answer.result(), answer.timing
    return {
        "model": model,
        "text": result.text,
        "token_ids": list(result.token_ids),
        "finish_reason": result.finish_reason,
        "stop": result.stop,
        "n_prompt": result.n_prompt,
        "n_tokens": len(result.token_ids),
        "seed": answer.request.params.seed,
        "timing": {
            "load_s": round(llm.load_seconds, 4),
            "prompt_s": round(timing.prompt_s, 4),
            "decode_s": round(timing.decode_s, 4),
            "prompt_tok_s": round(timing.prompt_tok_s, 1),
            "decode_tok_s": round(timing.decode_tok_s, 1),
        },
        **_logprobs(llm, result),
    }


def _logprobs(llm: LLM, result: Completion) -> dict[str, Any]:
    if result.logprobs is None:
        return {}

    def token(token_id: int, logprob: float) -> dict[str, Any]:
        return {"id": token_id, "text": llm.tokenizer.decode([token_id], continuing=True), "logprob": logprob}

    def row(item: TokenLogprob) -> dict[str, Any]:
        return {**token(item.token_id, item.logprob), "top": [token(*other) for other in item.top]}

    return {"logprobs": [row(item) for item in result.logprobs]}
