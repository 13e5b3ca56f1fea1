import json
from collections.abc import Callable
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from services.scheduler.dispatcher import Snapshot
from services.scheduler.events import Effect, Event, SendPrefill, Ticked
from services.scheduler.journal import RETRY_SECONDS, Journal, ReplayDiffers, replay
from services.scheduler.line_files import numbered_files
from services.scheduler.plain import read_as
from tests.unit.scheduler.chaos import Chaos
from tests.unit.scheduler.world import World, of

HAPPENINGS = ("submit", "submit", "get_on", "die", "submit", "abort", "refuse_one", "wait", "finish", "submit", "sleep")


def write_down(folder: Path, chaos: Chaos, file_bytes: int = 1 << 20, files: int = 100) -> Journal:
    """A journal that hears of everything that happens in `chaos` from now on."""
    journal = Journal(folder, file_bytes=file_bytes, files=files, snapshot=chaos.world.dispatcher.snapshot)
    step: Callable[[Event], list] = chaos.world.dispatcher.step

    def step_and_record(event: Event) -> list:
        effects = step(event)
        journal.record(event, effects)
        return effects

    chaos.world.dispatcher.step = step_and_record
    return journal


def let_happen(chaos: Chaos, rounds: int) -> None:
    for number in range(rounds):
        getattr(chaos, HAPPENINGS[number % len(HAPPENINGS)])(number * 7)


def test_a_replay_of_the_journal_ends_with_the_same_dispatcher(tmp_path: Path):
    chaos = Chaos()
    journal = write_down(tmp_path, chaos)
    let_happen(chaos, 60)
    journal.close()
    (file,) = numbered_files(tmp_path)
    assert len(file.read_text().splitlines()) > 100
    assert replay(file).snapshot() == chaos.world.dispatcher.snapshot()


def test_every_file_of_a_rotated_journal_can_be_replayed_by_itself(tmp_path: Path):
    chaos = Chaos()
    journal = write_down(tmp_path, chaos, file_bytes=20_000)
    let_happen(chaos, 200)
    journal.close()
    files = numbered_files(tmp_path)
    assert len(files) > 3
    ends = [replay(file).snapshot() for file in files]
    begins = [read_as(Snapshot, json.loads(file.read_text().splitlines()[0])) for file in files]
    assert ends == [*begins[1:], chaos.world.dispatcher.snapshot()]


def test_only_the_newest_files_are_kept(tmp_path: Path):
    chaos = Chaos()
    journal = write_down(tmp_path, chaos, file_bytes=5_000, files=3)
    let_happen(chaos, 200)
    journal.close()
    files = numbered_files(tmp_path)
    assert len(files) == 3
    assert int(files[-1].stem) > 10
    assert replay(files[-1]).snapshot() == chaos.world.dispatcher.snapshot()


def test_a_restarted_scheduler_goes_on_with_the_next_file(tmp_path: Path):
    for _ in range(2):
        write_down(tmp_path, Chaos()).close()
    assert [file.name for file in numbered_files(tmp_path)] == ["00000001.jsonl", "00000002.jsonl"]


def test_a_decision_that_is_made_otherwise_now_is_found_and_its_line_is_named(tmp_path: Path):
    world = World()
    world.pair(["prefill-1", "prefill-2"])
    journal = Journal(tmp_path, file_bytes=1 << 20, files=2, snapshot=world.dispatcher.snapshot)
    event = Ticked(now=world.now)
    journal.record(event, of(SendPrefill, world.submit("r")))
    journal.close()
    with pytest.raises(ReplayDiffers, match="line 2"):
        replay(numbered_files(tmp_path)[0])


def test_a_last_line_that_a_crash_cut_off_is_left_out(tmp_path: Path):
    chaos = Chaos()
    journal = write_down(tmp_path, chaos)
    let_happen(chaos, 30)
    journal.close()
    (file,) = numbered_files(tmp_path)
    whole = file.read_text()
    file.write_text(whole[: len(whole) - 20])
    replay(file)


def test_a_folder_that_cannot_be_written_disturbs_nobody_and_is_tried_again_later(tmp_path: Path):
    folder = tmp_path / "journal"
    folder.write_text("a file where the folder should be")
    chaos = Chaos()
    journal = write_down(folder, chaos)
    assert journal.failed.wait(5)
    let_happen(chaos, 30)
    folder.unlink()
    chaos.tick(RETRY_SECONDS)
    let_happen(chaos, 30)
    journal.close()
    (file,) = numbered_files(folder)
    assert replay(file).snapshot() == chaos.world.dispatcher.snapshot()


def test_after_a_full_disk_a_new_file_begins_without_a_hole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    chaos = Chaos()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda file, mode: open("/dev/full", "w"))  # noqa: SIM115
        journal = write_down(tmp_path, chaos)
        let_happen(chaos, 30)
        assert journal.failed.wait(5)
    chaos.tick(0.25)  # notices it
    let_happen(chaos, 10)
    chaos.tick(RETRY_SECONDS)
    let_happen(chaos, 30)
    journal.close()
    (file,) = numbered_files(tmp_path)
    assert replay(file).snapshot() == chaos.world.dispatcher.snapshot()


def test_what_is_written_down_has_no_place_for_a_prompt_a_token_or_a_key():
    kinds = {hint for fact in (*get_args(Event), *get_args(Effect)) for hint in get_type_hints(fact).values()}
    assert not [kind for kind in kinds if "bytes" in str(kind) or "[int" in str(kind)]
