"""Damaged and hostile checkpoints: every command ends with an exit code of its own, soon, and leaves nothing.

A seed chooses a checkpoint, a file of it, what is done to the file, and the command.
"""

import json
import os
import random
import resource
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime as ort
import pytest

from tests.export.tiny_families import save_text, save_vision
from tests.fuzz.processes import recorded_processes
from tests.helpers.commands import Hvlc
from tests.helpers.tiny import save_tiny

SECONDS, BYTES = 20, 2 << 30
DEFAULT, SLOW, PIECES = 30, 600, 12
CODES = (0, 2, 3, 4)

HOSTILE: tuple[Any, ...] = (
    *(0, -1, 1, 3, 2**15, 2**31, 2**40, 2**63, 10**39, 1e400, -1e400, float("nan"), 1e-320, 0.5, -0.0),
    *("", "x" * 5000, "\0", "\u202e", "../../etc/passwd", "user/kernel", "float32", "é", "NaN"),
    *([], {}, None, True, False, [[]], [None], [0] * 3, [1e400] * 3, [-1, 2**63], {"": ""}, {"a": {"a": [1]}}),
    *(["full_attention"] * 2, ["sliding_attention"] * 2, list(range(2000))),
)
KEYS = (
    "auto_map",
    "attn_implementation",
    "quantization_config",
    "architectures",
    "rope_scaling",
    "rope_parameters",
    "head_dim",
    "layer_types",
    "sliding_window",
    "use_sliding_window",
    "dtype",
    "torch_dtype",
    "to_dict",
    "model_type",
    "__class__",
    "vision_config",
    "text_config",
    "num_patches",
    "image_std",
    "eos_token_id",
    "tie_word_embeddings",
    "partial_rotary_factor",
    "max_window_layers",
    "no_rope_layers",
)
PROCESSOR = {
    "do_normalize": True,
    "do_rescale": True,
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
    "rescale_factor": 1 / 255,
    "resample": 2,
}
Damage = Callable[[random.Random, Path], None]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    siglip = save_vision(root / "siglip", "siglip")
    (siglip / "preprocessor_config.json").write_text(json.dumps(PROCESSOR), "utf-8")
    return {
        "llama": save_text(root / "llama", "llama"),
        "qwen3": save_text(root / "qwen3", "qwen3", tie_word_embeddings=True),
        "smollm3": save_text(root / "smollm3", "smollm3"),
        "siglip": siglip,
        "hypervl": save_tiny(root / "hypervl"),
    }


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every container and key or index in it."""
    keys = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    return [(value, key) for key in keys] + [place for key in keys for place in places(value[key])]


def mutate_json(chance: random.Random, path: Path) -> None:
    """Some values replaced, keys added or removed."""
    content = json.loads(path.read_text("utf-8"))
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        sections = [content, *(c[k] for c, k in places(content) if isinstance(c[k], dict))]
        container, key = chance.choice(places(content) or [(content, "x")])
        action = chance.random()
        if action < 0.7:
            container[key] = chance.choice(HOSTILE)
        elif action < 0.9:
            chance.choice(sections)[chance.choice(KEYS)] = chance.choice(HOSTILE)
        elif isinstance(container, dict):
            container.pop(key, None)
    path.write_text(json.dumps(content), "utf-8")


def mutate_bytes(chance: random.Random, path: Path) -> None:
    """Bytes replaced, cut off, repeated or put in."""
    content = bytearray(path.read_bytes())
    at = chance.randrange(len(content))
    match chance.randrange(5):
        case 0:
            del content[at:]
        case 1:
            content[at : at + 4] = chance.randbytes(4)
        case 2:
            content[at:at] = chance.choice((b"9" * 5000, b"[" * 3000, b"\xff\xfe", b"\0", b'"', b"NaN", b"\\ud800"))
        case 3:
            content += content[:at]
        case _:
            content = bytearray(chance.choice((b"", b"null", b"[]", b"{}", b'"', b"1e400", b"\xef\xbb\xbf{}")))
    path.write_bytes(content)


def mutate_document(chance: random.Random, path: Path) -> None:
    (mutate_json if chance.random() < 0.85 else mutate_bytes)(chance, path)


def mutate_header(chance: random.Random, path: Path) -> None:
    """An entry of a safetensors file's header, or its bytes."""
    content = path.read_bytes()
    (length,) = struct.unpack_from("<Q", content)
    header = json.loads(content[8 : 8 + length])
    name = chance.choice([n for n in header if n != "__metadata__"])
    entry = header[name]
    match chance.randrange(8):
        case 0:
            entry[chance.choice(("dtype", "shape", "data_offsets"))] = chance.choice(HOSTILE)
        case 1:
            entry["dtype"] = chance.choice(("F64", "I8", "BOOL", "F16", "BF16", "F8_E4M3", "U64"))
        case 2:
            entry["shape"] = entry["shape"][::-1]
        case 3:
            entry["shape"] = [*entry["shape"], 1]
        case 4:
            del header[name]
        case 5:
            header[chance.choice(("score.weight", "lm_head.weight", "model.layers.9.mlp.up_proj.weight", ""))] = entry
        case 6:
            header["__metadata__"] = chance.choice((*HOSTILE, {"lm_head.weight": name}, {name: name}))
        case _:
            entry["data_offsets"] = [chance.choice((0, -1, 2**62)), chance.choice((8, 2**63, len(content)))]
    text = json.dumps(header).encode()
    path.write_bytes(
        struct.pack("<Q", chance.choice((len(text), len(text), len(text), 2**62))) + text + content[8 + length :]
    )


