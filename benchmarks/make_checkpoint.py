"""Write a checkpoint of a named shape with random weights, tensor by tensor, in the memory of a few tensors.

    python benchmarks/make_checkpoint.py qwen3-1.7b DIRECTORY [--shard-gb 4] [--sparse]

The weights have the scale of trained ones, so that activations stay near one through all layers; they
mean nothing. Sparse checkpoints are zeros that take no disk: right for time and memory, not for tokens.
"""

import argparse
import hashlib
import json
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import ml_dtypes
import numpy as np
from shapes import SHAPES, Shape

_POOL = 2**24 - 3  # prime, so that no row of a matrix repeats the one before it
_CHUNK = 1 << 22  # elements
_GB = 10**9


@dataclass(frozen=True)
class Entry:
    """One tensor to write: `dtype` is BF16 or I64, `shape` its dimensions."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Stored bytes."""
        return self.size * {"BF16": 2, "I64": 8}[self.dtype]


def entries(config: Any) -> list[Entry]:
    """The tensors that transformers saves for a model of this configuration: a tied head once."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    sees = hasattr(config, "text_config")
    factory = AutoModelForImageTextToText if sees else AutoModelForCausalLM
    with torch.device("meta"):
        model = factory.from_config(config)
    return [
        Entry(name, "BF16" if tensor.is_floating_point() else "I64", tuple(tensor.shape))
        for name, tensor in model.state_dict().items()
        if not (config.tie_word_embeddings and name.endswith("lm_head.weight"))
    ]


class Noise:
    """Random bfloat16 values from one pool, from a place in it that depends on the tensor's name."""

    def __init__(self, seed: int = 0) -> None:
        self._pool = np.random.default_rng(seed).standard_normal(_POOL, np.float32)
        self._scaled: dict[tuple[float, float], np.ndarray] = {}

    def chunks(self, entry: Entry) -> Iterator[np.ndarray]:
        """The values of `entry`, flat and in order, a few megabytes at a time."""
        if entry.dtype == "I64":
            yield np.zeros(entry.size, np.int64)
            return
        pool = self._pool_for(entry)
        start = int.from_bytes(hashlib.sha256(entry.name.encode()).digest()[:8], "little") % _POOL
        left = entry.size
        while left:
            piece = pool[start : start + min(left, _CHUNK)]
            yield piece
            left -= piece.size
            start = (start + piece.size) % _POOL

    def _pool_for(self, entry: Entry) -> np.ndarray:
        """Matrices keep the size of what they multiply; norms and variances are near one, biases near zero."""
        if len(entry.shape) > 1:
            mean, deviation = 0.0, math.prod(entry.shape[1:]) ** -0.5
        elif entry.name.endswith(("weight", "running_var")):
            mean, deviation = 1.0, 0.1
        else:
            mean, deviation = 0.0, 0.02
        if (mean, deviation) not in self._scaled:
            self._scaled[mean, deviation] = (self._pool * deviation + mean).astype(ml_dtypes.bfloat16)
        return self._scaled[mean, deviation]


def _write_shard(file: IO[bytes], shard: list[Entry], noise: Noise | None) -> None:
    """One safetensors file; without noise a hole of the right length."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for entry in shard:
        offsets = [offset, offset + entry.nbytes]
        header[entry.name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": offsets}
        offset += entry.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)
    if noise is None:
        file.truncate(file.tell() + offset)
        return
    for entry in shard:
        for chunk in noise.chunks(entry):
            file.write(chunk.view(np.uint8).data)


def _shards(tensors: list[Entry], limit: float) -> list[list[Entry]]:
    """Tensors in order, split so that no file but that of one large tensor is over `limit` bytes."""
    shards: list[list[Entry]] = [[]]
    for entry in tensors:
        if shards[-1] and sum(e.nbytes for e in shards[-1]) + entry.nbytes > limit:
            shards.append([])
        shards[-1].append(entry)
    return shards


def make_checkpoint(shape: Shape, directory: Path, *, shard_gb: float = math.inf, sparse: bool = False) -> Path:
    """Write config.json, a byte-level tokenizer and safetensors; returns `directory`.

    Args:
        shape: what to write.
        directory: made if missing; files of the same names are overwritten.
        shard_gb: largest safetensors file in GB, with an index when there are several.
        sparse: zeros as holes in the file instead of random values.
    """
    from hvlc.training.tokenizer import build_nano_tokenizer

    config = shape.config()
    directory.mkdir(parents=True, exist_ok=True)
    tensors = entries(config)
    shards = _shards(tensors, shard_gb * _GB)
    noise = None if sparse else Noise()
    index: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = "model.safetensors" if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        with (directory / name).open("wb") as file:
            _write_shard(file, shard, noise)
        index |= {entry.name: name for entry in shard}
    if len(shards) > 1:
        content = {"metadata": {"total_size": sum(e.nbytes for e in tensors)}, "weight_map": index}
        (directory / "model.safetensors.index.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
    if shape.save_processor:
        shape.save_processor(config, directory)
    else:
        build_nano_tokenizer().save_pretrained(directory)
    config.save_pretrained(directory)  # last: a directory with a config is a finished one
    return directory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=sorted(SHAPES))
    parser.add_argument("directory", type=Path)
    parser.add_argument("--shard-gb", type=float, default=math.inf, help="largest file in GB (default: one file)")
    parser.add_argument("--sparse", action="store_true", help="zeros that take no disk")
    options = parser.parse_args()
    made = make_checkpoint(SHAPES[options.shape], options.directory, shard_gb=options.shard_gb, sparse=options.sparse)
    print(made)


if __name__ == "__main__":
    main()
