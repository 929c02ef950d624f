"""OpenAI's API (platform.openai.com/docs/api-reference), with the fields that other engines added to it.

fields.py    what requests share, and which unknown fields are errors
chat.py      /v1/chat/completions           completions.py   /v1/completions
embeddings.py  /v1/embeddings               moderations.py   /v1/moderations
models.py    /v1/models                     wire.py          what answers share
messages.py  turns and tools                formats.py       response_format
"""
