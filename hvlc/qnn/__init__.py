"""Compile static ONNX graphs with Qualcomm's compiler, and compare the binaries with the graphs.

`onnxruntime-qnn` is an extra (`hvlc[qnn]`) with a licence of its own. It is loaded by `hvlc.qnn.worker` alone,
in processes of its own, because it can crash, hang or take all memory.
"""
