"""Targets: frozen data about a device or runtime; code asks questions and never the name."""

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