def mutate_body(chance: random.Random, path: Path) -> None:
    """Numbers of the weights."""
    content = bytearray(path.read_bytes())
    (length,) = struct.unpack_from("<Q", content)
    for _ in range(chance.choice((1, 100))):
        at = 8 + length + 4 * chance.randrange((len(content) - 8 - length) // 4)
        content[at : at + 4] = struct.pack("<f", chance.choice((float("inf"), float("nan"), 3e38, 1e-40, 0.0)))
    path.write_bytes(content)


def mutate_index(chance: random.Random, path: Path) -> None:
    """The one file as a shard with an index that is then damaged."""
    shard = path.with_name("model-00001-of-00001.safetensors")
    path.rename(shard)
    (length,) = struct.unpack_from("<Q", shard.read_bytes())
    names = [n for n in json.loads(shard.read_bytes()[8 : 8 + length]) if n != "__metadata__"]
    index = path.with_name("model.safetensors.index.json")
    index.write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, shard.name)}), "utf-8")
    if chance.random() < 0.9:
        mutate_document(chance, index)


def mutate_kind(chance: random.Random, path: Path) -> None:
    """Something else in the file's place."""
    path.unlink()
    match chance.randrange(5):
        case 0:
            os.mkfifo(path)
        case 1:
            path.mkdir()
        case 2:
            path.symlink_to("/dev/zero")
        case 3:
            path.symlink_to(path.name)
        case _:
            with path.open("wb") as file:
                file.truncate(1 << 42)


#: Files and what is done to them, with how often.
DAMAGES: tuple[tuple[int, str, Damage], ...] = (
    (12, "config.json", mutate_document),
    (2, "generation_config.json", mutate_document),
    (4, "preprocessor_config.json", mutate_document),
    (4, "processor_config.json", mutate_document),
    (2, "tokenizer_config.json", mutate_document),
    (2, "tokenizer.json", mutate_document),
    (4, "model.safetensors", mutate_header),
    (1, "model.safetensors", mutate_body),
    (1, "model.safetensors", mutate_bytes),
    (2, "model.safetensors", mutate_index),
    (1, "config.json", mutate_kind),
    (1, "model.safetensors", mutate_kind),
    (1, "tokenizer_config.json", mutate_kind),
)


def damaged(chance: random.Random, base: Path, target: Path) -> str:
    """A copy of a checkpoint with one file damaged; returns what was done."""
    shutil.copytree(base, target)
    fitting = [(weight, name, damage) for weight, name, damage in DAMAGES if (base / name).is_file()]
    _, name, damage = chance.choices(fitting, [weight for weight, *_ in fitting])[0]
    damage(chance, target / name)
    return f"{base.name}/{name} {damage.__name__}"


def run_one(seed: int, bases: dict[str, Path], scratch: Path, hvlc: Hvlc) -> int:
    """One case; returns its exit code."""
    chance = random.Random(seed)
    done = damaged(chance, bases[chance.choice(sorted(bases))], scratch / "checkpoint")
    recipe = chance.choice(("w4a16-rtn", "float32"))
    command = chance.choice(("plan", "plan", "build"))
    started = time.monotonic()
    with recorded_processes() as processes:
        result = hvlc(command, scratch / "checkpoint", "--recipe", recipe, "-o", scratch / "out", "--threads", 1)
    told = f"seed {seed}: {done}, {command} {recipe}: {result.code} {result.err[-1500:]}"
    assert result.code in CODES, told
    assert time.monotonic() - started < SECONDS, told
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 < BYTES, told
    assert processes == [], (told, processes)
    built = ["out"] if command == "build" and result.code == 0 else []
    assert sorted(path.name for path in scratch.iterdir()) == ["checkpoint", *built], told
    for graph in sorted(scratch.glob("out/*.onnx")):
        ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
    return result.code


def run_all(seeds: range, bases: dict[str, Path], root: Path, hvlc: Hvlc) -> set[int]:
    codes = set()
    for seed in seeds:
        scratch = root / str(seed)
        scratch.mkdir()
        codes.add(run_one(seed, bases, scratch, hvlc))
        shutil.rmtree(scratch)
    return codes


def test_damaged_checkpoints_end_as_they_should(
    bases: dict[str, Path], tmp_path: Path, hvlc: Hvlc, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_all(range(DEFAULT), bases, tmp_path, hvlc) == {0, 2}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("piece", range(PIECES))
def test_many_damaged_checkpoints_end_as_they_should(
    bases: dict[str, Path], tmp_path: Path, hvlc: Hvlc, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    monkeypatch.chdir(tmp_path)
    count = SLOW // PIECES
    first = DEFAULT + piece * count
    assert run_all(range(first, first + count), bases, tmp_path, hvlc) <= set(CODES)
    assert list(tmp_path.iterdir()) == []
