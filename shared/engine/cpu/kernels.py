"""The kernels of kernels.cpp on tensors, or None where they cannot be had: every caller has another way in torch."""

import ctypes
from collections.abc import Callable
from ctypes import c_float, c_int64, c_void_p
from functools import cache
from typing import Any

import structlog
import torch
from torch import Tensor

from shared.engine.cpu.library import MARCH, CannotBuild, library
from shared.specs.model import ModelSpec

log = structlog.get_logger()

DTYPES = {torch.float32: "f32", torch.bfloat16: "bf16"}
CACHED = (("f32", "f32"), ("f32", "bf16"), ("bf16", "bf16"))  # dtypes of a step and of the KV cache
MOST_HEAD, MOST_HEADS = 256, 64  # numbers of a head; query heads of a key-value head
MOST_INT8_ROWS = 16
KEYS = 16  # of a block that are read together


class HeadShape(ctypes.Structure):
    """`Shape` in the source: the heads of a layer, and where its part of a block is, in numbers."""

    _fields_ = tuple(
        (name, c_int64) for name in ("heads", "kv_heads", "head_dim", "block_tokens", "block_stride", "layer_offset")
    )


class Kernels:
    """Tensors are contiguous and on the CPU, of a dtype in DTYPES, indices int64; that is not checked."""

    def __init__(self, built: ctypes.CDLL) -> None:
        self.lanes: int = built.lanes()  # widths are a multiple of it; outputs of a packed weight, and heads, of two
        self._product_short = _typed(built.product_short, "pppiii")
        self._product_int8 = _typed(built.product_int8, "pppppiiii")
        self._rms_norm = {dtype: _typed(built[f"rms_norm_{name}"], "pppiif") for dtype, name in DTYPES.items()}
        self._gate = {dtype: _typed(built[f"gate_{name}"], "ppii") for dtype, name in DTYPES.items()}
        self._rotate = {dtype: _typed(built[f"rotate_{name}"], "pppiiii") for dtype, name in DTYPES.items()}
        self._store = {key: _typed(built[f"store_kv_{'_'.join(key)}"], "ppppip") for key in CACHED}
        self._attend = {key: _typed(built[f"decode_attention_{'_'.join(key)}"], "ppppipip") for key in CACHED}

    def packed(self, weight: Tensor) -> Tensor:
        """weight [outputs, inputs] of numbers that bfloat16 can hold -> int32 [outputs / 2 / lanes, inputs, lanes]"""
        outputs, inputs = weight.shape
        bits = weight.to(torch.bfloat16).view(torch.int16).to(torch.int32)
        low, high = bits.view(outputs // self.lanes // 2, 2, self.lanes, inputs).unbind(1)
        return ((low & 0xFFFF) | (high << 16)).transpose(1, 2).contiguous()

    def product(self, x: Tensor, packed: Tensor) -> Tensor:
        """x float32 [rows, inputs], weight as `packed` gives it -> float32 [rows, outputs]"""
        rows, inputs = x.shape
        outputs = packed.shape[0] * self.lanes * 2
        y = x.new_empty(rows, outputs)
        self._product_short(x.data_ptr(), packed.data_ptr(), y.data_ptr(), rows, inputs, outputs)
        return y

    def packed_int8(self, levels: Tensor) -> Tensor:
        """levels int8 [outputs, inputs] -> int32 [outputs / 4 / lanes, inputs, lanes]"""
        outputs, inputs = levels.shape
        parts = levels.view(outputs // self.lanes // 4, 4, self.lanes, inputs)
        return parts.permute(0, 3, 2, 1).contiguous().view(torch.int32).squeeze(-1)

    def product_int8(self, x: Tensor, packed: Tensor, scales: Tensor, most: int) -> Tensor:
        """x float32 [rows, inputs], at most MOST_INT8_ROWS, is rounded to `most` levels on either side of zero.

        Weight as `packed_int8` gives it, scales float32 [outputs] -> float32 [rows, outputs]
        """
        rows, inputs = x.shape
        assert rows <= MOST_INT8_ROWS, "the kernel has room for no more scales"
        levels, y = torch.empty_like(x), x.new_empty(rows, len(scales))
        pointers = x.data_ptr(), packed.data_ptr(), scales.data_ptr(), levels.data_ptr(), y.data_ptr()
        self._product_int8(*pointers, rows, inputs, len(scales), most)
        return y

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """x [rows, width], weight [width] -> [rows, width]"""
        rows, width = x.shape
        y = torch.empty_like(x)
        self._rms_norm[x.dtype](x.data_ptr(), weight.data_ptr(), y.data_ptr(), rows, width, eps)
        return y

    def gate(self, gate_up: Tensor) -> Tensor:
        """gate_up [rows, 2 * width] -> silu of the first half times the second [rows, width]"""
        rows, width = gate_up.shape[0], gate_up.shape[1] // 2
        y = gate_up.new_empty(rows, width)
        self._gate[y.dtype](gate_up.data_ptr(), y.data_ptr(), rows, width)
        return y

    def rotate(self, heads: Tensor, turned: int, cos: Tensor, sin: Tensor) -> None:
        """Turn the first `turned` of heads [rows, heads, head_dim] in place; cos and sin float32 [rows, 1, head_dim]"""
        rows, all_heads, head_dim = heads.shape
        call = self._rotate[heads.dtype]
        call(heads.data_ptr(), cos.data_ptr(), sin.data_ptr(), rows, all_heads, turned, head_dim)

    def store_kv(self, heads: Tensor, pool: Tensor, blocks: Tensor, offsets: Tensor, shape: HeadShape) -> None:
        """heads [rows, heads + 2 * kv_heads, head_dim]: keys and values of row i go to blocks[i] at offsets[i]."""
        call = self._store[DTYPES[heads.dtype], DTYPES[pool.dtype]]
        call(heads.data_ptr(), pool.data_ptr(), blocks.data_ptr(), offsets.data_ptr(), len(heads), ctypes.byref(shape))

    def decode_attention(self, heads: Tensor, pool: Tensor, tables: Tensor, tokens: Tensor, shape: HeadShape) -> Tensor:
        """One new token of each sequence, heads [rows, ...] as in `store_kv`, which came before; tables [rows, blocks].

        tokens [rows]: how many keys each sees. -> context [rows, heads * head_dim]
        """
        rows, width = tables.shape
        y = heads.new_empty(rows, shape.heads * shape.head_dim)
        call = self._attend[DTYPES[heads.dtype], DTYPES[pool.dtype]]
        pointers = heads.data_ptr(), y.data_ptr(), pool.data_ptr(), tables.data_ptr()
        call(*pointers, width, tokens.data_ptr(), rows, ctypes.byref(shape))
        return y


def kernels_for(spec: ModelSpec, device: torch.device, dtype: torch.dtype) -> Kernels | None:
    """None: this model, device or dtype has none, or they cannot be built here, which is logged once."""
    fits = spec.head_dim <= MOST_HEAD and spec.heads <= MOST_HEADS * spec.kv_heads
    if device.type != "cpu" or dtype not in DTYPES or not fits or (kernels := _kernels()) is None:
        return None
    widths = (spec.hidden_size, spec.intermediate_size, spec.head_dim // 2)
    return None if any(width % kernels.lanes for width in widths) else kernels


@cache
def _kernels() -> Kernels | None:
    variant = torch.backends.cpu.get_cpu_capability().lower()
    if variant not in MARCH:
        log.warning("cpu_kernels_missing", reason=f"none are written for {variant}")
        return None
    try:
        return Kernels(ctypes.CDLL(str(library(variant))))
    except (CannotBuild, OSError) as error:  # OSError: torch came without the OpenMP library that they are built for
        log.warning("cpu_kernels_missing", reason=str(error))
        return None


def _typed(function: Any, kinds: str) -> Callable[..., None]:
    """kinds: p pointer, i int64, f float"""
    types = {"p": c_void_p, "i": c_int64, "f": c_float}
    function.argtypes, function.restype = [types[kind] for kind in kinds], None
    return function
