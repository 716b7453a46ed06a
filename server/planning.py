"""From a file's text to the request for the worker: parse, settle the settings, cut, number.

Pure: the same text and settings give the same plan. It must not know LSP or the worker process.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.prompts import Problem, PromptDocument, parse, segment_kind
from server.segments import Segmentation, segment, to_prompt
from server.settings import Settings, allowed_model, merge, replaced
from spex_engine.wire import ExplainRequest, InputError


@dataclass(frozen=True, slots=True)
class Plan:
    """What is asked of the worker, and where each of its segments stands in the text."""

    document: PromptDocument
    segmentation: Segmentation
    request: ExplainRequest


def problems_of(document: PromptDocument, path: Path | None) -> tuple[Problem, ...]:
    """All that the file's author should mend, in order: its own problems and a model it may not
    choose, which is not used."""
    wishes = document.settings
    if wishes.model is None or wishes.model_at is None:
        return document.problems
    try:
        allowed_model(wishes.model, path.parent if path else None)
    except InputError as error:
        problem = Problem(*wishes.model_at, "model-refused", str(error), "warning")
        return tuple(sorted((*document.problems, problem), key=lambda p: p.start))
    return document.problems


def make_plan(
    text: str,
    path: Path | None,
    settings: Settings,
    said: Mapping[str, Any] | None = None,
) -> Plan:
    """``path``: of the file, None where it has none; ``said``: settings a command or flag gave.

    Raises InputError with a sentence for the user.
    """
    said = said or {}
    document = parse(text, path.name if path else "")
    folder = path.parent if path else None
    wishes = document.settings
    if "model" in said:  # then the file's own wish is not even looked at
        wishes = dataclasses.replace(wishes, model=None)
    settings = replaced(merge(settings, wishes, folder), said)
    kind = segment_kind(settings.segments)
    assert kind is not None, "settings were checked"
    segmentation = segment(document, kind, settings.budget)
    access = settings.access
    if not settings.model.startswith("openai:") and "baseUrls" not in said:
        access = dataclasses.replace(access, base_urls=())  # set for other files than this one
    request = ExplainRequest(
        prompt=to_prompt(document, segmentation.segments),
        model=settings.model,
        question=settings.question,
        access=access,
        method=settings.method,
        index=settings.index,
        order=settings.order,
        budget=settings.budget,
        seed=settings.seed,
    )
    return Plan(document, segmentation, request)
