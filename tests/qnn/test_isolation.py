from pathlib import Path

import pytest

from hvlc.errors import UserError
from hvlc.qnn.isolation import Answer, Failure, Graph, Isolation, Request, require_qnn

HEAD = "import json, os, signal, sys, time\n"


def run(tmp_path: Path, body: str, seconds: float = 30) -> Answer | Failure:
    script = tmp_path / "script.py"
    script.write_text(HEAD + body, "utf-8")
    request = Request(tmp_path, [Graph("model.onnx", {"key": "value"})], {"backend_type": "htp"})
    return Isolation(seconds=seconds, script=script).run(request, tmp_path)


def test_an_answer_is_read(tmp_path: Path) -> None:
    body = """
asked = json.load(open(sys.argv[1]))
nodes = [["EP", asked["graphs"][0]["model"], "Relu"]]
graphs = [{"nodes": nodes, "seconds": 1.5}]
json.dump({"version": "2.7.0", "graphs": graphs, "peak_bytes": 7}, open(sys.argv[2], "w"))
"""
    ended = run(tmp_path, body)
    assert isinstance(ended, Answer)
    assert (ended.version, ended.peak_bytes, ended.graphs[0].seconds) == ("2.7.0", 7, 1.5)
    assert ended.graphs[0].nodes[0].name == "model.onnx"


def test_a_crash_is_told_from_an_error(tmp_path: Path) -> None:
    said = "os.write(2, b'preparing\\n'); "
    crashed = run(tmp_path, said + "os.kill(os.getpid(), signal.SIGSEGV)")
    assert crashed == Failure("crash", "SIGSEGV; preparing")
    assert run(tmp_path, said + "sys.exit(3)") == Failure("error", "preparing")
    assert run(tmp_path, "") == Failure("error", "it ended with code 0 and no answer")


def test_an_older_answer_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "answer.json").write_text('{"version": "2.7.0", "graphs": [], "peak_bytes": 1}', "utf-8")
    assert isinstance(run(tmp_path, ""), Failure)


def test_time_runs_out(tmp_path: Path) -> None:
    ended = run(tmp_path, "time.sleep(60)", seconds=0.3)
    assert isinstance(ended, Failure)
    assert ended.how == "timeout"
    assert "0.3 s" in ended.last_words


def test_last_words_are_the_causes(tmp_path: Path) -> None:
    body = r"""
sys.stderr.write(" # LIBNATIVE: No alternate configuration present\n")
sys.stderr.write("\x1b[1;31m2026-11-22 22:09:49.7 [E:onnxruntime:, file.cc:279 Get] the chip is unknown\x1b[m\n")
sys.stderr.write("Traceback (most recent call last):\n  File \"worker.py\"\n    call()\n")
sys.stderr.write("onnxruntime.capi.onnxruntime_pybind11_state.Fail: [ONNXRuntimeError] : 1 : FAIL : it went wrong\n")
sys.exit(1)
"""
    assert run(tmp_path, body) == Failure("error", "the chip is unknown; it went wrong")


def test_a_missing_extra_has_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"install.qnn.*pip install 'hvlc\[qnn\]'"):
        require_qnn()
