"""`./distserve chat`: talk to a running system from the terminal."""

import contextlib
import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from cli.chat_client import ChatClient, Message
from cli.problems import Problem

PROMPT = "> "


def chat(
    question: Annotated[
        str | None, typer.Argument(help="Ask this and leave. Without it: piped input, or a conversation.")
    ] = None,
    url: Annotated[str, typer.Option(help="Where the gateway is.")] = "http://127.0.0.1:8000",
    api_key: Annotated[str, typer.Option(envvar="DISTSERVE_API_KEY", help="If the server wants one.")] = "",
    model: Annotated[str, typer.Option(help="One of the server's models.", show_default="its first")] = "",
    max_tokens: Annotated[int, typer.Option(min=1, metavar="N", help="Of one answer.")] = 256,
    temperature: Annotated[float, typer.Option(min=0, metavar="X", help="0 always takes the most likely token.")] = 0.7,
) -> None:
    """Talk to a running system, streaming. Ctrl-C stops an answer, Ctrl-D leaves."""
    if question is None:
        question = _piped_question()
    client = ChatClient(url.rstrip("/"), api_key)
    with contextlib.closing(client):
        conversation = Conversation(client, model or client.first_model(), max_tokens, temperature)
        if question is not None:
            conversation.ask(question)
        else:
            conversation.run()


def _piped_question() -> str | None:
    if sys.stdin.isatty():
        return None
    piped = sys.stdin.read()
    if not piped.strip():
        raise Problem("nothing was piped in: there is no question")
    return piped


class Conversation:
    """The messages so far, and the terminal."""

    def __init__(self, client: ChatClient, model: str, max_tokens: int, temperature: float) -> None:
        self._client, self._model = client, model
        self._max_tokens, self._temperature = max_tokens, temperature
        self._messages: list[Message] = []
        self._remarks = Console(stderr=True, highlight=False)  # not part of an answer that is piped on

    def run(self) -> None:
        import readline  # noqa: F401  (line editing and history for input())

        self._remark(f"{self._model}   Ctrl-C stops an answer, Ctrl-D leaves")
        while True:
            try:
                question = input(PROMPT)
            except EOFError:
                print()
                return
            except KeyboardInterrupt:
                self._remark("\nCtrl-D leaves")
                continue
            if question.strip():
                self._ask_and_go_on(question)

    def ask(self, question: str) -> None:
        """Print the answer and remember both. Ctrl-C keeps what came so far."""
        self._messages.append({"role": "user", "content": question})
        pieces: list[str] = []
        answer = self._client.stream(
            self._messages, model=self._model, max_tokens=self._max_tokens, temperature=self._temperature
        )
        try:
            with contextlib.closing(answer):
                for piece in answer:
                    pieces.append(piece)
                    print(piece, end="", flush=True)
        except KeyboardInterrupt:
            self._remark("\nstopped")
        print()
        self._messages.append({"role": "assistant", "content": "".join(pieces)})
        if self._client.timing is not None:
            self._remark(str(self._client.timing))

    def _ask_and_go_on(self, question: str) -> None:
        before = len(self._messages)
        try:
            self.ask(question)
        except Problem as problem:
            del self._messages[before:]  # as if it had not been asked
            self._remark(f"\n{problem}")

    def _remark(self, text: str) -> None:
        self._remarks.print(f"[dim]{escape(text)}[/dim]", soft_wrap=True)
