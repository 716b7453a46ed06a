"""The methods side by side on the embedded model, live: R2 on uniform masks none of them has seen.

    python tests/benchmarks/methods.py [--test 400]

Games: the example cut into words (23 segments), and notes of 16 and 24 sentences. All methods get
the same budget; the test masks are drawn apart from it. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from random import Random

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy: the same for all methods

import numpy as np

import spex_engine as spex
from server.planning import make_plan
from server.settings import Settings
from spex_engine.backends import open_backend
from spex_engine.backends.demo import notes
from spex_engine.values import TargetGame

EXAMPLE = Path("examples/two-facts.prompt.md")
METHODS = ("linear", "gp", "spex", "auto")
BUDGETS = (256, 1024)


def game(text: str, segments: str) -> TargetGame:
    backend = open_backend("demo")
    plan = make_plan(text, None, Settings(), {"segments": segments})
    prompt = backend.tokenise(plan.request.prompt)
    return TargetGame(backend, prompt, backend.greedy(prompt))


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


def main() -> None:
    parser = argparse.ArgumentParser(description="Methods on the embedded model")
    parser.add_argument("--test", type=int, default=400)
    n_test = parser.parse_args().test
    games = {
        "the example, 23 words": game(EXAMPLE.read_text(encoding="utf-8"), "word"),
        "a note, 16 sentences": game(long_note(16, 1), "sentence"),
        "a note, 24 sentences": game(long_note(24, 2), "sentence"),
    }
    print(f"| game | calls | {' | '.join(f'{m} (fit s)' for m in METHODS)} |")
    print("|---|---|" + "---|" * len(METHODS))
    for name, play in games.items():
        n = play.prompt.n_segments
        unseen = np.random.default_rng(12345).integers(0, 2, (n_test, n)).astype(np.bool_)
        truth = play(unseen)
        for budget in BUDGETS:
            cells = []
            for method in METHODS:
                asked = 0.0

                def timed(masks: np.ndarray, play: TargetGame = play) -> np.ndarray:
                    nonlocal asked
                    started = time.perf_counter()
                    values = play(masks)
                    asked += time.perf_counter() - started
                    return values

                try:
                    e = spex.explain(timed, n, budget=budget, method=method, max_order=3)
                except ValueError as error:
                    cells.append(str(error).split(":")[0] + " too small")
                    continue
                score = spex.r2(e.fourier, unseen, truth)
                cells.append(f"{score:.2f} ({e.seconds - asked:.1f})")
            print(f"| {name} | {budget} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
