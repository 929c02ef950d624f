"""Talk to a model.

On a terminal: Enter sends, Alt-Enter or a backslash before Enter begins a new line, arrow keys edit and
recall earlier messages, Ctrl-C ends the answer, Ctrl-D leaves; /help lists the commands. In a pipe, every
line of stdin is a message or a command (a backslash at its end continues it), answers go to stdout, and the
first error ends the program. Nothing is ever dropped from a conversation: when the context is full, the
answer ends and says so.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from puna import env
from puna.cli.common import add_model, model_path
from puna.cli.conversation import Conversation
from puna.cli.options import add_loading, add_sampling, load, read_sampling
from puna.cli.screen import Pipe, Screen, Terminal
from puna.cli.slash import COMMANDS, Chat

HELP = "talk to a model in the terminal"

DEFAULT_MODEL = "smollm2"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser, DEFAULT_MODEL)
    parser.add_argument("--system", metavar="TEXT", help="a system message")
    parser.add_argument(
        "--session", metavar="FILE", help="go on with the conversation in FILE, and keep it there in the end"
    )
    add_sampling(parser)
    add_loading(parser)


def run(args: argparse.Namespace) -> int:
    seed, args.seed = args.seed, None  # of the first answer: /retry must give another one
    params = read_sampling(args)
    path = model_path(args)
    with load(path, args, seed) as llm:
        conversation = Conversation(llm, args.model, params, args.system)
        session = Path(args.session) if args.session else None
        if session is not None and session.exists():
            conversation.restore(session)
        try:
            Chat(conversation, _screen()).run()
        finally:
            if session is not None:
                conversation.keep_in(session)
    return 0


def _screen() -> Screen:
    if not (sys.stdin.isatty() and sys.stdout.isatty()) or env.is_dumb_terminal():
        return Pipe()
    from puna.weights.store import home

    return Terminal(home() / "chat_history", [f"/{name}" for name in COMMANDS])
