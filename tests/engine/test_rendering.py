"""Where message texts lie in what a chat template made of them, for templates of many habits."""

from __future__ import annotations

import pytest

from spex_engine.backends.rendering import SYSTEM_MERGED, render_chat, render_plain
from spex_engine.wire import InputError, Message, ModelError, Piece

SYSTEM = Message("system", (Piece("Be "), Piece("brief.", 0)))
USER = Message("user", (Piece(" Where", 1), Piece(" now? ", 2)))
ANSWER = Message("assistant", (Piece("Here.", 3),))
MORE = Message("user", (Piece("user", 4),))


def tagged(messages):
    return "".join(f"<{m['role']}>{m['content']}</>" for m in messages) + "<assistant>"


def stripping(messages):
    return tagged([{**m, "content": m["content"].strip()} for m in messages])


def system_last(messages):
    """As Mistral's: the system message stands before the last user message."""
    system = "".join(m["content"] + "\n\n" for m in messages if m["role"] == "system")
    *before, last = (m for m in messages if m["role"] != "system")
    return tagged([*before, {**last, "content": system + last["content"]}])


def refusing(messages):
    if any(m["role"] == "system" for m in messages):
        raise ValueError("no system role")
    return tagged(messages)


def ignoring(messages):
    return tagged([m for m in messages if m["role"] != "system"])


def joined(rendered, segment=...):
    return "".join(p.text for p in rendered.pieces if segment is ... or p.segment == segment)


@pytest.mark.parametrize("template", [tagged, stripping, system_last])
def test_every_piece_is_found(template):
    messages = [SYSTEM, USER, ANSWER, MORE]
    rendered = render_chat(messages, template)
    assert joined(rendered) == template([{"role": m.role, "content": m.text} for m in messages])
    where = " Where" if template is not stripping else "Where"
    assert [joined(rendered, i) for i in (0, 1, 3, 4)] == ["brief.", where, "Here.", "user"]
    assert joined(rendered, 2).rstrip() == " now?"
    assert rendered.notes == ()


@pytest.mark.parametrize("template", [refusing, ignoring])
def test_system_message_without_a_place(template):
    rendered = render_chat([SYSTEM, USER], template)
    assert joined(rendered) == "<user>Be brief.\n\n Where now? </><assistant>"
    assert joined(rendered, 0) == "brief."
    assert rendered.notes == (SYSTEM_MERGED,)


def test_system_message_alone():
    assert joined(render_chat([SYSTEM], refusing)) == "<user>Be brief.</><assistant>"


def test_blank_messages_have_nothing_to_find():
    blank = Message("user", (Piece("  ", 0),))
    assert joined(render_chat([blank], stripping)) == "<user></><assistant>"


def test_text_that_the_template_rewrites():
    def upper(messages):
        return tagged([{**m, "content": m["content"].upper()} for m in messages])

    with pytest.raises(ModelError, match=r"rewrites the text of message 1 \(user\)"):
        render_chat([USER], upper)


def test_template_that_refuses():
    def fussy(messages):
        raise TypeError("roles must alternate")

    with pytest.raises(InputError, match=r"\(user, user\): roles must alternate; change"):
        render_chat([USER, USER], fussy)


def test_plain():
    rendered = render_plain([SYSTEM, USER])
    assert joined(rendered) == "Be brief.\n\n Where now? "
    assert joined(rendered, None) == "Be \n\n"
