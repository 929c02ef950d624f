"""GET / and what belongs to it: style, script, signing in and out.

Where keys are required the page needs an admin key: in the Authorization header, or shown once in the form,
which sets a cookie that no script reads and no other site sends. Elsewhere everybody on this machine sees the
models, and tenants and keys are for those who sign in, as they are under /admin.
"""

from __future__ import annotations

from hashlib import sha256
from importlib.metadata import version
from importlib.resources import files
from urllib.parse import parse_qs, urlsplit

from fastapi import APIRouter
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.requests import Request as HttpRequest
from starlette.responses import RedirectResponse, Response

from puna.core import PunaError
from puna.server.errors import ApiError, not_found
from puna.server.page import formats
from puna.server.page.sessions import LASTS_S, Sessions
from puna.server.page.status import Statuses
from puna.server.service import Service
from puna.server.tenants.keys import Key

_FILES = {"style.css": "text/css", "live.js": "text/javascript", "icon.svg": "image/svg+xml"}
_COOKIE = "puna-session"
_LONGEST_FORM = 4096  # bytes
_MOST_FIELDS = 10
_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


class Page:
    """The page of one server."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._sessions = Sessions(service.accounts.keys)
        self._statuses = Statuses(service)
        self._files = {name: (files(__package__) / "static" / name).read_bytes() for name in _FILES}
        self._templates = Environment(
            loader=PackageLoader(__package__),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters |= formats.FILTERS
        self._templates.globals |= {
            "version": version("puna"),
            "files": {
                name: f"/page/{name}?{sha256(data).hexdigest()[:12]}" for name, data in self._files.items()
            },
        }

    async def show(self, http: HttpRequest) -> Response:
        operator = self._operator(http)
        if operator is None and self._service.accounts.requires_keys:
            return self._html("sign_in.html", 401, problem="")
        status = await self._statuses.now(for_operator=operator is not None)
        return self._html(
            "page.html",
            status=status,
            operator=operator,
            config=self._service.config,
            requires_keys=self._service.accounts.requires_keys,
        )

    async def sign_in(self, http: HttpRequest) -> Response:
        """Exchange an admin key for a cookie."""
        try:
            _check_origin(http)
            account = self._service.accounts.authenticate(await _key_in(http), "admin")
        except ApiError as error:
            self._service.watch.refused(http.scope, error)
            return self._html("sign_in.html", error.status, problem=error.message)
        assert account.key is not None
        answer = RedirectResponse("/", 303, headers=dict(_HEADERS))
        answer.set_cookie(
            _COOKIE,
            self._sessions.begin(account.key),
            max_age=LASTS_S,
            httponly=True,
            samesite="strict",
            secure=http.url.scheme == "https",
        )
        return answer

    async def sign_out(self, http: HttpRequest) -> Response:
        _check_origin(http)
        self._sessions.end(http.cookies.get(_COOKIE, ""))
        answer = RedirectResponse("/", 303, headers=dict(_HEADERS))
        answer.delete_cookie(_COOKIE, httponly=True, samesite="strict")
        return answer

    def file(self, name: str) -> Response:
        if name not in self._files:
            raise not_found(f"there is no file {name!r} of the page")
        headers = {**_HEADERS, "cache-control": "max-age=31536000, immutable"}  # its address has its digest
        return Response(self._files[name], 200, headers, f"{_FILES[name]}; charset=utf-8")

    def _operator(self, http: HttpRequest) -> Key | None:
        """The admin key that stands behind a request, if one does."""
        token = http.cookies.get(_COOKIE)
        if token:
            try:
                return self._sessions.find(token)
            except PunaError:
                return None  # it cannot be checked: the form says why
        if "authorization" in http.headers:
            return self._service.authenticate(http, "admin").key
        return None

    def _html(self, template: str, code: int = 200, **values: object) -> Response:
        cards = self._service.models.cards()
        marks = dict.fromkeys(mark for card in cards for mark in card.marks)
        text = self._templates.get_template(template).render(values, marks=list(marks))
        return Response(text, code, {**_HEADERS, "cache-control": "no-store"}, "text/html; charset=utf-8")


def routes(service: Service) -> APIRouter:
    router = APIRouter(include_in_schema=False)
    page = Page(service)
    router.add_api_route("/", page.show, methods=["GET", "HEAD"], response_model=None)
    router.add_api_route("/sign-in", page.sign_in, methods=["POST"], response_model=None)
    router.add_api_route("/sign-out", page.sign_out, methods=["POST"], response_model=None)
    router.add_api_route("/page/{name}", page.file, methods=["GET"], response_model=None)
    return router


def _check_origin(http: HttpRequest) -> None:
    """Raise ApiError 403 where a page of somebody else's sent the form."""
    origin = http.headers.get("origin")
    if http.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none") or (
        origin is not None and urlsplit(origin).netloc != http.headers.get("host")
    ):
        raise ApiError(403, "this form is sent from its own page only", kind="permission_error")


async def _key_in(http: HttpRequest) -> str:
    """The key of a form. Raises ApiError for what no form of ours sends."""
    body = b""
    async for chunk in http.stream():
        body += chunk
        if len(body) > _LONGEST_FORM:
            raise ApiError(413, f"the form may have {_LONGEST_FORM} bytes, this one has more")
    try:
        found = parse_qs(body.decode("latin-1"), max_num_fields=_MOST_FIELDS)
    except ValueError:
        raise ApiError(400, f"the form may have {_MOST_FIELDS} fields, this one has more") from None
    return found.get("key", [""])[0].strip()
