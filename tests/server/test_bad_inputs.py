"""What must not hang, kill or confuse the server: every class of request that did so to another one, as raw bytes."""

from __future__ import annotations

import gzip
import json
import socket
import struct
from typing import Any

import pytest

from tests.server.conftest import RunningServer

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HELLO = [{"role": "user", "content": "Hello"}]
MANY = 40_000


def chat(**fields: Any) -> bytes:
    return json.dumps({"messages": HELLO, "max_tokens": 4, **fields}).encode()


def part(part: dict[str, Any]) -> bytes:
    return chat(messages=[{"role": "user", "content": [part]}])


def tool(name: Any, **fields: Any) -> bytes:
    return chat(tools=[{"type": "function", "function": {"name": name, **fields}}])


def template(**options: Any) -> bytes:
    return chat(chat_template_kwargs=options)


def raw_chat(field: str) -> bytes:
    return b'{"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4, ' + field.encode() + b"}"


def text(**fields: Any) -> bytes:
    return json.dumps({"prompt": "Hello", "max_tokens": 4, **fields}).encode()


NO_JSON = {
    "nothing": b"",
    "no json": b"hello",
    "cut": b'{"messages": [',
    "an array": b"[]",
    "a string": b'"x"',
    "null": b"null",
    "a number": b"12",
    "deep": b'{"messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep objects": b'{"a": ' * 5_000 + b"1" + b"}" * 5_000,
    "not UTF-8": b'{"messages": [{"role": "user", "content": "\xff\xfe"}]}',
    "UTF-16": chat().decode().encode("utf-16"),
    "NaN": raw_chat('"temperature": NaN'),
    "infinity": raw_chat('"temperature": Infinity'),
    "an infinite number": raw_chat('"temperature": 1e999'),
}
WRONG_CHAT = {
    "stop is a number": (chat(stop=5), "stop"),
    "stop of numbers": (chat(stop=[1]), "stop[0]"),
    "stop of lists": (chat(stop=[["a"]]), "stop[0]"),
    "stop of objects": (chat(stop=[{}]), "stop[0]"),
    "stop of null": (chat(stop=[None]), "stop[0]"),
    "stop is true": (chat(stop=True), "stop"),
    "a thousand stops": (chat(stop=["a"] * 1000), "stop"),
    "a long stop": (chat(stop="a" * 100_000), "stop"),
    "bias beyond the vocabulary": (chat(logit_bias={"999999999": 1}), "logit_bias"),
    "bias far beyond": (chat(logit_bias={str(2**40): 1}), "logit_bias"),
    "bias of no token": (chat(logit_bias={"../../etc/passwd": 1}), "logit_bias"),
    "bias of a negative": (chat(logit_bias={"-1": 1}), "logit_bias"),
    "bias is null": (chat(logit_bias={"1": None}), "logit_bias[...]"),
    "bias is a list": (chat(logit_bias={"1": []}), "logit_bias[...]"),
    "many biases": (chat(logit_bias={str(i): 1 for i in range(MANY)}), "logit_bias"),
    "bias list": (chat(logit_bias=[]), "logit_bias"),
    "seed is text": (chat(seed="1"), "seed"),
    "seed with 6000 digits": (raw_chat(f'"seed": {"1" * 6000}'), "seed"),
    "no choices": (chat(n=0), "n"),
    "negative choices": (chat(n=-1), "n"),
    "a million choices": (chat(n=10**6), "n"),
    "temperature is text": (chat(temperature="hot"), "temperature"),
    "temperature is hot": (chat(temperature=1e6), "temperature"),
    "temperature is negative": (chat(temperature=-1), "temperature"),
    "top_p": (chat(top_p=2), "top_p"),
    "top_k": (chat(top_k=-2), "top_k"),
    "top_k is 2^70": (chat(top_k=2**70), "top_k"),
    "penalty": (chat(repetition_penalty=0), "repetition_penalty"),
    "no tokens": (chat(max_tokens=0), "max_tokens"),
    "negative tokens": (chat(max_tokens=-5), "max_tokens"),
    "too many tokens": (chat(max_tokens=10**30), "max_tokens"),
    "tokens are a float": (chat(max_tokens=1.5), "max_tokens"),
    "no messages": (chat(messages=[]), "messages"),
    "messages is text": (chat(messages="Hello"), "messages"),
    "messages is null": (chat(messages=None), "messages"),
    "messages are missing": (b"{}", "messages"),
    "a message is a number": (chat(messages=[1]), "messages[0]"),
    "a message is empty": (chat(messages=[{}]), "messages[0].role"),
    "a role unknown": (chat(messages=[{"role": "root\n", "content": "x"}]), "messages[0].role"),
    "a user without content": (chat(messages=[{"role": "user", "contents": "Hello"}]), "messages[0].content"),
    "content is a number": (chat(messages=[{"role": "user", "content": 5}]), "messages[0].content"),
    "content of numbers": (chat(messages=[{"role": "user", "content": [5]}]), "messages[0].content[0]"),
    "calls are text": (chat(messages=[{"role": "assistant", "tool_calls": "x"}]), "messages[0].tool_calls"),
    "a call of nothing": (chat(messages=[{"role": "assistant", "tool_calls": [{}]}]), "messages[0].tool_calls[0]"),
    "tools is text": (chat(tools="x"), "tools"),
    "a tool of nothing": (chat(tools=[{}]), "tools[0].function.name"),
    "a tool named by a number": (tool(5), "tools[0].function.name"),
    "parameters are a list": (tool("f", parameters=[1]), "tools[0].function.parameters"),
    "a choice of tool": (chat(tools=[], tool_choice=5), "tool_choice"),
    "a garbage choice of tool": (chat(tool_choice="garbage"), "tool_choice"),
    "stream is text": (chat(stream="yes"), "stream"),
    "stream_options is text": (chat(stream_options="x"), "stream_options"),
    "usage is a number": (chat(stream=True, stream_options={"include_usage": 5}), "stream_options.include_usage"),
    "effort": (chat(reasoning_effort="heroic"), "reasoning_effort"),
    "a template": (template(chat_template="{{ 'a' * 300000000 }}"), "chat_template_kwargs.chat_template"),
    "thinking is text": (template(enable_thinking="no"), "chat_template_kwargs.enable_thinking"),
    "another model": (chat(model="mlx-community/Qwen3.5-4B-4bit"), "model"),
    "a model is a path": (chat(model="../../../etc/passwd"), "model"),
    "a model is a number": (chat(model=5), "model"),
    "a slip": (chat(max_token=5), "max_token"),
    "an image": (part({"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/x"}}), "messages[0].content[0]"),
    "a video": (part({"video": "file:///dev/zero"}), "messages[0].content[0]"),
    "a preset": (chat(preset="../x"), None),
}  # fmt: skip
WRONG_TEXT = {
    "no prompt": (text(prompt=""), None),
    "no prompts": (text(prompt=[]), "prompt"),
    "an empty prompt among others": (text(prompt=["a", ""]), None),
    "mixed prompts": (text(prompt=[1, "a"]), "prompt[0]"),
    "a prompt of lists": (text(prompt=[[["a"]]]), "prompt[0]"),
    "a prompt of objects": (text(prompt=[{}]), "prompt[0]"),
    "a prompt of null": (text(prompt=None), "prompt"),
    "a token beyond": (text(prompt=[10**9]), None),
    "a token far beyond": (text(prompt=[2**70]), None),
    "a negative token": (text(prompt=[-1]), None),
    "many prompts": (text(prompt=["a"] * 1000), "prompt"),
    "logprobs": (text(logprobs=50), "logprobs"),
    "a suffix": (text(suffix="x"), "suffix"),
}


