"""How tests that run side by side share the machine (`./distserve test` without a path)."""

from pathlib import Path

import pytest

SYSTEM = Path(__file__).parent / "system"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A file's tests share its fixtures and stay together. So do all system tests, which each take the last stack of
    this checkout for their own; they take longest, so they come first.
    """
    if not hasattr(config, "workerinput"):
        return
    for item in items:
        group = "system" if SYSTEM in item.path.parents else str(item.path)
        item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=lambda item: SYSTEM not in item.path.parents)
