"""jinja2's sandbox, with a bound on the memory that a template takes.

A time limit cannot stop one call into C: `9**9**9`, `'x' * 10**10` or the text of a list that holds itself often enough
would be computed to their end. So whatever may be large is estimated before it is made, and the sum is bounded. And no
operator or filter that can make much is left to jinja2's folding of constants, which would do it when it compiles.
"""

from collections.abc import Callable, Iterable, Sequence
from sys import getsizeof
from typing import Any

from jinja2 import nodes, pass_context
from jinja2.compiler import CodeGenerator, Frame, operators
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from services.gateway.sizes import MOST_BYTES, TooLarge, bytes_formatted, bytes_inside, bytes_of, check_integer, size_of


class BoundedCode(CodeGenerator):
    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        """`a ~ b`, of which jinja2 lets nobody have a say."""
        self.write("environment.joined((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:
        """`a[1:]` likewise."""
        if isinstance(node.arg, nodes.Slice):
            self.write("environment.counted(")
        super().visit_Getitem(node, frame)
        if isinstance(node.arg, nodes.Slice):
            self.write(")")

    def visit_Compare(self, node: nodes.Compare, frame: Frame) -> None:
        self.write("(")
        self._visit_small(node.expr, frame)
        for operand in node.ops:
            self.visit(operand, frame)
        self.write(")")

    def visit_Operand(self, node: nodes.Operand, frame: Frame) -> None:
        self.write(f" {operators[node.op]} ")
        self._visit_small(node.expr, frame)

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:
        if node.ctx != "load":
            return super().visit_Tuple(node, frame)
        self.write("environment.small(")
        super().visit_Tuple(node, frame)
        self.write(")")

    def _visit_small(self, node: nodes.Expr, frame: Frame) -> None:
        """What is compared or hashed: lists that hold each other often would take for ever."""
        if isinstance(node, nodes.Const):
            return self.visit(node, frame)
        self.write("environment.small(")
        self.visit(node, frame)
        self.write(")")


class BoundedSandbox(ImmutableSandboxedEnvironment):
    """For one rendering at a time."""

    code_generator_class = BoundedCode
    intercepted_binops = frozenset(("+", "*", "**", "%"))  # jinja2 does not fold these

    def __init__(self, **options: Any) -> None:
        super().__init__(finalize=self._shown, **options)
        self.begin()
        for name, function in list(self.filters.items()):
            self.add_filter(name, function)
        self.tests = {name: _of_small(test) for name, test in self.tests.items()}

    def add_filter(self, name: str, function: Callable[..., Any]) -> None:
        self.filters[name] = _bounded(name, function)

    def begin(self) -> None:
        """A rendering begins: it may use all that there is."""
        self._left_bytes = MOST_BYTES

    def spend(self, count: int) -> None:
        self._left_bytes -= count
        if self._left_bytes < 0:
            raise TooLarge

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "+":
            if type(left) is not int:
                self.spend(getsizeof(left) + getsizeof(right))
            return left + right
        if operator == "%" and isinstance(left, str):
            self.spend(bytes_formatted(left, right if isinstance(right, tuple) else (right,)))
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            check_integer(left.bit_length() * max(0, right))
        elif operator == "*":
            self._spend_product(left, right)
        return super().call_binop(context, operator, left, right)

    def _spend_product(self, left: Any, right: Any) -> None:
        if isinstance(left, int) and isinstance(right, int):
            check_integer(left.bit_length() + right.bit_length())
        elif isinstance(right, int):
            self.spend(bytes_inside(left) * max(1, right))
        elif isinstance(left, int):
            self.spend(bytes_inside(right) * max(1, left))

    def call(self, context: Context, function: Any, /, *values: Any, **named: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        name = getattr(function, "__name__", "")
        subject = getattr(getattr(function, "__wrapped__", function), "__self__", None)
        if name == "join" and values:
            values = (list(values[0]), *values[1:])
        self.spend(bytes_of(name, (subject, *values, *named.values())))
        return self.counted(super().call(context, function, *values, **named))

    def concat(self, pieces: Iterable[str]) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """What a block or a macro has written."""
        pieces = list(pieces)
        self.spend(sum(map(getsizeof, pieces)))
        return "".join(pieces)

    def joined(self, parts: Sequence[Any]) -> str:
        self.spend(sum(size_of(part) for part in parts))
        return "".join(map(str, parts))

    def small(self, value: Any) -> Any:
        if isinstance(value, (list, tuple, dict)):
            size_of(value)
        return value

    def _shown(self, value: Any) -> Any:
        if type(value) is not str:
            self.spend(size_of(value))
        return value

    def counted(self, value: Any) -> Any:
        if isinstance(value, (str, bytes, list, tuple, dict)):
            self.spend(getsizeof(value))
        return value


def _bounded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The filter, for this sandbox. It gets the context, which also keeps jinja2 from calling it when it compiles."""
    wanted = getattr(function, "jinja_pass_arg", None)

    @pass_context
    def run(context: Context, *values: Any, **named: Any) -> Any:
        sandbox: Any = context.environment
        if name == "join" and values:
            values = (list(values[0]), *values[1:])
        sandbox.spend(bytes_of(name, (*values, *named.values())))
        if wanted is None:
            return sandbox.counted(function(*values, **named))
        first = {"context": context, "eval_context": context.eval_ctx, "environment": sandbox}[wanted.name]
        return sandbox.counted(function(first, *values, **named))

    return run


def _of_small(test: Callable[..., Any]) -> Callable[..., Any]:
    """A test that compares nothing large; jinja2's own need no context and no more than these."""
    if hasattr(test, "jinja_pass_arg"):  # whether a filter or a test exists
        return test

    def run(*values: Any, **named: Any) -> Any:
        for value in values:
            size_of(value)
        return test(*values, **named)

    return run
