from pathlib import Path

import pytest

from services.scheduler.config import SchedulerConfig
from services.scheduler.limits import Limits
from shared.specs.settings import BadSetting

TARGETS = {"SLO_TTFT_MS": "200", "SLO_TPOT_MS": "50"}


def test_without_any_variable_everything_has_a_default():
    config = SchedulerConfig.from_env({})
    assert config.limits == Limits()
    assert config.journal is not None
    assert config.journal.folder == Path(".distserve/journal")
    assert config.bus.url == "nats://127.0.0.1:4222"


def test_the_queue_may_take_as_long_as_the_first_token_unless_that_is_set():
    def queue_seconds(**variables: str) -> float:
        return SchedulerConfig.from_env(
            {f"DISTSERVE_{name}": value for name, value in variables.items()}
        ).limits.queue_seconds

    assert queue_seconds(SLO_TTFT_MS="15000") == 15
    assert queue_seconds(SLO_TTFT_MS="200") == Limits().queue_seconds
    assert queue_seconds(SLO_TTFT_MS="15000", QUEUE_SECONDS="2") == 2


def test_the_journal_can_be_switched_off():
    assert SchedulerConfig.from_env({"DISTSERVE_JOURNAL": "off"}).journal is None


def test_replanning_is_on_with_a_profile_and_targets_and_off_without():
    assert SchedulerConfig.from_env({"DISTSERVE_SLO_TTFT_MS": "200", "DISTSERVE_SLO_TPOT_MS": "50"}).replanning is None
    shipped = {"DISTSERVE_PROFILE": "a100-80g-distserve", "DISTSERVE_SERVED_MODEL_NAME": "opt-13b"}
    settings = SchedulerConfig.from_env(
        shipped | {"DISTSERVE_SLO_TTFT_MS": "200", "DISTSERVE_SLO_TPOT_MS": "50"}
    ).replanning
    assert settings is not None
    assert (settings.model, settings.ttft_seconds, settings.tpot_seconds) == ("opt-13b", 0.2, 0.05)


@pytest.mark.parametrize(
    ("variables", "complaint"),
    [
        ({"PROFILE": "a100-80g-distserve", "SERVED_MODEL_NAME": "opt-13b"}, "DISTSERVE_SLO_TTFT_MS"),
        ({"PROFILE": "nowhere.json", **TARGETS}, "DISTSERVE_PROFILE='nowhere.json': no profile"),
        ({"PROFILE": "a100-80g-distserve", "SERVED_MODEL_NAME": "demo", **TARGETS}, "has no model 'demo'"),
        ({"PROFILE": "a100-80g-distserve", "SERVED_MODEL_NAME": "opt-66b", **TARGETS}, "no figures of opt-66b on one"),
    ],
)
def test_a_profile_that_cannot_be_used_is_named(variables: dict[str, str], complaint: str):
    with pytest.raises(BadSetting, match=complaint):
        SchedulerConfig.from_env({f"DISTSERVE_{name}": value for name, value in variables.items()})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DISTSERVE_QUEUE_REQUESTS", "0"),
        ("DISTSERVE_QUEUE_TOKENS", "many"),
        ("DISTSERVE_RETURN_TIMEOUT", "-1"),
        ("DISTSERVE_JOURNAL", "maybe"),
        ("DISTSERVE_JOURNAL_FILES", "-1"),
        ("NATS_URL", "http://example.org"),
    ],
)
def test_a_wrong_value_is_refused_with_the_name_of_its_variable(name: str, value: str):
    with pytest.raises(BadSetting, match=name):
        SchedulerConfig.from_env({name: value})
