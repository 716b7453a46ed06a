"""An event loop in a thread of its own, so that synchronous code can have many requests at once.

Hands coroutines over and yields what they come to. Knows no endpoint; of failures only that a fatal
one ends a run.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator
from typing import Any, TypeVar

from spex_engine.backends.base import ShouldStop
from spex_engine.backends.openai.failures import Failure
from spex_engine.wire import StoppedError

T = TypeVar("T")
Job = tuple[int, Callable[[], Coroutine[Any, Any, T]]]

_ASK = 0.05  # seconds between two looks at should_stop


class Loop:
    """Runs until `close`; clients and dispatchers that it has run belong to it."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="requests", daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, T], should_stop: ShouldStop) -> T:
        """What the coroutine returns or raises; StoppedError once should_stop says so."""
        try:
            for _, result in self.arrivals([(0, lambda: coroutine)], 1, should_stop):
                if isinstance(result, Failure):
                    raise result
                return result
            raise StoppedError
        finally:
            coroutine.close()  # it may not have been begun

    def arrivals(
        self, jobs: Iterable[Job[T]], at_once: int, should_stop: ShouldStop
    ) -> Iterator[tuple[int, T | Failure]]:
        """(row, result) of each job as it ends, at most ``at_once`` of them running.

        A Failure is yielded, any other exception raised. After a fatal one no job is begun, and
        those that run are waited for. When should_stop says so, or the iterator is closed, what
        runs is cancelled; in the first case what has ended is still yielded, for it is paid for.
        """
        arrived: queue.SimpleQueue[tuple[int, asyncio.Task[T]]] = queue.SimpleQueue()
        tasks: set[asyncio.Task[T]] = set()  # touched in the loop's thread only
        left = iter(jobs)
        running, more = 0, True

        def begin(row: int, make: Callable[[], Coroutine[Any, Any, T]]) -> None:
            task = self._loop.create_task(make())
            tasks.add(task)
            task.add_done_callback(lambda done: arrived.put((row, done)))

        try:
            while not should_stop():
                while more and running < at_once:
                    job = next(left, None)
                    if job is None:
                        more = False
                    else:
                        self._loop.call_soon_threadsafe(begin, *job)
                        running += 1
                if not running:
                    return
                try:
                    row, task = arrived.get(timeout=_ASK)
                except queue.Empty:
                    continue
                running -= 1
                self._loop.call_soon_threadsafe(tasks.discard, task)
                result = _result(task)
                more = more and not (isinstance(result, Failure) and result.fatal)
                yield row, result
            self._give_up(tasks)
            while not arrived.empty():
                row, task = arrived.get()
                if not task.cancelled():
                    yield row, _result(task)
        finally:
            if running:
                self._give_up(tasks)

    def _give_up(self, tasks: set[asyncio.Task[Any]]) -> None:
        if self._loop.is_running():
            asyncio.run_coroutine_threadsafe(_cancel(tasks), self._loop).result()

    def close(self) -> None:
        """End the loop and its thread; what still runs is cancelled."""
        if self._loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(_cancel(None), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def _result(task: asyncio.Task[T]) -> T | Failure:
    try:
        return task.result()
    except Failure as failure:
        return failure


async def _cancel(tasks: Iterable[asyncio.Task[Any]] | None) -> None:
    """Cancel tasks (None: all) and wait until they have ended and paid for what they sent."""
    chosen = set(asyncio.all_tasks() if tasks is None else tasks) - {asyncio.current_task()}
    for task in chosen:
        task.cancel()
    await asyncio.gather(*chosen, return_exceptions=True)
