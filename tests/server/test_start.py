"""What is wrong with a start of `puna serve` is one sentence, exit code 2, said before a model is loaded."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from starlette.applications import Starlette

from puna.cli.main import main
from puna.core import BadInput
from puna.llm.models import ModelPool
from puna.server.config import ServerConfig
from puna.server.listen import bind
from puna.server.run import serve


@pytest.fixture(autouse=True)
def no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(self: ModelPool) -> None:
        raise AssertionError("a model is being loaded")

    monkeypatch.setenv("PUNA_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(ModelPool, "preload", load)


@pytest.fixture(scope="module")
def pems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """cert.pem with key.pem, other.pem for another one, locked.pem with a password."""
    folder = tmp_path_factory.mktemp("pems")
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-subj", "/CN=localhost", "-days", "2"]
    for key, more in (("key.pem", ["-nodes"]), ("other.pem", ["-nodes"])):
        command = [*make, *more, "-keyout", key, "-out", "cert.pem" if key == "key.pem" else "cert2.pem"]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
    lock = ["openssl", "pkey", "-in", "key.pem", "-aes256", "-passout", "pass:secret", "-out", "locked.pem"]
    subprocess.run(lock, cwd=folder, check=True, capture_output=True)
    (folder / "bad.pem").write_text("no certificate")
    (folder / "bytes.pem").write_bytes(b"\xff\xfe\0")
    torn = (folder / "cert.pem").read_text()
    (folder / "torn.pem").write_text(torn[:200] + torn[260:])
    return folder


def refused(capsys: pytest.CaptureFixture[str], tiny: Path, *flags: str) -> str:
    """The sentence that a start with these flags ends with."""
    assert main(["serve", str(tiny), *flags]) == 2
    found = capsys.readouterr()
    assert found.out == ""
    assert found.err.startswith("puna: ")
    assert found.err.count("\n") == 1
    return found.err


@pytest.mark.parametrize(
    ("cert", "key", "flag", "reason"),
    [
        ("bad.pem", "key.pem", "--tls-cert", "a file of certificates in PEM, "),
        ("torn.pem", "key.pem", "--tls-cert", "a file of certificates in PEM, "),
        ("bytes.pem", "key.pem", "--tls-cert", "a file of certificates in PEM, "),
        ("none.pem", "key.pem", "--tls-cert", "No such file or directory"),
        ("", "key.pem", "--tls-cert", "Is a directory"),
        ("cert.pem", "none.pem", "--tls-key", "No such file or directory"),
        ("cert.pem", "bad.pem", "--tls-key", "a file of a private key in PEM, "),
        ("cert.pem", "cert.pem", "--tls-key", "a file of a private key in PEM, "),
        ("cert.pem", "other.pem", "--tls-key", "that of another one"),
        ("cert.pem", "locked.pem", "--tls-key", "without a password"),
    ],
)
def test_certificates(
    pems: Path,
    tiny_path: Path,
    capsys: pytest.CaptureFixture[str],
    cert: str,
    key: str,
    flag: str,
    reason: str,
) -> None:
    said = refused(capsys, tiny_path, "--tls-cert", str(pems / cert), "--tls-key", str(pems / key))
    assert said.startswith(f"puna: {flag} must be")
    assert str(pems / (cert if flag == "--tls-cert" else key)) in said
    assert reason in said


def test_a_port_that_is_in_use(tiny_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = refused(capsys, tiny_path, "--port", str(port))
    assert f"127.0.0.1:{port} must be free to listen on" in said
    assert "choose another --port" in said


@pytest.mark.parametrize("host", ["999.1.1.1", "192.0.2.1", "a..b", "1::2::3"])
def test_a_host_that_is_none_of_ours(tiny_path: Path, capsys: pytest.CaptureFixture[str], host: str) -> None:
    said = refused(capsys, tiny_path, "--host", host)
    assert f"--host must be an address of this machine, got {host!r}" in said
    assert "--port" not in said


def test_what_else_is_looked_at_first(tiny_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for flags, message in (
        (["--otel-endpoint", "nonsense"], "otel_endpoint must be a URL like"),
        (["--adapter", "a=/none"], "--adapter must be a folder or file, '/none' (for a) is not there"),
        (["--adapter", "a"], "--adapter must be NAME=PATH"),
        (["--files-folder", "/proc/x"], "files_folder must be a folder that can be written, got '/proc/x'"),
        (["--files-folder", str(tiny_path)], "files_folder must be a folder that can be written"),
        (["--sessions", "/none"], "sessions must be a folder that exists"),
        (["--cache-type", "q3"], "cache_type must be one of"),
    ):
        assert message in refused(capsys, tiny_path, "--port", "0", *flags)


def test_policies_that_cannot_be_followed(
    tiny_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "policies.toml"
    for judge, message in (
        ("guard:guards", "asks guard:guards, but no model 'guards' is served"),
        ("guard:tiny", "but tiny is no guard, its chat template has no categories"),
        ("patterns:/none", "/none"),
        ("nobody", "nobody"),
    ):
        path.write_text(f'[[policy]]\nname = "a"\ninput = ["{judge}"]\n')
        assert message in refused(capsys, tiny_path, "--port", "0", "--safety", str(path))
    path.write_text('[[policy]]\nname = "a"\ninput = ["scan:hidden"]\ncategories = ["hidden-character"]\n')
    said = refused(capsys, tiny_path, "--port", "0", "--safety", str(path))
    assert (
        "counts 'hidden-character', which none of its judges names; did you mean 'hidden-characters'" in said
    )
    assert "must be a readable TOML file" in refused(capsys, tiny_path, "--safety", str(tmp_path / "none"))


def test_of_two_servers_that_start_together_one_serves() -> None:
    with bind(ServerConfig(port=0)) as first:
        config = ServerConfig(port=first.getsockname()[1])
        late = bind(config)
        first.listen()
        app = Starlette()
        app.state.service = SimpleNamespace(config=config, is_draining=False, n_in_flight=0)
        with pytest.raises(BadInput, match="choose another --port"):
            serve(app, config, lambda url: pytest.fail(f"serves at {url}"), late)
        assert late.fileno() == -1


def test_nobody_is_let_in_before_there_is_a_server() -> None:
    with bind(ServerConfig(port=0)) as bound:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(bound.getsockname(), 5)
        bound.listen()
        with pytest.raises(BadInput, match="choose another --port"):
            bind(ServerConfig(port=bound.getsockname()[1]))
