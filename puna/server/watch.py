"""What the operator gets to see of calls: each in the log and the metrics, and the errors of late."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from puna.server.logs import event
from puna.server.tenants.prices import dollars

if TYPE_CHECKING:
    from puna.server.calls import Call
    from puna.server.errors import ApiError
    from puna.server.service import Service
    from puna.server.tenants.audit import Audit
    from puna.server.tenants.usage import Usage

_KEPT = 30  # kinds of errors
_LONGEST = 200  # characters of a path that is shown
_NOTED = (401, 403, 408, 413, 429)  # client errors that an operator may have to do something about


@dataclass(frozen=True, slots=True)
class Failure:
    """Requests that got an error of one kind. Messages may quote a request, so they are not kept."""

    status: int
    code: str
    what: str  # the path, or the endpoint and the model
    tenant: str


@dataclass(frozen=True, slots=True)
class Failures:
    """How often one kind occurred, and when last."""

    of: Failure
    count: int
    at: datetime


class Watch:
    """Of one server, for its event loop."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._failures: dict[Failure, tuple[int, datetime]] = {}  # the latest is last

    @property
    def failures(self) -> list[Failures]:
        """The kinds of errors that occurred last, newest first."""
        return [Failures(of, *found) for of, found in reversed(self._failures.items())]

    def ended(self, call: Call, usage: Usage, error: ApiError | None) -> None:
        """A call has been accounted for; `error` is what the client got in place of an answer's end."""
        if error is not None:
            error.is_counted = True
            self._keep(error, f"{call.endpoint} {call.model}", usage.tenant)
        level = logging.ERROR if error is not None and error.status >= 500 else logging.INFO
        config, texts = self._service.config, self._texts(call)
        traced = self._service.traces.ended(call, usage, error, texts if config.otel_prompts else {})
        fields: dict[str, Any] = {**_of_call(usage, error), "trace_id": traced}
        if config.log_prompts:
            fields |= texts
        event("call", level, **fields)

    def refused(self, scope: Mapping[str, Any], error: ApiError) -> None:
        """A request got an error; if it was a call that had begun, `ended` knows."""
        if error.is_counted:
            return
        code = error.code or error.kind
        self._service.metrics.rejected.labels(str(error.status), code).inc()
        account = scope.get("state", {}).get("account")
        tenant = account.tenant if account else ""
        path = scope["path"]
        path = path if len(path) <= _LONGEST else f"{path[:_LONGEST]}…"
        if error.status >= 500 or error.status in _NOTED:
            self._keep(error, path, tenant)
        event(
            "refused",
            logging.ERROR if error.status == 500 else logging.INFO,
            method=scope["method"],
            path=path,
            status=error.status,
            code=code,
            param=error.param if self._service.config.log_prompts else None,  # a name may be anything
            tenant=tenant or None,
            key_id=account.key_id if account else None,
        )

    def _keep(self, error: ApiError, what: str, tenant: str) -> None:
        kind = Failure(error.status, error.code or error.kind, what, tenant)
        count, _ = self._failures.pop(kind, (0, None))
        self._failures[kind] = (count + 1, datetime.now(UTC))
        if len(self._failures) > _KEPT:
            del self._failures[next(iter(self._failures))]

    def _texts(self, call: Call) -> dict[str, list[str]]:
        """Prompts and answers, where the operator wants to see them."""
        if not self._service.config.keeps_text:
            return {}
        return {
            "prompts": [call.text_of(prompt) for prompt in call.prompts],
            "answers": ["".join(generation.kept or ()) for generation in call.generations],
        }


def _of_call(usage: Usage, error: ApiError | None) -> dict[str, Any]:
    return {
        "request_id": usage.request_id,
        "endpoint": usage.endpoint,
        "model": usage.model,
        "tenant": usage.tenant or None,
        "key_id": usage.key_id,
        "status": usage.status,
        "error_status": error.status if error else None,
        "error_code": (error.code or error.kind) if error else None,
        "finish_reason": usage.finish_reason,
        "prompt_tokens": usage.prompt_tokens,
        "cached_tokens": usage.cached_tokens,
        "output_tokens": usage.output_tokens,
        "queue_s": round(usage.queue_s, 6),
        "prefill_s": round(usage.prefill_s, 6),
        "decode_s": round(usage.decode_s, 6),
        "cost_usd": dollars(usage.cost_nano),
        **_of_audit(usage.audit),
    }


def _of_audit(audit: Audit | None) -> dict[str, Any]:
    if audit is None:
        return {}
    return {
        "safety_policy": audit.policy,
        "safety_action": audit.action,
        "safety_stage": audit.stage or None,
        "safety_categories": audit.categories or None,
        "safety_score": round(audit.score, 6),
        "safety_s": round(audit.judge_s, 6),
        "safety_error": audit.error or None,
    }
