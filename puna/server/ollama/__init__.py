"""Ollama's native API (github.com/ollama/ollama, docs/api.md), as its clients speak it: lines of JSON.

fields.py   options and what else requests share    wire.py      lines, durations, log-probabilities
chat.py     /api/chat                               generate.py  /api/generate
embed.py    /api/embed, /api/embeddings             models.py    what is here, and what is in memory
library.py  pulling, naming and deleting models

What differs on purpose: nothing is cut to fit a context unless a request says so, and options that are not
understood are errors. Options that are about hardware alone are named in the header x-puna-ignored.
"""

from puna.server.ollama import chat, embed, generate, library, models
from puna.server.ollama.wire import error_body

PARTS = (generate, chat, embed, models, library)

__all__ = ["PARTS", "error_body"]
