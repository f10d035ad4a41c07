"""A checkpoint by its id on the hub: found in the cache, fetched from an endpoint on this machine, or refused."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants
from safetensors.numpy import load_file, save_file

from hvlc.errors import UserError
from hvlc.manifest.lock import LOCK
from hvlc.weights import hub
from hvlc.weights.checkpoint import Checkpoint
from hvlc.weights.hub import HubId, hub_id, located, name_of, origin_of
from hvlc.workflows.build.build import build
from hvlc.workflows.build.request import open_request
from hvlc.workflows.evaluate.model import open_subject
from tests.export.tiny_families import save_text
from tests.helpers.commands import Hvlc
from tests.helpers.hub import COMMIT, FakeHub, cached, files_of, serving

ID = "org/tiny-llama"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_text(tmp_path_factory.mktemp("hub") / "checkpoint", "llama")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache; the working directory is empty too."""
    place = tmp_path / "cache"
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(place))
    hub._snapshot.cache_clear()
    return place


@pytest.fixture
def online(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with serving() as served:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", served.endpoint)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", served.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        )
        yield served


def refused(name: str) -> UserError:
    with pytest.raises(UserError) as error:
        Checkpoint.open(Path(name))
    assert error.value.fix
    return error.value


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/name", HubId("org/name")),
        ("Qwen/Qwen3-0.6B@v1.0", HubId("Qwen/Qwen3-0.6B", "v1.0")),
        ("org/name@refs/pr/1", HubId("org/name", "refs/pr/1")),
        ("org/name@main", HubId("org/name")),
        *((text, None) for text in ("name", "a/b/c", "/a/b", "../b", ".cache/b", "a/..", "org/na--me", "org/na..me")),
        *((text, None) for text in ("org/model.gguf", "org/name@", "org/na me", "org/ñ", "org/name.", "a" * 97 + "/b")),
    ],
)
def test_names_that_are_ids(cache: Path, text: str, expected: HubId | None) -> None:
    assert hub_id(Path(text)) == expected


def test_a_directory_of_that_name_wins(cache: Path, saved: Path) -> None:
    cached(cache, ID, {"config.json": b"not this one"})
    Path(ID).parent.mkdir()
    Path(ID).symlink_to(saved)
    opened = Checkpoint.open(Path(ID))
    assert (opened.directory, opened.origin, opened.notes) == (Path(ID), None, [])


@pytest.mark.parametrize("revision", ["main", "v1", "refs/pr/2"])
def test_a_snapshot_of_the_cache_is_taken_offline(cache: Path, saved: Path, revision: str) -> None:
    snapshot = cached(cache, ID, files_of(saved), revision)
    name = ID if revision == "main" else f"{ID}@{revision}"
    opened = Checkpoint.open(Path(name))
    assert opened.directory == snapshot
    assert opened.origin == f"{ID}@{COMMIT}"
    assert opened.notes == [f"the checkpoint is {ID}@{COMMIT} on the Hugging Face hub"]
    assert opened.digest == Checkpoint.open(saved).digest
    assert Checkpoint.open(Path(f"{ID}@{COMMIT}")).directory == snapshot
    assert name_of(opened.directory) == "tiny-llama"


def test_a_snapshot_without_its_weights_is_not_taken(cache: Path, saved: Path) -> None:
    files = files_of(saved)
    del files["model.safetensors"]
    cached(cache, ID, files)
    error = refused(ID)
    assert error.code == "hub.offline"
    assert "model.safetensors" in error.cause
    assert f"hf download {ID}`" in error.fix


@pytest.mark.parametrize("name", [ID, f"{ID}@v9"])
def test_what_the_cache_does_not_know_is_refused_offline(cache: Path, name: str) -> None:
    error = refused(name)
    assert error.code == "hub.offline"
    assert f"{name} is not a directory here" in error.cause
    assert "HF_HUB_OFFLINE" in error.cause
    assert "hf download org/tiny-llama" in error.fix
    assert ("--revision v9" in error.fix) is name.endswith("v9")


