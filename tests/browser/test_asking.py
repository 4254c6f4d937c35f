"""What the page's settings do to a request: exactly the prompt and the sampling that the model card documents."""

from __future__ import annotations

import json
from typing import Any

from tests.browser.page import ChatPage
from tests.browser.running import App

GREEDY = {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "presence_penalty": 0.0}
REST = {"frequency_penalty": 0.0, "repetition_penalty": 1.0}
# Written out from the model card ("Best Practices"), by the page's labels: sampling, and whether it is for thinking.
CARD = {
    "General, thinking": {"temperature": 1.0, "top_p": 0.95, "top_k": 20, "min_p": 0.0, "presence_penalty": 1.5},
    "Coding, thinking": {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 0.0, "presence_penalty": 0.0},
    "General, not thinking": {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "min_p": 0.0, "presence_penalty": 1.5},
    "Reasoning, not thinking": {"temperature": 1.0, "top_p": 1.0, "top_k": 40, "min_p": 0.0, "presence_penalty": 2.0},
}
ASKED = "<|im_start|>user\nSay: yes<|im_end|>\n<|im_start|>assistant\n<think>\n"


def fresh(chat: ChatPage) -> None:
    """Another chat with the same settings."""
    chat.part("new-chat").click()
    chat.questions.first.wait_for(state="detached")


def asked_with(chat: ChatPage, app: App) -> dict[str, Any]:
    """Ask in a new chat; the request."""
    fresh(chat)
    chat.ask("Say: yes")
    return app.requests()[-1]


def test_thinking_and_presets_change_exactly_what_the_card_says(chat: ChatPage, app: App) -> None:
    chat.ask("Say: yes")
    plain = app.requests()[-1]
    assert plain["prompt"] == f"{ASKED}\n</think>\n\n"
    assert plain["sampling"] == {**GREEDY, **REST}, "the demo asks for greedy decoding itself"
    chat.think(True)
    thinking = asked_with(chat, app)
    assert thinking["prompt"] == ASKED
    changed = {name for name in plain if plain[name] != thinking[name]}
    assert changed == {"prompt", "thinking"}
    chat.settings()
    for label, numbers in CARD.items():
        chat.choose("preset", label)
        chat.wait_for_value("temperature", numbers["temperature"])
        chat.wait_for_value("presence_penalty", numbers["presence_penalty"])
        request = asked_with(chat, app)
        assert request["sampling"] == {**numbers, **REST}, label
        assert request["prompt"] == ASKED, "a preset changed the prompt"
        assert {name for name in thinking if thinking[name] != request[name]} == {"sampling", "preset"}
    chat.choose("preset", "Automatic")
    chat.wait_for_value("temperature", 0)
    assert asked_with(chat, app) == thinking


def test_a_number_that_is_changed_is_the_only_one_that_changes(chat: ChatPage, app: App) -> None:
    chat.settings()
    chat.choose("preset", "Coding, thinking")
    chat.wait_for_value("temperature", 0.6)
    chat.fill("temperature", "0.3")
    chat.ask("Say: yes")
    assert app.requests()[-1]["sampling"] == {**CARD["Coding, thinking"], "temperature": 0.3, **REST}
    chat.fill("system", "Be kind.")
    request = asked_with(chat, app)
    assert request["prompt"] == f"<|im_start|>system\nBe kind.<|im_end|>\n{ASKED}\n</think>\n\n"
    assert request["sampling"]["temperature"] == 0.3


def test_a_thinking_budget_ends_the_thoughts(chat: ChatPage, app: App) -> None:
    chat.think(True)
    chat.settings()
    chat.field("thinking_budget").fill("256")
    chat.field("thinking_budget").blur()
    chat.part("thinking_budget").locator("input[type=number]").fill("256")
    chat.part("thinking_budget").locator("input[type=number]").press("Tab")
    chat.ask("What is 12 plus 30?")
    assert app.requests()[-1]["budget"] == 256


def test_json_mode_gives_an_answer_of_the_schema_and_shows_its_value(chat: ChatPage, app: App) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "maximum": 99}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    chat.settings()
    chat.part("as_json").locator("input").check()
    chat.field("schema").fill(json.dumps(schema))
    chat.ask("Ada is 36 years old.")
    assert app.requests()[-1]["response_format"]["json_schema"]["schema"] == schema
    chat.folded.filter(has_text="Parsed JSON").wait_for()
    written = json.loads(chat.answers.first.locator("code").inner_text())
    assert set(written) == {"name", "age"}
    assert isinstance(written["age"], int)
    # A schema that is none costs a line and no question.
    asked = len(app.requests())
    chat.field("schema").fill('{"type": ')
    chat.question.fill("Another")
    chat.question.press("Enter")
    chat.status.get_by_text("not JSON").wait_for()
    assert chat.question.input_value() == "Another"
    assert len(app.requests()) == asked
