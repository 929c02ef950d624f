"""Meta's Llama API, as its client llama-api-client speaks it, under /llama/v1.

Its paths are those of OpenAI's API with other answers, so that it needs a prefix of its own: clients get
http://…/llama/v1 for their base_url.

fields.py   what requests may say       wire.py     answers, whole and as events
routes.py   the paths
"""
