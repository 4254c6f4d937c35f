"""The page beyond this computer: nothing of it without the password, and no room to guess one."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from mlx_qwen35.app.door import PASSWORD_VARIABLE, Door, bind, read_passwords
from mlx_qwen35.app.guard import Guard
from mlx_qwen35.app.login import COOKIE_SECONDS, TRIES_OF_ALL, TRIES_OF_ONE, Login, Tries
from mlx_qwen35.errors import ConfigError
from tests.app.conftest import served

PASSWORD = "correct hörse <b>"
HTML = {"accept": "text/html"}


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


async def page(scope: Scope, receive: Receive, send: Send) -> None:
    """What stands behind the login."""
    body = await Request(scope, receive).body()
    await PlainTextResponse(f"secret page {body.decode()}")(scope, receive, send)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def browser(clock: Clock) -> Iterator[httpx.Client]:
    app = Guard(Login(page, ["another one", PASSWORD], clock), ["My.Mac.Example"], only_loopback=False)
    with served(app) as url, httpx.Client(base_url=url, headers=HTML, timeout=30) as client:
        yield client


def log_in(client: httpx.Client, password: str = PASSWORD) -> httpx.Response:
    return client.post("/login", data={"password": password}, headers={"origin": str(client.base_url).rstrip("/")})


@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS", "HEAD"])
def test_without_the_password_nothing_is_told(browser: httpx.Client, method: str) -> None:
    browser.headers["cookie"] = f"mlx-qwen35-{browser.base_url.port}=guessed"
    for path in ("/", "/config", "/gradio_api/info", "/login", "/logout", "//", "/login/../config"):
        if (method, path) == ("POST", "/login"):
            continue
        answer = browser.request(method, path)
        assert answer.status_code == 401
        assert "secret" not in answer.text
        assert "set-cookie" not in answer.headers


def test_the_password_opens_and_the_cookie_is_for_this_page_alone(browser: httpx.Client) -> None:
    answer = log_in(browser)
    assert answer.status_code == 303
    assert answer.headers["location"] == "/"
    attributes = answer.headers["set-cookie"].lower()
    assert "httponly" in attributes
    assert "samesite=strict" in attributes
    assert browser.get("/").text == "secret page "
    assert browser.post("/gradio_api/x", content="body").text == "secret page body"
    assert httpx.get(browser.base_url, headers=HTML).status_code == 401


@pytest.mark.parametrize("password", ["", "correct", PASSWORD + "x", PASSWORD.upper()])
def test_a_wrong_password_opens_nothing_and_is_not_repeated(browser: httpx.Client, password: str) -> None:
    answer = log_in(browser, password)
    assert answer.status_code == 401
    assert "set-cookie" not in answer.headers
    assert not password or password not in answer.text


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("application/json", '{"password": "correct hörse <b>"}'),
        ("text/plain", "password=correct h%C3%B6rse <b>"),
        ("application/x-www-form-urlencoded", "password=" + "x" * 100_000),
        ("application/x-www-form-urlencoded", "&".join(f"a{i}=1" for i in range(100))),
        ("application/x-www-form-urlencoded", "\xff%ff%"),
    ],
)
def test_what_the_form_never_sends_is_a_wrong_password(browser: httpx.Client, kind: str, body: str) -> None:
    assert browser.post("/login", content=body.encode(), headers={"content-type": kind}).status_code == 401


def test_another_page_cannot_send_the_form(browser: httpx.Client) -> None:
    answer = browser.post("/login", data={"password": PASSWORD}, headers={"origin": "http://evil.example"})
    assert answer.status_code == 403
    assert "set-cookie" not in answer.headers


def test_the_form_s_page_loads_nothing_and_cannot_be_framed(browser: httpx.Client) -> None:
    answer = browser.get("/")
    assert re.findall(r"(?:src|href)=", answer.text) == []
    assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
    assert answer.headers["cache-control"] == "no-store"


def test_wrong_tries_have_to_wait_and_so_does_the_right_one_after_them(browser: httpx.Client, clock: Clock) -> None:
    for _ in range(TRIES_OF_ONE):
        assert log_in(browser, "wrong").status_code == 401
    answer = log_in(browser)
    assert answer.status_code == 429
    clock.now += int(answer.headers["retry-after"])
    assert log_in(browser).status_code == 303


def test_a_cookie_ends(browser: httpx.Client, clock: Clock) -> None:
    log_in(browser)
    clock.now += COOKIE_SECONDS - 1
    assert browser.get("/").status_code == 200
    clock.now += 2
    assert browser.get("/").status_code == 401


def test_tries_are_counted_by_address_and_in_all(clock: Clock) -> None:
    tries = Tries(clock)
    for i in range(TRIES_OF_ALL - 1):
        assert tries.wait(f"fe80::{i}") == 0
        tries.failed(f"fe80::{i}")
    assert tries.wait("fe80::ffff") == 0
    tries.failed("fe80::ffff")
    assert tries.wait("192.168.1.9") == 60
    clock.now = 60.0
    assert tries.wait("192.168.1.9") == 0


@pytest.mark.parametrize("host", ["192.168.1.7:7860", "my.mac.example", socket.gethostname(), "localhost", "[fe80::1]"])
def test_beyond_loopback_this_machine_s_names_and_addresses_are_let_in(browser: httpx.Client, host: str) -> None:
    assert browser.get("/", headers={"host": host}).status_code == 401


@pytest.mark.parametrize("host", ["evil.example", "my.mac.example.evil", "192.168.1.7.evil.example", ""])
def test_beyond_loopback_a_rebound_name_is_refused(browser: httpx.Client, host: str) -> None:
    assert browser.get("/", headers={"host": host}).status_code == 403


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "evil.example", "", "localhost.evil.example"])
def test_beyond_loopback_a_password_is_needed(host: str) -> None:
    with pytest.raises(ConfigError, match="needs a password") as refusal:
        bind(Door(host, 0))
    assert "\n" not in str(refusal.value)


def test_with_a_password_every_address_is_listened_on() -> None:
    with bind(Door("0.0.0.0", 0, (PASSWORD,))) as listener:
        assert listener.getsockname()[0] == "0.0.0.0"


def test_passwords_come_from_files_and_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "passwords"
    file.write_text(f"\n  {PASSWORD}\nanother one\n")
    monkeypatch.setenv(PASSWORD_VARIABLE, "third of them\n")
    assert read_passwords([file]) == (PASSWORD, "another one", "third of them")
    monkeypatch.setenv(PASSWORD_VARIABLE, "short")
    with pytest.raises(ConfigError, match="8 to"):
        read_passwords([])
    file.write_text("\n")
    with pytest.raises(ConfigError, match="holds no password"):
        read_passwords([file])
