"""What an editor sees: a scripted client, the real server, worker and embedded model."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import attrs
import pytest
from lsprotocol import types
from pygls.exceptions import JsonRpcException

pytestmark = pytest.mark.asyncio(loop_scope="module")

URI = "file:///home/me/two-facts.prompt.md"
OTHER = "file:///home/me/other.prompt.md"
BOB, ROME, ANNA = 4, 5, 6  # lines of examples/two-facts.prompt.md
INFORMATION, HINT = types.DiagnosticSeverity.Information, types.DiagnosticSeverity.Hint
FACTS = {"Bob works with Anna.", "Anna lives in Paris."}


@dataclass
class Source:
    """A document as its author wrote it, to say what a range covers."""

    text: str
    codec: str = "utf-16-le"
    unit: int = 2

    def at(self, where: types.Range) -> str:
        lines = self.text.splitlines()
        assert where.start.line == where.end.line
        line = lines[where.start.line].encode(self.codec)
        start, end = where.start.character * self.unit, where.end.character * self.unit
        return line[start:end].decode(self.codec)


def value(hover: types.Hover | None) -> str:
    assert hover is not None
    assert isinstance(hover.contents, types.MarkupContent)
    return hover.contents.value


def effect(hover: types.Hover | None) -> float:
    """The number that a hover opens with."""
    found = re.search(r"([+-]\d+\.\d+) ± \d+\.\d+", value(hover).replace("\\", ""))
    assert found is not None
    return float(found[1])


def pair(diagnostics: list[types.Diagnostic]) -> types.Diagnostic:
    """The one of the two facts."""
    (found,) = [d for d in diagnostics if d.data["segments"] == [0, 2]]
    return found


async def refused(command: Any) -> str:
    """The message of a command's error response."""
    with pytest.raises(JsonRpcException) as caught:
        await command
    assert caught.value.code == -32602
    return caught.value.message


# ---- the way through --------------------------------------------------------------------------


async def test_explain_answers_at_once_shows_progress_and_then_diagnostics(editor, example):
    editor.open(URI, example)
    opened = await editor.told("diagnostics")
    assert (opened.uri, opened.version, list(opened.diagnostics)) == (URI, 1, [])
    answer = await editor.command("spex.explain", {"uri": URI})
    assert answer["uri"] == URI
    assert answer["segments"] == 6
    assert isinstance(answer["jobId"], int)
    await editor.told("diagnostics", but=1)

    kinds = [kind for kind, _ in editor.seen]
    assert kinds[:4] == ["diagnostics", "answer", "create", "begin"]
    assert kinds[4:] == ["report"] * (len(kinds) - 6) + ["end", "diagnostics"]
    (begun,), (ended,) = editor.all("begin"), editor.all("end")
    assert begun["title"] == "Explain two-facts.prompt.md"
    assert begun["cancellable"] is True
    assert "64 of 64 calls" in editor.all("report")[-1]["message"]
    assert "interaction" in ended["message"]
    tokens = {value["token"] for value in (*editor.all("begin"), *editor.all("report"), ended)}
    assert tokens == set(editor.all("create"))


async def test_the_diagnostic_names_both_facts(editor, example):
    editor.open(URI, example)
    diagnostics = await editor.explained(URI)
    found = pair(diagnostics)
    assert found == diagnostics[0]  # the strongest
    assert (found.source, found.code, found.severity) == ("spex", "spex/interaction", INFORMATION)
    assert found.tags is None
    (related,) = found.related_information
    source = Source(example)
    assert {source.at(found.range), source.at(related.location.range)} == FACTS
    assert related.location.uri == URI
    assert "“Bob works with Anna.” (line 5)" in found.message
    assert "“Anna lives in Paris.” (line 7)" in found.message
    assert "synergy +" in found.message
    assert "nats" in found.message
    assert found.data["kind"] == "synergy"