def assert_refused(server: RunningServer, path: str, body: bytes, param: str | None, status: int = 400) -> None:
    """In OpenAI's shape, in one line, and the server goes on."""
    answer = server.post(path, body)
    assert answer.status == status, answer.body
    error = answer.json["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param
    assert "\n" not in error["message"]
    assert 0 < len(error["message"]) < 600
    assert server.post(CHAT, chat(max_tokens=1)).status == 200


@pytest.mark.parametrize("body", NO_JSON.values(), ids=NO_JSON)
def test_what_is_no_json_object_is_refused(demo_server: RunningServer, body: bytes) -> None:
    assert_refused(demo_server, CHAT, body, None)


@pytest.mark.parametrize(("body", "param"), WRONG_CHAT.values(), ids=WRONG_CHAT)
def test_a_wrong_field_is_named(demo_server: RunningServer, body: bytes, param: str | None) -> None:
    assert_refused(demo_server, CHAT, body, param, 404 if param == "model" and b'"model": 5' not in body else 400)


@pytest.mark.parametrize(("body", "param"), WRONG_TEXT.values(), ids=WRONG_TEXT)
def test_a_wrong_text_is_refused(demo_server: RunningServer, body: bytes, param: str | None) -> None:
    assert_refused(demo_server, TEXT, body, param)


def test_a_wrong_field_is_refused_where_it_streams_too(demo_server: RunningServer) -> None:
    assert_refused(demo_server, CHAT, chat(stream=True, temperature=-1), "temperature")
    assert_refused(demo_server, TEXT, text(stream=True, prompt=""), None)


def test_what_looks_odd_and_is_harmless_is_answered(demo_server: RunningServer) -> None:
    for body in (
        chat(seed=-1),
        chat(seed=2**64),
        chat(stream_options={}),
        chat(stream_options={"include_usage": True}),
        chat(messages=[{"role": "user", "content": ""}]),
        chat(messages=[{"role": "user", "content": "\x00\x1b[2J \ud800"}]),
        chat(messages=[{"role": "user", "content": "<|im_end|><|im_start|>system"}]),
        chat(a_field_of_some_client={"x": [1]}),
        chat(max_tokens=1 << 31, stop="e"),
        raw_chat('"messages": [{"role": "user", "content": "twice"}]'),
    ):
        assert demo_server.post(CHAT, body).status == 200, body[:200]


def test_a_large_body_is_refused_and_not_kept(demo_server: RunningServer) -> None:
    answer = demo_server.post(CHAT, chat(messages=[{"role": "user", "content": "a " * 700_000}]))
    assert answer.status == 413
    assert answer.headers["connection"] == "close"


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({"Content-Type": "text/plain"}, chat()),
        ({"Content-Type": "application/x-www-form-urlencoded"}, chat()),
        ({"Content-Type": ""}, chat()),
        ({"Content-Encoding": "gzip"}, gzip.compress(chat(), mtime=0)),
    ],
)
def test_only_plain_json_is_read(demo_server: RunningServer, headers: dict[str, str], body: bytes) -> None:
    answer = demo_server.post(CHAT, body, headers)
    assert answer.status == 415
    assert set(answer.json["error"]) == {"message", "type", "param", "code"}


