"""`./distserve chat` as a process, on a pipe and on a terminal, against a small server of the same protocol."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[3]
PATIENCE_SECONDS = 10.0
CTRL_C, CTRL_D = "\x03", "\x04"


class Server(ThreadingHTTPServer):
    """Answers "one two three"; to "forever" it goes on until the client is gone; wants the key "sesame" if told so."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.requests: list[dict] = []
        self.client_left = threading.Event()
        self.wants_key = False


class Handler(BaseHTTPRequestHandler):
    server: Server  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        if self.server.wants_key and self.headers["authorization"] != "Bearer sesame":
            self._answer(401, {"error": {"message": "who are you?"}})
        else:
            self._answer(200, {"data": [{"id": "parrot"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.requests.append(body)
        question = body["messages"][-1]["content"]
        if question == "too long":
            self._answer(400, {"error": {"message": "the context is 64 tokens"}})
            return
        self.send_response(200)
        self.end_headers()
        try:
            for word in iter(lambda: "again ", "") if question == "forever" else ("one ", "two ", "three"):
                self._send({"choices": [{"delta": {"content": word}}]})
                time.sleep(0.02)
            self._send({"choices": [], "usage": {"completion_tokens": 3}})
            self.wfile.write(b"data: [DONE]\n\n")
        except OSError:
            self.server.client_left.set()

    def _send(self, event: dict) -> None:
        self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())

    def _answer(self, status: int, body: dict) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.shutdown()


def command(server: Server, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "cli", "chat", "--url", server.url, *arguments]


def chat(server: Server, *arguments: str, piped: str = "") -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command(server, *arguments),
        input=piped,
        capture_output=True,
        text=True,
        timeout=20,
        cwd=REPOSITORY,
        check=False,
    )


def test_a_question_on_the_command_line_is_answered_with_its_times_apart(server: Server):
    done = chat(server, "hello", "--max-tokens", "7")
    assert (done.returncode, done.stdout) == (0, "one two three\n")
    assert re.search(r"3 tokens, TTFT \d+ ms, TPOT \d+\.\d ms", done.stderr)
    assert server.requests[0]["model"] == "parrot"
    assert server.requests[0]["max_tokens"] == 7
    assert server.requests[0]["messages"] == [{"role": "user", "content": "hello"}]


def test_piped_input_is_the_question(server: Server):
    assert chat(server, piped="from a pipe").stdout == "one two three\n"
    assert server.requests[0]["messages"][0]["content"] == "from a pipe"


def test_an_error_of_the_server_is_one_line_and_a_failure(server: Server):
    done = chat(server, "too long")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"distserve: {server.url} answered 400: the context is 64 tokens\n"


def test_a_server_that_wants_a_key_says_how_to_give_it(server: Server):
    server.wants_key = True
    done = chat(server, "hello")
    assert done.returncode == 1
    assert "--api-key" in done.stderr
    assert chat(server, "hello", "--api-key", "sesame").stdout == "one two three\n"


def test_no_server_says_how_to_start_one(server: Server):
    server.server_close()
    done = chat(server, "hello")
    assert done.returncode == 1
    assert "./distserve up" in done.stderr
    assert "Traceback" not in done.stderr


class Terminal:
    """A process on a terminal, and what it shows."""

    def __init__(self, arguments: list[str]) -> None:
        self.pid, self._terminal = pty.fork()
        if self.pid == 0:
            os.chdir(REPOSITORY)
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell has what it runs in the background ignore it
            os.execv(arguments[0], arguments)
        self.shown = ""

    def type(self, keys: str) -> None:
        os.write(self._terminal, keys.encode())

    def wait_for(self, pattern: str) -> None:
        """Read until `pattern` is shown; what was shown up to there is forgotten."""
        while not (found := re.search(pattern, self.shown)):
            self.shown += os.read(self._terminal, 4096).decode()
        self.shown = self.shown[found.end() :]

    def status(self) -> int:
        _, status = os.waitpid(self.pid, 0)
        os.close(self._terminal)
        return os.waitstatus_to_exitcode(status)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # the child execs at once
def test_a_conversation_keeps_its_history_and_ctrl_c_stops_an_answer_and_ctrl_d_leaves(server: Server):
    terminal = Terminal(command(server))
    terminal.wait_for("> ")
    terminal.type("hello\n")
    terminal.wait_for("one two three\r\n.*TTFT[^>]*> ")
    terminal.type("forever\n")
    terminal.wait_for("again again again")
    terminal.type(CTRL_C)
    terminal.wait_for("stopped[^>]*> ")
    assert server.client_left.wait(PATIENCE_SECONDS)
    terminal.type("too long\n")
    terminal.wait_for("the context is 64 tokens[^>]*> ")
    terminal.type("bye\n")
    terminal.wait_for("one two three[^>]*> ")
    terminal.type(CTRL_D)
    assert terminal.status() == 0
    said = [(message["role"], message["content"][:9]) for message in server.requests[-1]["messages"]]
    assert said == [
        ("user", "hello"),
        ("assistant", "one two t"),
        ("user", "forever"),
        ("assistant", "again aga"),
        ("user", "bye"),
    ]
