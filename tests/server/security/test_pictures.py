"""Pictures that are bombs are refused in every place of every API, and none takes the server's memory."""

from __future__ import annotations

import base64
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from llm.tiny_llm import write_tiny_llm
from llm.tiny_vision import LLAMA4, TOKENS, let_see, picture, png
from safety import guards
from server.conftest import Running, Start
from server.security.pictures import BOMBS, places

from puna import LLM
from puna.images import decode
from puna.server.config import ServerConfig

MOST = 48 << 20  # bytes that a bomb may take for a moment


class Peak:
    """Memory of this process at its highest since this was made, in bytes above what it was then."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        self._before = self._highest()

    def _highest(self) -> int:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) << 10  # type: ignore[index]

    @property
    def bytes(self) -> int:
        return self._highest() - self._before


def message(path: str, body: Any) -> str:
    """What an error says, in the shape of the API at that path."""
    if path.startswith("/api/"):
        assert set(body) == {"error"}
        return str(body["error"])
    if path.startswith("/v1/messages"):
        assert set(body) >= {"type", "error"}
        assert body["error"]["type"] == "invalid_request_error"
    else:
        assert set(body["error"]) == {"message", "type", "param", "code"}
        assert body["error"]["param"]
    return str(body["error"]["message"])


def upload(running: Running, raw: bytes) -> str:
    found = running.openai().files.create(file=("a.png", raw), purpose="vision")
    return found.id


@pytest.mark.parametrize("name", BOMBS)
def test_no_place_takes_a_bomb(seeing: Running, name: str) -> None:
    raw = BOMBS[name]
    file_id = upload(seeing, raw or b"\n")
    peak = Peak()
    with httpx.Client(base_url=seeing.url, timeout=60) as client:
        for path, body in places(raw, file_id):
            answer = client.post(path, json=body)
            assert answer.status_code == 400, (path, answer.text)
            assert re.search("image|pixels|sides|picture", message(path, answer.json()))
    assert peak.bytes < MOST
    assert not seeing.service.calls


def test_every_place_takes_a_picture(seeing: Running) -> None:
    """So that what the bombs meet is not the end of another road."""
    file_id = upload(seeing, png())
    with httpx.Client(base_url=seeing.url, timeout=60) as client:
        for path, body in places(png(), file_id):
            short = {"options": {"num_predict": 1}} if "/api/" in path else {}
            answer = client.post(path, json={**body, **short})
            assert answer.status_code == 200, (path, answer.text)


@pytest.fixture(scope="module")
def judge(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Running:
    path = tmp_path_factory.mktemp("models") / "guard4.gguf"
    content = (
        guards.GUARD_3_1B + "{% for part in messages[-1]['content'] if part['type'] == 'image' %}<|image|>"
    )
    template = content + "{% endfor %}"
    write_tiny_llm(path, template=template, control=TOKENS["llama4"], context=2048)
    llm = LLM(path, threads=1, batch=64)
    let_see(llm, LLAMA4)
    return start(ServerConfig(port=0), llm=llm)


def moderated(running: Running, raw: bytes) -> httpx.Response:
    url = f"data:image/png;base64,{base64.b64encode(raw).decode()}"
    return running.post("/v1/moderations", {"input": [{"type": "image_url", "image_url": {"url": url}}]})


def test_nor_does_a_guard(judge: Running) -> None:
    assert moderated(judge, png()).status_code == 200
    peak = Peak()
    for raw in BOMBS.values():
        answer = moderated(judge, raw)
        assert answer.status_code == 400, answer.text
        assert message("/v1/moderations", answer.json())
    assert peak.bytes < MOST


def many(n: int) -> dict[str, Any]:
    """A request with n pictures of a pixel, each of which becomes a tile."""
    url = f"data:image/png;base64,{base64.b64encode(png(picture(1, 1))).decode()}"
    parts = [{"type": "image_url", "image_url": {"url": url}}] * n
    return {"model": "tiny", "messages": [{"role": "user", "content": parts}], "max_tokens": 1}


def test_pictures_are_counted_before_they_become_tiles(seeing: Running) -> None:
    """5,000 tiles of 38 kB here; in the size of a real model a request of 1 MB would take 6.8 GB."""
    peak = Peak()
    answer = seeing.post("/v1/chat/completions", many(5_000))
    assert answer.status_code == 400
    assert "5000 images" in answer.json()["error"]["message"]
    assert answer.json()["error"]["code"] == "context_length_exceeded"
    assert peak.bytes < MOST


def test_choices_of_an_answer_share_its_pictures(seeing: Running) -> None:
    peak = Peak()
    answer = seeing.post("/v1/chat/completions", {**many(250), "n": 16})
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["choices"]) == 16
    assert peak.bytes < MOST


def test_large_pictures_are_decoded_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is within the limits, and takes up to 900 MB meanwhile."""
    monkeypatch.setattr(decode, "LARGE_PIXELS", 1000)
    together = threading.Barrier(2)
    met: list[bool] = []
    upright = decode._orientation

    def noted(drawn: Any) -> int:
        try:
            together.wait(0.2)
            met.append(True)
        except threading.BrokenBarrierError:
            together.reset()
        return upright(drawn)

    monkeypatch.setattr(decode, "_orientation", noted)
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(decode.open_picture, [png(picture(100, 50))] * 2))
        assert not met
        list(threads.map(decode.open_picture, [png(picture(20, 20))] * 2))
    assert met
