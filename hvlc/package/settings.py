"""Compare configurations and tokenizers of two packages key by key."""

import json
from collections.abc import Callable, Iterator, Mapping
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from hvlc.files.reading import TOKENIZER, is_file
from hvlc.inputs.documents import parse_toml, parse_yaml, read_json
from hvlc.inputs.tokenizer import chat_template, tokenizer_config
from hvlc.manifest.lock import LOCK, Lock
from hvlc.manifest.manifest import Manifest
from hvlc.opening.configuration import CONFIGURATION
from hvlc.opening.tokenizer import check_tokenizer
from hvlc.results.difference import ValueChange

#: Entries of the manifest that the lock has in more detail, or that are compared as files.
_ELSEWHERE = ("files", "sources")
_TOKENIZER_ELSEWHERE = ("chat_template",)
_MISSING = object()


def changed_values(a: Any, b: Any, key: str = "") -> Iterator[ValueChange]:
    """Paths of plain values that differ, in A's order and then B's.

    Mappings and lists of mappings are entered, also where the other side has none; other lists are compared whole.
    """
    if _text(a) == _text(b):  # as JSON, where 1 is not true
        return
    one, other = _entries_of(a), _entries_of(b)
    if one is None or other is None or not (one or other):
        yield ValueChange(key=key, a=_text(a), b=_text(b))
        return
    for step in dict.fromkeys([*one, *other]):
        path = f"{key}{step}".removeprefix(".")
        yield from changed_values(one.get(step, _MISSING), other.get(step, _MISSING), path)


def _entries_of(value: Any) -> dict[str, Any] | None:
    """Entries of a value, by the step to each; None where it is not entered."""
    if value is _MISSING:
        return {}
    if isinstance(value, Mapping):
        return {f".{name}": inside for name, inside in value.items()}
    if isinstance(value, list) and all(isinstance(item, Mapping) for item in value):
        return {f"[{position}]": item for position, item in enumerate(value)}
    return None


def _text(value: Any) -> str | None:
    return None if value is _MISSING else json.dumps(value, ensure_ascii=False, sort_keys=True)


def changed_settings(a: Path, b: Path, manifests: tuple[Manifest, Manifest]) -> dict[str, tuple[ValueChange, ...]]:
    """Differences in onnxruntime-genai's configuration, the manifest, and the sources of packages.

    Raises:
        UserError: a file cannot be read.
    """
    paths = [directory / CONFIGURATION for directory in (a, b)]
    configs = [read_json(path, "package.configuration") if is_file(path) else {} for path in paths]
    facts = [m.model_dump(mode="json", exclude=set(_ELSEWHERE)) for m in manifests]
    origins = [_origins(d, m) for d, m in zip((a, b), manifests, strict=True)]
    found = {
        CONFIGURATION: tuple(changed_values(configs[0], configs[1])),
        "manifest": tuple(changed_values(facts[0], facts[1])),
    }
    for name in origins[0]:
        found[name] = tuple(changed_values(origins[0][name], origins[1][name]))
    return {name: changes for name, changes in found.items() if changes}


def _origins(directory: Path, manifest: Manifest) -> dict[str, Any]:
    """Sources of a package: from the lock where there is one, otherwise from the manifest."""
    sources = manifest.sources.model_dump(mode="json")
    found: dict[str, Any] = {
        "recipe": {"name": sources["recipe_name"]},
        "target": {"name": sources["target_name"]},
        "checkpoint": {"model_type": sources["model_type"], "digest": sources["checkpoint"]},
        "calibration": {n: sources[n] for n in ("calibration_name", "calibration", "calibration_samples")},
        "versions": {**sources["versions"], "code of hvlc": sources["code"]},
    }
    if is_file(directory / LOCK):
        lock = Lock.load(directory)
        found["recipe"] = _parsed(lock.recipe, parse_yaml)
        found["target"] = _parsed(lock.target, parse_toml)
        found["checkpoint"]["files"] = {n: entry.model_dump(mode="json") for n, entry in lock.checkpoint.items()}
    return found


def _parsed(text: str, parse: Callable[[str], Any]) -> Any:
    """A recipe or target as plain values; as text where it is neither YAML nor TOML."""
    try:
        return json.loads(json.dumps(parse(text), default=str))
    except ValueError:
        return text


def changed_tokenizer(a: Path, b: Path) -> tuple[ValueChange, ...]:
    """Differences in tokens, merges, special tokens and lines of the template, then in the rest of the tokenizer.

    Raises:
        UserError: a file cannot be read, or is not of a tokenizer.
    """
    for directory in (a, b):
        check_tokenizer(directory)
    changes: list[ValueChange] = []
    first, second = (_tokenizer(directory) for directory in (a, b))
    for name in ("vocab", "merges", "added_tokens"):
        changes += _entries(name, first.pop(name), second.pop(name))
    changes += changed_values(first, second)
    configs = [tokenizer_config(directory, "package.tokenizer") for directory in (a, b)]
    plain = [{k: v for k, v in c.items() if k not in _TOKENIZER_ELSEWHERE} for c in configs]
    changes += changed_values(plain[0], plain[1], "tokenizer_config")
    templates = [chat_template(directory, "package.tokenizer") for directory in (a, b)]
    return (*changes, *_lines(*templates))


def _tokenizer(directory: Path) -> dict[str, Any]:
    """tokenizer.json, its lists as mappings from what an entry is to its number."""
    path = directory / "tokenizer.json"
    content = read_json(path, "package.tokenizer", limit=TOKENIZER) if is_file(path) else {}
    content = dict(content) if isinstance(content, dict) else {"content": content}
    model = dict(content["model"]) if isinstance(content.get("model"), dict) else {}
    vocab, merges = model.pop("vocab", {}), model.pop("merges", [])
    if isinstance(vocab, list):  # Unigram: pieces with scores, whose positions are their ids
        vocab = {str(entry[0]): [i, entry[1]] for i, entry in enumerate(vocab)}
    content["merges"] = {m if isinstance(m, str) else " ".join(m): rank for rank, m in enumerate(merges)}
    added = content.get("added_tokens") or []
    content["added_tokens"] = {str(token.get("content")): token for token in added if isinstance(token, dict)}
    return {**content, "model": model, "vocab": vocab}


def _entries(what: str, a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[ValueChange]:
    """Entries with another number, each under its own text."""
    for name in dict.fromkeys([*a, *b]):
        one, other = a.get(name, _MISSING), b.get(name, _MISSING)
        if one is _MISSING or other is _MISSING or one != other:
            yield ValueChange(key=f"{what}[{name!r}]", a=_text(one), b=_text(other))


def _lines(a: str | None, b: str | None) -> Iterator[ValueChange]:
    """Lines of the chat template that differ."""
    old, new = ((text or "").splitlines() for text in (a, b))
    for tag, i, i_end, j, j_end in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if tag != "equal":
            one, other = "\n".join(old[i:i_end]), "\n".join(new[j:j_end])
            key = f"chat_template line {i + 1}"
            yield ValueChange(key=key, a=one if i_end > i else None, b=other if j_end > j else None)
