"""A model on every GPU (or processor) of a Ray cluster that is already there.

Each node loads the model for itself; masks go there as bits, scores come back as they are ready,
and what a dying worker or node had taken is asked of another. It must not know designs, estimators,
files or editors. Nothing of the user's is sent but the prompt, the question and the name of the
model; of this machine, only the source of spex_engine, so that all nodes run the same. Importing
this does not import ray.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
import shutil
import socket
import tempfile
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import spex_engine
from spex_engine.backends.base import Scores, ShouldStop
from spex_engine.backends.ray_pool import Copy, LostError, Pool
from spex_engine.backends.ray_replica import Answer, Opened, pack
from spex_engine.wire import ModelError, Prompt, Question

SMALLEST, LARGEST = 32, 256  # masks of an item of work
_ITEMS_EACH = 4  # at least, where there are masks enough: a slow worker holds up the last ones
_AHEAD = 2  # items given to a worker at once, so that it need not wait for the next
_DEATHS = 3  # an item that so many workers died of is not asked again
_ANSWERING = 5.0  # seconds that a cluster may take to take a connection
_START = "start one with `ray start --head`, or set RAY_ADDRESS to one that runs"
_POLL = 0.1  # seconds between looks at should_stop

_runs = itertools.count()


def load(name_or_path: str) -> RayModel:
    """The model of a hub name, or of a folder that every node has, on the cluster that runs.

    The cluster is that of RAY_ADDRESS, else the one on this machine; none is ever started.
    ModelError where there is none, no room on it, or where a node cannot load the model.
    """
    ray = _connected()
    folder = Path(name_or_path).expanduser()
    # the nodes' working folders are others; a name of the hub is no folder
    name = str(folder.resolve()) if folder.is_dir() else name_or_path
    pool = Pool(ray, name)
    pool.start()
    return RayModel(ray, pool, f"ray+hf:{name_or_path}")


class RayModel:
    """The copies of a model on a cluster as one Model (backends/base.py)."""

    def __init__(self, ray: Any, pool: Pool, uri: str) -> None:
        self.uri = uri
        self._ray = ray
        self._pool = pool

    def open(self, prompt: Prompt, question: Question, should_stop: ShouldStop) -> RayScorer:
        """Asks one copy for the model's own answer, which is then the target for all of them."""
        key = hashlib.blake2b(repr((prompt, question)).encode(), digest_size=16).digest()
        asked = self._ray.put((prompt, question))
        opened = self._pool.ask(lambda actor: actor.open.remote(key, asked))
        return RayScorer(self._ray, self._pool, opened, key, asked)


@dataclass(eq=False)
class _Item:
    rows: NDArray[np.intp]
    packed: Any
    deaths: int = 0


