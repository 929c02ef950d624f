"""All results of a request, put together."""

from __future__ import annotations

from collections.abc import Iterable

from puna.core import Completion, Request, StepResult, TokenLogprob


def completion(request: Request, results: Iterable[StepResult]) -> Completion:
    """The whole answer from all results of a request, which has ended. Raises the error that ended it."""
    results = list(results)
    last = results[-1]
    if last.error is not None:
        raise last.error
    assert last.finish_reason is not None
    logprobs: list[TokenLogprob] = [item for result in results for item in result.logprobs]
    prompt_logprobs = [item for result in results for item in result.prompt_logprobs]
    return Completion(
        text="".join(result.text for result in results),
        token_ids=tuple(token for result in results for token in result.token_ids),
        finish_reason=last.finish_reason,
        stop=last.stop,
        n_prompt=len(request.prompt),
        n_cached=last.n_cached,
        logprobs=None if request.params.logprobs is None else tuple(logprobs),
        prompt_logprobs=tuple(prompt_logprobs) if request.prompt_logprobs else None,
    )
