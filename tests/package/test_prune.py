from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from hvlc.errors import UserError
from hvlc.package.prune import data_files, prune_data

LARGE = 300_000  # values of a tensor that starts a page


def graph(directory: Path, name: str, constants: dict[str, np.ndarray], data: str) -> None:
    """y = x + the first value of every constant; constants lie in a data file, which grows."""
    tensors, nodes, total = [], [], "x"
    path = directory / data
    for key, array in constants.items():
        tensor = numpy_helper.from_array(array, key)
        offset = path.stat().st_size if path.exists() else 0
        with path.open("ab") as file:
            file.write(tensor.raw_data)
        length = len(tensor.raw_data)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for entry, value in {"location": data, "offset": offset, "length": length}.items():
            tensor.external_data.add(key=entry, value=str(value))
        tensors.append(tensor)
        nodes += [
            helper.make_node("Gather", [key, "zero"], [f"{key}.first"]),
            helper.make_node("Add", [total, f"{key}.first"], [f"{key}.sum"]),
        ]
        total = f"{key}.sum"
    nodes.append(helper.make_node("Identity", [total], ["y"]))
    values = [helper.make_tensor_value_info(value, TensorProto.FLOAT, [1]) for value in "xy"]
    tensors.append(numpy_helper.from_array(np.zeros(1, np.int64), "zero"))
    made = helper.make_graph(nodes, name, values[:1], values[1:], tensors)
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), directory / name)


def answer(directory: Path, name: str) -> float:
    session = ort.InferenceSession(directory / name, providers=["CPUExecutionProvider"])
    return float(session.run(None, {"x": np.zeros(1, np.float32)})[0][0])


def constant(value: float, count: int = 100) -> np.ndarray:
    return np.full(count, value, np.float32)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    graph(tmp_path, "gone.onnx", {"weights": constant(9, LARGE)}, "both.data")
    graph(tmp_path, "kept.onnx", {"small": constant(2), "large": constant(3, LARGE)}, "both.data")
    graph(tmp_path, "own.onnx", {"own": constant(4)}, "own.data")
    graph(tmp_path, "lone.onnx", {"lone": constant(5)}, "lone.data")
    return tmp_path


def test_what_other_graphs_read_is_kept(package: Path) -> None:
    before = (package / "both.data").stat().st_size
    prune_data(package, ["kept.onnx", "own.onnx"], ["both.data"])
    assert answer(package, "kept.onnx") == 5
    assert answer(package, "own.onnx") == 4
    assert (package / "both.data").stat().st_size < 0.51 * before


def test_a_file_that_nobody_reads_goes(package: Path) -> None:
    prune_data(package, ["kept.onnx", "own.onnx"], ["lone.data", "both.data"])
    assert not (package / "lone.data").exists()
    assert (package / "own.data").exists()


def test_a_second_run_changes_nothing(package: Path) -> None:
    prune_data(package, ["kept.onnx"], ["both.data"])
    files = {path.name: path.read_bytes() for path in package.iterdir()}
    prune_data(package, ["kept.onnx"], ["both.data"])
    assert files == {path.name: path.read_bytes() for path in package.iterdir()}


def test_graphs_that_share_a_tensor_keep_one_copy(package: Path) -> None:
    model = onnx.load(package / "kept.onnx", load_external_data=False)
    onnx.save(model, package / "copy.onnx")
    prune_data(package, ["kept.onnx", "copy.onnx"], ["both.data"])
    assert answer(package, "copy.onnx") == answer(package, "kept.onnx") == 5
    assert (package / "both.data").stat().st_size < 4 * LARGE + 10_000


def test_data_that_is_not_there_is_refused(package: Path) -> None:
    content = (package / "both.data").read_bytes()
    (package / "both.data").write_bytes(content[:-8])
    with pytest.raises(UserError, match=r"package\.graph"):
        prune_data(package, ["kept.onnx"], ["both.data"])
    assert (package / "both.data").read_bytes() == content[:-8]


def test_data_files_are_named(package: Path) -> None:
    assert data_files(onnx.load(package / "kept.onnx", load_external_data=False)) == {"both.data"}
