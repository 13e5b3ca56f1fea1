"""A model's chat template: messages in, prompt text out.

Templates come with models, so they run in jinja2's sandbox, with the names that Hugging Face's own renderer gives them,
and for a limited time.
"""

import json
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from services.gateway.errors import ApiError, bad_value

RENDER_SECONDS = 1.0  # a chat of thousands of messages takes a few hundredths of this


class _TookTooLong(BaseException):
    """Not an Exception, which a filter might swallow."""


class ChatTemplate:
    def __init__(self, source: str, special_tokens: Mapping[str, str], most_chars: int) -> None:
        """`special_tokens`: bos_token and the like, by name. Raises jinja2.TemplateSyntaxError."""
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, _Generation]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["dict"] = lambda *pairs, **values: dict(*pairs, **values)  # not the class: nothing to climb
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        try:
            self._template = environment.from_string(source)
        except RecursionError:
            raise jinja2.TemplateSyntaxError("it is nested too deeply", 1) from None
        self._special_tokens = dict(special_tokens)
        self._most_chars = most_chars

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The prompt, ending where the answer begins. ApiError if the template cannot write these messages."""
        pieces: list[str] = []
        chars = 0
        try:
            with _time_limit(RENDER_SECONDS):
                for piece in self._template.generate(
                    messages=list(messages),
                    tools=None,
                    documents=None,
                    add_generation_prompt=True,
                    **self._special_tokens,
                ):
                    pieces.append(piece)
                    chars += len(piece)
                    if chars > self._most_chars:
                        break
        except _TookTooLong:
            raise _cannot_write(f"it was not done after {RENDER_SECONDS:g} seconds") from None
        except Exception as error:  # a template is foreign code: it may raise anything
            raise _cannot_write(str(error)[:500]) from None
        if chars > self._most_chars:
            raise _cannot_write(f"the prompt would be longer than {self._most_chars} characters")
        return "".join(pieces)


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks the assistant's part for training; here it is only its content."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 reads it from the class

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """_TookTooLong once the time is up, whatever Python code runs then. In the main thread, which gets the signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGALRM, _take_too_long)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _take_too_long(*_: object) -> None:
    raise _TookTooLong


def _cannot_write(reason: str) -> ApiError:
    return bad_value("messages", f"The model's chat template cannot write these messages: {reason}", "template_error")


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """jinja2's own filter escapes HTML characters, which would change the prompt."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)
