"""What a template may use while it renders: filters, functions and text methods, each paid for before it can grow.

Set up as transformers sets them up. Knows nothing of jinja's syntax; that is sandbox.py.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2.exceptions import SecurityError
from jinja2.utils import Namespace

from mlx_qwen35.chat.metering import MAX_INTEGER_BITS, OBJECT_COST, LimitError, Meter, size

METER: ContextVar[Meter] = ContextVar("meter")


def running_meter() -> Meter:
    """The running rendering's meter. Outside one (jinja folds constants while compiling) there is no budget."""
    try:
        return METER.get()
    except LookupError:
        raise LimitError("not while compiling") from None


class TemplateDict:
    """`dict` without the class behind it, so that no attribute of the class is reachable."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, keys: Iterable[Any], value: Any = None) -> dict[Any, Any]:
        return dict.fromkeys(keys, value)


class TemplateNamespace(Namespace):
    """A namespace can be changed after it was put into a list, so its printed form must not follow its contents."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, args = args[0], args[1:]
        values = dict(*args, **kwargs)
        for name in values:
            _require_plain_name(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _require_plain_name(name)
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<Namespace>"


def _require_plain_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace cannot hold {name!r}")


def concat(pieces: Iterable[str]) -> str:
    meter = METER.get(None)
    if meter is None:
        return "".join(pieces)
    kept: list[str] = []
    for piece in pieces:
        meter.step()
        meter.pay(len(piece))
        kept.append(piece)
    return "".join(kept)


def metered_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    first = 1 if hasattr(function, "jinja_pass_arg") else 0

    @functools.wraps(function)
    def metered(*args: Any, **kwargs: Any) -> Any:
        meter = running_meter()
        meter.step()
        arguments = list(args)
        value = arguments[first]
        if name == "list" and isinstance(value, str):
            meter.pay(OBJECT_COST * len(value))
        elif name == "join":
            arguments[first] = items = list(value)
            separator = kwargs.get("d", args[first + 1] if len(args) > first + 1 else "")
            meter.pay(len(str(separator)) * len(items) + size(items, limit=1 << 62))
        return meter.made(function(*arguments, **kwargs))

    return metered


def prepay_operator(meter: Meter, operator: str, left: Any, right: Any) -> None:
    if operator == "%" and isinstance(left, str):
        raise SecurityError("formatting text with % is not allowed")
    if operator in ("*", "**"):
        if isinstance(left, int) and isinstance(right, int):
            times = abs(right) if operator == "**" else 1
            bits = left.bit_length() * times + (right.bit_length() if operator == "*" else 0)
            if bits > MAX_INTEGER_BITS:
                raise LimitError("it makes an integer of too many digits")
        else:
            sequence, count = (right, left) if isinstance(left, int) else (left, right)
            if isinstance(count, int) and count > 0 and not isinstance(sequence, float):
                meter.pay(size(sequence, limit=1 << 62) * count)
    elif operator == "+" and isinstance(left, (str, list, tuple)):
        meter.pay(len(left))


def prepay_text_method(meter: Meter, text: str, name: str, args: tuple[Any, ...]) -> None:
    if name in ("split", "rsplit", "splitlines"):
        separator = args[0] if args and isinstance(args[0], str) and args[0] else None
        pieces = text.count(separator) if name != "splitlines" and separator else len(text) // 2
        meter.pay(OBJECT_COST * (pieces + 1))
    elif name == "replace" and len(args) >= 2 and isinstance(args[0], str) and isinstance(args[1], str):
        meter.pay(len(text) + text.count(args[0]) * len(args[1]))
    elif name == "join" and args:
        if not isinstance(args[0], (str, list, tuple, dict)):
            raise SecurityError("join takes a list here")
        meter.pay(len(text) * len(args[0]) + size(args[0], limit=1 << 62))


def replace(text: Any, old: Any, new: Any, count: int | None = None) -> str:
    text, old, new = str(text), str(old), str(new)
    running_meter().pay(len(text) + text.count(old) * len(new))
    return text.replace(old, new, -1 if count is None else count)


def tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """json.dumps without jinja's HTML escapes; counted piece by piece, since indentation multiplies."""
    if isinstance(indent, str) or (isinstance(indent, int) and indent > 16):
        raise LimitError("it indents JSON by more than 16")
    if separators is not None and any(len(separator) > 8 for separator in separators):
        raise LimitError("it separates JSON by more than 8 characters")
    encoder = json.JSONEncoder(
        ensure_ascii=bool(ensure_ascii), indent=indent, separators=separators, sort_keys=bool(sort_keys)
    )
    meter = running_meter()
    meter.pay(size(value, limit=1 << 62))
    return concat(encoder.iterencode(value))


def raise_exception(message: Any) -> NoReturn:
    raise jinja2.TemplateError(str(message)[:1000])


def strftime_now(form: str) -> str:
    if len(form) > 64 or any(char.isdigit() for char in form):
        raise SecurityError("a date format holds no digits and at most 64 characters")
    return datetime.now().strftime(form)
