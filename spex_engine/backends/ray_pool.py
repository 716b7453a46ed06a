"""The copies of a model on a Ray cluster: started, watched, and started again where one has died.

It knows Ray's actors and what Ray raises; it must not know prompts or masks. A copy goes from being
placed (waiting for a GPU or a processor) to loading its model to being live, and may be lost at any
moment. All copies must have loaded the same model. Importing this does not import ray.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from spex_engine.backends.ray_replica import Loaded, Replica
from spex_engine.wire import InputError, ModelError

PLACING = 60.0  # seconds that a copy may wait for its place, or a run without any copy for one
_LOOK = 5.0  # seconds between looks for room on the cluster
_FREEING = 10.0  # seconds that the workers of a model no longer used may take to go
_FAILURES = 4  # copies lost one after the other before they were live: no more are tried


@dataclass(eq=False)
class Copy:
    """One actor. state: what is awaited of it, "place" or "model"; "": it is live."""

    actor: Any
    state: str
    awaited: Any  # the reference of that
    since: float
    node: str = ""
    busy: int = 0  # the items it has been given and not answered


class Pool:
    """Copies of the model of ``name``; at most as many as the cluster has GPUs, or processors."""

    def __init__(self, ray: Any, name: str) -> None:
        self.uri = f"ray+hf:{name}"
        self.copies: list[Copy] = []
        self._ray = ray
        self._name = name
        self._unit = "GPU" if ray.cluster_resources().get("GPU", 0) >= 1 else "CPU"
        self._loaded: Loaded | None = None  # by the first copy
        self._looked = -_LOOK
        self._alone_since = time.monotonic()
        self._failures = 0
        self._last_loss = ""

    @property
    def live(self) -> list[Copy]:
        return [copy for copy in self.copies if not copy.state]

    def start(self) -> None:
        """Returns when every copy that found a place has loaded its model; ModelError otherwise."""
        started = time.monotonic()
        while not self._grow() and time.monotonic() - started < _FREEING:
            time.sleep(0.5)
            self._looked = -_LOOK
        if not self.copies:
            raise ModelError(
                f"The Ray cluster has no free {self._unit} for {self.uri}; wait until one is free "
                "(`ray status` shows what is taken) or add a node."
            )
        while any(copy.state for copy in self.copies) or not self.live:
            self.wait([], 1.0)

    def wait(self, references: list[Any], seconds: float) -> list[Any]:
        """Waits for one of the references, or for news of a copy; those that are there.

        ModelError where there is no copy left, and no room for one.
        """
        awaited = {copy.awaited: copy for copy in self.copies if copy.state}
        everything = [*references, *awaited]
        ready: list[Any] = []
        if everything:
            ready, _ = self._ray.wait(everything, num_returns=1, timeout=seconds)
        else:
            time.sleep(seconds)
        for reference in ready:
            if reference in awaited:
                self._advance(awaited[reference])
        now = time.monotonic()
        for copy in list(self.copies):
            if copy.state == "place" and now - copy.since > PLACING:
                self.lose(copy, "it found no place")
        self._grow()
        if self.live or any(copy.state == "model" for copy in self.copies):
            self._alone_since = now
        elif self._failures >= _FAILURES or now - self._alone_since > PLACING:
            raise ModelError(
                f"No worker of {self.uri} is left on the Ray cluster, and there is no room for "
                f"another (the last one: {self._last_loss or 'it found no place'}); see `ray "
                "status` and the memory of the nodes, then explain again."
            )
        return [reference for reference in ready if reference not in awaited]

    def ask(self, call: Callable[[Any], Any]) -> Any:
        """What a live copy answers; of another one where it dies of it."""
        while True:
            if not self.live:
                self.wait([], 1.0)
                continue
            copy = min(self.live, key=lambda one: one.busy)
            try:
                return self.result(copy, call(copy.actor))
            except LostError:
                continue

    def result(self, copy: Copy, reference: Any) -> Any:
        """What was asked of a copy. LostError where that was lost with it, and the copy is gone."""
        errors = self._ray.exceptions
        try:
            return self._ray.get(reference)
        except errors.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, InputError | ModelError):
                raise type(cause)(str(cause)) from None
            raise
        except errors.RayError as error:
            first, *rest = str(error).strip().split("\n")
            # of an error in the copy's own start, what it was stands in the last line
            self.lose(copy, rest[-1].strip() if rest and "creation task" in first else first)
            raise LostError from error

    def lose(self, copy: Copy, why: str) -> None:
        if copy in self.copies:
            self.copies.remove(copy)
            self._ray.kill(copy.actor)  # it may only have been out of reach
            self._last_loss = why
            self._failures += bool(copy.state)
            self._looked = -_LOOK

    def _grow(self) -> int:
        """Starts as many copies as there is room for; how many."""
        now = time.monotonic()
        if now - self._looked < _LOOK or self._failures >= _FAILURES:
            return 0
        self._looked = now
        free = int(self._ray.available_resources().get(self._unit, 0))
        placing = sum(copy.state == "place" for copy in self.copies)
        most = int(self._ray.cluster_resources().get(self._unit, 0))
        count = max(0, min(free - placing, most - len(self.copies)))
        needs = {"num_gpus": 1, "num_cpus": 0} if self._unit == "GPU" else {"num_cpus": 1}
        kind = self._ray.remote(concurrency_groups={"aside": 1}, **needs)(Replica)
        for _ in range(count):
            actor = kind.remote()
            self.copies.append(Copy(actor, "place", actor.node.remote(), now))
        return count

    def _advance(self, copy: Copy) -> None:
        try:
            found = self.result(copy, copy.awaited)
        except LostError:
            return
        except ModelError as error:
            raise ModelError(f"On the node {copy.node}: {error}") from None
        if copy.state == "place":
            copy.node, copy.state = found, "model"
            copy.awaited = copy.actor.load.remote(self._name)
            return
        first = self._loaded = self._loaded or found
        if found.likeness != first.likeness:
            raise ModelError(
                f"The node {copy.node} has loaded another model as {self._name} than the others: "
                "its files, its device or the versions of torch and transformers differ; make "
                "them the same on every node."
            )
        if found.fingerprint != first.fingerprint:  # files that were written at another time
            copy.actor.go_by.remote(first.fingerprint)
        copy.state, copy.awaited = "", None
        self._failures = 0


class LostError(Exception):
    """What was asked is lost with the copy that it was asked of; another one may answer."""
