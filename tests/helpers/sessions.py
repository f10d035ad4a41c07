"""Graphs of a test, run by onnxruntime."""

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

#: onnxruntime's own rewrites off and on: off shows our graph, on shows what users get.
OPTIMIZATIONS = {
    "as written": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "optimized": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}


def session(model: ir.Model, optimization: str = "as written") -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.graph_optimization_level = OPTIMIZATIONS[optimization]
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(model: ir.Model, feeds: dict[str, np.ndarray], optimization: str = "as written") -> list[np.ndarray]:
    return session(model, optimization).run(None, feeds)
