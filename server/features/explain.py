"""What the client sees of a run: progress with a way to cancel, its end, a message if it failed."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING

from lsprotocol import types

from server.explained import Explained, printable
from server.spending import in_words
from server.worker_client import WorkerError
from spex_engine import wire

if TYPE_CHECKING:
    from server.app import SpexServer

logger = logging.getLogger(__name__)

SECRET = "spex/secret"  # our own request to a client that keeps keys: {"origin"} -> {"key"} or null
PROGRESS_SECONDS = 2.0  # that a client may take to agree to a progress bar: no run waits longer


class ShownRun:
    """Shows one run to the client (a jobs.Listener)."""

    def __init__(self, server: SpexServer, uri: str, name: str) -> None:
        self.server = server
        self.uri = uri
        self.name = name
        self.token: str | None = None

    async def started(self, cancel: Callable[[], None]) -> None:
        if not self.server.takes.progress:
            return
        token = f"spex-{uuid.uuid4()}"
        agreed = asyncio.ensure_future(self.server.work_done_progress.create_async(token))
        try:  # shielded: pygls cannot take an answer to a request that was given up
            await asyncio.wait_for(asyncio.shield(agreed), PROGRESS_SECONDS)
        except Exception as error:  # the client's refusal or silence must not stop the run
            logger.info("the client shows no progress: %r", error)
            return
        self.token = token
        self.server.progress_cancels[token] = cancel
        self.server.work_done_progress.begin(
            token,
            types.WorkDoneProgressBegin(
                title=f"Explain {self.name}", cancellable=True, percentage=0
            ),
        )

    async def consents(self, estimate: wire.Estimate) -> bool:
        """Whether the person agrees to what the run will take; silence is no."""
        go_on = types.MessageActionItem("Explain")
        notes = [f"Note: {note}." for note in estimate.notes]
        asked = self.server.window_show_message_request_async(
            types.ShowMessageRequestParams(
                types.MessageType.Warning,
                printable(" ".join([f"Explain {self.name}?", in_words(estimate), *notes])),
                [go_on, types.MessageActionItem("Cancel")],
            )
        )
        try:  # shielded: pygls cannot take an answer to a request that was given up
            answer = await asyncio.shield(asyncio.ensure_future(asked))
        except Exception as error:  # a client without such messages: then nothing is spent
            logger.info("the client cannot ask: %r", error)
            return False
        return answer is not None and answer.title == go_on.title

    async def key(self, origin: str) -> str | None:
        """The key that the client keeps for ``origin``; None where it has none or keeps none."""
        if not self.server.takes.secrets:
            return None
        asked = self.server.protocol.send_request_async(SECRET, {"origin": origin})
        try:
            answer = await asyncio.shield(asyncio.ensure_future(asked))
        except (
            Exception
        ) as error:  # a refusal; its text may hold anything, so only its kind is told
            logger.info("the client hands over no key: %s", type(error).__name__)
            return None
        key = answer.get("key") if isinstance(answer, dict) else getattr(answer, "key", None)
        return key if isinstance(key, str) and key else None

    def progress(self, progress: wire.Progress) -> None:
        if self.token is None:
            return
        self.server.work_done_progress.report(
            self.token,
            types.WorkDoneProgressReport(
                message=f"{progress.message}: {progress.done:,} of {progress.total:,} calls",
                percentage=min(100, 100 * progress.done // max(1, progress.total)),
                cancellable=True,
            ),
        )

    def done(self, explained: Explained) -> None:
        found = len(explained.notable)
        self._end(f"{found} interaction{'' if found == 1 else 's'}")
        self.server.show(self.uri, explained)

    def failed(self, error: WorkerError) -> None:
        self._end("failed")
        self.server.say(types.MessageType.Error, str(error))

    def cancelled(self) -> None:
        self._end("cancelled")

    def _end(self, message: str) -> None:
        if self.token is None:
            return
        self.server.progress_cancels.pop(self.token, None)
        self.server.work_done_progress.end(self.token, types.WorkDoneProgressEnd(message=message))
        self.server.work_done_progress.tokens.pop(self.token, None)
        self.token = None
