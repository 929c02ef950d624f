"""Anthropic's Messages API (docs.anthropic.com, "API reference"), for clients that are pointed here.

fields.py   what requests may say                events.py   an answer as a stream of named events
turns.py    their content as turns of a chat     errors.py   error bodies
messages.py /v1/messages and …/count_tokens      models.py   /v1/models in this API's shape
"""
