"""Weights from safetensors files, tensor by tensor straight to where they are used: never two copies of the model."""

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from shared.engine.cpu.kernels import Kernels
from shared.engine.int8 import Int8Linear
from shared.engine.linear import Projection, linear
from shared.specs.model import BadModel, ModelSpec

Progress = Callable[[int, int], None]  # (bytes read so far, bytes in all); called on the loading thread

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
STORED_DTYPES = ("F32", "F16", "BF16", "F64")
NEVER_USED = (".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")  # constants that old versions stored


class Weights:
    """The tensors of one checkpoint, converted to `dtype` on `device` as they are asked for. Read all, then finish.

    Every way in which the files do not fit raises BadModel with the file, the tensor and a remedy.
    """

    def __init__(
        self,
        folder: Path,
        device: torch.device,
        dtype: torch.dtype,
        progress: Progress,
        quantization: str = "none",
        kernels: Kernels | None = None,
    ) -> None:
        self.device, self.dtype, self.kernels = device, dtype, kernels
        self._quantization = quantization
        self._progress = progress
        self._open_files = ExitStack()
        self._file_of, self._handles = {}, {}
        files = weight_files(folder)
        for path in files:
            handle = self._handles[path] = self._open(path)
            self._file_of |= dict.fromkeys(handle.keys(), path)
        self._bytes_read, self._bytes_total = 0, sum(path.stat().st_size for path in files)
        self._unread = set(self._file_of)
        self._folder = folder

    def prefix(self, name: str, candidates: Sequence[str]) -> str:
        """Which of the prefixes that `name` may have is used here."""
        for candidate in candidates:
            if candidate + name in self._file_of:
                return candidate
        raise self._missing(candidates[0] + name)

    def tensor(self, name: str, shape: tuple[int, ...]) -> Tensor:
        target = torch.empty(shape, dtype=self.dtype, device=self.device)
        self._read_into(target, name, transposed=False)
        return target

    def linear(
        self, names: Sequence[str], outputs: Sequence[int], inputs: int, *, bias: bool, transposed: bool = False
    ) -> Projection:
        """One layer of the stored layers `names`, their `outputs` stacked; `transposed`: stored as [inputs, outputs]"""
        weight = torch.empty(sum(outputs), inputs, dtype=self.dtype, device=self.device)
        biases = torch.empty(sum(outputs), dtype=self.dtype, device=self.device) if bias else None
        first = 0
        for name, rows in zip(names, outputs, strict=True):
            self._read_into(weight[first : first + rows], f"{name}.weight", transposed=transposed)
            if biases is not None:
                self._read_into(biases[first : first + rows], f"{name}.bias", transposed=False)
            first += rows
        return self._projection(weight, biases)

    def tied(self, embedding: Tensor) -> Projection:
        """The head of a model whose embedding [vocabulary, hidden] is its weight too."""
        return self._projection(embedding, None)

    def _projection(self, weight: Tensor, bias: Tensor | None) -> Projection:
        if self._quantization == "int8":
            return Int8Linear(weight, bias, self.kernels)
        return linear(weight, bias, self.kernels)

    def finish(self, spec: ModelSpec) -> None:
        """Close the files. BadModel if they hold weights that nobody asked for: the answers would be wrong."""
        self.close()
        unused = [name for name in self._unread if not name.endswith(NEVER_USED)]
        if spec.tied_embeddings:
            unused = [name for name in unused if name != "lm_head.weight"]
        if unused:
            raise BadModel(
                f"{self._folder} holds {len(unused)} tensors that {spec.architecture} with this config.json does not "
                f"use, such as {min(unused)!r}: the config and the weights do not belong together"
            )
        self._progress(self._bytes_total, self._bytes_total)

    def close(self) -> None:
        self._open_files.close()

    def _open(self, path: Path) -> Any:
        try:
            return self._open_files.enter_context(safe_open(path, framework="pt", device="cpu"))
        except (SafetensorError, OSError) as error:
            raise BadModel(f"{path} cannot be read ({error}): download or copy it again") from None

    def _read_into(self, target: Tensor, name: str, *, transposed: bool) -> None:
        path = self._file_of.get(name)
        if path is None:
            raise self._missing(name)
        stored = self._handles[path].get_slice(name)
        shape, wanted = list(stored.get_shape()), list(target.shape)
        if shape != (wanted[::-1] if transposed else wanted):
            raise BadModel(
                f"{path}: tensor {name!r} has shape {shape}, config.json asks for "
                f"{wanted[::-1] if transposed else wanted}: the config and the weights do not belong together"
            )
        if stored.get_dtype() not in STORED_DTYPES:
            raise BadModel(
                f"{path}: tensor {name!r} is stored as {stored.get_dtype()}; only {', '.join(STORED_DTYPES)} can be "
                "read: use the unquantized checkpoint"
            )
        source = self._handles[path].get_tensor(name)
        target.copy_(source.t() if transposed else source)
        self._unread.discard(name)
        self._bytes_read += source.nbytes
        self._progress(self._bytes_read, self._bytes_total)

    def _missing(self, name: str) -> BadModel:
        return BadModel(
            f"{self._folder} has no tensor {name!r}: the checkpoint is incomplete or does not belong to its config.json"
        )


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of the model in `folder`; BadModel if there are none or a shard is missing."""
    index = folder / INDEX
    if not index.exists():
        if (folder / SINGLE).exists():
            return [folder / SINGLE]
        raise BadModel(
            f"{folder} has neither {SINGLE} nor {INDEX}: only safetensors weights are read; load the model with "
            "transformers and call save_pretrained to convert other formats"
        )
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise BadModel(f"{index} is damaged ({error!r}): download or copy it again") from None
    missing = [name for name in names if not (folder / name).exists()]
    if missing:
        raise BadModel(
            f"{folder} lacks {len(missing)} of {len(names)} weight files, such as {missing[0]}: download the rest"
        )
    return [folder / name for name in names]
