"""The benchmarks' own parts: what they make, what they see, how they count."""

import json
import math
import subprocess
import sys
import time
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_tiny_checkpoint_loads_with_promised_shapes(tmp_path: Path) -> None:
    import torch
    from make_checkpoint import make_checkpoint
    from shapes import SHAPES
    from transformers import AutoModelForCausalLM, AutoTokenizer

    made = make_checkpoint(SHAPES["tiny"], tmp_path / "tiny", shard_gb=0.0003)
    assert len(list(made.glob("*.safetensors"))) > 1
    assert (made / "model.safetensors.index.json").is_file()
    model, loading = AutoModelForCausalLM.from_pretrained(made, output_loading_info=True)
    assert not any(loading[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    weights = dict(model.named_parameters())
    assert weights["model.embed_tokens.weight"].shape == (512, 128)
    assert weights["model.layers.1.self_attn.q_proj.weight"].shape == (4 * 32, 128)
    assert weights["model.layers.1.mlp.down_proj.weight"].shape == (128, 256)
    assert weights["model.embed_tokens.weight"].dtype == torch.bfloat16
    assert AutoTokenizer.from_pretrained(made).encode("ab") == [97, 98]


def test_random_weights_have_the_scale_of_trained_ones_and_differ(tmp_path: Path) -> None:
    from make_checkpoint import make_checkpoint
    from shapes import SHAPES

    from hvlc.weights.checkpoint import Checkpoint

    tensors = Checkpoint.open(make_checkpoint(SHAPES["tiny"], tmp_path / "tiny")).tensors
    gate, up = (tensors[f"model.layers.0.mlp.{name}_proj.weight"].read().astype("float32") for name in ("gate", "up"))
    assert gate.std() == pytest.approx(128**-0.5, rel=0.05)
    assert abs((gate * up).mean()) < 0.1 * gate.std() * up.std()
    assert tensors["model.norm.weight"].read().astype("float32").mean() == pytest.approx(1, abs=0.05)
    assert "lm_head.weight" not in tensors


def test_sparse_checkpoint_takes_no_disk(tmp_path: Path) -> None:
    from make_checkpoint import entries, make_checkpoint
    from shapes import SHAPES

    made = make_checkpoint(SHAPES["qwen3-8b"], tmp_path / "sparse", sparse=True)
    status = (made / "model.safetensors").stat()
    assert status.st_size == pytest.approx(sum(e.nbytes for e in entries(SHAPES["qwen3-8b"].config())), rel=1e-4)
    assert status.st_size == pytest.approx(16.4e9, rel=0.01)
    assert status.st_blocks * 512 < 1_000_000


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("qwen3-0.6b", 0.596e9),
        ("qwen3-1.7b", 1.72e9),
        ("qwen3-8b", 8.19e9),
        ("llama-3.2-1b", 1.236e9),
        ("hypervl", 2.135e9),
    ],
)
def test_shapes_have_the_published_sizes(name: str, parameters: float) -> None:
    from make_checkpoint import entries
    from shapes import SHAPES

    assert sum(entry.size for entry in entries(SHAPES[name].config())) == pytest.approx(parameters, rel=0.005)


def test_sampler_sees_memory_time_and_writing_of_a_grandchild(tmp_path: Path) -> None:
    from measuring import measure

    work = f"""
import pathlib, time
block = b"x" * 200_000_000
pathlib.Path({str(tmp_path / "out")!r}).write_bytes(block[:50_000_000])
end = time.process_time() + 0.3
while time.process_time() < end: pass
"""
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {work!r}], check=True)"
    found = measure([sys.executable, "-c", parent], log=tmp_path / "log")
    assert 200e6 < found.peak_unshared < 300e6
    assert found.peak_unshared < found.peak_rss
    assert 0.3 < found.cpu < 0.3 + 2 * found.wall
    assert found.written == 0 or found.written >= 50_000_000  # 0 on a file system in memory


def test_sampler_does_not_count_mapped_files_as_unshared(tmp_path: Path) -> None:
    from measuring import measure

    (tmp_path / "data").write_bytes(bytes(100_000_000))
    code = f"""
import mmap, time
with open({str(tmp_path / "data")!r}, "rb") as file:
    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
sum(mapped[::4096])
time.sleep(0.3)
"""
    found = measure([sys.executable, "-c", code], log=tmp_path / "log")
    assert found.peak_rss > 100e6
    assert found.peak_unshared < 50e6


def test_failing_command_is_an_error_with_its_output(tmp_path: Path) -> None:
    from measuring import CommandFailedError, measure

    with pytest.raises(CommandFailedError, match=r"(?s)ended with 3.*what was wrong"):
        measure([sys.executable, "-c", "print('what was wrong'); raise SystemExit(3)"], log=tmp_path / "log")


def test_ratio_is_the_median_over_pairs() -> None:
    from measuring import paired_ratio

    assert paired_ratio([2.0, 30.0, 1.0], [4.0, 10.0, 1.0]) == 1.0  # a slow pair moves nothing
    with pytest.raises(ValueError, match="no pairs"):
        paired_ratio([], [])
    with pytest.raises(ValueError, match="shorter"):
        paired_ratio([1.0, 2.0], [1.0])


def test_build_summary_has_medians_and_ratios() -> None:
    from builds import summarize

    keys = ("wall", "cpu", "peak_rss", "peak_unshared", "written", "output")
    runs = {name: [dict.fromkeys(keys, value) for value in values] for name, values in _RUNS.items()}
    summary = summarize(runs)
    assert summary["builder"]["wall"] == 20
    assert summary["ratio"]["peak_unshared"] == 0.5
    assert "ratio" not in summarize({"hvlc": runs["hvlc"]})


_RUNS = {"builder": [10.0, 20.0, 30.0], "hvlc": [5.0, 10.0, 60.0]}


def test_first_difference_of_token_sequences() -> None:
    from decode import first_difference

    assert first_difference([1, 2, 3], [1, 2, 3]) is None
    assert first_difference([1, 2, 3], [1, 5, 3]) == 1
    assert first_difference([1, 2], [1, 2, 3]) == 2


@pytest.mark.slow
def test_decode_compares_a_package_of_the_builder_with_itself(tmp_path: Path) -> None:
    from builds import peer_command
    from make_checkpoint import make_checkpoint
    from shapes import SHAPES

    checkpoint, package = make_checkpoint(SHAPES["tiny"], tmp_path / "tiny"), tmp_path / "package"
    subprocess.run(peer_command(checkpoint, package, ["prune_lm_head=true"]), check=True, capture_output=True)
    command = [sys.executable, str(BENCHMARKS / "decode.py"), str(package), str(package), "--json"]
    started = time.perf_counter()
    done = subprocess.run([*command, "--prompts", "8", "--new", "8", "--rounds", "2"], check=True, capture_output=True)
    assert time.perf_counter() - started < 120
    result = json.loads(done.stdout)
    assert result["tokens"][0]["first_difference"] is None
    assert all(0 < speed["ratio"] < math.inf for speed in result["packages"][1]["speeds"])
