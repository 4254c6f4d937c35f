"""A template is a program from a download. None of these may take memory, take long, or reach Python."""

from __future__ import annotations

import threading

import pytest

from mlx_qwen35.chat import metering
from mlx_qwen35.chat.template import ChatTemplate
from mlx_qwen35.errors import CheckpointError, RequestError
from tests.chat.conversations import PRESENT, user

GROW = "{% set ns = namespace(x='aaaaaaaaaa') %}{% for i in range(60) %}STEP{% endfor %}{{ ns.x|length }}"
HUGE = {
    "text times number": "{{ 'a' * 300000000 }}",
    "number times text": "{{ 300000000 * 'a' }}",
    "list times number": "{{ [1] * 1000000000 }}",
    "list of lists": "{{ range(100000)|list * 100000 }}",
    "doubled by ~": GROW.replace("STEP", "{% set ns.x = ns.x ~ ns.x %}"),
    "doubled by +": GROW.replace("STEP", "{% set ns.x = ns.x + ns.x %}"),
    "doubled by a block": GROW.replace("STEP", "{% set x %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = x %}"),
    "doubled by join": GROW.replace("STEP", "{% set ns.x = [ns.x, ns.x]|join %}"),
    "doubled by replace": GROW.replace("STEP", "{% set ns.x = ns.x.replace('a', 'aa') %}"),
    "doubled by a filter": GROW.replace("STEP", "{% set ns.x = ns.x|replace('a', 'aa') %}"),
    "doubled list": GROW.replace("STEP", "{% set ns.x = [ns.x, ns.x] %}"),
    "doubled dict": GROW.replace("STEP", "{% set ns.x = {'a': ns.x, 'b': ns.x} %}"),
    "doubled views": GROW.replace("STEP", "{% set ns.x = {'a': [ns.x, ns.x]}.items() %}"),
    "doubled values": GROW.replace("STEP", "{% set ns.x = [{'a': ns.x}.values(), {'b': ns.x}.values()] %}"),
    "squared": GROW.replace("STEP", "{% set ns.x = (ns.x|length if loop.first else ns.x) * 12345678 %}") * 100,
    "power": "{{ 2 ** 1000000000 }}",
    "characters": "{{ ('a' * 30000000)|list|length }}",
    "words": "{{ ('a ' * 15000000).split()|length }}",
    "separator": "{{ ('a' * 1000000)|list|join('b' * 1000000) }}",
    "replacement": "{{ 'aaaa'.replace('', 'b' * 1000000).replace('', 'b' * 1000000) }}",
    "padding": "{{ 'a'.ljust(1000000000) }}",
    "format %": "{{ '%999999999d' % 1 }}",
    "format method": "{{ '{:999999999}'.format(1) }}",
    "bytes": "{{ (1).to_bytes(1000000000) }}",
    "date": "{{ strftime_now('%999999999d') }}",
    "indent": "{{ [[[1]]]|tojson(indent=1000000000) }}",
    "range": "{{ range(1000000000)|list }}",
}
ENDLESS = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}"
    "{% endfor %}{% endfor %}{% endfor %}",
    "loops that reject": "{% for a in range(99999) %}{% for b in range(99999) if false %}{% endfor %}{% endfor %}",
    "turns that are all rejected": "{% for a in range(99999) if false %}{% endfor %}" * 50,
    "macros": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "recursive loop": "{% for a in range(9) recursive %}{{ loop(range(9)) }}{% endfor %}",
    "comparison": "{% set x = ['a' * 99999] * 99 %}{% for i in range(99999) %}{{ x == x|list }}{% endfor %}",
}
ESCAPES = {
    "class": "{{ ''.__class__ }}",
    "class by index": "{{ ''['__class__'] }}",
    "subclasses": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ cycler.__init__.__globals__ }}",
    "function": "{{ raise_exception.__globals__ }}",
    "by format": "{{ '{0.__class__}'.format(1) }}",
    "by map": "{{ ['a']|map(attribute='__class__')|list }}",
    "macro": "{% macro f() %}{% endmacro %}{{ f._func }}",
    "self": "{{ self.__init__ }}",
    "namespace": "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
    "change": "{{ messages.append(1) }}",
    "attr filter": "{{ messages|attr('append') }}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}",
    "environment": "{{ made.__self__.x }}",
}
ALL = {**HUGE, **ENDLESS, **ESCAPES}


@pytest.mark.parametrize("source", ALL.values(), ids=ALL)
@pytest.mark.timeout(60)  # minutes of work or gigabytes, unless stopped; the counted limits end each within seconds
def test_a_hostile_template_ends_in_one_line(source: str) -> None:
    with pytest.raises((RequestError, CheckpointError)) as refusal:
        ChatTemplate(source).render([user("Hi")])
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 400


@pytest.mark.parametrize("source", ["{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "{% if 1 %}" * 500, "x" * 200_000])
def test_a_template_that_breaks_the_compiler_is_one_line(source: str) -> None:
    with pytest.raises(CheckpointError) as refusal:
        ChatTemplate(source)
    assert "\n" not in str(refusal.value)


def test_the_limits_hold_on_other_threads() -> None:
    found: list[Exception] = []

    def render() -> None:
        try:
            ChatTemplate(ENDLESS["loops"]).render([user("Hi")])
        except RequestError as error:
            found.append(error)

    threads = [threading.Thread(target=render) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert len(found) == 2


def test_the_time_limit_stops_what_the_step_limit_would_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metering, "MAX_SECONDS", 0.0)
    with pytest.raises(RequestError, match="seconds"):
        ChatTemplate("{% for i in range(1000) %}{% endfor %}").render([user("Hi")])


def test_one_stopped_rendering_leaves_the_next_alone() -> None:
    template = ChatTemplate("{% for i in range(messages[0].content|length) %}{{ 'a' * 40000 }}{% endfor %}")
    with pytest.raises(RequestError):
        template.render([user("x" * 2000)])
    assert template.render([user("xx")]) == "a" * 80000


def test_a_long_chat_stays_within_the_limits() -> None:
    # 4,000 messages and 8 million characters: more than the longest context holds.
    chat = [user("x" * 2000) if i % 2 == 0 else {"role": "assistant", "content": "y" * 2000} for i in range(4001)]
    for source in PRESENT.values():
        assert len(ChatTemplate(source).render(chat)) > 8_000_000


def test_a_message_of_hostile_shape_is_one_line() -> None:
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    call = {"function": {"name": "f", "arguments": {"a": deep}}}
    with pytest.raises(RequestError) as refusal:
        ChatTemplate("{{ messages|tojson }}").render([{"role": "assistant", "content": "", "tool_calls": [call]}])
    assert "nested too deeply" in str(refusal.value)
    # The interpreter would free the chain recursively; take it apart instead.
    while deep:
        deep = deep.pop()
