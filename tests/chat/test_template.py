"""The rendered prompt is the model's input: any byte that differs from the reference is another input."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from mlx_qwen35.chat.messages import normalise_messages, normalise_tools
from mlx_qwen35.chat.template import ChatTemplate
from mlx_qwen35.errors import CheckpointError, RequestError
from tests.chat.conversations import CASES, PART_CASES, PRESENT, REFUSED, TEMPLATES, Case, user

utils = pytest.importorskip("transformers.utils.chat_template_utils", reason="RENDERING NOT TESTED: no transformers")
COMPILED = {name: ChatTemplate(source) for name, source in PRESENT.items()}


@pytest.fixture(params=list(TEMPLATES))
def name(request: pytest.FixtureRequest) -> str:
    if request.param not in PRESENT:
        pytest.skip(f"REAL TEMPLATE NOT TESTED: {TEMPLATES[request.param]} is absent")
    return request.param


def reference(name: str, case: Case) -> str:
    messages, tools, options = copy.deepcopy(case)
    options = {"add_generation_prompt": True} | options
    return utils.render_jinja_template([messages], tools=tools, chat_template=PRESENT[name], **options)[0][0]


def test_there_are_enough_cases() -> None:
    assert len(CASES) >= 40


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_rendering_equals_transformers(name: str, case: Case) -> None:
    messages, tools, options = case
    assert COMPILED[name].render(messages, tools, **options) == reference(name, case)


@pytest.mark.parametrize("case", [*CASES.values(), *PART_CASES.values()], ids=[*CASES, *PART_CASES])
def test_normalising_does_not_change_what_transformers_renders(name: str, case: Case) -> None:
    if name == "tests" and case in PART_CASES.values():
        pytest.skip("the tests' own template takes text only")
    before = copy.deepcopy(case)
    messages, tools, options = case
    rendered = COMPILED[name].render(normalise_messages(messages), normalise_tools(tools), **options)
    assert rendered == reference(name, case)
    assert case == before  # nothing changed its input


@pytest.mark.parametrize("messages", REFUSED.values(), ids=REFUSED)
def test_a_refusal_of_the_template_is_one_line(name: str, messages: list[dict]) -> None:
    with pytest.raises(Exception):  # noqa: B017 - jinja's, whichever
        reference(name, (messages, None, {}))
    with pytest.raises(RequestError) as refusal:
        COMPILED[name].render(messages)
    assert "\n" not in str(refusal.value)


def test_thinking_by_default_follows_the_template() -> None:
    expected = {"tests": True, "demo": False, "9b": True, "0.8b": False}
    found = {name: template.thinking_by_default for name, template in COMPILED.items()}
    assert found == {name: expected[name] for name in PRESENT}


def test_an_open_think_block_is_seen_and_not_mistaken(name: str) -> None:
    template = COMPILED[name]
    # The message holds an open tag of its own, which is not the answer's.
    messages = [user("what is <think> for")]
    assert template.opens_thinking(template.render(messages, enable_thinking=True))
    assert not template.opens_thinking(template.render(messages, enable_thinking=False))
    assert not template.opens_thinking(template.render(messages, add_generation_prompt=False))


@pytest.mark.parametrize("option", ["chat_template", "documents", "eos_token", "namespace", "self", "messages"])
def test_a_request_cannot_replace_what_is_not_its_own(option: str) -> None:
    options: dict[str, Any] = {option: "{{ 1 }}"}
    with pytest.raises(RequestError, match=option):
        COMPILED["tests"].render([user("Hi")], **options)


def test_an_option_is_a_plain_value() -> None:
    with pytest.raises(RequestError, match="reasoning_effort"):
        COMPILED["tests"].render([user("Hi")], reasoning_effort=["high"])


def write(folder: Path, file: str, value: object) -> None:
    (folder / file).write_text(value if isinstance(value, str) else json.dumps(value))


def test_the_places_of_a_template_in_their_order(tmp_path: Path) -> None:
    config = {"chat_template": "config {{ bos_token }}{{ eos_token }}", "bos_token": {"content": "B"}, "eos_token": "E"}
    write(tmp_path, "tokenizer_config.json", config)
    assert ChatTemplate.from_folder(tmp_path).render([user("Hi")]) == "config BE"
    write(tmp_path, "chat_template.json", {"chat_template": "json"})
    assert ChatTemplate.from_folder(tmp_path).render([user("Hi")]) == "json"
    write(tmp_path, "chat_template.jinja", "jinja {{ eos_token }}")
    assert ChatTemplate.from_folder(tmp_path).render([user("Hi")]) == "jinja E"


def test_named_templates_are_chosen_by_the_request(tmp_path: Path) -> None:
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]
    write(tmp_path, "tokenizer_config.json", {"chat_template": named})
    template = ChatTemplate.from_folder(tmp_path)
    assert template.render([user("Hi")]) == "plain"
    assert template.render([user("Hi")], tools=[{"name": "f"}]) == "tools"


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("other", ""),
        ("tokenizer_config.json", "{"),
        ("tokenizer_config.json", "[]"),
        ("tokenizer_config.json", '{"chat_template": [{"name": "other", "template": "x"}]}'),
        ("chat_template.jinja", "{% if %}"),
        ("chat_template.jinja", "{{ x|no_such_filter }}"),
    ],
)
def test_a_folder_without_a_usable_template_is_one_line(tmp_path: Path, file: str, text: str) -> None:
    write(tmp_path, file, text)
    with pytest.raises(CheckpointError) as refusal:
        ChatTemplate.from_folder(tmp_path)
    assert "\n" not in str(refusal.value)


LANGUAGE = [
    "  {% if 1 %}\n  a\n  {% endif %}\n\n{{ 'x' }}\n",  # trim_blocks and lstrip_blocks
    "{% for i in range(9) %}{% if i == 2 %}{% continue %}{% endif %}{% if i == 5 %}{% break %}{% endif %}{{ i }}"
    "{% endfor %}",
    "{% generation %}{% set x = 1 %}{{ x }}{% endgeneration %}{{ x is defined }}",
    "{{ messages|tojson(indent=2) }}",
    "{{ messages|tojson(separators=(',', ':'), sort_keys=true, ensure_ascii=true) }}",
    "{{ strftime_now('%Y-%m') }}",
    "{{ [1, 2.0, none, true, 'a', {'b': (1, 2)}] }}{{ 1 ~ none ~ [1] ~ '<' }}{{ '<'|tojson|safe ~ '&' }}",
    "{{ 'abc'[1:] }}{{ [1, 2, 3][::-1] }}{{ messages[0]['content'][:2] }}{{ 'a' * 3 }}{{ [0] * 2 + [1] }}",
    "{{ 7 // 2 }}{{ 7 / 2 }}{{ 7 % 4 }}{{ 2 ** 10 }}{{ -3 * 2 }}{{ 'b' in ['a', 'b'] }}{{ 1 < 2 < 3 }}",
    "{{ ['b', 'a']|sort|join(', ') }}{{ messages|map(attribute='role')|list }}{{ [1, 1]|unique|list|length }}",
    "{{ messages|selectattr('role', 'equalto', 'user')|list|length }}{{ ' a '|trim }}{{ 'aab'|replace('a', 'x', 1) }}",
    "{% set ns = namespace(a=1) %}{% for i in range(3) %}{% set ns.a = ns.a + i %}{% endfor %}{{ ns.a }}",
    "{% macro m(a, b='x') %}[{{ a }}{{ b }}{{ caller() if caller else '' }}]{% endmacro %}"
    "{{ m(1) }}{% call m(2) %}c{% endcall %}",
    "{% set x %}a{{ 1 }}{% endset %}{{ x|upper }}{% filter upper %}b{% endfilter %}{{ missing }}{{ no is defined }}",
    "{{ dict(a=1)|tojson }}{{ {'a': 1}.items()|list }}{{ {'a': 2}.get('a') }}",
    "{{ 'a,b'.split(',') }}{{ '-'.join(['a', 'b']) }}{{ 'aba'.replace('a', 'c') }}{{ 'x'.startswith('x') }}",
    "{% for a, b in [(1, 2), (3, 4)] recursive %}{{ loop.index }}{{ a }}{{ loop([]) }}{% else %}e{% endfor %}",
]


@pytest.mark.parametrize("source", LANGUAGE)
def test_the_language_is_transformers(source: str) -> None:
    messages = [user("Häl<lo>"), user("b")]
    expected = utils.render_jinja_template([messages], chat_template=source, add_generation_prompt=True)[0][0]
    assert ChatTemplate(source).render(messages) == expected
