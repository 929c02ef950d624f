"""Which continuation does the model find likeliest? python examples/score.py [MODEL]"""

import sys

from puna import LLM

beginning = "The capital of France is"
endings = [" Paris.", " London.", " a city.", " banana."]

with LLM(*sys.argv[1:2]) as llm:
    n = len(llm.tokenizer.encode(beginning))
    scores = llm.score([beginning + ending for ending in endings])

# score() has no entry for the first token, which nothing precedes
totals = [sum(token.logprob for token in score[n - 1 :]) for score in scores]
for total, ending in sorted(zip(totals, endings, strict=True), reverse=True):
    print(f"{total:8.2f}  {beginning}{ending}")
