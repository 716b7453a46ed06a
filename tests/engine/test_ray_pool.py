"""The copies of a model on a Ray cluster: what a real one does not do when asked.

A stand-in for Ray, whose actors answer at once, or die, as each test has it; the real one is in
test_ray_backend.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from spex_engine.backends import ray_pool
from spex_engine.backends.base import ScoredTarget, Scorer, Scores
from spex_engine.backends.ray import RayModel
from spex_engine.backends.ray_pool import Pool
from spex_engine.backends.ray_replica import Answer, Loaded, Opened, unpack
from spex_engine.wire import Message, ModelError, Piece, Prompt, Question

N = 12
PROMPT = Prompt((Message("user", tuple(Piece("word ", i) for i in range(N))),), N)
MASKS = np.random.default_rng(0).random((320, N)) < 0.5


@pytest.fixture(autouse=True)
def quick(monkeypatch) -> None:
    monkeypatch.setattr(ray_pool, "PLACING", 0.05)
    monkeypatch.setattr(ray_pool, "_FREEING", 0.05)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)


class DiedError(Exception):
    pass


class TaskError(DiedError):
    pass


@dataclass(eq=False)
class Reference:
    """What an actor answered, or died of."""

    value: Any
    error: DiedError | None = None


class Handle:
    """An actor whose methods are those of ``real``."""

    def __init__(self, real: Any) -> None:
        self.real = real

    def __getattr__(self, name: str) -> Method:
        return Method(getattr(self.real, name))


class Method:
    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def remote(self, *given: Any) -> Reference:
        try:  # at once, in the order asked
            found = self._call(*given)
        except DiedError as error:
            return Reference(None, error)
        return Reference(found)

    def options(self, **_: Any) -> Method:
        return self


class Ray:
    """In place of the module. make: gives each actor in turn, whose methods may raise DiedError."""

    class exceptions:  # noqa: N801  the name is Ray's
        RayError = DiedError
        RayTaskError = TaskError

    def __init__(self, make: Callable[[int], Any]) -> None:
        self.made = self.killed = 0
        self.room = 2
        self.answers = True
        self.unit = "CPU"
        self.needs: dict[str, int] = {}
        self._make = make

    def remote(self, concurrency_groups: Any, **needs: int) -> Callable[[type], Kind]:
        self.needs = needs
        return lambda kind: Kind(self)

    def make(self) -> Handle:
        self.made += 1
        return Handle(self._make(self.made - 1))

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 8, self.unit: self.room}

    def available_resources(self) -> dict[str, float]:
        return {"CPU": 8, self.unit: self.room - self.made + self.killed}

    def wait(self, refs: list[Any], num_returns: int, timeout: float) -> tuple[list[Any], None]:
        return refs[:num_returns] if self.answers else [], None

    def get(self, reference: Reference) -> Any:
        if reference.error is not None:
            raise reference.error
        return reference.value

    def put(self, value: Any) -> Any:
        return value

    def kill(self, actor: Any) -> None:
        self.killed += 1


@dataclass
class Kind:
    """What ray.remote makes of a class."""

    ray: Ray

    def remote(self) -> Handle:
        return self.ray.make()


class Fine:
    """A copy that scores the number of segments kept."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.fingerprint = b"files"

    def node(self) -> str:
        return f"node{self.number}"

    def load(self, name: str) -> Loaded:
        return Loaded(b"files", b"model")

    def addresses(self, key: bytes, asked: Any, packed: Any) -> list[bytes]:
        return [self.fingerprint] * len(packed)

    def open(self, key: bytes, asked: Any) -> Opened:
        return Opened("T1", "token", N, (ScoredTarget("a", 0, ((0, 1),)),), (), b"mark")

    def score(self, key: bytes, asked: Any, packed: Any, run: int) -> Answer:
        kept = unpack(packed, N).sum(axis=1, keepdims=True).astype(float)
        rows = np.arange(len(kept))
        return Answer(rows, Scores(kept, np.ones(len(kept), dtype=np.int64)), b"mark")

    def give_up(self, run: int) -> None:
        pass