async def test_hover_says_effect_partner_and_how_sure(editor, example):
    editor.open(URI, example)
    await editor.explained(URI)
    source = Source(example)
    for line, fact, partner, where in (
        (BOB, "Bob works with Anna.", "Anna lives in Paris", "(line 7)"),
        (ANNA, "Anna lives in Paris.", "Bob works with Anna", "(line 5)"),
    ):
        hover = await editor.hover(URI, line, 3)
        assert source.at(hover.range) == fact
        assert hover.contents.kind == types.MarkupKind.Markdown
        text = value(hover)
        assert effect(hover) > 0.5
        assert re.search(r"\*\*synergy .*" + partner, text)
        assert where in text
        assert "How sure" in text
        assert "64 model calls" in text
        assert "Stale" not in text


async def test_hover_on_a_distractor_and_beside_the_segments(editor, example):
    editor.open(URI, example)
    await editor.explained(URI)
    needed = effect(await editor.hover(URI, ANNA))
    assert abs(effect(await editor.hover(URI, ROME))) < 0.3 * needed
    assert await editor.hover(URI, 1) is None  # front matter
    assert await editor.hover(URI, 11) is None  # the question, which is fixed
    assert await editor.hover(URI, BOB, len("Bob works with Anna.")) is None
    assert await editor.hover(URI, 999, 999) is None
    assert await editor.hover(OTHER, BOB) is None  # never opened


# ---- clients differ ---------------------------------------------------------------------------


async def test_a_client_that_declares_nothing_gets_nothing_of_it(start_editor, example):
    editor = await start_editor(types.ClientCapabilities())
    editor.open(URI, example)
    found = pair(await editor.explained(URI))
    assert found.related_information is None
    assert "“Bob works with Anna.” (line 5)" in found.message
    assert "“Anna lives in Paris.” (line 7)" in found.message
    hover = await editor.hover(URI, BOB)
    assert hover.contents.kind == types.MarkupKind.PlainText
    assert "Anna lives in Paris." in value(hover)
    assert "*" not in value(hover)
    assert "\\" not in value(hover)
    stale = await editor.diagnostics_after(lambda: editor.change(URI, example + "\n"))
    assert stale.diagnostics
    assert all(d.tags is None for d in stale.diagnostics)
    assert {kind for kind, _ in editor.seen} == {"diagnostics", "answer"}


@pytest.mark.parametrize("agrees", [False, None], ids=["refuses", "never answers"])
async def test_a_client_without_a_progress_bar_after_all_gets_the_result(editor, example, agrees):
    editor.agrees = agrees
    editor.open(URI, example)
    assert pair(await editor.explained(URI))
    assert len(editor.all("create")) == 1
    assert {"begin", "report", "end"}.isdisjoint(kind for kind, _ in editor.seen)


@pytest.mark.parametrize(
    ("offered", "chosen", "codec", "unit"),
    [
        (None, "utf-16", "utf-16-le", 2),
        (["utf-8", "utf-16"], "utf-8", "utf-8", 1),
        (["utf-32", "utf-16"], "utf-32", "utf-32-le", 4),
    ],
)
async def test_positions_in_the_encoding_agreed_on(
    start_editor, example, everything, offered, chosen, codec, unit
):
    general = types.GeneralClientCapabilities(position_encodings=offered)
    editor = await start_editor(attrs.evolve(everything, general=general))
    assert editor.hello.capabilities.position_encoding == chosen
    text = example.replace("Bob works", "😀🎈é Hello. Bob works")
    editor.open(URI, text)
    source = Source(text, codec, unit)
    sentences = {"😀🎈é Hello.", *(line for line in example.splitlines() if line.endswith("."))}
    for found in await editor.explained(URI):
        assert source.at(found.range) in sentences
        assert {source.at(other.location.range) for other in found.related_information} < sentences
    start = len("😀🎈é Hello. ".encode(codec)) // unit
    hover = await editor.hover(URI, BOB, start)
    assert source.at(hover.range) == "Bob works with Anna."
    assert hover.range.start.character == start
    assert await editor.hover(URI, BOB, start - 1) is None  # the space before it


# ---- commands ---------------------------------------------------------------------------------


async def test_commands_without_arguments_mean_the_only_document(editor, example):
    editor.open(URI, example)
    answer = await editor.command("spex.explain")
    assert answer["uri"] == URI
    await editor.told("end")
    assert await editor.command("spex.clear", None) == {"uri": URI}


