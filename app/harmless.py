"""Text that a model or a person wrote, made so that showing it as Markdown loads and runs nothing.

Gradio sanitises, and the page's content policy refuses what comes from elsewhere; this is the layer before both, and
it shows what was written instead of dropping it. Code blocks stay as they are: nothing in them is markup.
"""

from __future__ import annotations

import re

# What stays markup in an answer: these, without attributes.
_PLAIN_TAGS = r"/?(?:br|sub|sup|kbd|b|i|em|strong|u|s|mark)\s*/?>"
_TAG = re.compile(rf"<(?=[A-Za-z/!?])(?!{_PLAIN_TAGS})", re.IGNORECASE)
_IN_MATH = re.compile(r"<(?=/?[A-Za-z][A-Za-z0-9:-]*[\s/>])|<(?=[!?])")
_IMAGE = re.compile(r"!(?=\[)")
_CODE = re.compile(
    r"(?m)(^ {0,3}(?P<fence>`{3,}|~{3,})[\s\S]*?(?:^ {0,3}(?P=fence)|\Z)|(?P<ticks>`+)[^`]+(?P=ticks)(?!`))"
)
_MATH = re.compile(r"(\$\$[\s\S]*?\$\$|\$[^$\n]+\$|\\\[[\s\S]*?\\\]|\\\(.*?\\\))")
JOINER = "\u2060"  # WORD JOINER: unseen, and no name of a tag begins with it


def answered(text: str) -> str:
    """What a model wrote. Tags are shown as they stand, an image becomes a link to it."""
    pieces, end = [], 0
    for code in _CODE.finditer(text):
        pieces += [_prose(text[end : code.start()]), code[0]]
        end = code.end()
    return "".join([*pieces, _prose(text[end:])])


def asked(text: str) -> str:
    """What a person wrote, so that it comes back whole (`as_typed`) when they edit it."""
    return re.sub(r"<(?=[A-Za-z/!?])|!(?=\[)", lambda found: found[0] + JOINER, text)


def as_typed(text: str) -> str:
    """The inverse of `asked`."""
    return text.replace(JOINER, "")


def plain(text: str) -> str:
    """Text that Markdown shows as it is."""
    return re.sub(r"([\\`*_\[\]<>$|~#!])", r"\\\1", text)


def _prose(text: str) -> str:
    pieces, end = [], 0
    for math in _MATH.finditer(text):
        pieces += [_escaped(text[end : math.start()]), _IN_MATH.sub("&lt;", math[0])]
        end = math.end()
    return "".join([*pieces, _escaped(text[end:])])


def _escaped(text: str) -> str:
    return _IMAGE.sub("&#33;", _TAG.sub("&lt;", text))
