"""Arrivals and lengths, and nothing else, of what was served."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from services.scheduler.line_files import numbered_files
from services.scheduler.simulator.workload import BadWorkload, read_trace
from services.scheduler.traffic import MOST_UNENDED, Call, Traffic, TrafficRecorder
from shared.specs.ids import RequestId

A, B = RequestId("a"), RequestId("b")


@dataclass
class Heard:
    arrivals: list[tuple[float, int]] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)

    def arrived(self, at: float, input_len: int) -> None:
        self.arrivals.append((at, input_len))

    def served(self, call: Call) -> None:
        self.calls.append(call)


def test_an_arrival_and_its_end_make_a_call():
    heard = Heard()
    traffic = Traffic([heard])
    traffic.arrived(A, 0, 30, at=1.0)
    traffic.arrived(B, 0, 40, at=2.0)
    traffic.ended(B, 40, 7)
    traffic.ended(A, 30, 5)
    assert heard.arrivals == [(1.0, 30), (2.0, 40)]
    assert heard.calls == [Call(2.0, 40, 7), Call(1.0, 30, 5)]


def test_a_later_attempt_and_a_repeated_message_are_no_new_arrival():
    heard = Heard()
    traffic = Traffic([heard])
    traffic.arrived(A, 0, 30, at=1.0)
    traffic.arrived(A, 0, 30, at=1.5)
    traffic.arrived(A, 1, 30, at=2.0)
    traffic.ended(A, 30, 5)
    traffic.ended(A, 30, 5)
    assert heard.arrivals == [(1.0, 30)]
    assert heard.calls == [Call(1.0, 30, 5)]


def test_who_got_no_token_or_arrived_elsewhere_is_no_call():
    heard = Heard()
    traffic = Traffic([heard])
    traffic.arrived(A, 0, 30, at=1.0)
    traffic.ended(A, 30, 0)
    traffic.arrived(B, 1, 30, at=1.0)
    traffic.ended(B, 30, 5)
    assert not heard.calls


def test_requests_that_never_end_take_a_bounded_room():
    heard = Heard()
    traffic = Traffic([heard])
    for number in range(MOST_UNENDED + 1):
        traffic.arrived(RequestId(str(number)), 0, 1, at=float(number))
    traffic.ended(RequestId("0"), 1, 1)
    traffic.ended(RequestId("1"), 1, 1)
    assert [call.arrival_s for call in heard.calls] == [1.0]


def test_what_is_recorded_can_be_read_as_a_trace(tmp_path: Path):
    folder = tmp_path / "traffic"
    recorder = TrafficRecorder(folder, file_bytes=100, files=2)
    for number in range(9):
        recorder.served(Call(100.0 + number, 10 + number, 5))
    recorder.close()
    files = numbered_files(folder)
    assert len(files) == 2, "bounded"
    assert set(json.loads(files[0].read_text().splitlines()[0])) == {"arrival_s", "input_len", "output_len"}
    trace = read_trace(folder)
    assert trace.name == "traffic"
    assert trace.inputs[-1] == 18
    assert trace.arrivals == [float(n) for n in range(len(trace))]


def test_of_a_folder_a_line_that_is_still_being_written_is_left_out(tmp_path: Path):
    (tmp_path / "00000001.jsonl").write_text('{"arrival_s": 1, "input_len": 2, "output_len": 3}\n{"arrival_s": 1, "in')
    assert len(read_trace(tmp_path)) == 1
    with pytest.raises(BadWorkload, match="line 2"):
        read_trace(tmp_path / "00000001.jsonl")


def test_a_disk_that_cannot_be_written_costs_lines_only(tmp_path: Path):
    (tmp_path / "file").write_text("")
    recorder = TrafficRecorder(tmp_path / "file" / "folder")
    recorder.served(Call(1.0, 1, 1))
    recorder.close()
    assert (tmp_path / "file").read_text() == ""