async def test_commands_without_arguments_mean_the_document_touched_last(editor, example):
    assert "no document is open" in await refused(editor.command("spex.explain"))

    async def meant() -> str:
        return (await editor.command("spex.clear"))["uri"]

    def saved() -> None:
        name = types.TextDocumentIdentifier(URI)
        editor.client.text_document_did_save(types.DidSaveTextDocumentParams(name))

    editor.open(URI, example)
    editor.open(OTHER, example)
    assert await meant() == OTHER
    await editor.hover(URI, BOB)
    assert await meant() == URI
    editor.change(OTHER, example + "\n")
    assert await meant() == OTHER
    saved()
    assert await meant() == URI
    editor.close(URI)
    assert await meant() == OTHER


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["file:///x.md"], "expected no argument or one object"),
        ([{}, {}], "expected no argument or one object"),
        ([{"uri": 5}], "uri: expected text, got 5"),
        ([{"uri": ["x"]}], "uri: expected text"),
        ([{"uri": "file:///elsewhere.md"}], "file:///elsewhere.md is not open"),
        ([{"bugdet": 5}], "bugdet: unknown setting; known are budget"),
        ([{"interpreter": "/bin/sh"}], "interpreter: unknown setting; known are budget"),
        ([{"budget": "many"}], "budget: expected a whole number"),
        ([{"method": "magic"}], "method: expected one of auto"),
        ([{"segments": "letter"}], "segments: expected auto"),
    ],
)
async def test_a_bad_argument_is_answered_with_what_was_expected(
    editor, example, arguments, message
):
    editor.open(URI, example)
    assert message in await refused(editor.command("spex.explain", *arguments))
    assert (await editor.status())["running"] == []


async def test_a_wish_that_only_the_engine_can_judge_is_refused_in_its_words(editor, example):
    editor.open(URI, example)
    await editor.command("spex.explain", {"method": "exact", "budget": 32})
    message = await editor.told("message")
    assert message.type == types.MessageType.Error
    assert "2^6 calls, and the budget is 32" in message.message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the prompt is empty"),
        ("---\nmodel: demo\n---\n \n", "the prompt is empty"),
        ('---\nfixed: ["Say*"]\n---\nSay hello.\n', "all of the prompt is fixed text"),
    ],
)
async def test_nothing_to_explain(editor, text, message):
    editor.open(URI, text)
    assert message in await refused(editor.command("spex.explain"))


async def test_status_and_clear(editor, example):
    editor.open(URI, example)
    await editor.explained(URI)
    status = await editor.status()
    assert status["worker"]["state"] == "ready"
    assert status["worker"]["pid"] > 0
    assert status["running"] == []
    assert status["explained"] == [URI]
    assert status["model"] == "demo"
    assert await editor.command("spex.clear", {"uri": URI}) == {"uri": URI}
    assert list(editor.all("diagnostics")[-1].diagnostics) == []
    assert await editor.hover(URI, BOB) is None
    assert (await editor.status())["explained"] == []


async def test_clear_cancels_the_run_under_way(editor, slow_prompt):
    editor.open(URI, slow_prompt)
    await editor.command("spex.explain")
    await editor.under_way()
    assert await editor.command("spex.clear") == {"uri": URI}
    assert (await editor.told("end"))["message"] == "cancelled"
    status = await editor.status()
    assert (status["running"], status["explained"]) == ([], [])


async def test_cancel_with_nothing_to_cancel(editor, example):
    editor.open(URI, example)
    assert await editor.command("spex.cancel") == {"cancelled": []}


async def test_text_that_no_tokenizer_can_encode(editor, example):
    """Lone surrogates: a client may send them, in the prompt and in a target."""
    editor.open(URI, example.replace("likes tea", "likes \ud83d"))
    await editor.command("spex.explain", {"target": "Paris \ude00"})
    await editor.told("end")
    assert editor.all("message") == []
    assert (await editor.status())["explained"] == [URI]


# ---- editing ----------------------------------------------------------------------------------


