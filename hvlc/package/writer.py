"""Write a package into a directory: graphs, weights and manifest, and for text models tokenizer and configuration."""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from importlib import resources
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from hvlc.chat.tokenizing import Tokenizing
from hvlc.files.digests import digest_file
from hvlc.graphs.bundle import Bundle, Role
from hvlc.graphs.facts import Facts, ImageFacts, Kind, encoder_component
from hvlc.graphs.states import PAST, PRESENT
from hvlc.manifest.lock import LOCK, Lock, Provenance
from hvlc.manifest.manifest import (
    DECODER,
    MANIFEST,
    SCHEMA,
    ComponentEntry,
    FileEntry,
    Images,
    Manifest,
    Preprocessing,
    TextRule,
    variants_of,
)
from hvlc.manifest.policy import EncoderPolicy
from hvlc.package.genai import genai_config, passthrough, session_entries
from hvlc.package.onnx_files import write_components
from hvlc.package.staged import staged_config, stages
from hvlc.package.streaming import Written
from hvlc.package.text import PackageText, copy_tokenizer, token_texts

_TOOLS = ("hvlc", "onnx", "onnx-ir", "onnxruntime", "onnxruntime-genai", "numpy", "torch", "transformers", "gguf")


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
    text: PackageText,
    partial: Path,
    provenance: Callable[[], Provenance],
    bits_per_decoder_weight: float | None,
    tried: str,
    threads: int,
    written: Written,
    policy: EncoderPolicy | None = None,
) -> Manifest:
    """Fill `partial` with the package and its manifest.

    Args:
        bundle: the finished components.
        checkpoint_directory: where the tokenizer is.
        text: what of it the package takes.
        partial: an empty directory.
        provenance: what it is made from; asked for last, because digests may still be on the way.
        bits_per_decoder_weight: stored bits on average, None when nothing was quantized.
        tried: how far packages for the target were tried.
        threads: how many evaluate weights.
        written: told the bytes of external data written so far.
        policy: which encoder answers. None: the model's default one.

    Raises:
        UserError: the tokenizer is damaged, or a weight is not finite.
    """
    facts = bundle.facts
    kind = facts.kind
    if kind is Kind.VISION_LANGUAGE:
        bundle.add(passthrough(facts.embedding_width, bundle.components["front"].reason))
    if kind is not Kind.VISION:
        copy_tokenizer(checkpoint_directory, partial, text)
    files, digests = write_components(bundle, partial, threads, written)
    if kind is not Kind.VISION:
        (partial / "genai_config.json").write_text(json_text(_config(bundle, files, partial)), "utf-8")
    origin, entries = provenance(), _entries(partial, digests)
    (partial / LOCK).write_text(json_text(Lock.of(origin, entries).model_dump(mode="json")), "utf-8")
    entries |= _entries(partial, {name: entry.sha256 for name, entry in entries.items()})
    manifest = Manifest(
        schema_version=SCHEMA,
        kind=kind,
        sources=origin.sources,
        tried=tried,
        components=_components(bundle, files),
        text=_text_rule(text.tokenizing),
        hidden_size=facts.hidden_size,
        bits_per_decoder_weight=bits_per_decoder_weight,
        rewinds=facts.text is None or facts.text.rewinds,
        files=entries,
        **_facts(facts, files, checkpoint_directory, policy),
    )
    (partial / MANIFEST).write_text(json_text(manifest.model_dump(mode="json")), "utf-8")
    _sync(partial)
    return manifest


def _text_rule(tokenizing: Tokenizing) -> TextRule | None:
    if tokenizing == Tokenizing():
        return None
    return TextRule(normalization=tokenizing.form, differing=tokenizing.differing)


def _config(bundle: Bundle, files: Mapping[str, str], tokenizer: Path) -> dict[str, Any]:
    """genai_config.json, by the form of the decoder."""
    if stages(bundle):
        return staged_config(bundle, files, tokenizer)
    decoder = bundle.components[DECODER]
    return genai_config(bundle.model_type, bundle.facts, files, session_entries(decoder), decoder.provider)


def _facts(facts: Facts, files: Mapping[str, str], checkpoint: Path, policy: EncoderPolicy | None) -> dict[str, Any]:
    """Entries of the manifest that only some kinds have."""
    if facts.tower is not None:
        tower = facts.tower
        return {
            "preprocessing": Preprocessing(
                image_size=tower.image_size,
                patch_size=tower.patch_size,
                mean=tower.mean,
                std=tower.std,
                rescale_factor=tower.rescale_factor,
                resample=tower.resample,
            )
        }
    text = facts.speaks
    context = {"context_length": text.context_length, "trained_context_length": text.trained_context_length}
    return context if facts.image is None else context | _vision_facts(facts.image, files, checkpoint, policy)


def _vision_facts(
    image: ImageFacts, files: Mapping[str, str], checkpoint: Path, policy: EncoderPolicy | None
) -> dict[str, Any]:
    """Entries of the manifest of a model that sees."""
    encoders = {name: files[_component_of(name, image)] for name in image.encoders}
    images = Images(
        rule=image.rule.kind,
        token=image.image_token_id,
        start=image.start_token_id,
        placeholder=image.placeholder or token_texts(checkpoint, [image.placeholder_id])[0],
        before=image.before,
        after=image.after,
        max_visual_tokens=image.max_visual_tokens,
        piece=image.rule.piece_shape,
        tokens_per_piece=image.rule.tokens_per_piece,
        resolution_compressor=image.compresses,
        overview=image.rule.has_overview,
        grids=image.rule.grids,
        side_channels=image.side_channels,
        grid_positions=image.grid_positions,
        tile_batch=image.tile_batch,
        min_scale=image.compressor.min_scale if image.compressor and image.compresses else None,
        question_tokens=image.compressor.question_tokens if image.compressor and image.compresses else None,
    )
    policy = policy or EncoderPolicy(default=image.default_encoder)
    return {"encoders": encoders, "policy": policy, "images": images, "variants": variants_of(encoders, images)}


def _component_of(encoder: str, image: ImageFacts) -> str:
    """Name of an encoder's component; of the first, where there is one for each grid."""
    name, grids = f"vision_{encoder}", image.rule.grids
    return encoder_component(name, *grids[0]) if grids else name


def _components(bundle: Bundle, files: dict[str, str]) -> dict[str, ComponentEntry]:
    entries = {}
    for name, component in bundle.components.items():
        inputs = tuple(str(v.name) for v in component.graph.inputs)
        outputs = tuple(str(v.name) for v in component.graph.outputs)
        if component.role is Role.DECODER:  # states follow genai_config.json
            inputs = tuple(n for n in inputs if not n.startswith(PAST))
            outputs = tuple(n for n in outputs if not n.startswith(PRESENT))
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


def json_text(value: Any) -> str:
    """Text of a package's own files."""
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def _sync(directory: Path) -> None:
    """Force the files to disk before the rename makes them visible."""
    for path in directory.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
