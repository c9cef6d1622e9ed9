"""The emulator's manners beside plain answers: signatures of thoughts, stops, probabilities, ratings, modalities,
statistics."""

from __future__ import annotations

import base64
import json
import math
import urllib.error
import urllib.request

import pytest
from google.genai import errors, types

from gemma_ops.emulator import EmulatedReply, Emulator
from gemma_ops.emulator.signatures import check_signatures, signed
from gemma_ops.gemini import open_gemini
from gemma_ops.gemini.request import Request
from gemma_ops.wire.gemini_wire import Refusal
from tests.helpers.emulated import KEY, client_of, machine_for

FLASH = "gemini-3.8-flash"
CALL = {"name": "wait", "args": {"days": 2}}
DECLARED = types.Tool(
    function_declarations=[types.FunctionDeclaration(name="wait", description="waits",
            parameters_json_schema={"type": "object"})]
)  # fmt: skip


def generate(emulator, contents="Say it.", model=FLASH, **config):
    client = client_of(emulator)  # which closes when nobody holds it
    return client.models.generate_content(model=model, contents=contents, config=config)


def post(emulator, body, op="generateContent", model=FLASH):
    """The plain reply to a REST request; its error body where it is refused."""
    url = f"{emulator.url}/v1/models/{model}:{op}?key={KEY}"
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request) as reply:
            return json.load(reply)
    except urllib.error.HTTPError as error:
        return json.load(error)


def calling(body):
    done = any("functionResponse" in part for turn in body.raw["contents"] for part in turn["parts"])
    return "done" if done else EmulatedReply(calls=(CALL, CALL))


def test_calls_carry_a_signature_that_is_wanted_back():
    with Emulator(calling) as emulator:
        first = generate(emulator, tools=[DECLARED]).candidates[0].content
        assert [bool(part.thought_signature) for part in first.parts] == [True, False]  # the first of parallel calls
        results = [types.Part.from_function_response(name="wait", response={"result": "done"})] * 2
        turns = [types.UserContent("Say it."), first, types.Content(role="user", parts=results)]
        assert generate(emulator, turns, tools=[DECLARED]).text == "done"
        first.parts[0].thought_signature = None
        with pytest.raises(errors.ClientError, match=r"missing a thought_signature.*`default_api:wait` , position 2"):
            generate(emulator, turns, tools=[DECLARED])
        first.parts[0].thought_signature = b"made up"
        with pytest.raises(errors.ClientError, match="Corrupted thought signature"):
            generate(emulator, turns, tools=[DECLARED])
        assert generate(emulator, turns, model="gemma-4-31b-it", tools=[DECLARED]).text == "done"


def turn(role, *parts):
    return {"role": role, "parts": list(parts)}


def test_only_the_current_turn_is_looked_at():
    call = {"functionCall": CALL}
    result = {"functionResponse": {"name": "wait", "response": {}}}
    before = [turn("user", {"text": "a"}), turn("model", call), turn("user", result), turn("model", {"text": "b"})]
    check_signatures([*before, turn("user", {"text": "c"})], FLASH)
    ours = call | {"thoughtSignature": signed("wait", "d")}
    mark = call | {"thoughtSignature": base64.b64encode(b"skip_thought_signature_validator").decode()}
    for good in (ours, mark, call | {"thoughtSignature": "skip_thought_signature_validator"}):
        check_signatures([*before, turn("user", {"text": "c"}), turn("model", good), turn("user", result)], FLASH)
    steps = [turn("model", ours), turn("user", result), turn("model", call), turn("user", result)]
    with pytest.raises(Refusal):  # the second step of the turn
        check_signatures([*before, turn("user", {"text": "c"}), *steps], FLASH)


