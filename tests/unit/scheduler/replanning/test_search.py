"""The search on a sample of recent traffic."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from services.scheduler.replanning.replanner import Layout
from services.scheduler.replanning.search import search
from services.scheduler.replanning.task import ReplanningSettings, Task
from services.scheduler.traffic import Call
from tests.profiles import write_profile


@pytest.fixture
def settings(tmp_path: Path) -> ReplanningSettings:
    profile = write_profile(tmp_path / "profile.json", prefill_ms=(1.0, 0.5, 0.0), decode_ms=(10.0, 0.0, 1.0))
    return ReplanningSettings(profile=str(profile), model="", ttft_seconds=1.0, tpot_seconds=0.03)


def calls(prompt: int, answer: int) -> tuple[Call, ...]:
    return tuple(Call(1e9 + i + (0.0, 0.9, 0.1)[i % 3], prompt + i % 7, answer + i % 3) for i in range(100))


@pytest.mark.parametrize(
    ("prompt", "answer", "now", "best"), [(800, 4, Layout(1, 2), Layout(2, 1)), (20, 60, Layout(2, 1), Layout(1, 2))]
)
def test_long_prompts_want_prefill_and_long_answers_want_decoding(
    settings: ReplanningSettings, prompt: int, answer: int, now: Layout, best: Layout
):
    task = Task(settings=settings, now=now, calls=calls(prompt, answer), kv_tokens=0, max_batch=0, batch_tokens=0)
    found = {one.layout: one.goodput for one in search(Task.from_json(task.to_json()))}
    assert found[now] > 0
    assert max(found, key=lambda layout: found[layout]) == best


def test_a_pause_within_the_sample_changes_no_answer(settings: ReplanningSettings):
    before, after = calls(20, 60)[:60], calls(20, 60)[60:]
    paused = before + tuple(replace(call, arrival_s=call.arrival_s + 600) for call in after)
    task = Task(settings=settings, now=Layout(2, 1), calls=paused, kv_tokens=0, max_batch=0, batch_tokens=0)
    found = {one.layout: one.goodput for one in search(task)}
    assert found[Layout(1, 2)] > 1.15 * found[Layout(2, 1)] > 0


def test_what_the_instances_have_room_for_counts_not_the_profile(settings: ReplanningSettings):
    many = Task(
        settings=settings, now=Layout(1, 1), calls=calls(100, 40), kv_tokens=100_000, max_batch=0, batch_tokens=0
    )
    few = Task(settings=settings, now=Layout(1, 1), calls=calls(100, 40), kv_tokens=400, max_batch=0, batch_tokens=0)
    assert search(many)[0].goodput > 1.5 * search(few)[0].goodput


def test_prefill_batches_are_as_large_as_the_instances_make_them(tmp_path: Path, settings: ReplanningSettings):
    """Of a prompt each, or of many, where what a batch takes hardly depends on it."""
    profile = write_profile(tmp_path / "flat.json", prefill_ms=(20.0, 0.01, 0.0), decode_ms=(1.0, 0.0, 0.001))
    flat = replace(settings, profile=str(profile))
    task = Task(settings=flat, now=Layout(1, 1), calls=calls(20, 2), kv_tokens=0, max_batch=0, batch_tokens=20)
    one_each, many = search(task)[0].goodput, search(replace(task, batch_tokens=512))[0].goodput
    assert one_each < 80  # 50 for ever, more until a queue has grown
    assert many > 2 * one_each


def test_a_task_survives_its_pipe(settings: ReplanningSettings):
    task = Task(settings=settings, now=Layout(1, 2), calls=calls(10, 2), kv_tokens=64, max_batch=8, batch_tokens=512)
    assert Task.from_json(task.to_json()) == task
    assert json.loads(task.to_json())["now"] == {"prefill": 1, "decode": 2}