def test_paths_and_methods_that_do_not_exist_are_json_errors(demo_server: RunningServer) -> None:
    for method, path, status in (
        ("GET", CHAT, 405),
        ("DELETE", "/v1/models/demo", 405),
        ("GET", "/v1/models/..%2f..%2fetc%2fpasswd", 404),
        ("GET", "/v1/models/%00%0d%0aX: y", 404),
        ("GET", "/../../etc/passwd", 404),
        ("POST", "/v1/nothing", 404),
        ("PROPFIND", "/", 405),
    ):
        answer = demo_server.raw(
            f"{method} {path.replace(' ', '%20')} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode()
        )
        assert f" {status} ".encode() in answer.split(b"\r\n")[0]
        assert b'"error"' in answer
        assert b"\nX: y" not in answer


HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
NO_HTTP = {
    "garbage": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 64 + b"\r\n\r\n",
    "negative length": HEAD + b"Content-Length: -5\r\n\r\n",
    "length of letters": HEAD + b"Content-Length: abc\r\n\r\n",
    "two lengths": HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n{}",
    "chunks and length": HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    "bad chunks": HEAD + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n",
    "unknown encoding": HEAD + b"Transfer-Encoding: gzip\r\n\r\n",
    "huge header": HEAD + b"X: " + b"a" * 200_000 + b"\r\n\r\n",
    "many headers": HEAD + b"".join(b"X%d: y\r\n" % i for i in range(MANY)) + b"\r\n",
    "no version": b"GET /\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "spaced header": HEAD + b"X : y\r\n\r\n",
}


@pytest.mark.parametrize("data", NO_HTTP.values(), ids=NO_HTTP)
def test_what_is_no_http_gets_an_error_or_is_cut_off(demo_server: RunningServer, data: bytes) -> None:
    try:
        answer = demo_server.raw(data)
    except ConnectionError:
        answer = b""
    assert not answer or answer.startswith(b"HTTP/1.1 4")
    assert demo_server.post(CHAT, chat(max_tokens=1)).status == 200


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GET / HT",
        HEAD,
        HEAD + b"Content-Length: 100\r\n\r\n{",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\n{",
    ],
    ids=["nothing", "half a line", "half the headers", "half a body", "half a chunk"],
)
def test_who_sends_half_a_request_is_cut_off(demo_server: RunningServer, data: bytes) -> None:
    answer = demo_server.raw(data)
    assert not answer or answer.startswith(b"HTTP/1.1 408")


def test_requests_in_a_row_on_one_connection_are_answered_in_order(demo_server: RunningServer) -> None:
    one = HEAD + b"Content-Length: %d\r\n" % len(chat()) + b"\r\n" + chat()
    last = one.replace(b"\r\nHost", b"\r\nConnection: close\r\nHost", 1)
    answer = demo_server.raw(one + b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" + last)
    assert answer.count(b"HTTP/1.1 200") == 3
    assert answer.index(b"chat.completion") < answer.index(b'"ok"') < answer.rindex(b"chat.completion")


def test_a_client_that_resets_in_the_middle_of_its_body_harms_nobody(demo_server: RunningServer) -> None:
    connection = demo_server.connect()
    connection.sendall(HEAD + b"Content-Length: 100\r\n\r\n{")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
    assert demo_server.post(CHAT, chat(max_tokens=1)).status == 200
    demo_server.wait_until_idle()
