"""The methods side by side on the embedded model, live: R2 on uniform masks none of them has seen.

    python tests/benchmarks/methods.py [--quick] [--no-peers]

Games: the example cut into words (23 segments), and notes of 16 and 24 sentences. All methods get
the same budget; the test masks are drawn apart from it. Our methods choose their own masks; the
peers get uniform ones. ``seconds``: design and fit, without the model's own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

import bench
import numpy as np
import numpy.typing as npt
import ours
from answers import Answer

import spex_engine as spex
from server.planning import make_plan
from server.settings import Settings
from spex_engine.backends import open_model
from spex_engine.backends.demo import notes
from spex_engine.fourier import Floats, Masks
from spex_engine.values import TargetGame, value_function
from spex_engine.wire import Access, Question

EXAMPLE = bench.REPO / "examples" / "two-facts.prompt.md"
PEERS = ("authors proxyspex", "shapiq proxyspex", "contextcite lasso")


@dataclass(frozen=True)
class Plan:
    budgets: tuple[int, ...] = (256, 1024)
    notes: tuple[int, ...] = (16, 24)  # sentences
    words: bool = True  # the example as well
    n_test: int = 400
    draws: int = 3
    authors_draws: int = 1  # of their ProxySPEX, which takes ten times what any other does


FULL = Plan()
QUICK = Plan((256,), (16,), words=False, n_test=200, draws=1)
TINY = Plan((40,), (6,), words=False, n_test=20, draws=1)


@dataclass(frozen=True, eq=False)
class Played:
    """A prompt as a function of masks that asks the model for each of them once."""

    game: TargetGame
    n: int
    known: dict[bytes, float] = field(default_factory=dict)

    def __call__(self, masks: npt.NDArray[np.generic]) -> Floats:
        wanted = np.asarray(masks, dtype=np.bool_)
        new = np.array(
            [mask for mask in np.unique(wanted, axis=0) if mask.tobytes() not in self.known]
        )
        if len(new):
            for portion in self.game.evaluate(new):
                for row, value in zip(portion.rows, portion.values.tolist(), strict=True):
                    self.known[new[row].tobytes()] = value
        return np.array([self.known[mask.tobytes()] for mask in wanted])


def game(text: str, segments: str) -> Played:
    prompt = make_plan(text, None, Settings(), {"segments": segments}).request.prompt
    scorer = open_model("demo", Access(), {}).open(prompt, Question(), lambda: False)
    measure = value_function(scorer.tier, scorer.targets, Question())
    return Played(TargetGame(scorer, measure), prompt.n_segments)


def long_note(n_sentences: int, seed: int) -> str:
    """A chain of two facts among facts about others and remarks."""
    rng = Random(seed)
    note = notes.make_note("two_hops", rng, n_sentences=2)
    about = {word for sentence in note.sentences for word in sentence.says[1:]}
    sentences = [sentence.text for sentence in note.sentences]
    while len(sentences) < n_sentences:
        other = rng.choice(notes.random_note(rng, 4))
        if other.says[0] != "order" and about.isdisjoint(other.says[1:]):
            sentences.append(other.text)
    rng.shuffle(sentences)
    body = "\n".join([*sentences, f"Question: {note.question.text}", "Answer:"])
    return f'---\nfixed: ["Question:*", "Answer:*"]\n---\n{body}\n'


def run(rows: bench.Rows, plan: Plan, with_peers: bool) -> None:
    played: dict[str, Played] = {}
    if plan.words:
        played["the example, 23 words"] = game(EXAMPLE.read_text(encoding="utf-8"), "word")
    for n in plan.notes:
        played[f"a note, {n} sentences"] = game(long_note(n, n // 8 - 1), "sentence")
    for name, play in played.items():
        rng = np.random.default_rng(12345)
        unseen = rng.integers(0, 2, (plan.n_test, play.n)).astype(np.bool_)
        truth = play(unseen)
        for budget in plan.budgets:
            for draw in range(plan.draws):
                for method in (*ours.METHODS, *PEERS) if with_peers else ours.METHODS:
                    if method == PEERS[0] and draw >= plan.authors_draws:
                        continue
                    key = {"game": name, "calls": budget, "draw": draw, "method": method}
                    how = play, method, budget, draw, unseen, truth
                    rows.measure(key, lambda how=how: _row(*how))


def _row(
    play: Played, method: str, budget: int, draw: int, unseen: Masks, truth: Floats
) -> bench.Row:
    try:
        answer = _answer(play, method, budget, draw)
    except ValueError as error:
        return {"r2": None, "why": str(error)}
    return {"r2": spex.r2(answer.f, unseen, truth), "seconds": answer.seconds}


def _answer(play: Played, method: str, budget: int, draw: int) -> Answer:
    n = play.n
    if method in ours.METHODS:
        return ours.explained(method, play, n, budget, draw)
    import peers

    masks = np.random.default_rng([draw, 1]).random((budget, n)) < 0.5
    values = play(masks)
    if method == "contextcite lasso":
        return peers.contextcite_lasso(masks, values)
    if method == "shapiq proxyspex":
        return peers.shapiq_proxyspex(masks, values, draw)
    return peers.authors_proxyspex(masks, values, draw)


def main() -> None:
    given = bench.arguments("methods", __doc__)
    run(given.rows, QUICK if given.quick else FULL, given.peers)


if __name__ == "__main__":
    main()
