"""Shipped targets by what they are."""

from hvlc.targets import Compiler, load_target, shipped_targets

#: Names of the chips that Qualcomm's compiler makes binaries for.
SNAPDRAGONS = [name for name in shipped_targets() if load_target(name).compiler is Compiler.QNN]
