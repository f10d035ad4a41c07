"""Gates: bounds that measured numbers must keep, how they are written and how they are checked."""

from hvlc.evaluation.gates.checking import check, raise_broken
from hvlc.evaluation.gates.language import parse_gate, read_gates, require_checkable, require_consistent

__all__ = ["check", "parse_gate", "raise_broken", "read_gates", "require_checkable", "require_consistent"]
