import stat
from pathlib import Path

import nkeys
import pytest

from cli.keys import IDENTITIES, PUBLIC_KEYS, keys, make_keys, seed_file
from cli.problems import Problem


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_every_role_gets_a_seed_that_only_its_owner_can_read(tmp_path: Path):
    make_keys(tmp_path / "keys")
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o700
    for role in IDENTITIES:
        assert stat.S_IMODE(seed_file(tmp_path / "keys", role).stat().st_mode) == 0o600


def test_the_public_keys_are_those_of_the_seeds_and_no_two_are_the_same(tmp_path: Path):
    public = make_keys(tmp_path)
    for role in IDENTITIES:
        pair = nkeys.from_seed(bytearray(seed_file(tmp_path, role).read_bytes()))
        assert bytes(pair.public_key).decode() == public[f"{role.upper()}_NKEY"]
    assert len(set(public.values())) == len(IDENTITIES)
    lines = (tmp_path / PUBLIC_KEYS).read_text().splitlines()
    assert dict(line.split("=") for line in lines) == public


@pytest.mark.parametrize("left", ["decode.seed", PUBLIC_KEYS])
def test_a_key_that_is_there_is_never_overwritten_unless_asked(tmp_path: Path, left: str):
    make_keys(tmp_path)
    for file in tmp_path.iterdir():
        if file.name != left:
            file.unlink()
    before = contents(tmp_path)
    with pytest.raises(Problem, match=rf"{left}.*--force"):
        make_keys(tmp_path)
    assert contents(tmp_path) == before
    make_keys(tmp_path, force=True)
    assert contents(tmp_path)[left] != before[left]


def test_the_command_shows_no_secret(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    keys(out=tmp_path)
    shown = capsys.readouterr().out
    assert str(tmp_path) in shown
    assert not [role for role in IDENTITIES if seed_file(tmp_path, role).read_text() in shown]
