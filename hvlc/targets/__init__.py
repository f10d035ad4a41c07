"""Targets: immutable descriptions of a device or runtime. Code asks them questions and never branches on a name."""

from hvlc.targets.loading import load_target, shipped_targets, target_for, target_path, target_text
from hvlc.targets.operation import Grain, Operand, Operation, Quantized
from hvlc.targets.rules import Condition, Evidence, Known, OperandIs, Operators, Product, Rule, Severity
from hvlc.targets.schema import BlockFormat, Compiler, Finding, SupportAnswer, Target, Tried

__all__ = [
    "BlockFormat",
    "Compiler",
    "Condition",
    "Evidence",
    "Finding",
    "Grain",
    "Known",
    "Operand",
    "OperandIs",
    "Operation",
    "Operators",
    "Product",
    "Quantized",
    "Rule",
    "Severity",
    "SupportAnswer",
    "Target",
    "Tried",
    "load_target",
    "shipped_targets",
    "target_for",
    "target_path",
    "target_text",
]
