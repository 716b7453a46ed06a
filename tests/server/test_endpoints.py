"""Endpoints from an editor: consent before money, keys on request; and explanations that return."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import attrs
import pytest
from lsprotocol import types

from tests.engine.openai_stub import Stub
from tests.server.endpoint_stub import ELSEWHERE, KEY, PROMPT, chat_stub

pytestmark = pytest.mark.asyncio(loop_scope="module")

URI = "file:///home/me/endpoint.prompt.md"


@pytest.fixture
def stub() -> Iterator[Stub]:
    with chat_stub() as running:
        yield running


# ---- in an editor -----------------------------------------------------------------------------


def with_answers(editor: Any, consent: str | None, key: str | None = None) -> list[Any]:
    """The editor answers questions so; what it was asked is in the list."""
    asked: list[Any] = []

    @editor.client.feature(types.WINDOW_SHOW_MESSAGE_REQUEST)
    def consents(params: types.ShowMessageRequestParams) -> types.MessageActionItem | None:
        asked.append(params)
        editor.note("asked", params)
        return None if consent is None else types.MessageActionItem(consent)

    @editor.client.feature("spex/secret")
    def secret(params: Any) -> dict[str, str | None]:
        asked.append(params.origin)
        return {"key": key}

    return asked


def endpoint(url: str, **more: Any) -> dict[str, Any]:
    return {"model": "openai:tiny", "baseUrls": [url], "choices": ["Paris", "Rome"], **more}


@pytest.mark.parametrize("consent", ["Cancel", None])
async def test_a_person_who_does_not_agree_pays_nothing(start_editor, consent):
    editor = await start_editor(options=endpoint(ELSEWHERE))
    asked = with_answers(editor, consent)
    editor.open(URI, PROMPT)
    await editor.command("spex.explain", {"uri": URI})
    end = await editor.told("end")
    assert end["message"] == "cancelled"
    (question,) = asked
    assert "models.invalid: at most" in question.message
    assert "calls" in question.message
    assert [action.title for action in question.actions] == ["Explain", "Cancel"]
    assert editor.all("message") == []
    assert (await editor.status())["running"] == []


async def test_a_person_who_agrees_is_told_what_went_wrong(start_editor):
    editor = await start_editor(options=endpoint(ELSEWHERE))
    with_answers(editor, "Explain")
    editor.open(URI, PROMPT)
    await editor.command("spex.explain", {"uri": URI})
    message = await editor.told("message")
    assert "There is no key for https://models.invalid" in message.message


async def test_a_key_is_asked_of_the_client_and_used_for_its_address_alone(
    start_editor, everything, stub
):
    able = attrs.evolve(everything, experimental={"spex": {"secrets": True}})
    editor = await start_editor(able, endpoint(stub.url))
    asked = with_answers(editor, None, KEY)
    editor.open(URI, PROMPT)
    await editor.command("spex.explain", {"uri": URI})
    await editor.told("diagnostics", but=1)
    assert asked == [stub.url.removesuffix("/v1")]  # and nobody else was asked anything
    assert {entry.headers.get("authorization") for entry in stub.log} == {f"Bearer {KEY}"}
    said = json.dumps([str(value) for _, value in editor.seen])
    assert KEY not in said


async def test_a_client_that_keeps_no_keys_is_not_asked(start_editor, stub):
    editor = await start_editor(options=endpoint(stub.url))
    asked = with_answers(editor, None, KEY)
    editor.open(URI, PROMPT)
    await editor.command("spex.explain", {"uri": URI})
    await editor.told("diagnostics", but=1)
    assert asked == []
    assert all(KEY not in str(entry.headers) for entry in stub.log)


async def test_a_cancel_while_the_question_is_open(start_editor):
    editor = await start_editor(options=endpoint(ELSEWHERE))
    never = asyncio.Event()

    @editor.client.feature(types.WINDOW_SHOW_MESSAGE_REQUEST)
    async def silent(params: types.ShowMessageRequestParams) -> None:
        editor.note("asked", params)
        await never.wait()

    editor.open(URI, PROMPT)
    await editor.command("spex.explain", {"uri": URI})
    await editor.told("asked")
    assert await editor.command("spex.cancel", {"uri": URI}) == {"cancelled": [URI]}
    assert (await editor.told("end"))["message"] == "cancelled"
    never.set()


async def test_a_prompt_file_names_no_endpoint(start_editor, stub):
    editor = await start_editor()
    text = f"---\nmodel: openai:tiny\nbaseUrls: {stub.url}\ntarget: tea\n---\nAnna.\nBob.\n"
    editor.open(URI, text)
    opened = await editor.told("diagnostics")
    assert [d.code for d in opened.diagnostics] == ["spex/model-refused"]
    await editor.command("spex.explain", {"uri": URI})
    await editor.told("diagnostics", but=1)
    assert stub.log == []


# ---- the answer that is explained ------------------------------------------------------------


async def test_the_own_answer_stays_the_target_until_it_is_cleared(start_editor, example):
    editor = await start_editor()
    editor.open(URI, example)
    await editor.explained(URI)
    moved = example.replace("Anna lives in Paris", "Anna lives in Oslo")
    editor.change(URI, moved)
    await editor.explained(URI)
    hover = (await editor.hover(URI, 6)).contents.value.replace("\\", "")
    assert "the answer “Paris”" in hover
    assert "Note: the model's own answer is now 'Oslo'" in hover
    await editor.command("spex.clear", {"uri": URI})
    await editor.explained(URI)
    hover = (await editor.hover(URI, 6)).contents.value.replace("\\", "")
    assert "the answer “Oslo”" in hover
    assert "own answer" not in hover


async def test_an_edit_reuses_what_leaves_the_edited_segment_out(start_editor, example):
    editor = await start_editor(options={"store": True})
    uri = URI.replace("endpoint", "edited")
    editor.open(uri, example)
    await editor.explained(uri)
    editor.change(uri, example.replace("David likes tea", "David likes coffee"))
    await editor.explained(uri)
    hover = (await editor.hover(uri, 6)).contents.value.replace("\\", "")
    assert "32 model calls and 32 known from before" in hover


# ---- finished explanations --------------------------------------------------------------------


async def test_an_explanation_comes_back_after_a_restart(start_editor, example, tmp_path):
    kept = {"store": True}
    first = await start_editor(options=kept)
    first.open(URI, example)
    before = await first.explained(URI)
    await first.client.shutdown_session()
    second = await start_editor(options=kept)
    second.open(URI, example)
    restored = (await second.until(lambda: second.all("diagnostics")[1:]))[0]
    assert [d.message for d in restored.diagnostics] == [d.message for d in before]
    # another text was not explained
    other = URI.replace("endpoint", "other")
    second.open(other, example.replace("Paris", "Oslo"))
    await second.status()
    await second.explained(other)
    assert [p.uri for p in second.all("diagnostics")].count(other) == 2