def test_our_own_client_sends_calls_that_are_taken(emulator, tmp_path):
    messages = (
        {"role": "user", "content": "How long?"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "1", "function": {"name": "wait", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "1", "content": "two days"},
    )
    with open_gemini(machine_for(emulator, tmp_path, batch="never"), run="r") as door:
        (answer,) = door.ask([Request(FLASH, messages, 64, "evaluate", privacy="any")])
    assert answer.end == "stop"


def test_a_reply_ends_before_its_stop_sequence():
    with Emulator(lambda _: "one two STOP three END") as emulator:
        assert generate(emulator, stop_sequences=["END", "STOP"]).text == "one two "
        assert generate(emulator, stop_sequences=["absent"]).text == "one two STOP three END"
        with pytest.raises(errors.ClientError, match="at most 5"):
            generate(emulator, stop_sequences=list("abcdef"))


def test_probabilities_of_tokens():
    with Emulator(lambda _: "yes indeed") as emulator:
        (candidate,) = generate(emulator, response_logprobs=True, logprobs=3).candidates
        chosen = candidate.logprobs_result.chosen_candidates
        assert "".join(entry.token for entry in chosen) == "yesindeed"
        tops = candidate.logprobs_result.top_candidates
        assert [len(top.candidates) for top in tops] == [3] * len(chosen)
        for entry, top in zip(chosen, tops, strict=True):
            assert entry.log_probability == max(one.log_probability for one in top.candidates)
            assert sum(math.exp(one.log_probability) for one in top.candidates) <= 1 + 1e-9
        assert candidate.avg_logprobs == pytest.approx(sum(e.log_probability for e in chosen) / len(chosen))
        assert generate(emulator).candidates[0].logprobs_result is None
        with pytest.raises(errors.ClientError, match="response_logprobs is not"):
            generate(emulator, logprobs=3)


def test_ratings_come_when_they_are_asked_for_and_with_every_refusal():
    setting = types.SafetySetting(category="HARM_CATEGORY_HARASSMENT", threshold="BLOCK_NONE")
    with Emulator(lambda _: "fine") as emulator:
        assert generate(emulator).candidates[0].safety_ratings is None
        rated = generate(emulator, safety_settings=[setting]).candidates[0].safety_ratings
        assert {rating.probability.name for rating in rated} == {"NEGLIGIBLE"}
        assert len(rated) == 4
        emulator.fail("blocked_reply")
        blocked = generate(emulator).candidates[0]
        assert [rating.category.name for rating in blocked.safety_ratings if rating.blocked] == [
            "HARM_CATEGORY_DANGEROUS_CONTENT"
        ]
        emulator.fail("blocked_prompt")
        assert any(rating.blocked for rating in generate(emulator).prompt_feedback.safety_ratings)


def test_what_a_prompt_shows_is_counted_by_its_kind(emulator):
    pixel = types.Part.from_bytes(data=b"x", mime_type="image/png")
    sound = types.Part.from_bytes(data=b"y", mime_type="audio/wav")
    usage = generate(
        emulator, [types.Content(role="user", parts=[types.Part(text="Look here"), pixel, pixel, sound])]
    ).usage_metadata
    counts = {entry.modality.name: entry.token_count for entry in usage.prompt_tokens_details}
    assert counts["IMAGE"] == 2 * counts["AUDIO"] > 0
    assert sum(counts.values()) == usage.prompt_token_count


def test_what_a_model_does_not_do_it_refuses(emulator):
    with pytest.raises(errors.ClientError, match="Penalty is not enabled for this model"):
        generate(emulator, presence_penalty=0.2)
    assert generate(emulator, presence_penalty=0.0).text  # which the service lets pass
    with pytest.raises(errors.ClientError, match="Multiple candidates is not enabled for models/gemini-4-argon"):
        generate(emulator, model="gemini-4-argon", candidate_count=2)
    assert len(generate(emulator, candidate_count=2).candidates) == 2


def test_an_inline_batch_says_how_its_requests_ended(emulator):
    emulator.fail("item_503", match="Second")
    requests = [
        {"request": {"contents": [{"parts": [{"text": f"{word} question?"}]}]},
            "metadata": {"key": word}} for word in ("First", "Second", "Third")
    ]  # fmt: skip
    batch = {"displayName": "d", "inputConfig": {"requests": {"requests": requests}}}
    made = post(emulator, {"batch": batch}, "batchGenerateContent")
    assert made["metadata"]["batchStats"] == {"requestCount": "3", "pendingRequestCount": "3"}
    for _ in range(3):
        with urllib.request.urlopen(f"{emulator.url}/v1/{made['name']}?key={KEY}") as reply:
            made = json.load(reply)
    assert made["metadata"]["batchStats"] == {
        "requestCount": "3",
        "successfulRequestCount": "2",
        "failedRequestCount": "1",
    }


def test_an_interaction_is_one_turn_told_in_steps():
    def responder(body):
        if body.functions:
            return EmulatedReply(calls=(CALL,), thought_tokens=3)
        return EmulatedReply(f"{body.system}|{body.level}|{body.last}", thought_tokens=5)

    with Emulator(responder) as emulator:
        client = client_of(emulator)
        asked = {"model": FLASH, "input": "How long?", "store": False}
        more = {"system_instruction": "Be brief.", "generation_config": {"thinking_level": "low"}}
        made = client.interactions.create(**asked, **more)
        assert made.status == "completed"
        assert made.steps[-1].content[0].text == "Be brief.|low|How long?"
        assert (made.model, made.usage.total_thought_tokens) == (FLASH, 5)
        tool = {"type": "function", "name": "wait", "description": "waits", "parameters": {"type": "object"}}
        called = client.interactions.create(**asked, tools=[tool])
        assert (called.status, called.steps[0].name, called.steps[0].arguments) == (
            "requires_action",
            "wait",
            {"days": 2},
        )
        assert [entry.billed for entry in emulator.of("interaction")] == [True, True]
        for refused in ({"store": True}, {"background": True}):
            with pytest.raises(Exception, match=r"stores no interaction|without background"):
                client.interactions.create(**asked | refused)
        assert len(emulator.billed()) == 2