async def test_an_edit_marks_what_moves_and_drops_what_was_edited(editor, example):
    editor.open(URI, example)
    fresh = await editor.explained(URI)

    longer = example.replace("Bob works", "Hello there.\nBob works")
    moved = await editor.diagnostics_after(lambda: editor.change(URI, longer))
    assert moved.version == 2
    found = pair(moved.diagnostics)
    assert found.severity == HINT
    assert list(found.tags) == [types.DiagnosticTag.Unnecessary]
    assert found.message.startswith("Stale")
    assert "“Bob works with Anna.” (line 6)" in found.message
    assert "“Anna lives in Paris.” (line 8)" in found.message
    (related,) = found.related_information
    source = Source(longer)
    assert {source.at(found.range), source.at(related.location.range)} == FACTS
    hover = await editor.hover(URI, BOB + 1)
    assert source.at(hover.range) == "Bob works with Anna."
    assert "Stale" in value(hover)
    assert await editor.hover(URI, BOB) is None  # what is new has no result

    other = example.replace("Paris", "Lyon")
    gone = await editor.diagnostics_after(lambda: editor.change(URI, other, 3))
    assert [d for d in gone.diagnostics if 2 in d.data["segments"]] == []
    assert await editor.hover(URI, ANNA) is None
    assert "Stale" in value(await editor.hover(URI, BOB))

    back = await editor.diagnostics_after(lambda: editor.change(URI, example, 4))
    assert list(back.diagnostics) == fresh
    assert "Stale" not in value(await editor.hover(URI, BOB))


async def test_an_edit_during_the_run_makes_its_result_stale(editor, example):
    editor.open(URI, example)
    await editor.command("spex.explain")
    editor.change(URI, example.replace("Bob works", "Hello there.\nBob works"))
    await editor.told("end")
    last = await editor.until(lambda: editor.all("diagnostics")[-1].diagnostics)
    assert pair(last).message.startswith("Stale")
    assert pair(last).range.start.line in (BOB + 1, ANNA + 1)


async def test_closing_clears_and_reopening_starts_afresh(editor, example):
    editor.open(URI, example)
    await editor.explained(URI)
    closed = await editor.diagnostics_after(lambda: editor.close(URI))
    assert (closed.uri, list(closed.diagnostics)) == (URI, [])
    assert await editor.hover(URI, BOB) is None
    reopened = await editor.diagnostics_after(lambda: editor.open(URI, example))
    assert list(reopened.diagnostics) == []
    assert await editor.hover(URI, BOB) is None
    assert pair(await editor.explained(URI))


async def test_front_matter_problems_are_diagnostics_at_their_place(editor):
    text = "---\nbudget: lots\nsegments: letter\n---\nSay hello. Be brief. Smile.\n"
    editor.open(URI, text)
    problems = (await editor.told("diagnostics")).diagnostics
    assert [Source(text).at(d.range) for d in problems] == ["lots", "letter"]
    assert {(d.source, d.code) for d in problems} == {("spex", "spex/front-matter-value")}
    assert {d.severity for d in problems} == {types.DiagnosticSeverity.Error}
    foreign = "---\nmodel: [GPT-4o]\ntarget:\n---\nSay hello. Be brief. Smile.\n"
    others = await editor.diagnostics_after(lambda: editor.change(URI, foreign))
    assert [d.severity for d in others.diagnostics] == [INFORMATION] * 2
    rule = await editor.diagnostics_after(lambda: editor.change(URI, "---\nSay hello.\n"))
    assert list(rule.diagnostics) == []
    mended = text.replace("lots", "64").replace("letter", "sentence")
    after = await editor.diagnostics_after(lambda: editor.change(URI, mended))
    assert list(after.diagnostics) == []


