"""The execution provider of packages that were compiled for a Snapdragon: registered once, where such a package opens.

On x86-64 it executes the binaries in emulation: slowly, and in values as the NPU's, as far as anyone can tell without
a device.
"""

import ctypes
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import onnxruntime as ort
import onnxruntime_genai as og

from hvlc.errors import UserError
from hvlc.manifest import CompiledEntry, Manifest

_FIX = "pip install 'hvlc[qnn]' (mind its licence), or run it on the device"


def register_providers(manifest: Manifest) -> None:
    """Make the package's compiled graphs loadable, by onnxruntime and by onnxruntime-genai.

    Raises:
        UserError: it has compiled graphs, and their provider is not installed.
    """
    for provider in {entry.compiled.provider for entry in manifest.components.values() if entry.compiled}:
        _register(provider)


def runs_on(manifest: Manifest) -> str:
    """What executes the package here, for reports."""
    chips = sorted({entry.compiled.chip for entry in manifest.components.values() if entry.compiled})
    if not chips:
        return "onnxruntime CPU"
    emulated = platform.machine() in ("x86_64", "AMD64")
    return f"{'emulated ' if emulated else ''}NPU of {', '.join(chips)}, and onnxruntime CPU"


def use_device(options: ort.SessionOptions, compiled: CompiledEntry) -> None:
    """Have a session run its graph on the provider that it was compiled for, and nowhere else."""
    devices = [device for device in ort.get_ep_devices() if device.ep_name == compiled.provider]
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    options.add_provider_for_devices(devices, dict(compiled.provider_options))


@cache
def _register(provider: str) -> None:
    try:
        import onnxruntime_qnn
    except ImportError as missing:
        raise UserError("install.qnn", f"the package runs on {provider}, which is not installed", _FIX) from missing
    with _stdout_aside():
        ctypes.CDLL(onnxruntime_qnn.get_qnn_htp_path())  # prints a line on stdout when it is loaded first
    library = onnxruntime_qnn.get_library_path()
    ort.register_execution_provider_library(provider, library)
    og.register_execution_provider_library(provider, library)


@contextmanager
def _stdout_aside() -> Iterator[None]:
    """What native code prints goes to stderr for now: stdout is for answers and JSON."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
