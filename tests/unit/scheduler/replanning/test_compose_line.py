from services.scheduler.replanning.live import compose_line
from services.scheduler.replanning.replanner import Layout


def test_the_line_for_containers_changes_prefill_and_decode_only():
    """Without the names Compose would bring every other service back to one container."""
    words = compose_line(Layout(2, 1)).split()
    assert words[-2:] == ["prefill", "decode"]
    assert "--no-deps" in words
    assert {"prefill=2", "decode=1"} <= set(words)
