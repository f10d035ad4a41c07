"""Fills a directory with a package: graphs, weights and manifest; tokenizer and configuration where text is."""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from importlib import resources
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from hvlc.errors import UserError
from hvlc.files.digests import digest_file
from hvlc.graphs.bundle import Bundle, Role
from hvlc.inputs.documents import read_json
from hvlc.manifest.lock import LOCK, Lock, Provenance
from hvlc.manifest.manifest import (
    DECODER,
    MANIFEST,
    ComponentEntry,
    EncoderPolicy,
    FileEntry,
    Kind,
    Manifest,
    Preprocessing,
    TileRule,
    Tokens,
)
from hvlc.package.genai import genai_config, passthrough, session_entries
from hvlc.package.onnx_files import write_components
from hvlc.package.staged import staged_config, stages
from hvlc.package.streaming import Written

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json")
_TOOLS = ("hvlc", "onnx", "onnx-ir", "onnxruntime", "onnxruntime-genai", "numpy", "torch", "transformers", "gguf")


def copy_tokenizer(source: Path, directory: Path) -> None:
    """Copy the tokenizer and chat template.

    Raises:
        UserError: its tokenizer_config.json is damaged.
    """
    for path in tokenizer_files(source):
        shutil.copyfile(path, directory / path.name)
    _drop_empty_template(directory / "tokenizer_config.json")


def check_tokenizer(source: Path, facts: Mapping[str, Any]) -> None:
    """Hold a checkpoint's tokenizer against what its kind of package needs.

    Raises:
        UserError: a file that onnxruntime-genai reads is missing, or it is damaged or lacks an image token.
    """
    if facts["kind"] == Kind.VISION:
        return
    missing = [name for name in ("tokenizer.json", "tokenizer_config.json") if not (source / name).is_file()]
    if missing:
        raise UserError(
            "checkpoint.tokenizer",
            f"{source} holds no {' and no '.join(missing)}",
            "save the tokenizer beside the model",
        )
    if facts["kind"] == Kind.VISION_LANGUAGE:
        token_texts(source, [facts["image_token_id"], facts["row_token_id"]])


def _drop_empty_template(path: Path) -> None:
    """Leave out a chat template that is null, as transformers writes it: onnxruntime-genai 0.18 wants text or none."""
    config = read_json(path, "checkpoint.tokenizer") if path.is_file() else {}
    if isinstance(config, dict) and "chat_template" in config and config["chat_template"] is None:
        del config["chat_template"]
        path.write_text(_json(config), "utf-8")


def tokenizer_files(source: Path) -> list[Path]:
    """The files of a checkpoint that go into the package as they are."""
    return [source / name for name in _TOKENIZER_FILES if (source / name).is_file()]


def token_texts(source: Path, ids: list[int]) -> list[str]:
    """The texts of added tokens.

    Raises:
        UserError: the tokenizer is damaged, or an id is none of its added tokens.
    """
    content = read_json(source / "tokenizer.json", "checkpoint.tokenizer")
    try:
        added = {t["id"]: t["content"] for t in content["added_tokens"]}
    except (KeyError, TypeError) as error:
        raise UserError(
            "checkpoint.tokenizer", f"{source / 'tokenizer.json'} has no added tokens", "save the tokenizer again"
        ) from error
    missing = [i for i in ids if i not in added]
    if missing:
        raise UserError(
            "checkpoint.tokenizer", f"the tokenizer has no added token {missing[0]}", "match config and tokenizer"
        )
    return [added[i] for i in ids]


def tool_versions() -> dict[str, str]:
    """Installed versions of the tools that shape a package."""
    found = {}
    for tool in _TOOLS:
        with contextlib.suppress(PackageNotFoundError):
            found[tool] = version(tool)
    return found


