"""A conversation: python examples/chat.py [MODEL]"""

import sys

from puna import LLM

with LLM(*sys.argv[1:2]) as llm:
    messages = [
        {"role": "system", "content": "You answer in one sentence."},
        {"role": "user", "content": "What is a llama?"},
    ]
    answer = llm.chat(messages, max_tokens=60)
    print(answer.text)

    # The model remembers nothing: every turn sends the whole conversation, and what was computed
    # before comes out of the cache.
    messages += [
        {"role": "assistant", "content": answer.text},
        {"role": "user", "content": "And where does it live?"},
    ]
    for text in llm.stream(messages, max_tokens=60):
        print(text, end="", flush=True)
    print()
