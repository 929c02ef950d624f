"""OpenAI's Responses API: /v1/responses, and /v1/conversations that they may belong to.

request.py   what a request says               items.py   what it gives: messages, calls, results
context.py   all that the model has to read    events.py  the answer, as a stream and as an object
making.py    one response, to its storage      routes.py, conversations.py   the paths
"""
