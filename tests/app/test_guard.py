"""What the page lets in and what it lets the browser load, asked over a real connection."""

from __future__ import annotations

import re
import socket
import sys
from urllib.parse import urljoin, urlsplit

import httpx
import pytest

from mlx_qwen35.app.door import Door, bind
from mlx_qwen35.app.server import serve
from mlx_qwen35.errors import ConfigError
from tests.app.conftest import RunningApp

ADDRESS = re.compile(r"""(?:https?:)?//[^\s"'<>)\\]+""")
LOADED = re.compile(r"""(?:src|href)=["']([^"']+)["']|url\(\s*["']?([^"')]+)""")
EXAMPLE = "https://github.com/gradio-app/gradio/raw/"  # of an upload, for who reads the API; never fetched
NAMES_OF_FORMATS = "http://www.w3.org/"  # namespaces in SVG, never fetched


def get(app: RunningApp, path: str = "/", **headers: str) -> httpx.Response:
    return httpx.get(app.url + path, headers=headers, timeout=30)


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:7860", "127.0.0.1.evil.example", "localhost@evil", "", "["]
)
@pytest.mark.parametrize("path", ["/", "/config", "/gradio_api/info", "/theme.css"])
def test_a_foreign_host_is_refused_everywhere(tiny_app: RunningApp, host: str, path: str) -> None:
    assert get(tiny_app, path, Host=host).status_code == 403


@pytest.mark.parametrize("host", ["localhost:7860", "LOCALHOST", "127.0.0.1:9999", "[::1]:7860", "127.8.8.8"])
def test_this_computer_s_own_names_are_let_in_at_any_port(tiny_app: RunningApp, host: str) -> None:
    assert get(tiny_app, "/config", Host=host).status_code == 200


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://localhost:1", "https://HOST", "http://HOST.evil"]
)
def test_a_request_from_another_page_is_refused(tiny_app: RunningApp, origin: str) -> None:
    own = urlsplit(tiny_app.url).netloc
    headers = {"Origin": origin.replace("HOST", own)}
    body = {"data": [], "fn_index": 0, "session_hash": "x"}
    answer = httpx.post(tiny_app.url + "/gradio_api/queue/join", json=body, headers=headers)
    assert answer.status_code == 403
    assert "access-control-allow-origin" not in answer.headers


def test_the_page_s_own_requests_are_let_in(tiny_app: RunningApp) -> None:
    assert get(tiny_app, "/config", Origin=tiny_app.url).status_code == 200


def test_nothing_the_page_loads_comes_from_elsewhere(tiny_app: RunningApp) -> None:
    own = tiny_app.url
    page = get(tiny_app).text
    named = {address for address in ADDRESS.findall(page) if address.startswith("http")}
    assert {address for address in named if not address.startswith((own, EXAMPLE, NAMES_OF_FORMATS))} == set()
    wanted = {urljoin(own, first or second) for first, second in LOADED.findall(page)} | {f"{own}/theme.css"}
    assert any(address.endswith(".js") for address in wanted)
    for address in wanted:
        assert address.startswith(own)
        if address.endswith(".css"):
            loaded = [second for _, second in LOADED.findall(httpx.get(address).text) if second]
            assert [u for u in loaded if "//" in u and not u.startswith(("data:", NAMES_OF_FORMATS))] == []


def test_the_policy_forbids_foreign_loads_and_script_of_an_answer(tiny_app: RunningApp) -> None:
    policies = []
    for path in ("/", "/theme.css", "/config", "/no/such/page"):
        policies.append(get(tiny_app, path).headers["content-security-policy"])
        rules = dict(rule.strip().split(" ", 1) for rule in policies[-1].split(";"))
        assert rules["default-src"] == rules["connect-src"] == "'self'"
        assert "http" not in policies[-1]
        assert "*" not in policies[-1]
        assert "unsafe" not in rules["script-src"]
        assert rules["frame-ancestors"] == rules["frame-src"] == rules["object-src"] == "'none'"
    assert len(set(policies)) == len(policies), "a nonce was used twice"


def test_what_else_a_browser_is_told(tiny_app: RunningApp) -> None:
    headers = get(tiny_app).headers
    assert headers["x-content-type-options"] == "nosniff"
    # Not "no-referrer", with which browsers send a form of the page with an Origin of "null".
    assert headers["referrer-policy"] == "same-origin"
    assert headers["cross-origin-resource-policy"] == "same-origin"


def test_each_script_of_the_page_carries_the_nonce_of_its_response(tiny_app: RunningApp) -> None:
    answer = get(tiny_app)
    (nonce,) = re.findall(r"'nonce-([^']+)'", answer.headers["content-security-policy"])
    scripts = re.findall(r"<script[^>]*>", answer.text)
    assert scripts
    assert all(f'nonce="{nonce}"' in script for script in scripts)
    assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("path", ["/docs", "/redoc", "/openapi.json", "/gradio_api/runs", "/monitoring"])
def test_pages_that_are_not_ours_are_closed(tiny_app: RunningApp, path: str) -> None:
    assert get(tiny_app, path).status_code in (403, 404)


def test_a_port_in_use_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"Port {port} on localhost is not available"):
            bind(Door("localhost", port))
    with pytest.raises(ConfigError, match="Port 70000"):
        bind(Door(port=70000))


def test_without_gradio_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)  # as if it were not there
    with pytest.raises(ConfigError, match=re.escape("pip install 'mlx-qwen35[app]'")):
        serve("demo", Door(port=0), open_browser=False)
