"""The operator's page, over HTTP and in a browser."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from server.conftest import Running, Start, open_accounts
from server.test_operations import Slow, until

from puna.server.config import ServerConfig
from puna.server.page.sessions import LASTS_S, Sessions
from puna.server.tenants.accounts import Accounts
from puna.server.tenants.limits import Limits

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

MODEL = '"><img src=x onerror=alert(1)>'
TENANT = "<b>acme</b>"
NAME = "</td><script>alert(2)</script>"
CHAT: dict[str, Any] = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "Hello"}],
    "max_tokens": 20,
    "ignore_eos": True,
}


class Texts(HTMLParser):
    """The tags of a page, and its texts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())


class Site:
    """A server with hostile names, an operator's key and a tenant's."""

    def __init__(self, running: Running) -> None:
        self.running = running
        self.accounts: Accounts = running.service.accounts
        self.admin = self.accounts.keys.create("operator", "house", scopes=["admin"])[1]
        limits = Limits(requests_per_minute=70, tokens_per_day=10**7)
        self.tenant = self.accounts.keys.create(NAME, TENANT, limits=limits)[1]

    @property
    def url(self) -> str:
        return self.running.url

    def ask(self, **changes: Any) -> httpx.Response:
        headers = {"authorization": f"Bearer {self.tenant}"}
        body = {**CHAT, **changes}
        return httpx.post(f"{self.url}/v1/chat/completions", json=body, headers=headers, timeout=60)

    @contextmanager
    def signed_in(self, key: str, **headers: str) -> Iterator[tuple[httpx.Client, httpx.Response]]:
        """Whoever has sent the form, and its answer."""
        with httpx.Client(base_url=self.url, timeout=60) as client:
            yield client, client.post("/sign-in", data={"key": key}, headers=headers)

    def page(self) -> str:
        return httpx.get(self.url, headers={"authorization": f"Bearer {self.admin}"}).text


@pytest.fixture(scope="module")
def site(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Site:
    accounts = open_accounts(tmp_path_factory.mktemp("ledger"), requires_keys=True)
    return Site(start(ServerConfig(port=0), accounts, MODEL))


def test_the_page_is_for_operators(site: Site) -> None:
    for headers in ({}, {"cookie": "puna-session=guessed"}, {"authorization": f"Bearer {site.tenant}"}):
        answer = httpx.get(site.url, headers=headers)
        assert answer.status_code in (401, 403)
        assert "acme" not in answer.text
    for key in (site.tenant, "puna-wrong", ""):
        with site.signed_in(key) as (client, answer):
            assert answer.status_code in (401, 403)
            assert not client.cookies
            assert 'role="alert"' in answer.text
            assert "wrong" not in answer.text
    assert httpx.get(site.url, headers={"authorization": f"Bearer {site.admin}"}).status_code == 200


def test_signing_in_and_out(site: Site) -> None:
    with site.signed_in(site.admin) as (client, answer):
        assert (answer.status_code, answer.headers["location"]) == (303, "/")
        cookie = answer.headers["set-cookie"]
        assert all(part in cookie.lower() for part in ("httponly", "samesite=strict", "path=/", "max-age="))
        assert site.admin not in cookie
        page = client.get("/")
        assert page.status_code == 200
        assert page.headers["cache-control"] == "no-store"
        assert "'unsafe" not in page.headers["content-security-policy"]
        assert site.admin not in page.text
        assert site.tenant not in page.text
        token = dict(client.cookies)
        assert client.post("/sign-out").status_code == 303
        assert client.get("/").status_code == 401
    assert httpx.get(site.url, cookies=token).status_code == 401  # not only forgotten by the browser


def test_other_sites_cannot_send_the_form(site: Site) -> None:
    for headers in (
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"origin": "https://example.org"},
        {"origin": "null"},
    ):
        with site.signed_in(site.admin, **headers) as (client, answer):
            assert answer.status_code == 403
            assert not client.cookies
    with site.signed_in(site.admin, origin=site.url) as (_, answer):
        assert answer.status_code == 303
    with site.signed_in("x" * 5000) as (_, answer):
        assert answer.status_code == 413


def test_a_session_ends_with_its_time_and_with_its_key(site: Site) -> None:
    now = 0.0
    keys = site.accounts.keys
    sessions = Sessions(keys, clock=lambda: now)
    key, _ = keys.create("leaves", "house", scopes=["admin"])
    token, other = sessions.begin(key), sessions.begin(key)
    assert sessions.find(token) == key
    assert sessions.find(token[:-1]) is None
    now = LASTS_S + 1.0
    assert sessions.find(token) is None
    now = 0.0
    keys.revoke(key.id)
    assert sessions.find(other) is None