def test_only_what_a_build_reads_is_fetched(online: FakeHub, saved: Path) -> None:
    files = files_of(saved)
    others = ("pytorch_model.bin", "modeling_evil.py", "consolidated.safetensors", "README.md", "training_args.bin")
    online.models[ID] = files | dict.fromkeys(others, b"x")
    opened = Checkpoint.open(Path(f"{ID}@v1"))
    assert opened.digest == Checkpoint.open(saved).digest
    assert opened.origin == f"{ID}@{COMMIT}"
    assert {path.name for path in opened.directory.iterdir()} == files.keys()
    assert online.fetched == files.keys()


def test_shards_are_those_of_the_index(online: FakeHub, saved: Path, tmp_path: Path) -> None:
    files = files_of(saved)
    del files["model.safetensors"]
    tensors = load_file(saved / "model.safetensors")
    weight_map = {}
    for index, name in enumerate(sorted(tensors)):
        shard = f"part-[{index % 2}].safetensors"
        weight_map[name] = shard
    for shard in set(weight_map.values()):
        save_file({n: t for n, t in tensors.items() if weight_map[n] == shard}, tmp_path / shard)
        files[shard] = (tmp_path / shard).read_bytes()
    files["model.safetensors.index.json"] = json.dumps({"weight_map": weight_map}).encode()
    online.models[ID] = files | {"other.safetensors": b"x"}
    assert Checkpoint.open(Path(ID)).tensors.keys() == tensors.keys()
    assert online.fetched == files.keys()


def test_an_index_that_leads_elsewhere_is_refused(online: FakeHub, saved: Path) -> None:
    files = files_of(saved)
    files["model.safetensors.index.json"] = json.dumps({"weight_map": {"x": "../../../evil.safetensors"}}).encode()
    del files["model.safetensors"]
    online.models[ID] = files
    assert refused(ID).code == "checkpoint.escape"


def test_what_was_fetched_is_taken_when_the_network_is_gone(
    online: FakeHub, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    online.models[ID] = files_of(saved)
    first = Checkpoint.open(Path(ID)).directory
    asked = len(online.requests)
    assert Checkpoint.open(Path(ID)).directory == first
    assert len(online.requests) == asked  # one command asks once
    hub._snapshot.cache_clear()
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    assert Checkpoint.open(Path(ID)).directory == first
    assert len(online.requests) == asked


@pytest.mark.parametrize(
    ("status", "header", "code", "fix"),
    [
        (403, "GatedRepo", "hub.gated", "hf auth login"),
        (401, "RepoNotFound", "hub.unknown", "correct the name"),
        (404, "RepoNotFound", "hub.unknown", "correct the name"),
        (500, "", "hub.network", "check network"),
    ],
)
def test_refusals_of_the_hub(online: FakeHub, status: int, header: str, code: str, fix: str) -> None:
    online.refusals[ID] = status, header
    error = refused(ID)
    assert error.code == code
    assert fix in error.fix
    assert ID in error.cause


def test_no_network(online: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    error = refused(ID)
    assert error.code == "hub.network"
    assert "is not a directory here" in error.cause


def test_an_unknown_revision(online: FakeHub, saved: Path) -> None:
    online.models[ID] = files_of(saved)
    assert refused(f"{ID}@v7").code == "hub.revision"


@pytest.mark.parametrize("files", [{"config.json": b"{}", "pytorch_model.bin": b"x"}, {"model.Q4_0.gguf": b"GGUF"}, {}])
def test_a_model_without_safetensors(online: FakeHub, files: dict[str, bytes]) -> None:
    online.models[ID] = files
    error = refused(ID)
    assert error.code == "hub.files"
    assert "model.safetensors" in error.cause
    assert online.fetched <= {"config.json"}


def test_a_package_says_where_its_checkpoint_is_from(cache: Path, saved: Path, tmp_path: Path) -> None:
    cached(cache, ID, files_of(saved))
    made = build(open_request(Path(ID), "cpu", "w4a16-rtn", tmp_path / "package"))
    plain = build(open_request(saved, "cpu", "w4a16-rtn", tmp_path / "plain"))
    assert made.manifest.sources == plain.manifest.sources
    locks = [json.loads((path / LOCK).read_text("utf-8")) for path in (made.output, plain.output)]
    assert [lock.pop("origin") for lock in locks] == [f"{ID}@{COMMIT}", None]
    assert locks[0] == locks[1]


def test_a_checkpoint_to_measure_may_be_an_id(cache: Path, saved: Path) -> None:
    snapshot = cached(cache, ID, files_of(saved))
    subject = open_subject(Path(ID))
    assert (subject.directory, subject.label) == (snapshot, "tiny-llama")


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        (f"/x/models--a--b/snapshots/{COMMIT}", f"a/b@{COMMIT}"),
        ("/x/models--a--b/snapshots/main", None),
        (f"/x/datasets--a--b/snapshots/{COMMIT}", None),
        (f"/x/models--gpt2/snapshots/{COMMIT}", None),
        (f"/x/models--a--b/blobs/{COMMIT}", None),
        ("/", None),
    ],
)
def test_where_a_directory_is_from(place: str, expected: str | None) -> None:
    assert origin_of(Path(place)) == expected


