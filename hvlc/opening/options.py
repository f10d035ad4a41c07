"""Options of execution providers that packages may ask for: those that choose a processor or an arithmetic.

Providers have others, which load a library or write a file where the option says (`backend_path`,
`profiling_file_path`, `cache_dir`): no package of this version has them.
"""

import re
from collections.abc import Mapping

from hvlc.errors import UserError

#: Provider of compiled graphs (`hvlc.manifest.CompiledEntry.provider`), and its name in genai_config.json.
COMPILED_PROVIDER, COMPILED_NAME = "QNNExecutionProvider", "QNN"

_SWITCH = r"[01]"
_NUMBER = r"\d{1,6}"
_WORD = r"[A-Za-z_]{1,40}"

#: Patterns of whole values, by provider and option.
_KNOWN: Mapping[str, Mapping[str, str]] = {
    "QNN": {
        "backend_type": "htp|cpu|gpu",
        "device_id": _NUMBER,
        "enable_htp_fp16_precision": _SWITCH,
        "htp_arch": _NUMBER,
        "htp_graph_finalization_optimization_mode": r"[0-3]",
        "htp_performance_mode": _WORD,
        "offload_graph_io_quantization": _SWITCH,
        "qnn_context_priority": _WORD,
        "rpc_control_latency": _NUMBER,
        "soc_model": _NUMBER,
        "vtcm_mb": _NUMBER,
    },
    "CoreML": {
        "AllowLowPrecisionAccumulationOnGPU": _SWITCH,
        "EnableOnSubgraphs": _SWITCH,
        "MLComputeUnits": _WORD,
        "ModelFormat": "MLProgram|NeuralNetwork",
        "RequireStaticInputShapes": _SWITCH,
        "SpecializationStrategy": _WORD,
    },
    "OpenVINO": {
        "device_type": r"[A-Z]{3,6}(:[A-Z]{3,6}(,[A-Z]{3,6}){0,4})?",
        "disable_dynamic_shapes": "true|false|True|False",
        "num_of_threads": _NUMBER,
        "num_streams": _NUMBER,
        "precision": r"FP16|FP32|ACCURACY",
    },
    "WebGPU": {"enableGraphCapture": _SWITCH, "preferredLayout": "NCHW|NHWC"},
    "XNNPACK": {"intra_op_num_threads": _NUMBER},
}


def check_options(where: str, provider: str, options: Mapping[str, str]) -> None:
    """Refuse a provider, or an option of one, that no package of this version has.

    Args:
        where: that asks for it.
        provider: as genai_config.json has it.
        options: of the provider.

    Raises:
        UserError: one is unknown, or has an unknown value.
    """
    known = _KNOWN.get(provider)
    if known is None:
        raise _refused(where, f"the provider {provider[:80]!r}, not one of {', '.join(_KNOWN)}")
    for name, value in options.items():
        pattern = known.get(name)
        if pattern is None:
            raise _refused(where, f"{provider}'s option {name[:80]!r}, not one of {', '.join(known)}")
        if not re.fullmatch(pattern, value):
            raise _refused(where, f"{provider}'s option {name} = {value[:80]!r}, which hvlc does not write")


def _refused(where: str, what: str) -> UserError:
    return UserError(
        "package.configuration", f"{where} asks for {what}", "do not trust this package, or build it again"
    )
