from hypothesis import given
from hypothesis import strategies as st

from services.gateway.stops import StopStrings

LETTERS = st.text(alphabet="ab", max_size=12)
STOPS = st.lists(st.text(alphabet="ab", min_size=1, max_size=4), min_size=1, max_size=4)


def before_first_stop(text: str, stops: list[str]) -> tuple[str, bool]:
    """Character by character: the stop string that is complete first; of several, the one that began first."""
    for end in range(len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[: min(starts)], True
    return text, False


def push_all(machine: StopStrings, pieces: list[str]) -> str:
    shown = ""
    for piece in pieces:
        shown += machine.push(piece)
        if machine.found:
            return shown
    return shown + machine.finish()


@given(pieces=st.lists(LETTERS, max_size=8), stops=STOPS)
def test_however_the_text_is_cut_it_ends_before_the_first_stop_string(pieces: list[str], stops: list[str]) -> None:
    machine = StopStrings(stops)
    shown = push_all(machine, pieces)
    assert (shown, machine.found) == before_first_stop("".join(pieces), stops)


@given(pieces=st.lists(LETTERS, max_size=8), stops=STOPS)
def test_nothing_is_withheld_that_cannot_begin_a_stop_string(pieces: list[str], stops: list[str]) -> None:
    machine, text, shown = StopStrings(stops), "", ""
    for piece in pieces:
        text, shown = text + piece, shown + machine.push(piece)
        if machine.found:
            return
        waiting = text[len(shown) :]
        assert waiting == "" or any(stop.startswith(waiting) for stop in stops)


def test_a_stop_string_across_three_pieces_is_found_and_not_shown() -> None:
    machine = StopStrings(["###"])
    assert [machine.push(piece) for piece in ("done #", "#", "# more")] == ["done ", "", ""]
    assert machine.found


def test_what_only_looked_like_a_stop_string_is_shown() -> None:
    machine = StopStrings(["END"])
    assert machine.push("the EN") == "the "
    assert machine.push("tire") == "ENtire"
    assert not machine.found
