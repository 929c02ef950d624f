"""What an operator's machines ask: /health, /ready, /metrics."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from puna.server.service import Service
from puna.server.strict import Route


def routes(service: Service) -> APIRouter:
    router = APIRouter(tags=["Operations"], route_class=Route)

    @router.get("/health", response_model=None)
    async def health() -> Response:
        """200 while the process lives and can answer."""
        return JSONResponse({"status": "ok"})

    @router.get("/ready", response_model=None)
    async def ready() -> Response:
        """200 where a load balancer may send requests; 503 while draining."""
        if service.is_draining:
            return JSONResponse({"status": "draining", "in_flight": service.n_in_flight}, 503)
        return JSONResponse({"status": "ready", "in_flight": service.n_in_flight})

    @router.get("/metrics", response_model=None)
    async def metrics(http: HttpRequest) -> Response:
        """Prometheus metrics. Where keys are required, for those with the scope "admin"."""
        service.check_operator(http)
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return router
