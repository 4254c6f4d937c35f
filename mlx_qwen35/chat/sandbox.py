"""Runs a downloaded jinja template: jinja2's immutable sandbox, set up as transformers does, with bounded cost.

The sandbox alone keeps a template from Python's internals, not from `'a' * 300000000` or nested loops. So the parsed
template is changed to report every loop turn and every value it builds to a `Meter`, operators and calls are
intercepted, and only filters and methods of known cost exist. Knows nothing of messages; that is template.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import BlockReference, Context, LoopContext, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Cycler, Joiner
from jinja2.visitor import NodeTransformer

from mlx_qwen35.chat.metering import LimitError, Meter, plain_data, size
from mlx_qwen35.chat.template_builtins import (
    METER,
    TemplateDict,
    TemplateNamespace,
    concat,
    metered_filter,
    prepay_operator,
    prepay_text_method,
    raise_exception,
    replace,
    running_meter,
    strftime_now,
    tojson,
)

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


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """The environment every template is compiled in; one is enough for all, the cost is counted per rendering."""

    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "**", "%"))

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, loopcontrols], finalize=self._printed
        )
        own = {"tojson": tojson, "replace": replace}
        self.filters = {name: metered_filter(name, own.get(name, self.filters[name])) for name in FILTER_NAMES.split()}
        self.globals = {
            "range": self.globals["range"],  # the sandbox's own: at most 100,000
            "dict": TemplateDict(),
            "namespace": TemplateNamespace,
            "cycler": Cycler,
            "joiner": Joiner,
            "raise_exception": raise_exception,
            "strftime_now": strftime_now,
        }
        self._callable = tuple(self.globals.values())
        self.concat = concat

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        return _Reporting(self).visit(super()._parse(source, name, filename))

    # What the changed template calls in place of plain Python.

    def turn(self) -> None:
        running_meter().step()

    def tested(self, condition: Any) -> Any:
        running_meter().step()
        return condition

    def made(self, value: Any) -> Any:
        return running_meter().made(value)

    def joined(self, *values: Any) -> str:
        meter = running_meter()
        for value in values:
            meter.made(value)
        return "".join(map(str, values))

    def sliced(self, value: Any, start: Any, stop: Any, step: Any) -> Any:
        return running_meter().made(value[start:stop:step])

    def _printed(self, value: Any) -> Any:
        meter = METER.get(None)
        return value if meter is None else meter.made(value)

    # What the sandbox asks.

    def unsafe_undefined(self, obj: Any, attribute: str) -> NoReturn:
        raise SecurityError(f"access to {attribute!r} is not allowed")

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        meter = running_meter()
        prepay_operator(meter, operator, left, right)
        return meter.made(super().call_binop(context, operator, left, right))

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        owner = getattr(__obj, "__self__", None)
        if owner is __self:
            return __obj(*args)  # without the loop variables that jinja passes along for its own functions
        meter = running_meter()
        meter.step()
        if not __self._may_call(__obj, owner):
            name = getattr(__obj, "__name__", type(__obj).__name__)
            raise SecurityError(f"calling {name!r} is not allowed")
        if isinstance(owner, str):
            prepay_text_method(meter, owner, __obj.__name__, args)
        return meter.made(super().call(__context, __obj, *args, **kwargs))

    def _may_call(self, obj: Any, owner: Any) -> bool:
        if isinstance(obj, (Macro, LoopContext, BlockReference, Joiner, Undefined)) or isinstance(owner, GenerationTag):
            return True
        if any(obj is known for known in self._callable):
            return True
        if isinstance(owner, TemplateDict):
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
        token = METER.set(Meter(size(plain, limit=1 << 62)))
        try:
            return concat(self._template.root_render_func(self._template.new_context(plain)))
        finally:
            METER.reset(token)


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


_ENVIRONMENT = TemplateEnvironment()
