"""A model's chat template: messages in, prompt text out.

Templates come with models, so they run in a sandbox, with the names that Hugging Face's own renderer gives them, for a
limited time and with limited memory.
"""

import json
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.parser import Parser

from services.gateway.errors import ApiError, bad_value
from services.gateway.sandbox import BoundedSandbox

RENDER_SECONDS = 1.0  # a chat of thousands of messages takes about a tenth of this
AGAIN_SECONDS = 0.05  # then it is told once more: foreign code may have swallowed what it was told
MOST_SOURCE_CHARS = 1 << 20  # the longest that models come with have some tens of thousands


class _TookTooLong(BaseException):
    """Not an Exception, which a filter might swallow."""


class ChatTemplate:
    def __init__(self, source: str, special_tokens: Mapping[str, str], most_chars: int) -> None:
        """`special_tokens`: bos_token and the like, by name. Raises jinja2.TemplateSyntaxError."""
        if len(source) > MOST_SOURCE_CHARS:
            raise jinja2.TemplateSyntaxError(f"it has more than {MOST_SOURCE_CHARS} characters", 1)
        self._sandbox = environment = BoundedSandbox(
            trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, _Generation]
        )
        environment.add_filter("tojson", _to_json)
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["dict"] = lambda *pairs, **values: dict(*pairs, **values)  # not the class: nothing to climb
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        try:
            self._template = environment.from_string(source)
        except (RecursionError, SyntaxError):  # Python's own, of the code that jinja2 makes of it
            raise jinja2.TemplateSyntaxError("it is nested too deeply", 1) from None
        self._special_tokens = dict(special_tokens)
        self._most_chars = most_chars

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The prompt, ending where the answer begins. ApiError if the template cannot write these messages."""
        try:
            text = _within(RENDER_SECONDS, lambda: self._render(messages))
        except _TookTooLong:
            raise _cannot_write(f"it was not done after {RENDER_SECONDS:g} seconds") from None
        except Exception as error:  # a template is foreign code: it may raise anything
            raise _cannot_write(str(error)[:500]) from None
        if len(text) > self._most_chars:
            raise _cannot_write(f"the prompt would be longer than {self._most_chars} characters")
        return text

    def _render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The prompt, or what is the beginning of one that is too long."""
        pieces: list[str] = []
        chars = 0
        self._sandbox.begin()
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
        return "".join(pieces)


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks the assistant's part for training; here it is only its content."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 reads it from the class

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Alarm:
    armed = False

    def ring(self, *_: object) -> None:
        if self.armed:
            raise _TookTooLong


def _within(seconds: float, work: Callable[[], str]) -> str:
    """What `work` returns. _TookTooLong once the time is up, whatever Python code runs then; in the main thread, which
    gets the signals."""
    if threading.current_thread() is not threading.main_thread():
        return work()
    alarm = _Alarm()
    before = signal.signal(signal.SIGALRM, alarm.ring)
    try:
        alarm.armed = True
        signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN_SECONDS)
        return work()
    finally:
        alarm.armed = False  # comes first, and is no call: between it and `work` nothing can ring
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


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
