"""What the client takes, resolved once when it says hello: nothing else is sent to it.

An LSP edge: plain booleans come out. It must not know what is shown.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lsprotocol import types


@dataclass(frozen=True, slots=True)
class Capabilities:
    """The defaults are those of a client that declares nothing."""

    related: bool = False  # information related to a diagnostic
    tags: bool = False  # on diagnostics
    markdown: bool = False  # in hovers
    progress: bool = False  # work-done progress that the server begins
    secrets: bool = False  # our own: it keeps keys for endpoints (``experimental.spex.secrets``)


def capabilities_of(client: types.ClientCapabilities) -> Capabilities:
    text, window = client.text_document, client.window
    diagnostics = text and text.publish_diagnostics
    tags = diagnostics and diagnostics.tag_support
    formats = text and text.hover and text.hover.content_format
    return Capabilities(
        related=bool(diagnostics and diagnostics.related_information),
        tags=bool(tags and types.DiagnosticTag.Unnecessary in tags.value_set),
        markdown=types.MarkupKind.Markdown in (formats or ()),
        progress=bool(window and window.work_done_progress),
        secrets=_keeps_secrets(client.experimental),
    )


def _keeps_secrets(experimental: Any) -> bool:
    """Of what the protocol leaves open: an object of pygls or a plain one."""
    for key in ("spex", "secrets"):
        if isinstance(experimental, dict):
            experimental = experimental.get(key)
        else:
            experimental = getattr(experimental, key, None)
    return experimental is True
