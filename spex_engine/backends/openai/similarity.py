"""How alike two answers are, from 0 to 1: what is measured where nothing but text comes back.

Pure functions on text. Nothing here knows models, prompts or masks.
"""

from __future__ import annotations

import re
from collections import Counter

# Scripts written without blanks count by the character, all others by the word.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W\u3040-\u30ff\u3400-\u9fff_]+")


def words(text: str) -> list[str]:
    """The words of ``text``, case folded, without punctuation."""
    return _WORD.findall(text.casefold())


def similarity(answer: str, reference: str) -> float:
    """The F1 score of the words that two answers share, 0..1, symmetric; 1: the same words.

    Words count as often as they occur, in any order (Rajpurkar et al. 2016, arXiv 1606.05250,
    without their removal of articles). Answers without any word are compared as they are.
    """
    mine, theirs = Counter(words(answer)), Counter(words(reference))
    if not mine or not theirs:
        return float(answer.strip() == reference.strip())
    shared = (mine & theirs).total()
    return 2 * shared / (mine.total() + theirs.total())
