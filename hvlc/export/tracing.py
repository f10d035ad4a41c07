"""Small torch modules to ONNX by tracing, for parts that are too small to deserve a graph of their own."""

import contextlib
import io
import logging
import warnings

import onnx_ir as ir
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass

from hvlc.graph import OPSET


def trace(module: torch.nn.Module, example: torch.Tensor, input_name: str, output_name: str) -> ir.Model:
    """Trace `module` at the example's static shape.

    Stack traces that the exporter leaves in the graph are dropped, because they name paths of this machine.
    It also logs and warns a great deal, of no use to a user; that is dropped too.
    """
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module.eval(),
                (example,),
                dynamo=True,
                optimize=True,
                opset_version=OPSET,
                input_names=[input_name],
                output_names=[output_name],
                verbose=False,
            )
    finally:
        logger.setLevel(level)
    model: ir.Model = ClearMetadataAndDocStringPass()(program.model).model
    return model