async def test_a_second_explain_replaces_the_first(editor, slow_prompt, example):
    editor.open(URI, slow_prompt)
    first = await editor.command("spex.explain")
    await editor.under_way()
    editor.change(URI, example)
    second = await editor.command("spex.explain")
    assert second["jobId"] > first["jobId"]
    (running,) = (await editor.status())["running"]
    assert running["jobId"] == second["jobId"]
    await editor.told("end", but=1)
    (old, new) = [begun["token"] for begun in editor.all("begin")]
    messages = {ended["token"]: ended["message"] for ended in editor.all("end")}
    assert messages[old] == "cancelled"
    assert "interaction" in messages[new]
    diagnostics = await editor.until(lambda: editor.all("diagnostics")[-1].diagnostics)
    assert pair(diagnostics).severity == INFORMATION
    assert editor.all("message") == []


# ---- settings and models ----------------------------------------------------------------------


async def test_settings_at_the_start_and_later(start_editor, example):
    editor = await start_editor(options={"budget": 32, "colour": "red", "order": 0})
    warnings = [m for m in editor.all("message") if m.type == types.MessageType.Warning]
    (warning,) = warnings  # an unknown key is for the log alone
    assert "spex.order: expected a whole number from 1 to 1,000, got 0" in warning.message

    editor.open(URI, example)
    await editor.command("spex.explain")
    await editor.told("end")
    assert "32 of 32 calls" in editor.all("report")[-1]["message"]  # order: the default's

    editor.configure({"spex": {"model": 5, "budget": 48}})
    warning = await editor.told("message", but=1)
    assert "spex.model: expected text, got 5" in warning.message
    assert (await editor.status())["model"] == "demo"
    await editor.command("spex.explain")
    await editor.told("end", but=1)
    assert "48 of 48 calls" in editor.all("report")[-1]["message"]

    for nothing in ({}, {"spex": None}, {"budget": 64}, {"other": {"budget": 64}}, None, []):
        editor.configure(nothing)  # these keep what is
    await editor.command("spex.explain")
    await editor.told("end", but=2)
    assert "48 of 48 calls" in editor.all("report")[-1]["message"]

    editor.configure({"spex": {"seed": 1}})  # what lies below is what the client started us with
    await editor.command("spex.explain")
    await editor.told("end", but=3)
    assert "32 of 32 calls" in editor.all("report")[-1]["message"]
    assert len(editor.all("message")) == 2


async def test_settings_at_the_start_may_stand_under_their_name(start_editor):
    editor = await start_editor(options={"spex": {"model": "hf:gpt2"}, "other": 1})
    assert (await editor.status())["model"] == "hf:gpt2"
    assert editor.all("message") == []


async def test_a_relative_model_folder_is_looked_for_in_the_workspace(
    start_editor, example, tmp_path
):
    text = example.replace("model: demo\n", "")
    editor = await start_editor(options={"model": "hf:./chat"}, root=tmp_path)
    editor.open(URI, text)
    message = await refused(editor.command("spex.explain"))
    assert message.startswith(f"model: ./chat is a relative folder and is not in {tmp_path}")
    (tmp_path / "chat").mkdir()
    await editor.command("spex.explain")
    said = (await editor.told("message")).message
    assert f"{tmp_path}/chat is no model" in said


async def test_a_model_that_is_not_there_gives_a_message_and_nothing_breaks(editor, example):
    editor.configure({"spex": {"model": "hf:/nonexistent"}})
    editor.open(URI, example.replace("model: demo\n", ""))
    await editor.command("spex.explain")
    message = await editor.told("message")
    assert message.type == types.MessageType.Error
    assert "no folder /nonexistent" in message.message
    assert (await editor.told("end"))["message"] == "failed"
    editor.seen.clear()
    editor.configure({"spex": {}})
    assert await editor.explained(URI)


@pytest.mark.parametrize("model", ["openai:gpt-5", "hf:/abs/path", "hf:../x", "hf:./../x"])
async def test_a_file_may_not_choose_any_model(editor, example, model):
    text = example.replace("model: demo", f"model: {model}")
    editor.open(URI, text)
    (warning,) = (await editor.told("diagnostics")).diagnostics
    assert (warning.code, warning.severity) == (
        "spex/model-refused",
        types.DiagnosticSeverity.Warning,
    )
    assert Source(text).at(warning.range) == model
    assert f"A prompt file may not choose the model '{model}'" in warning.message
    assert pair(await editor.explained(URI))  # on the settings' model
    assert editor.all("message") == []
