import pytest

from shared.bus.settings import BusSettings
from shared.specs.settings import BadSetting


def test_without_variables_the_server_is_the_local_one():
    assert BusSettings.from_env({"NATS_URL": ""}) == BusSettings(url="nats://127.0.0.1:4222")


@pytest.mark.parametrize("url", ["http://nats:4222", "nats:4222", "nats://", "127.0.0.1"])
def test_a_url_of_another_kind_is_refused(url: str):
    with pytest.raises(BadSetting, match="NATS_URL must be nats://"):
        BusSettings.from_env({"NATS_URL": url})


def test_a_missing_key_file_is_refused_by_its_variable():
    with pytest.raises(BadSetting, match="NATS_NKEY_SEED_FILE: there is no file /nowhere/seed"):
        BusSettings.from_env({"NATS_NKEY_SEED_FILE": "/nowhere/seed"})


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("nats://nats:4222", "nats://nats:4222"),
        ("nats://user:secret@nats:4222", "nats://***@nats:4222"),
        ("tls://token@nats", "tls://***@nats"),
        ("nats://user:p@ss@nats:4222", "nats://***@nats:4222"),
    ],
)
def test_secrets_are_never_shown(url: str, shown: str):
    assert BusSettings(url=url).shown_url == shown
