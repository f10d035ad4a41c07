"""The server answers as `hvlc run` does, whole and streamed, and says what it refuses."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from hvlc.runtime.generation import VisionLanguageModel
from hvlc.serving.app import Server
from hvlc.serving.limits import Limits
from tests.helpers.asking import body, data_url
from tests.helpers.tiny import picture

LIMITS = Limits(body=200_000, images=2, waiting=2, seconds=60, new_tokens=12)
ROUTE = "/v1/chat/completions"


@pytest.fixture(scope="module")
def model(tiny_float32: Path) -> VisionLanguageModel:
    return VisionLanguageModel(tiny_float32, threads=1)


@pytest.fixture(scope="module")
def server(model: VisionLanguageModel) -> Iterator[Server]:
    made = Server({"tiny": model}, LIMITS)
    yield made
    made.line.close()


def ask(
    server: Server, *requests: httpx.Request | dict[str, Any] | bytes, headers: dict[str, str] | None = None
) -> Any:
    """Responses to requests that come at once."""

    async def all_of_them() -> list[httpx.Response]:
        transport = httpx.ASGITransport(server.application())
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=headers) as client:
            return await asyncio.gather(*(one(client, request) for request in requests))

    async def one(client: httpx.AsyncClient, request: Any) -> httpx.Response:
        if isinstance(request, dict):
            return await client.post(ROUTE, json=request)
        if isinstance(request, bytes):
            return await client.post(ROUTE, content=request, headers={"content-type": "application/json"})
        return await client.get(request)

    found = asyncio.run(all_of_them())
    return found[0] if len(requests) == 1 else found


def events(response: httpx.Response) -> list[Any]:
    """Objects of a stream; its end is checked."""
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


@pytest.mark.parametrize(
    ("name", "asked"), [("tiny", {}), ("tiny:base", {"encoder": "base"}), ("tiny:full", {"vrc": False})]
)
def test_an_answer_is_that_of_the_runtime(server, model, name: str, asked: dict[str, Any]) -> None:
    image = picture(100, 150)
    settings = {"encoder": "auto", "vrc": True, **asked}
    expected = model.answer("What?", [image], max_new_tokens=6, **settings)
    whole = ask(server, body(name, images=(image,))).json()
    streamed = events(ask(server, body(name, images=(image,), stream=True)))
    assert tuple(whole["hvlc"]["tokens"]) == tuple(streamed[-1]["hvlc"]["tokens"]) == expected.tokens
    assert whole["choices"][0]["message"]["content"] == expected.text
    assert "".join(part["choices"][0]["delta"].get("content", "") for part in streamed[:-1]) == expected.text
    assert whole["usage"]["prompt_tokens"] == expected.prompt_tokens
    assert whole["usage"]["prompt_tokens_details"]["image_tokens"] == expected.visual_tokens
    assert whole["usage"]["completion_tokens"] == len(expected.tokens)
    reason = "stop" if expected.tokens[-1] in model._end_tokens else "length"
    assert whole["choices"][0]["finish_reason"] == streamed[-2]["choices"][0]["finish_reason"] == reason


def test_fields_of_the_body_come_before_suffixes(server) -> None:
    found = ask(server, body("tiny:base:9", images=(picture(64, 64),), encoder="large", vrc=False, max_visual_tokens=4))
    assert found.json()["hvlc"]["encoder"] == "large"
    assert found.json()["hvlc"]["visual_tokens"] <= 4


def test_a_chat_of_several_turns_is_the_templates(server, model) -> None:
    """What is sent as a whole has as many tokens as what is appended turn by turn."""
    image = picture(60, 40)
    first = model.start("What?", [image], max_new_tokens=4)
    _, appended = model._turn(first.chat, "fine", "And?")
    said = body("tiny", images=(image,), max_tokens=4)
    said["messages"] += [{"role": "assistant", "content": "fine"}, {"role": "user", "content": "And?"}]
    found = ask(server, said).json()
    told = len(model._tokenizer.encode("fine"))
    assert found["usage"]["prompt_tokens"] == first.prompt_tokens + told + len(appended)
    assert found["hvlc"]["visual_tokens"] == first.answered.visual_tokens


def test_images_may_stand_in_any_turn(server) -> None:
    said = body("tiny", images=(picture(32, 32),))
    later = body("tiny", images=(picture(64, 32),))["messages"]
    said["messages"] += [{"role": "assistant", "content": "x"}, *later]
    found = ask(server, said).json()
    assert len(found["hvlc"]["scales"]) == 2


def test_probabilities_are_those_of_the_logits(server, model) -> None:
    image = picture(48, 48)
    found = ask(server, body("tiny", images=(image,), logprobs=True, top_logprobs=3)).json()
    logits = model.logits("What?", [image], found["hvlc"]["tokens"], encoder="auto", vrc=True)
    told = found["choices"][0]["logprobs"]["content"]
    assert len(told) == sum(token not in model._end_tokens for token in found["hvlc"]["tokens"])
    for row, token, one in zip(logits, found["hvlc"]["tokens"], told, strict=False):
        high = row.astype("float64")
        assert one["logprob"] == pytest.approx(high[token] - np.logaddexp.reduce(high), abs=1e-4)
        assert len(one["top_logprobs"]) == 3
        assert one["top_logprobs"][0]["logprob"] == pytest.approx(one["logprob"])
        assert bytes(one["bytes"]).decode() == one["token"]


def test_seeds_repeat_and_differ(server) -> None:
    drawn = {"temperature": 2.0, "images": (picture(32, 32),), "max_tokens": 12}
    tokens = [ask(server, body("tiny", seed=seed, **drawn)).json()["hvlc"]["tokens"] for seed in (1, 1, 2, 3)]
    assert tokens[0] == tokens[1]
    assert len({tuple(one) for one in tokens}) > 1


def test_a_stop_text_ends_the_answer(server) -> None:
    answers = (
        (q, ask(server, body("tiny", q, max_tokens=12)).json()) for q in ("What?", "Why?", "How?", "1", "2", "3")
    )
    told = ((question, found["choices"][0]["message"]["content"]) for question, found in answers)
    question, text = next((question, text) for question, text in told if len(text) > 3)
    found = ask(server, body("tiny", question, max_tokens=12, stop=[text[2:4]])).json()
    assert found["choices"][0]["message"]["content"] == text[: text.index(text[2:4])]
    assert found["choices"][0]["finish_reason"] == "stop"


def test_numbers_come_with_a_stream_that_asks_for_them(server) -> None:
    plain = events(ask(server, body("tiny", stream=True)))
    counted = events(ask(server, body("tiny", stream=True, stream_options={"include_usage": True})))
    assert "usage" not in plain[-1]
    assert counted[-1]["usage"]["completion_tokens"] == len(counted[-1]["hvlc"]["tokens"])
    assert counted[-1]["choices"] == []


def test_models_are_listed_with_their_choices(server) -> None:
    listed = [model["id"] for model in ask(server, "/v1/models").json()["data"]]
    assert listed == ["tiny", "tiny:base", "tiny:large", "tiny:full"]
    assert ask(server, "/v1/models/tiny:large").json()["id"] == "tiny:large"


@pytest.mark.parametrize(
    ("request_", "status", "code"),
    [
        (b"{", 400, "request.body"),
        (b"\xff\xfe", 400, "request.body"),
        (b" " * 300_000, 413, "request.body"),
        (body("other"), 404, "request.model"),
        (body("tiny:huge"), 404, "request.model"),
        (body("tiny", encoder="huge"), 400, "request.encoder"),
        (body("tiny", n=3), 400, "request.unsupported"),
        (body("tiny", text="<|image_pad|>"), 400, "request.placeholder"),
        (body("tiny", text="long " * 4000), 400, "request.too_long"),
        (body("tiny", images=(picture(8, 8),) * 3), 400, "image.too_many"),
        ("/v1/models/none", 404, "request.model"),
        ("/v1/embeddings", 404, "request.path"),
        ("/../hvlc.json", 404, "request.path"),
        (ROUTE, 405, "request.path"),
    ],
)
def test_what_is_refused_has_a_status_and_a_reason(server, request_: Any, status: int, code: str) -> None:
    for streamed in (False, True):
        asked = {**request_, "stream": streamed} if isinstance(request_, dict) else request_
        found = ask(server, asked)
        assert (found.status_code, found.json()["error"]["code"]) == (status, code)
        assert found.json()["error"]["message"]


def test_a_body_of_another_type_is_refused(server) -> None:
    """A page of a stranger may post text without asking; JSON it may not."""

    async def post() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(server.application())) as client:
            return await client.post(f"http://localhost{ROUTE}", content=json.dumps(body("tiny")))

    assert asyncio.run(post()).status_code == 415


def test_a_key_is_required_where_there_is_one(model) -> None:
    server = Server({"tiny": model}, LIMITS, key="secret")
    try:
        for headers in (
            {},
            {"authorization": "Bearer other"},
            {"authorization": "Bearer secre\u0301t".encode("latin-1", "replace").decode("latin-1")},
        ):
            assert ask(server, body("tiny"), headers=headers).status_code == 401
            assert ask(server, "/v1/models", headers=headers).status_code == 401
        assert ask(server, body("tiny"), headers={"authorization": "Bearer secret"}).status_code == 200
        assert ask(server, "/health").status_code == 200
    finally:
        server.line.close()


def test_another_name_of_the_host_is_refused(model) -> None:
    server = Server({"tiny": model}, LIMITS, hosts=["127.0.0.1", "localhost"])
    try:
        assert ask(server, "/v1/models").status_code == 200
        assert ask(server, "/v1/models", headers={"host": "evil.example"}).status_code == 400
    finally:
        server.line.close()


def test_what_does_not_fit_into_the_line_is_refused_at_once(server) -> None:
    found = ask(server, *[body("tiny", images=(picture(64, 64),)) for _ in range(12)])
    statuses = [response.status_code for response in found]
    assert set(statuses) == {200, 429}
    assert statuses.count(200) >= LIMITS.waiting + 1
    refused = next(response for response in found if response.status_code == 429)
    assert refused.json()["error"]["code"] == "request.busy"
    assert refused.headers["retry-after"]
    answers = {tuple(r.json()["hvlc"]["tokens"]) for r in found if r.status_code == 200}
    assert len(answers) == 1


def test_a_request_ends_when_its_time_is_over(model) -> None:
    server = Server({"tiny": model}, Limits(seconds=1e-6))
    try:
        found = ask(server, body("tiny"))
        assert (found.status_code, found.json()["error"]["code"]) == (408, "request.time")
    finally:
        server.line.close()


def test_a_bug_in_one_answer_ends_that_answer_only(server, model, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any, **settings: Any) -> None:
        raise ZeroDivisionError("planted")

    with monkeypatch.context() as planted:
        planted.setattr(model, "start", broken)
        found = ask(server, body("tiny"))
        assert (found.status_code, found.json()["error"]["code"]) == (500, "bug")
    assert ask(server, body("tiny")).status_code == 200


def test_data_urls_are_images_of_any_format(server) -> None:
    found = ask(
        server,
        body("tiny")
        | {
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "image_url", "image_url": {"url": data_url(picture(40, 40), "jpeg")}}],
                }
            ]
        },
    )
    assert found.json()["hvlc"]["visual_tokens"] > 0
