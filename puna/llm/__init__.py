"""The Python API and composition root: `LLM` puts store, checkpoint, tokenizer, executor and engine together.

config.py   what can be asked for, and its defaults
memory.py   what fits, by arithmetic, before anything is allocated
load.py     from a model argument to a running engine
prompts.py  what can be asked with
answer.py   answers as they come
requests.py what prompts become
model.py    LLM
facts.py, library.py, models.py  what a server asks of models and of the store
"""

from puna.llm.config import DEFAULT_PARAMS, LLMConfig, sampling_params
from puna.llm.model import LLM

__all__ = ["DEFAULT_PARAMS", "LLM", "LLMConfig", "sampling_params"]
