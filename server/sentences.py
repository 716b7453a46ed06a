"""Where sentences start and end in a prompt, as offsets.

Rules, not a model: they are documented, the same in every run, and load nothing. A blank line, a
heading, a list item, a table row, a code block and a lone tag or rule bound sentences; inside
prose, punctuation does. It must not know documents, fixed text or budgets.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from server.prompts.markdown import read_lines
from server.text import Span, strip_span

_FULL_WIDTH = "。！？"  # end a sentence with no space after them
_CLOSERS = "\"'”’»)]}*_`」』）】》〉"
# Runs are taken whole (possessive), so that a line of a million dots costs one step.
_ENDERS = re.compile(rf"(?:[.!?…؟۔।{_FULL_WIDTH}]++[{re.escape(_CLOSERS)}]*+)++")
_GAP = re.compile(r"\s++")
_OPENERS = "([{<\"'“‘«*_`"


def _words(words: str) -> frozenset[str]:
    return frozenset(words.split())


# After these a word must follow: never the end, not even where a line is wrapped.
_ANNOUNCING = _words(
    "Mr Mrs Ms Mx Dr Prof Rev Hon Gen Sen Rep Gov Capt Lt Col Sgt St Mt Messrs "
    "e.g i.e eg ie cf vs viz ca approx incl esp E.g I.e Cf Vs"
)
# Not the end before a number on the same line: "No. 5", but "The answer is no. Then stop."
_NUMBERING = _words("no nos fig figs eq eqs sec secs ch vol p pp art ex tab ref")
# Not the end before a lower-case letter on the same line: "pens, etc. and", but "etc. The".
_TRAILING = _words("etc al inc ltd co corp jr sr dept est a.m p.m ph.d")
_LONGEST = 24  # characters; any longer word is no abbreviation


@dataclass(frozen=True, slots=True)
class _Block:
    """Consecutive lines that no sentence leaves."""

    start: int
    end: int
    content: int  # no sentence ends before it: "1." is a list marker
    is_whole: bool  # one segment, whatever punctuation is in it


def sentence_spans(text: str, start: int, end: int) -> Iterator[Span]:
    """The sentences of ``text[start:end]`` in order: tight, disjoint, covering all but whitespace.

    ``start`` is the start of a line or of its text.
    """
    for block in _blocks(text, start, end):
        begin = block.start
        if not block.is_whole:
            for run in _ENDERS.finditer(text, block.content, block.end):
                if _ends_sentence(text, begin, run.start(), run.end(), block.end):
                    yield strip_span(text, begin, run.end())
                    begin = run.end()
        last = strip_span(text, begin, block.end)
        if last[0] < last[1]:
            yield last


def _blocks(text: str, start: int, end: int) -> Iterator[_Block]:
    block: _Block | None = None
    for line in read_lines(text, start, end):
        is_more = line.kind == "code" or (
            line.kind == "prose" and block is not None and not block.is_whole
        )
        if is_more and block is not None:
            block = replace(block, end=max(block.end, line.end))
            continue
        if block is not None:
            yield block
        is_whole = line.kind not in ("prose", "item")
        is_blank = line.kind == "blank"
        block = None if is_blank else _Block(line.start, line.end, line.content, is_whole)
    if block is not None:
        yield block


def _ends_sentence(text: str, begin: int, start: int, end: int, block_end: int) -> bool:
    """Whether the run of enders and closers ``text[start:end]`` ends the sentence at ``begin``."""
    if end == block_end:
        return True
    enders = text[start:end].rstrip(_CLOSERS)
    if enders[-1] in _FULL_WIDTH:
        return True
    gap = _GAP.match(text, end, block_end)
    if gap is None:
        return False  # inside a number, a version, a URL, a file name
    if enders != ".":
        return True
    before = text[max(begin, start - _LONGEST) : start]
    if not before or before[-1].isspace():
        return True
    word = before.split()[-1].lstrip(_OPENERS)
    if word in _ANNOUNCING:
        return False
    is_line_end = "\n" in gap.group() or "\r" in gap.group()
    if is_line_end or gap.end() == block_end:
        return True
    following = text[gap.end()]
    if word.lower() in _NUMBERING:
        return not following.isdigit()
    if word.lower() in _TRAILING:
        return not following.islower()
    return not _is_initials(word)


def _is_initials(word: str) -> bool:
    """``J``, ``J.R`` or ``U.S``; not the pronoun ``I``."""
    letters = word.split(".")
    return word != "I" and all(len(letter) == 1 and letter.isupper() for letter in letters)
