"""Many prompts at once, and how much faster that is: python examples/batch.py [MODEL]"""

import sys
from time import perf_counter

from puna import LLM, SamplingParams

prompts = [f"The number {n} is" for n in range(8)]
params = SamplingParams(temperature=0, max_tokens=32, ignore_end=True)

with LLM(*sys.argv[1:2]) as llm:
    start = perf_counter()
    alone = [llm.generate(prompt, params) for prompt in prompts]
    middle = perf_counter()
    together = llm.generate(prompts, params)
    end = perf_counter()

assert together == alone  # what else is in the batch never changes an answer
for prompt, answer in zip(prompts, together, strict=True):
    print(f"{prompt}{answer.text.splitlines()[0] if answer.text else ''}")
print(f"one after the other {middle - start:.2f} s, together {end - middle:.2f} s")