def test_without_the_library_an_id_is_a_path(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert located(Path(ID)) == Path(ID)
    assert refused(ID).code == "checkpoint.missing"


COMMANDS: dict[str, tuple[str, ...]] = {
    "plan": ("plan", "ID", "--recipe", "w4a16-rtn"),
    "build": ("build", "ID", "-o", "OUT", "--recipe", "float32"),
    "recipes": ("recipes", "check", "w4a16-rtn", "--checkpoint", "ID"),
    "calibration": ("calibration", "show", "TEXT", "--checkpoint", "ID", "--tokens", "32"),
    "bisect": ("bisect", "PACKAGE", "--reference", "ID", "--prompt", "Hi"),
    "verify": ("verify", "PACKAGE", "--rebuild", "ID"),
    "eval": ("eval", "ID", "--task", "TASK", "--count", "1"),
    "sensitivity": ("sensitivity", "ID", "--calibration", "TEXT", "--samples", "2", "-o", "OUT", "--no-loss"),
}


@pytest.fixture(scope="module")
def package(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(open_request(saved, "cpu", "float32", tmp_path_factory.mktemp("hub-package") / "package")).output


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_takes_an_id(
    cache: Path, saved: Path, package: Path, tmp_path: Path, hvlc: Hvlc, command: str
) -> None:
    (tmp_path / "task.jsonl").write_text(json.dumps({"question": "Hi", "answers": ["x"]}), "utf-8")
    (tmp_path / "text.jsonl").write_text((json.dumps({"text": "some words to measure " * 20}) + "\n") * 4, "utf-8")
    places = {"OUT": tmp_path / "out", "PACKAGE": package, "TASK": tmp_path / "task.jsonl", "ID": ID}
    places["TEXT"] = tmp_path / "text.jsonl"
    arguments = [places.get(word, word) for word in COMMANDS[command]]
    missing = hvlc(*arguments, "--json")
    assert (missing.code, missing.json["error"]["code"]) == (2, "hub.offline")
    cached(cache, ID, files_of(saved))
    found = hvlc(*arguments, "--json")
    assert found.code == 0, found.out + found.err


def test_a_process_of_its_own_reads_the_environment(saved: Path, tmp_path: Path) -> None:
    cached(tmp_path / "hub", ID, files_of(saved))
    script = f"from pathlib import Path; from hvlc.weights.hub import located; print(located(Path({ID!r})))"
    environment = os.environ | {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", script]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert origin_of(Path(found.strip())) == f"{ID}@{COMMIT}"