def test_the_figures_are_those_of_the_server(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("puna.server.page.status._FRESH_S", 0)
    assert site.ask().status_code == 200
    assert site.ask(model="nobody").status_code == 404
    assert httpx.get(f"{site.url}/v1/models").status_code == 401
    found = Texts(site.page())
    total = httpx.get(f"{site.url}/admin/usage", headers={"authorization": f"Bearer {site.admin}"}).json()[
        "data"
    ][0]
    for text in (MODEL, TENANT, NAME, f"{total['prompt_tokens']:,}", "of 70", "of 10,000,000", "loaded"):
        assert text in found.texts
    assert "invalid_api_key" in found.texts


def test_names_are_text_on_the_page(site: Site) -> None:
    assert site.ask().status_code == 200
    httpx.get(f"{site.url}/v1/models/%3Cimg%20src=y%20onerror=alert(3)%3E")
    page = Texts(site.page())
    assert not [tag for tag, _ in page.tags if tag in ("img", "b", "iframe")]
    scripts = [attrs for tag, attrs in page.tags if tag == "script"]
    assert len(scripts) == 1
    assert (scripts[0]["src"] or "").startswith("/page/live.js?")
    assert not [attrs for _, attrs in page.tags if any(name.startswith(("on", "style")) for name in attrs)]
    for tag, attrs in page.tags:  # nothing comes from elsewhere
        for name in ("src", "href", "action"):
            assert (attrs.get(name) or "/").startswith("/"), (tag, attrs)


def test_without_keys_tenants_are_shown_to_operators_only(start: Start) -> None:
    server = start(ServerConfig(port=0))
    _, tenant = server.service.accounts.keys.create("app", "acme")
    admin = server.service.accounts.keys.create("operator", "house", scopes=["admin"])[1]
    headers = {"authorization": f"Bearer {tenant}"}
    body = {**CHAT, "model": "tiny"}
    assert httpx.post(f"{server.url}/v1/chat/completions", json=body, headers=headers).status_code == 200
    page = httpx.get(server.url)
    assert page.status_code == 200
    assert "tiny" in Texts(page.text).texts
    assert "acme" not in page.text
    assert "acme" in httpx.get(server.url, headers={"authorization": f"Bearer {admin}"}).text


def test_a_form_that_is_none_of_ours_is_refused(site: Site) -> None:
    for n, status, message in ((9, 303, ""), (10, 400, "the form may have 10 fields, this one has more")):
        fields = {f"field{i}": "x" for i in range(n)}
        answer = httpx.post(f"{site.url}/sign-in", data={"key": site.admin, **fields})
        assert answer.status_code == status
        assert message in answer.text
    assert httpx.post(f"{site.url}/sign-in", content=b"key=" + b"x" * 5000).status_code == 413


def test_a_database_that_is_away_is_said_so(
    start: Start, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    from puna.server.page import status
    from puna.server.storage.database import DatabaseUnavailable

    site = Site(
        start(ServerConfig(port=0), open_accounts(tmp_path_factory.mktemp("ledger"), requires_keys=True))
    )

    def away(*_: object) -> None:
        raise DatabaseUnavailable("the database does not answer")

    monkeypatch.setattr(status, "totals", away)
    page = httpx.get(site.url, headers={"authorization": f"Bearer {site.admin}"})
    assert page.status_code == 200
    assert "the database does not answer" in Texts(page.text).texts


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
    with api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
        yield launched
        launched.close()


class Visit:
    """A page in a browser, and what its console says."""

    def __init__(self, context: BrowserContext, url: str) -> None:
        self.page: Page = context.new_page()
        self.complaints: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: self._dialog(dialog))
        self.page.goto(url)

    def _dialog(self, dialog: Any) -> None:
        self.complaints.append(f"dialog {dialog.message}")
        dialog.dismiss()

    @property
    def in_flight(self) -> str:
        found: str = self.page.evaluate("document.querySelector('.tiles dd').textContent")
        return found.split()[0]

    @property
    def overflow(self) -> int:
        found: int = self.page.evaluate(
            "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )
        return found


def test_in_a_browser(site: Site, browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    """Signs in; figures change without a reload; names of tenants and models do nothing."""
    assert site.ask().status_code == 200
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    visit = Visit(context, site.url)
    visit.page.fill("#key", "puna-wrong")
    visit.page.click("button")
    assert "unknown" in visit.page.inner_text("[role=alert]")
    visit.page.fill("#key", site.admin)
    visit.page.click("button")
    visit.page.wait_for_selector("#live")
    assert site.admin not in visit.page.url
    assert visit.page.evaluate("document.cookie") == ""
    visit.complaints.clear()  # of the 401 that the wrong key got
    visit.page.evaluate("window.isTheSamePage = true")
    assert visit.in_flight == "0"
    slow = Slow(site.running, monkeypatch)
    slow.close()
    asking = threading.Thread(target=site.ask)
    asking.start()
    until(lambda: visit.in_flight == "1")
    slow.open()
    asking.join(60)
    until(lambda: visit.in_flight == "0")
    until(lambda: visit.page.evaluate("document.querySelector('polyline').points.length") > 1)
    assert visit.page.evaluate("window.isTheSamePage") is True
    assert visit.page.locator("#live img, #live script, #live b").count() == 0
    assert TENANT in visit.page.inner_text("#live")
    assert visit.complaints == []
    _looks_well_elsewhere(browser, context, site)


def _looks_well_elsewhere(browser: Browser, signed_in: BrowserContext, site: Site) -> None:
    """On a telephone nothing is cut off; in the dark the page is dark; without scripts all is there."""
    state = signed_in.storage_state()
    small = Visit(browser.new_context(viewport={"width": 360, "height": 740}, storage_state=state), site.url)
    assert small.overflow == 0
    dark = Visit(browser.new_context(color_scheme="dark", storage_state=state), site.url)
    red, green, blue = dark.page.evaluate(
        "getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).map(Number)"
    )
    assert max(red, green, blue) < 60
    plain = Visit(browser.new_context(java_script_enabled=False, storage_state=state), site.url)
    assert TENANT in plain.page.inner_text("#live")
    assert plain.page.locator("noscript meta[http-equiv=refresh], meta[http-equiv=refresh]").count() == 1
    assert small.complaints + dark.complaints + plain.complaints == []
