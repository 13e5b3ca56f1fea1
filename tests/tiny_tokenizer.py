"""A tokenizer small enough to be made for each run: the 256 bytes, some merges, two special tokens."""

from pathlib import Path

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

END = "<|end|>"  # token 0
USER = "<|user|>"  # token 1
SAMPLE = ["the quick brown fox jumps over the lazy dog", "a request and its answer: größer, 日本語, 🙂🙃"]


def write_tokenizer(folder: Path) -> Path:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in (END, USER)])
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=[END, USER],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SAMPLE, trainer)
    file = folder / "tokenizer.json"
    tokenizer.save(str(file))
    return file
