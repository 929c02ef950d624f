"""The HTTP server: many clients and tenants, any of several APIs, one engine for each model.

app.py         puts the routes together           config.py   what an operator can set
served.py      what the server asks of a model    calls.py    one request, from admission to its account
generation.py  answers as they come, in no API's words
sse.py         answers on the wire                errors.py   what went wrong, in each API's words
openai/        OpenAI's API; each further API has a folder of its own

Never sees a tensor: a model is the protocol of served.py.
"""
