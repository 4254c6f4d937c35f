"""The rendered prompt is the model's input: any byte that differs from the reference is another input."""

from __future__ import annotations

import copy
import json
from pathlib import Path

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


@pytest.mark.parametrize("option", ["chat_template", "documents", "eos_token", "namespace", "self"])
def test_a_request_cannot_replace_what_is_not_its_own(option: str) -> None:
    with pytest.raises((RequestError, TypeError), match=option):
        COMPILED["tests"].render([user("Hi")], **{option: "{{ 1 }}"})


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