class RayScorer:
    """A prompt and a question that every copy can open, as a Scorer (backends/base.py)."""

    def __init__(self, ray: Any, pool: Pool, opened: Opened, key: bytes, asked: Any) -> None:
        """key, asked: what a copy holds its scorer under, and the reference to what it is of."""
        self.tier = opened.tier
        self.scale = opened.scale
        self.n_segments = opened.n_segments
        self.targets = opened.targets
        self.notes = opened.notes
        self._ray = ray
        self._pool = pool
        self._mark = opened.mark
        self._key = key
        self._asked = asked

    def addresses(self, masks: NDArray[np.bool_]) -> list[bytes]:
        packed = pack(masks)
        found: list[bytes] = self._pool.ask(
            lambda actor: actor.addresses.remote(self._key, self._asked, packed)
        )
        return found

    def score(
        self, masks: NDArray[np.bool_], should_stop: ShouldStop
    ) -> Iterator[tuple[NDArray[np.intp], Scores]]:
        run = next(_runs)
        items = self._items(masks)
        taken: dict[Any, tuple[Copy, _Item]] = {}
        try:
            while (items or taken) and not should_stop():
                self._give_out(items, taken, run)
                for reference in self._pool.wait(list(taken), _POLL):
                    copy, item = taken.pop(reference)
                    copy.busy -= 1
                    try:
                        answer = self._pool.result(copy, reference)
                    except LostError:
                        item.deaths += 1
                        self._require_alive(item)
                        items.appendleft(item)
                        continue
                    yield self._checked(item, answer, copy)
        finally:
            for copy, _ in taken.values():
                copy.busy -= 1
            for copy in {copy for copy, _ in taken.values()}:
                copy.actor.give_up.options(concurrency_group="aside").remote(run)

    def _items(self, masks: NDArray[np.bool_]) -> deque[_Item]:
        each = -(-len(masks) // (_ITEMS_EACH * max(1, len(self._pool.live))))
        size = min(max(each, SMALLEST), LARGEST)
        rows = np.arange(len(masks))
        return deque(
            _Item(rows[i : i + size], pack(masks[i : i + size])) for i in range(0, len(masks), size)
        )

    def _give_out(
        self, items: deque[_Item], taken: dict[Any, tuple[Copy, _Item]], run: int
    ) -> None:
        for load in range(_AHEAD):  # each its first before any its second
            for copy in self._pool.live:
                if items and copy.busy <= load:
                    item = items.popleft()
                    copy.busy += 1
                    ref = copy.actor.score.remote(self._key, self._asked, item.packed, run)
                    taken[ref] = copy, item

    def _require_alive(self, item: _Item) -> None:
        if item.deaths >= _DEATHS:
            raise ModelError(
                f"{_DEATHS} workers of {self._pool.uri} died of the same {len(item.rows)} masks; "
                "their nodes may be short of memory: see `ray status` and the logs of the nodes, "
                "or use a smaller model."
            )

    def _checked(self, item: _Item, answer: Answer, copy: Copy) -> tuple[NDArray[np.intp], Scores]:
        if answer.mark != self._mark:
            raise ModelError(
                f"The node {copy.node} gives another answer to the prompt than the first one "
                "asked, so their scores do not belong together; give the answer to be explained as "
                "the target."
            )
        return item.rows[answer.rows], answer.scores


def _connected() -> Any:
    """ray, connected to a cluster that somebody started."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise ModelError(
            f"ray+hf: models need Ray ({error}); run pip install 'spex-lsp[ray]' in the Python "
            "that Spex uses, and on every node of the cluster."
        ) from error
    if ray.is_initialized():
        return ray
    address = _address()
    with tempfile.TemporaryDirectory() as folder:
        # Without a working folder of its own a job puts the current one, which may be anybody's
        # workspace, on the path of every worker.
        own = Path(spex_engine.__file__).parent
        ignored = shutil.ignore_patterns("__pycache__", "weights")
        shutil.copytree(own, Path(folder) / own.name, ignore=ignored)
        try:
            ray.init(
                address=address,
                runtime_env={"working_dir": folder},
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        except ConnectionError as error:
            raise ModelError(f"There is no Ray cluster at {address!r}: {_START}.") from error
        except (RuntimeError, ValueError, OSError) as error:
            said = str(error).strip().partition("\n")[0]
            raise ModelError(
                f"The Ray cluster at {address!r} cannot be used ({said}); {_START}."
            ) from error
    return ray


def _address() -> str:
    """Where the cluster is; ModelError where it is known that none is there."""
    address = os.environ.get("RAY_ADDRESS", "").strip()
    if not address:
        # what `ray start` writes, and what "auto" believes even if that cluster is gone
        started = Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp")
        noted = started / "ray" / "ray_current_cluster"
        address = noted.read_text().strip() if noted.is_file() else "auto"
    if address == "local":
        raise ModelError(f"RAY_ADDRESS=local names no Ray cluster: {_START}.")
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if colon and port.isdigit():
        try:  # Ray itself tries for minutes
            socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWERING).close()
        except OSError as error:
            raise ModelError(
                f"No Ray cluster answers at {address} ({error.strerror or error}): {_START}."
            ) from error
    return address