def code_digest() -> str:
    """Hex SHA-256 of hvlc's code, recipes and targets: what can change a package besides its inputs."""
    root = Path(str(resources.files("hvlc")))
    paths = sorted(p for p in root.rglob("*") if p.suffix in (".py", ".yaml", ".toml") and p.is_file())
    lines = [f"{p.relative_to(root).as_posix()} {digest_file(p)}" for p in paths]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def write_package(
    bundle: Bundle,
    checkpoint_directory: Path,
    partial: Path,
    provenance: Callable[[], Provenance],
    bits_per_decoder_weight: float | None,
    tried: str,
    threads: int,
    written: Written,
) -> Manifest:
    """Fill `partial` with the package and its manifest.

    Args:
        bundle: the finished components.
        checkpoint_directory: where the tokenizer is.
        partial: an empty directory.
        provenance: what it is made from; asked for last, because digests may still be on the way.
        bits_per_decoder_weight: stored bits on average, None when nothing was quantized.
        tried: how far packages for the target were tried.
        threads: how many evaluate weights.
        written: told the bytes of external data written so far.

    Raises:
        UserError: the tokenizer is damaged, or a weight is not finite.
    """
    facts: dict[str, Any] = bundle.facts
    kind = Kind(facts["kind"])
    if kind is Kind.VISION_LANGUAGE:
        bundle.add(passthrough(facts["hidden_size"], bundle.components["front"].reason))
    if kind is not Kind.VISION:
        copy_tokenizer(checkpoint_directory, partial)
    files, digests = write_components(bundle, partial, threads, written)
    if kind is not Kind.VISION:
        (partial / "genai_config.json").write_text(_json(_config(bundle, files, partial)), "utf-8")
    origin, entries = provenance(), _entries(partial, digests)
    (partial / LOCK).write_text(_json(Lock.of(origin, entries).model_dump(mode="json")), "utf-8")
    entries |= _entries(partial, {name: entry.sha256 for name, entry in entries.items()})
    manifest = Manifest(
        schema_version=1,
        kind=kind,
        sources=origin.sources,
        tried=tried,
        components=_components(bundle, files),
        hidden_size=facts["hidden_size"],
        bits_per_decoder_weight=bits_per_decoder_weight,
        files=entries,
        **_facts(kind, facts, files, checkpoint_directory),
    )
    (partial / MANIFEST).write_text(_json(manifest.model_dump(mode="json")), "utf-8")
    _sync(partial)
    return manifest


def _config(bundle: Bundle, files: Mapping[str, str], tokenizer: Path) -> dict[str, Any]:
    """genai_config.json, by the form of the decoder."""
    if stages(bundle):
        return staged_config(bundle, files, tokenizer)
    decoder = bundle.components[DECODER]
    return genai_config(bundle.model_type, bundle.facts, files, session_entries(decoder), decoder.provider)


def _facts(kind: Kind, facts: Mapping[str, Any], files: Mapping[str, str], checkpoint: Path) -> dict[str, Any]:
    """What only some kinds have in their manifest."""
    if kind is Kind.VISION:
        return {
            "preprocessing": Preprocessing(
                image_size=facts["image_size"],
                patch_size=facts["patch_size"],
                mean=facts["image_mean"],
                std=facts["image_std"],
                rescale_factor=facts["rescale_factor"],
                resample=facts["resample"],
            )
        }
    context = {name: facts[name] for name in ("context_length", "trained_context_length")}
    if kind is Kind.LANGUAGE:
        return context
    return context | {
        "encoders": {name: files[f"vision_{name}"] for name in facts["encoders"]},
        "policy": EncoderPolicy(default=facts["default_encoder"]),
        "tiles": TileRule(
            tile_size=facts["tile_size"],
            cell_size=facts["cell_size"],
            max_visual_tokens=facts["max_visual_tokens"],
            min_scale=facts["min_scale"],
            resolution_compressor=facts["resolution_compressor"],
        ),
        "tokens": _tokens(facts, checkpoint),
    }


def _tokens(facts: Mapping[str, Any], checkpoint_directory: Path) -> Tokens:
    image, row = facts["image_token_id"], facts["row_token_id"]
    texts = token_texts(checkpoint_directory, [image, row])
    start, end = facts["vision_start_token_id"], facts["vision_end_token_id"]
    return Tokens(image=image, row=row, vision_start=start, vision_end=end, image_text=texts[0], row_text=texts[1])


def _components(bundle: Bundle, files: dict[str, str]) -> dict[str, ComponentEntry]:
    entries = {}
    for name, component in bundle.components.items():
        inputs = tuple(str(v.name) for v in component.graph.inputs)
        outputs = tuple(str(v.name) for v in component.graph.outputs)
        if component.role is Role.DECODER:  # the KV cache follows genai_config.json
            inputs = tuple(n for n in inputs if not n.startswith("past_key_values"))
            outputs = tuple(n for n in outputs if not n.startswith("present"))
        entries[name] = ComponentEntry(
            file=files[name],
            role=component.role,
            inputs=inputs,
            outputs=outputs,
            phase=component.phase,
            placement=component.placement,
            reason=component.reason,
            provider=component.provider,
        )
    return entries


def _entries(directory: Path, digests: Mapping[str, str]) -> dict[str, FileEntry]:
    """Every file but the manifest; those digested while they were written are not read again."""
    paths = sorted(p for p in directory.iterdir() if p.name != MANIFEST)
    return {p.name: FileEntry(bytes=p.stat().st_size, sha256=digests.get(p.name) or digest_file(p)) for p in paths}


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def _sync(directory: Path) -> None:
    """Force the files to disk before the rename makes them visible."""
    for path in directory.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
