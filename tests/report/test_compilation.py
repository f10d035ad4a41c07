import io
from pathlib import Path

import pytest
from rich.console import Console

from hvlc.errors import UserError
from hvlc.report.columns import notes
from hvlc.report.compilation import checks_markdown, compilation_tables
from hvlc.report.page import write_page
from hvlc.results import Score
from hvlc.results.compilation import (
    COMPILATION,
    Compilation,
    CompiledGraph,
    FailedAttempt,
    GraphCheck,
    NotChecked,
    OutputCheck,
    read_compilation,
)


def graph(component: str, **changes: object) -> CompiledGraph:
    facts = {"nodes": 82, "operators": {"MatMul": 82}, "binary": "a_qnn.bin", "binary_bytes": 1_500_000}
    device = {"soc_model": 69, "htp_arch": 79, "chip": "SM8750", "sdk": "2.51.0", "mode": 3}
    return CompiledGraph.model_validate({"component": component, **facts, **device, **changes})


def compilation() -> Compilation:
    quiet = OutputCheck(name="present.0.key", values=9, cosine=1, max_error=0.001, largest=1, noise=0.0001)
    agreement = Score(value=0.75, low=0.3, high=0.95, n=4, method="wilson")
    loud = OutputCheck(
        name="logits", values=9, cosine=0.99999, max_error=0.02, largest=4, noise=0.00403, top1=agreement
    )
    failed = (FailedAttempt(mode=1, error="no memory"),)
    return Compilation(
        target="qnn-sm8750",
        compiler="2.7.0",
        graphs=(
            graph("decoder_1_prompt", shared_with=("decoder_1_token",)),
            graph("vision_base", mode=2, failed_attempts=failed),
        ),
        checks=(GraphCheck(component="vision_base", inputs="a page", runs=2, outputs=(quiet, loud), tolerance=0.005),),
        not_checked=(NotChecked(what="speed [bold]", reason="no device"),),
    )


def printed(found: Compilation) -> str:
    console = Console(file=io.StringIO(), width=140)
    console.print(compilation_tables(found))
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_tables_say_what_was_made_and_what_ran() -> None:
    text = printed(compilation())
    for part in ("qnn-sm8750", "SM8750", "v79", "82", "1.50", "in one binary with decoder_1_token", "emulated"):
        assert part in text, part
    assert "finalized in mode 2: mode 1 failed" in text
    assert all(figure in text for figure in ("0.403%", "0.02", "0.999990", "75.0% of 4", "logits"))
    assert "not checked: speed [bold]: no device" in text


def test_nothing_is_said_of_checks_that_did_not_run() -> None:
    text = printed(compilation().model_copy(update={"checks": ()}))
    assert "emulated" not in text
    assert "not checked" in text


def test_a_package_keeps_the_record(tmp_path: Path) -> None:
    assert read_compilation(tmp_path) is None
    content = compilation().model_dump_json()
    (tmp_path / COMPILATION).write_text(content, "utf-8")
    assert read_compilation(tmp_path) == compilation()
    damages = (
        content[:-20],
        content.replace('"schema_version":1', '"schema_version":2'),
        content.replace("0.00403", "NaN"),
    )
    for damaged in damages:
        (tmp_path / COMPILATION).write_text(damaged, "utf-8")
        with pytest.raises(UserError, match=r"results\.invalid"):
            read_compilation(tmp_path)


def test_a_page_and_its_markdown_have_each_compiled_package_once(evaluation, tmp_path: Path) -> None:
    compiled = evaluation(["0", "x"]).model_copy(update={"name": "phone <1>", "compilation": compilation()})
    shown = [evaluation(["0", "x"]), compiled, compiled.model_copy(update={"encoder": "large"})]
    write_page(tmp_path / "page.html", shown, lambda index: None, title="t", facts={})
    page, markdown = (tmp_path / "page.html").read_text("utf-8"), checks_markdown(shown)
    assert page.count("emulated against the CPU</th>") == 1
    assert "<strong>phone &lt;1&gt;</strong>: compiled for qnn-sm8750" in page
    for text in (page, markdown):
        assert all(figure in text for figure in ("0.403%", "0.999990", "75.0% of 4", "no device"))
    assert markdown.count("compiled for qnn") == 1


def test_nothing_is_said_where_nothing_was_compiled(evaluation, tmp_path: Path) -> None:
    shown = [evaluation(["0", "x"])]
    write_page(tmp_path / "page.html", shown, lambda index: None, title="t", facts={})
    assert "Compiled for an NPU" not in (tmp_path / "page.html").read_text("utf-8")
    assert checks_markdown(shown) == ""


def test_times_of_an_emulation_are_said_to_be_worth_nothing(evaluation) -> None:
    here = evaluation(["0", "x"])
    emulated = here.model_copy(update={"runs_on": "emulated NPU of SM8750, and onnxruntime CPU"})
    for shown, said in (([here], False), ([here, emulated], True)):
        assert ("say nothing of a device" in notes(shown)[-1]) is said
