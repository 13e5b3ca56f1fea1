"""The demo model, made for real: its files are what any reader of Hugging Face folders expects."""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from cli import demo_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made by two processes at once, as two first starts would."""
    folder = tmp_path_factory.mktemp("models") / "demo"
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as processes:
        list(processes.map(demo_model.ensure, [folder, folder]))
    return folder


def test_two_processes_that_make_it_at_once_leave_one_complete_folder(folder: Path) -> None:
    assert [entry.name for entry in folder.parent.iterdir()] == ["demo"]
    assert not demo_model.ensure(folder), "it is there: nothing to make"


def test_making_it_again_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    again = tmp_path / "demo"
    assert demo_model.ensure(again)
    assert sorted(file.name for file in again.iterdir()) == sorted(file.name for file in folder.iterdir())
    for file in again.iterdir():
        assert file.read_bytes() == (folder / file.name).read_bytes(), file.name


def test_transformers_loads_it_and_its_answers_are_varied_printable_and_do_not_end_at_once(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert model.num_parameters() == pytest.approx(15e6, rel=0.02)
    messages = [{"role": "user", "content": "Hello, who are you?"}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert prompt == "<|user|>\nHello, who are you?<|end|>\n<|assistant|>\n"
    inputs = tokenizer(prompt, return_tensors="pt")
    assert inputs.input_ids[0, 0] == tokenizer.convert_tokens_to_ids("<|user|>")
    output = model.generate(**inputs, max_new_tokens=64, do_sample=False)[0, inputs.input_ids.shape[1] :]
    assert len(output) == 64
    assert len(set(output.tolist())) > 32
    text = tokenizer.decode(output)
    assert text.isascii()
    assert text.isprintable()
