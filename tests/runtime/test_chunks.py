"""What onnxruntime-genai does with a decoder in stages, and what the host makes of it."""

from pathlib import Path

import numpy as np
import onnxruntime_genai as og
import pytest

from hvlc.errors import UserError
from hvlc.manifest.manifest import DECODER, Manifest
from hvlc.opening.package import open_package
from hvlc.runtime.chunks import PromptChunks, force
from hvlc.workflows.build.build import build
from hvlc.workflows.build.request import open_request
from tests.export.tiny_families import CONTEXT, save_text
from tests.helpers.fixed_shapes import CHUNK, write_target


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("chunks")
    checkpoint = save_text(root / "checkpoint", "llama")
    return build(open_request(checkpoint, write_target(root / "npu.toml"), "float32", root / "package")).output


@pytest.fixture(scope="module")
def model(package: Path) -> og.Model:
    return og.Model(str(package))


def generator(model: og.Model, ids: np.ndarray) -> og.Generator:
    parameters = og.GeneratorParams(model)
    parameters.set_search_options(max_length=CONTEXT, do_sample=False)
    made = og.Generator(model, parameters)
    made.append_tokens(ids.astype(np.int32))
    return made


def logits(made: og.Generator) -> np.ndarray:
    return np.array(made.get_logits()).reshape(-1)


IDS = np.arange(60, 60 + CHUNK + 5)


def test_padding_counts_as_sequence(model: og.Model, package: Path) -> None:
    configuration = open_package(package).configuration
    chunks = PromptChunks.of(configuration)
    assert chunks == PromptChunks(CHUNK, CONTEXT, configuration.model.pad_token_id)
    assert generator(model, IDS).token_count() == chunks.padded(len(IDS)) == 2 * CHUNK
    assert [chunks.padded(n) for n in (1, CHUNK, CHUNK + 1)] == [CHUNK, CHUNK, 2 * CHUNK]


def test_the_first_padding_token_ends_a_prompt(model: og.Model, package: Path) -> None:
    """Why a prompt must not hold one: the answer goes on as if nothing came after it."""
    chunks = PromptChunks.of(open_package(package).configuration)
    assert chunks is not None
    inside = IDS.copy()
    inside[3] = chunks.padding
    other = inside.copy()
    other[5:] += 1
    answers = []
    for ids in (inside, other):
        made = generator(model, ids)
        force(made, 65)
        answers.append(logits(made))
    np.testing.assert_allclose(answers[0], answers[1], atol=1e-5)
    with pytest.raises(UserError, match=r"request\.padding"):
        chunks.check(inside)
    chunks.check(IDS)


def test_a_forced_token_runs_as_if_it_was_in_the_prompt_and_an_appended_one_does_not(model: og.Model) -> None:
    expected = logits(generator(model, np.append(IDS, 65)))
    forced, appended = generator(model, IDS), generator(model, IDS)
    force(forced, 65)
    appended.append_tokens(np.array([65], np.int32))
    np.testing.assert_allclose(logits(forced), expected, atol=1e-5)
    assert np.abs(logits(appended) - expected).max() > 1e-3


def test_other_packages_have_no_windows(tiny_float32: Path) -> None:
    assert PromptChunks.of(open_package(tiny_float32).configuration) is None


def test_work_that_needs_the_whole_decoder_says_where_there_is_one(package: Path, tiny_float32: Path) -> None:
    with pytest.raises(UserError, match=r"package\.decoder") as error:
        _ = Manifest.load(package).whole_decoder
    assert "in stages for npu" in error.value.cause
    manifest = Manifest.load(tiny_float32)
    assert manifest.whole_decoder == manifest.components[DECODER]
