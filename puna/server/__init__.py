"""The HTTP server: many clients and tenants, one engine for each model.

app.py         puts the routes together           config.py   what an operator can set
served.py      what the server asks of a model    calls.py    one request, from admission to its account
generation.py  answers as they come, in no API's words
sse.py         answers on the wire                errors.py   what went wrong, as statuses
structured.py  what answers are held to           guard.py    limits of what a request may be
tenants/       keys, limits, ledger               storage/    the database under them
openai/        OpenAI's API                       ollama/     Ollama's
native/        what they have no words for        embeddings.py, infill.py  what they share

Never sees a tensor: a model is the protocol of served.py.
"""