def scored(scorer: Scorer) -> np.ndarray:
    found = np.full((len(MASKS), 1), np.nan)
    for rows, scores in scorer.score(MASKS, lambda: False):
        assert np.isnan(found[rows]).all()  # each row once
        found[rows] = scores.values
    return found


def opened(ray: Ray) -> Scorer:
    pool = Pool(ray, "model")
    pool.start()
    return RayModel(ray, pool, "ray+hf:model").open(PROMPT, Question("a"), lambda: False)


def test_the_stand_in():
    found = scored(opened(Ray(Fine)))
    np.testing.assert_array_equal(found[:, 0], MASKS.sum(axis=1))


@pytest.mark.parametrize(
    ("unit", "needs"), [("CPU", {"num_cpus": 1}), ("GPU", {"num_gpus": 1, "num_cpus": 0})]
)
def test_a_copy_on_each_gpu_or_else_on_each_processor(unit, needs):
    ray = Ray(Fine)
    ray.unit, ray.room = unit, 3
    opened(ray)
    assert (ray.made, ray.needs) == (3, needs)
    with pytest.raises(ModelError, match="no free"):
        opened(ray)


def test_nodes_with_different_models():
    class Other(Fine):
        def load(self, name: str) -> Loaded:
            return Loaded(b"files", b"%d" % self.number)

    with pytest.raises(ModelError, match="node node1 has loaded another model as model"):
        opened(Ray(Other))


def test_nodes_with_the_same_model_in_other_files():
    class Copied(Fine):
        def load(self, name: str) -> Loaded:
            self.fingerprint = b"written at %d" % self.number
            return Loaded(self.fingerprint, b"model")

        def go_by(self, fingerprint: bytes) -> None:
            self.fingerprint = fingerprint

    ray = Ray(Copied)
    scorer = opened(ray)
    seen = set()
    for copy in scorer._pool.live:
        copy.busy = -1  # so that it is the one asked
        seen |= set(scorer.addresses(MASKS[:3]))
        copy.busy = 0
    assert seen == {b"written at 0"}


def test_nodes_that_answer_differently():
    class Other(Fine):
        def score(self, *given: Any) -> Answer:
            answer = super().score(*given)
            return Answer(answer.rows, answer.scores, b"%d" % self.number)

    with pytest.raises(ModelError, match=r"node node\d gives another answer.*as the target"):
        scored(opened(Ray(Other)))


def test_masks_that_every_worker_dies_of():
    class Deadly(Fine):
        def score(self, key: bytes, asked: Any, packed: Any, run: int) -> Answer:
            if unpack(packed, N)[0].tolist() == MASKS[0].tolist():
                raise DiedError("killed")
            return super().score(key, asked, packed, run)

    with pytest.raises(ModelError, match=r"3 workers of ray\+hf:model died of the same 40 masks"):
        scored(opened(Ray(Deadly)))


def test_workers_that_all_die_while_loading():
    class Large(Fine):
        def load(self, name: str) -> Loaded:
            raise DiedError("The actor died because of an error raised in its creation task\nOOM")

    ray = Ray(Large)
    with pytest.raises(ModelError, match=r"No worker of ray\+hf:model is left.*last one: OOM"):
        opened(ray)
    assert ray.made < 10


def test_workers_that_all_die_at_work():
    ray = Ray(Fine)
    scorer = opened(ray)
    ray.room = 0  # the cluster is gone

    class Gone(Fine):
        def score(self, *given: Any) -> Answer:
            raise DiedError("the node died")

    for copy in scorer._pool.copies:
        copy.actor.real = Gone(0)
    with pytest.raises(ModelError, match=r"No worker.*last one: the node died.*ray status"):
        scored(scorer)


def test_workers_that_find_no_place():
    ray = Ray(Fine)
    ray.answers = False
    with pytest.raises(ModelError, match="it found no place"):
        opened(ray)


def test_a_defect_of_ours_is_no_death():
    class Broken(Fine):
        def score(self, *given: Any) -> Answer:
            error = TaskError("ray::Replica.score()")
            error.cause = KeyError("x")
            raise error

    ray = Ray(Broken)
    with pytest.raises(TaskError):
        scored(opened(ray))
    assert ray.made == 2
