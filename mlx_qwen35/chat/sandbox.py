"""Runs a downloaded jinja template: jinja2's immutable sandbox, set up as transformers does, with bounded cost.

The sandbox alone keeps a template from Python's internals, not from `'a' * 300000000` or nested loops. So the parsed
template is changed to report every loop turn and every value it builds to a `Meter`, operators and calls are
intercepted, and only filters and methods of known cost exist. Knows nothing of messages; that is template.py.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import BlockReference, Context, LoopContext, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Cycler, Joiner, Namespace
from jinja2.visitor import NodeTransformer

from mlx_qwen35.chat.metering import MAX_INTEGER_BITS, OBJECT_COST, LimitError, Meter, plain_data, size

# The family's templates have under 10,000; compiling takes time in proportion.
MAX_TEMPLATE_CHARS = 128 * 1024
FILTER_NAMES = (
    "abs capitalize count d default dictsort e escape first float int items join last length list lower map max min "
    "reject rejectattr replace reverse safe select selectattr sort string title tojson trim unique upper"
)
TEXT_METHOD_NAMES = (
    "capitalize casefold count endswith find index isalnum isalpha isascii isdecimal isdigit islower isnumeric "
    "isspace istitle isupper join lower lstrip partition removeprefix removesuffix replace rfind rindex "
    "rpartition rsplit rstrip split splitlines startswith strip swapcase title upper"
)
# By the type they belong to. The methods of text that make more than they are given are paid for in advance.
METHODS: tuple[tuple[type, frozenset[str]], ...] = (
    (str, frozenset(TEXT_METHOD_NAMES.split())),
    (dict, frozenset(("get", "items", "keys", "values"))),
    (list, frozenset(("count", "index"))),
    (tuple, frozenset(("count", "index"))),
    (LoopContext, frozenset(("cycle", "changed"))),
    (Cycler, frozenset(("next", "reset"))),
)

_METER: ContextVar[Meter] = ContextVar("meter")


def _meter() -> Meter:
    """The running rendering's meter. Outside one (jinja folds constants while compiling) there is no budget."""
    try:
        return _METER.get()
    except LookupError:
        raise LimitError("not while compiling") from None


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """The environment every template is compiled in; one is enough for all, the cost is counted per rendering."""

    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "**", "%"))

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, loopcontrols], finalize=self._printed
        )
        own = {"tojson": _tojson, "replace": _replace}
        self.filters = {name: _metered_filter(name, own.get(name, self.filters[name])) for name in FILTER_NAMES.split()}
        self.globals = {
            "range": self.globals["range"],  # the sandbox's own: at most 100,000
            "dict": _TemplateDict(),
            "namespace": _TemplateNamespace,
            "cycler": Cycler,
            "joiner": Joiner,
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
        }
        self._callable = tuple(self.globals.values())
        self.concat = _concat

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        return _Reporting(self).visit(super()._parse(source, name, filename))

    # What the changed template calls in place of plain Python.

    def turn(self) -> None:
        _meter().step()

    def tested(self, condition: Any) -> Any:
        _meter().step()
        return condition

    def made(self, value: Any) -> Any:
        return _meter().made(value)

    def joined(self, *values: Any) -> str:
        meter = _meter()
        for value in values:
            meter.made(value)
        return "".join(map(str, values))

    def sliced(self, value: Any, start: Any, stop: Any, step: Any) -> Any:
        return _meter().made(value[start:stop:step])

    def _printed(self, value: Any) -> Any:
        meter = _METER.get(None)
        return value if meter is None else meter.made(value)

    # What the sandbox asks.

    def unsafe_undefined(self, obj: Any, attribute: str) -> NoReturn:
        raise SecurityError(f"access to {attribute!r} is not allowed")

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        meter = _meter()
        _prepay_operator(meter, operator, left, right)
        return meter.made(super().call_binop(context, operator, left, right))

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        owner = getattr(__obj, "__self__", None)
        if owner is __self:
            return __obj(*args)  # without the loop variables that jinja passes along for its own functions
        meter = _meter()
        meter.step()
        if not __self._may_call(__obj, owner):
            name = getattr(__obj, "__name__", type(__obj).__name__)
            raise SecurityError(f"calling {name!r} is not allowed")
        if isinstance(owner, str):
            _prepay_text_method(meter, owner, __obj.__name__, args)
        return meter.made(super().call(__context, __obj, *args, **kwargs))

    def _may_call(self, obj: Any, owner: Any) -> bool:
        if isinstance(obj, (Macro, LoopContext, BlockReference, Joiner, Undefined)) or isinstance(owner, GenerationTag):
            return True
        if any(obj is known for known in self._callable):
            return True
        if isinstance(owner, _TemplateDict):
            return getattr(obj, "__name__", "") == "fromkeys"
        return any(isinstance(owner, kind) and getattr(obj, "__name__", "") in names for kind, names in METHODS)


