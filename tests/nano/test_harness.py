"""A public harness reports through `hvlc serve` what `hvlc eval` reports."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import yaml

from hvlc.evaluation.benchmarks.writing import write_parquet
from hvlc.evaluation.documents import DocumentsTask
from tests.helpers.asking import serving
from tests.helpers.commands import Hvlc

PYTHON = os.environ.get("HVLC_LMMS_EVAL", "")
COUNT = 64

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason="HVLC_LMMS_EVAL names no python that has lmms-eval (docs/serve.md)"),
]


def harness(*arguments: str, home: Path) -> str:
    """Output of the harness's own Python, offline."""
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(home), "OPENAI_API_KEY": "none"}
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    found = subprocess.run([PYTHON, *arguments], env=own | offline, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr[-4000:]
    return found.stdout


def write_task(file: Path, data: Path, suffix: str | None) -> None:
    """The harness's own DocVQA, of files that lie here."""
    folder = "import lmms_eval, pathlib; print(pathlib.Path(lmms_eval.__file__).parent)"
    own = Path(harness("-c", folder, home=file.parent).splitlines()[-1]) / "tasks" / "docvqa" / "docvqa_val.yaml"
    task = {
        "include": str(own),
        "task": file.stem,
        "dataset_path": str(data),
        "dataset_name": None,
        "dataset_kwargs": {},
    }
    if suffix is not None:
        task["lmms_eval_specific_kwargs"] = {"default": {"pre_prompt": "", "post_prompt": suffix}}
    file.write_text(yaml.safe_dump(task))


@pytest.mark.parametrize("suffix", ["", None])
def test_lmms_eval_reports_the_score_of_hvlc_eval(
    packages: dict[str, Path], tmp_path: Path, hvlc: Hvlc, suffix: str | None
) -> None:
    package, data, tasks, report = packages["w4a16"], tmp_path / "data", tmp_path / "tasks", tmp_path / "report"
    for directory in (data, tasks):
        directory.mkdir()
    write_parquet("docvqa", DocumentsTask(COUNT), data, COUNT)
    write_task(tasks / "local_docvqa.yaml", data, suffix)
    with serving(package) as server:
        model = f"model_version={package.name}:base,base_url={server.address}/v1,num_concurrent=4"
        chosen = ["--include_path", str(tasks), "--tasks", "local_docvqa", "--output_path", str(report)]
        harness("-m", "lmms_eval", "--model", "openai", "--model_args", model, *chosen, home=tmp_path / "home")
    (file,) = report.rglob("*_results.json")
    results = json.loads(file.read_text())["results"]["local_docvqa"]

    asked = [] if suffix is None else ["--prompt-suffix", suffix]
    found = hvlc("eval", package, "--task", f"docvqa:{data}", "--encoder", "base", *asked, "--json")
    assert found.code == 0, found.err
    summary = found.json[0]["summary"]
    assert summary["n"] == COUNT
    assert results["anls,none"] == pytest.approx(summary["score"]["value"], abs=1e-12)
    assert 0 < summary["score"]["value"] < 1  # a score that a lost or a foreign answer would change
