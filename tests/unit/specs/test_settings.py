import pytest

from shared.specs.settings import BadSetting, Environment


def test_an_empty_variable_counts_as_not_set():
    assert Environment({"DISTSERVE_QUEUE": " "}).integer("QUEUE", 7) == 7


@pytest.mark.parametrize(
    ("value", "complaint"), [("ten", "DISTSERVE_QUEUE='ten' is not a number"), ("0", "must be between 1 and 9")]
)
def test_a_wrong_number_names_the_variable_and_what_is_allowed(value: str, complaint: str):
    with pytest.raises(BadSetting, match=complaint):
        Environment({"DISTSERVE_QUEUE": value}).integer("QUEUE", 7, least=1, most=9)


def test_a_missing_setting_says_what_it_must_be():
    with pytest.raises(BadSetting, match="DISTSERVE_MODEL is not set: it must be a model folder"):
        Environment({}).required("MODEL", "a model folder")


def test_a_choice_lists_what_is_allowed():
    with pytest.raises(BadSetting, match="one of cpu, cuda"):
        Environment({"DISTSERVE_DEVICE": "tpu"}).choice("DEVICE", "cpu", ("cpu", "cuda"))


def test_a_flag_is_on_or_off():
    assert Environment({"DISTSERVE_X": "on"}).flag("X", False)
    with pytest.raises(BadSetting):
        Environment({"DISTSERVE_X": "maybe"}).flag("X", False)


def test_numbers_are_separated_by_commas():
    assert Environment({"DISTSERVE_CORES": "0, 2,3"}).integers("CORES") == (0, 2, 3)
    assert Environment({}).integers("CORES") == ()
    with pytest.raises(BadSetting, match="DISTSERVE_CORES='0-3'"):
        Environment({"DISTSERVE_CORES": "0-3"}).integers("CORES")