class CompiledTemplate:
    """One template, ready to render any number of times, on any thread."""

    def __init__(self, source: str) -> None:
        """Raises jinja2.TemplateError or LimitError for what cannot be compiled."""
        if len(source) > MAX_TEMPLATE_CHARS:
            raise LimitError(f"it has {len(source):,} characters, more than {MAX_TEMPLATE_CHARS:,}")
        try:
            self._template = _ENVIRONMENT.from_string(source)
        except jinja2.TemplateError:
            raise
        except Exception as error:  # Python's compiler has limits of its own, each with its own exception
            raise LimitError(f"it cannot be compiled ({type(error).__name__})") from None

    def render(self, variables: Mapping[str, Any]) -> str:
        """The text, byte-equal to transformers' rendering. Raises whatever the template provokes."""
        plain = plain_data(variables)
        token = _METER.set(Meter(size(plain, limit=1 << 62)))
        try:
            return _concat(self._template.root_render_func(self._template.new_context(plain)))
        finally:
            _METER.reset(token)


class GenerationTag(Extension):
    """`{% generation %}` marks the assistant's tokens for training; when rendering, it prints what it encloses."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_enclosed"), [], [], body).set_lineno(line)

    def _enclosed(self, caller: Macro) -> str:
        return caller()


class _Reporting(NodeTransformer):
    """Makes a parsed template report loop turns and new values, where the sandbox's own hooks do not reach."""

    def __init__(self, environment: TemplateEnvironment) -> None:
        self._environment = environment

    def _call(self, name: str, arguments: list[Any], line: int) -> nodes.Call:
        call = nodes.Call(nodes.EnvironmentAttribute(name), arguments, [], None, None)
        call.set_lineno(line).set_environment(self._environment)
        return call

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(self._call("turn", [], node.lineno), lineno=node.lineno))
        if node.test is not None:  # a turn that the loop's condition rejects never reaches the body
            node.test = self._call("tested", [node.test], node.lineno)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return self._call("joined", node.nodes, node.lineno)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        if not isinstance(node.arg, nodes.Slice):
            return node
        bounds = [part or nodes.Const(None) for part in (node.arg.start, node.arg.stop, node.arg.step)]
        return self._call("sliced", [node.node, *bounds], node.lineno)

    def _literal(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        return node if getattr(node, "ctx", "load") != "load" else self._call("made", [node], node.lineno)

    visit_List = visit_Tuple = visit_Dict = _literal


class _TemplateDict:
    """`dict` without the class behind it, so that no attribute of the class is reachable."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, keys: Iterable[Any], value: Any = None) -> dict[Any, Any]:
        return dict.fromkeys(keys, value)


class _TemplateNamespace(Namespace):
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


def _concat(pieces: Iterable[str]) -> str:
    meter = _METER.get(None)
    if meter is None:
        return "".join(pieces)
    kept: list[str] = []
    for piece in pieces:
        meter.step()
        meter.pay(len(piece))
        kept.append(piece)
    return "".join(kept)


def _metered_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    first = 1 if hasattr(function, "jinja_pass_arg") else 0

    @functools.wraps(function)
    def metered(*args: Any, **kwargs: Any) -> Any:
        meter = _meter()
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


def _prepay_operator(meter: Meter, operator: str, left: Any, right: Any) -> None:
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


def _prepay_text_method(meter: Meter, text: str, name: str, args: tuple[Any, ...]) -> None:
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


def _replace(text: Any, old: Any, new: Any, count: int | None = None) -> str:
    text, old, new = str(text), str(old), str(new)
    _meter().pay(len(text) + text.count(old) * len(new))
    return text.replace(old, new, -1 if count is None else count)


def _tojson(
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
    meter = _meter()
    meter.pay(size(value, limit=1 << 62))
    return _concat(encoder.iterencode(value))


def _raise_exception(message: Any) -> NoReturn:
    raise jinja2.TemplateError(str(message)[:1000])


def _strftime_now(form: str) -> str:
    if len(form) > 64 or any(char.isdigit() for char in form):
        raise SecurityError("a date format holds no digits and at most 64 characters")
    return datetime.now().strftime(form)


_ENVIRONMENT = TemplateEnvironment()
