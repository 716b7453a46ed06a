"""Runs: at most one per document, a new one replaces the old, each can be cancelled.

Knows the worker and plans; what is shown before, while and after is told to callbacks. It must
not know LSP.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from server.explained import Explained
from server.planning import Plan
from server.spending import may_cost, needs_consent, origins
from server.worker_client import WorkerClient, WorkerError
from spex_engine import wire

logger = logging.getLogger(__name__)


class Listener(Protocol):
    """Whoever shows a run: first ``started``, then any ``progress``, then exactly one of the rest.

    ``started`` is awaited before the worker is asked.
    """

    async def started(self, cancel: Callable[[], None]) -> None: ...
    async def consents(self, estimate: wire.Estimate) -> bool: ...
    async def key(self, origin: str) -> str | None: ...
    def progress(self, progress: wire.Progress) -> None: ...
    def done(self, explained: Explained) -> None: ...
    def failed(self, error: WorkerError) -> None: ...
    def cancelled(self) -> None: ...


@dataclass
class Job:
    id: int
    uri: str
    plan: Plan
    task: asyncio.Task[None] | None = field(default=None, repr=False)


class Jobs:
    """The running jobs by document."""

    def __init__(self, worker: WorkerClient) -> None:
        self.worker = worker
        self._by_uri: dict[str, Job] = {}
        self._tasks: set[asyncio.Task[None]] = set()  # a task nobody holds may be collected
        self._recalls: set[asyncio.Task[None]] = set()
        self._ids = itertools.count(1)

    def start(self, uri: str, plan: Plan, listener: Listener) -> Job:
        """Returns at once; the run goes on in the background."""
        self.cancel(uri)
        job = Job(next(self._ids), uri, plan)
        job.task = asyncio.get_running_loop().create_task(self._run(job, listener))
        self._by_uri[uri] = job
        self._tasks.add(job.task)
        job.task.add_done_callback(self._tasks.discard)
        return job

    def recall(self, plan: Callable[[], Plan | None], found: Callable[[Explained], None]) -> None:
        """In the background, what an earlier session found out about the same request.

        ``plan``: None where it is no longer wanted.
        """
        task = asyncio.get_running_loop().create_task(self._recall(plan, found))
        self._recalls.add(task)
        task.add_done_callback(self._recalls.discard)

    def running(self) -> list[Job]:
        return list(self._by_uri.values())

    def cancel(self, uri: str) -> bool:
        """Whether there was a run to cancel."""
        job = self._by_uri.pop(uri, None)
        if job is None or job.task is None:
            return False
        job.task.cancel()
        return True

    async def close(self) -> None:
        """Cancels all runs and ends the worker."""
        for uri in list(self._by_uri):
            self.cancel(uri)
        for task in self._recalls:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self.worker.close()

    async def _run(self, job: Job, listener: Listener) -> None:
        try:
            await listener.started(lambda: self._cancel_job(job))
            if not await self._may_ask(job.plan.request, listener):
                listener.cancelled()
                return
            result = await self.worker.explain(job.plan.request, listener.progress)
            listener.done(Explained(job.plan, result))
        except asyncio.CancelledError:
            listener.cancelled()
        except WorkerError as error:
            logger.warning("run %d of %s failed: %s", job.id, job.uri, error)
            listener.failed(error)
        except Exception as error:  # a defect of ours: whoever watches must still see an end
            logger.exception("run %d of %s", job.id, job.uri)
            listener.failed(
                WorkerError(wire.INTERNAL, f"Spex failed: {type(error).__name__}: {error}")
            )
        finally:
            if self._by_uri.get(job.uri) is job:
                del self._by_uri[job.uri]

    async def _recall(
        self, make_plan: Callable[[], Plan | None], found: Callable[[Explained], None]
    ) -> None:
        try:
            plan = make_plan()
            if plan is None or not plan.request.access.store:
                return
            result = await self.worker.recall(plan.request)
        except (wire.InputError, WorkerError) as error:  # nobody asked: nobody need be told
            logger.info("nothing recalled: %s", error)
            return
        if result is not None:
            found(Explained(plan, result))

    async def _may_ask(self, request: wire.ExplainRequest, listener: Listener) -> bool:
        """Hands over the keys for an endpoint, and asks a person before it is paid for."""
        if not may_cost(request):
            return True
        for origin in origins(request.access):
            await self.worker.hand_over(origin, await listener.key(origin))
        estimate = await self.worker.ask(wire.ESTIMATE, wire.to_json(request), wire.Estimate)
        return not needs_consent(estimate) or await listener.consents(estimate)

    def _cancel_job(self, job: Job) -> None:
        if self._by_uri.get(job.uri) is job:
            self.cancel(job.uri)
