"""The execution providers of packages.

That of packages that were compiled for a Snapdragon is registered once, where such a package opens. On x86-64 it
executes the binaries in emulation: slowly, and in values as the NPU's, as far as anyone can tell without a device.
Other providers are built into an onnxruntime or not; where one is not, the CPU stands in, and reports say so.
"""

import ctypes
import os
import platform
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import onnxruntime as ort
import onnxruntime_genai as og

from hvlc.errors import UserError
from hvlc.graphs.placement import Provider
from hvlc.manifest.manifest import DECODER, CompiledEntry, ComponentEntry, Manifest
from hvlc.opening.engine import engine_directory, engine_runs
from hvlc.opening.package import Package
from hvlc.opening.sessions import PackageSession, session_options
from hvlc.runtime.chunks import PromptChunks
from hvlc.runtime.prompt import PackageTokenizer

_FIX = "pip install 'hvlc[qnn]' (mind its licence), or run it on the device"


def register_providers(manifest: Manifest) -> None:
    """Make the package's compiled graphs loadable, by onnxruntime and by onnxruntime-genai.

    Raises:
        UserError: it has compiled graphs, and their provider is not installed, or they share a binary, which ends the
            process of an emulation that loads it.
    """
    compiled = [entry.compiled for entry in manifest.components.values() if entry.compiled]
    for provider in {entry.provider for entry in compiled}:
        _register(provider)
    shared = [binary for binary, uses in Counter(entry.binary for entry in compiled).items() if uses > 1]
    if shared and is_emulated():
        cause = f"{', '.join(shared)} hold several graphs that share weights, which the emulation on x86-64 cannot load"
        raise UserError("package.shared_binary", cause, "run it on the device, or compile without --share-weights")


def is_emulated() -> bool:
    """Whether an NPU's binaries run in emulation here, if at all."""
    return platform.machine() in ("x86_64", "AMD64")


def runs_on(manifest: Manifest) -> str:
    """Name of what executes the package here, for reports."""
    chips = sorted({entry.compiled.chip for entry in manifest.components.values() if entry.compiled})
    if not chips:
        named = [entry.provider for entry in manifest.components.values() if entry.provider]
        if any(offered(provider) is None for provider in named):
            return f"onnxruntime CPU, standing in for {manifest.sources.target_name}"
        return " and ".join(["onnxruntime CPU", *sorted({provider.name for provider in named})])
    return f"{'emulated ' if is_emulated() else ''}NPU of {', '.join(chips)}, and onnxruntime CPU"


def offered(provider: Provider) -> str | None:
    """This onnxruntime's name of a provider that a package asks for; None where it does not have it."""
    wanted = f"{provider.name}ExecutionProvider".casefold()
    return next((name for name in ort.get_available_providers() if name.casefold() == wanted), None)


def provider_list(provider: Provider | None) -> list[tuple[str, dict[str, str]]]:
    """Providers of a session by priority; the CPU alone where it stands in."""
    name = offered(provider) if provider else None
    asked = [(name, provider.options)] if provider and name else []
    return [*asked, ("CPUExecutionProvider", {})]


def open_engine(package: Package) -> tuple[og.Model, PackageTokenizer]:
    """Open a package in onnxruntime-genai, on the CPU where this onnxruntime lacks the decoder's provider.

    Raises:
        UserError: onnxruntime-genai refuses it; see `register_providers` and `engine_directory`.
    """
    register_providers(package.manifest)
    decoder = package.manifest.components.get(DECODER)
    with engine_directory(package) as shown:
        tokenizer = PackageTokenizer(package.directory, package.manifest)
        with engine_runs(package.directory, "open"):
            config = og.Config(str(shown))
            if decoder and decoder.provider and offered(decoder.provider) is None:
                config.clear_providers()
            windows = PromptChunks.of(package.configuration)
            if windows:
                config.overlay(windows.without_end())
            model = og.Model(config)
        tokenizer.open(model)
        return model, tokenizer


def open_component(directory: Path, entry: ComponentEntry, threads: int = 0) -> PackageSession:
    """A session of a package's graph where it is made to run; the package's providers are registered.

    Args:
        directory: the package.
        entry: of the component.
        threads: of the session; 0 lets onnxruntime choose.

    Raises:
        SessionError: onnxruntime refuses the graph.
    """
    options = session_options(threads)
    if entry.compiled:
        use_device(options, entry.compiled)
        return PackageSession(entry.file, directory / entry.file, options)
    return PackageSession(entry.file, directory / entry.file, options, provider_list(entry.provider))


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
    """Send what native code prints to stderr for now: stdout is for answers and JSON."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
