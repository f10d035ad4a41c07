"""Read a compiled graph without running it: an ONNX file with one EPContext node, and its binary.

A session proves nothing here. On x86-64 the emulation runs binaries of any chip on settings of any other, so the chip
is read twice: from the metadata that onnxruntime writes into the ONNX file, and from the binary's own text.
"""

import mmap
import re
from dataclasses import dataclass
from pathlib import Path

import onnx

from hvlc.errors import TargetError

_METADATA = "ep_compatibility_info.QNNExecutionProvider"
#: "v2:6:2.51.0:5.51.0:79:69:0:0": format, backend, SDK, API of the backend, architecture, chip, and two more.
_COMPATIBILITY = re.compile(r"v2:\d+:(?P<sdk>[\d.]+):[\d.]+:(?P<arch>\d+):(?P<soc>\d+):")
_CHIP = re.compile(rb"soc_type=(?P<chip>\w+);arch=(?P<arch>\d+);")
_GRAPH_NAME = re.compile(rb"QNNExecutionProvider_QNNExecutionProvider_\d+_\d+_\d+")
_FIX = "report it: onnxruntime-qnn wrote something that this version of hvlc does not know"


@dataclass(frozen=True)
class Context:
    """A compiled graph as its files describe it.

    Attributes:
        file: the ONNX file.
        binary: file beside it with the context.
        soc_model: Qualcomm's number of the chip, from the ONNX file's metadata.
        htp_arch: generation of its NPU; metadata and binary agree.
        chip: the chip's name, from the binary.
        sdk: version of Qualcomm's libraries.
        graphs: how many graphs are in the binary; with several, they share weights.
    """

    file: Path
    binary: Path
    soc_model: int
    htp_arch: int
    chip: str
    sdk: str
    graphs: int

    def require_device(self, soc_model: int, htp_arch: int) -> None:
        """Hold the chip that the binary was made for against the one that was asked for.

        Raises:
            TargetError: it is another.
        """
        if (self.soc_model, self.htp_arch) != (soc_model, htp_arch):
            cause = (
                f"{self.file.name} is for chip {self.soc_model} with NPU v{self.htp_arch} ({self.chip}), "
                f"not for chip {soc_model} with v{htp_arch}"
            )
            raise TargetError("compile.device", cause, "compile it for the target; an emulation would run it anyway")


def read_context(file: Path) -> Context:
    """Read a compiled graph.

    Args:
        file: the ONNX file, its binary beside it.

    Raises:
        TargetError: a part of the graph was left outside the binary, or the files do not describe one chip.
    """
    model = onnx.load(file, load_external_data=False)
    binary = file.with_name(_binary_name(file, model))
    if not binary.is_file():
        raise TargetError("compile.context", f"{file.name} reads {binary.name}, which is not there", _FIX)
    metadata = next((entry.value for entry in model.metadata_props if entry.key == _METADATA), "")
    found = _COMPATIBILITY.match(metadata)
    chips, graphs = _scan(binary)
    if found is None or len(chips) != 1 or (arch := int(found["arch"])) != next(iter(chips))[1]:
        cause = f"{file.name} says {metadata or 'nothing'} of its chip, and {binary.name} {sorted(chips) or 'nothing'}"
        raise TargetError("compile.context", cause, _FIX)
    chip = next(iter(chips))[0]
    return Context(file, binary, int(found["soc"]), arch, chip, found["sdk"], graphs)


def _binary_name(file: Path, model: onnx.ModelProto) -> str:
    """The binary that the graph's only node names.

    Raises:
        TargetError: there are other nodes, or the name leads elsewhere.
    """
    others = [node.op_type for node in model.graph.node if node.op_type != "EPContext"]
    if others or len(model.graph.node) != 1:
        kept = ", ".join(others) or f"{len(model.graph.node)} contexts"
        cause = f"{file.name} is not wholly compiled: besides one context it holds {kept}"
        raise TargetError("compile.partial", cause, "compile without fallback, inputs and outputs included")
    attributes = {attribute.name: attribute for attribute in model.graph.node[0].attribute}
    name = attributes["ep_cache_context"].s.decode() if "ep_cache_context" in attributes else ""
    if attributes["embed_mode"].i or name != Path(name).name or name in ("", ".", ".."):
        raise TargetError("compile.context", f"{file.name} names no binary beside it", _FIX)
    return name


def _scan(binary: Path) -> tuple[set[tuple[str, int]], int]:
    """Name and architecture of the chips, and the number of graphs, that a binary's text names."""
    with binary.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        chips = {(found["chip"].decode(), int(found["arch"])) for found in _CHIP.finditer(content)}
        return chips, len({found[0] for found in _GRAPH_NAME.finditer(content)})
