from pathlib import Path

import pytest

from services.scheduler.config import SchedulerConfig
from services.scheduler.limits import Limits
from shared.specs.settings import BadSetting


def test_without_any_variable_everything_has_a_default():
    config = SchedulerConfig.from_env({})
    assert config.limits == Limits()
    assert config.journal is not None
    assert config.journal.folder == Path(".distserve/journal")
    assert config.bus.url == "nats://127.0.0.1:4222"


def test_the_journal_can_be_switched_off():
    assert SchedulerConfig.from_env({"DISTSERVE_JOURNAL": "off"}).journal is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DISTSERVE_QUEUE_REQUESTS", "0"),
        ("DISTSERVE_QUEUE_TOKENS", "many"),
        ("DISTSERVE_JOURNAL", "maybe"),
        ("DISTSERVE_JOURNAL_FILES", "-1"),
        ("NATS_URL", "http://example.org"),
    ],
)
def test_a_wrong_value_is_refused_with_the_name_of_its_variable(name: str, value: str):
    with pytest.raises(BadSetting, match=name):
        SchedulerConfig.from_env({name: value})
