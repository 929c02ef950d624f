"""The keyboard while an answer comes.

Ctrl-C is read as a key here, as it is at the prompt, because the terminal would send its SIGINT to every
program of the foreground: `make chat` would let the chat go on and then end as interrupted itself. Turning
off that one key leaves the others (Ctrl-Z, Ctrl-\\) as they are, and `kill -INT` works as before.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread, main_thread
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prompt_toolkit.input import Input


@contextmanager
def quiet_keyboard(keys: Input) -> Iterator[None]:
    """What is typed meanwhile waits for the next prompt, unseen; Ctrl-C is a SIGINT to us alone."""
    if not sys.stdin.isatty():
        yield
        return
    saved = termios.tcgetattr(sys.stdin)
    termios.tcsetattr(sys.stdin, termios.TCSADRAIN, _quiet())
    ends, end = os.pipe()
    reader = Thread(target=_read_keys, args=(keys, ends), daemon=True)
    reader.start()
    try:
        yield
    finally:
        try:
            os.close(end)
            reader.join()
            os.close(ends)
        finally:  # a second Ctrl-C is an exception
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, saved)


def _quiet() -> termios._AttrReturn:
    quiet = termios.tcgetattr(sys.stdin)
    quiet[3] &= ~(termios.ECHO | termios.ICANON)
    quiet[6][termios.VINTR] = bytes([os.fpathconf(sys.stdin.fileno(), "PC_VDISABLE")])
    return quiet


def _read_keys(keys: Input, ends: int) -> None:
    """Keep keys for the next prompt and turn Ctrl-C into SIGINT, until the other end of `ends` is closed."""
    from prompt_toolkit.input.typeahead import store_typeahead
    from prompt_toolkit.keys import Keys

    while not keys.closed:
        ready, _, _ = select.select([keys.fileno(), ends], [], [])
        if ends in ready:
            return
        for press in keys.read_keys():
            if press.key == Keys.ControlC:
                # to the main thread, which may be waiting for a token in a lock that only a signal interrupts
                signal.pthread_kill(main_thread().ident or 0, signal.SIGINT)
            else:
                store_typeahead(keys, [press])
