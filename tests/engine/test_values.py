"""From raw scores to values: what each is, where it is only a bound, and what cannot be asked."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spex_engine.backends.base import ScoredTarget, Scores, ShouldStop, Tier
from spex_engine.values import VALUES, TargetGame, ValueFunction, value_function
from spex_engine.wire import InputError, Question

# " Paris, of course" in four tokens, then " Rome" in two
PARIS = ScoredTarget("Paris, of course", 0, ((0, 5), (5, 6), (6, 9), (9, 16)))
ROME = ScoredTarget("Rome", 4, ((0, 2), (2, 4)))
LOGS = np.log([[0.5, 0.9, 0.8, 0.7, 0.25, 0.5]])


def scored(values: Any, censored: Any = None) -> Scores:
    values = np.array(values, dtype=np.float64)
    marks = None if censored is None else np.array(censored, dtype=np.bool_)
    return Scores(values, np.ones(len(values), np.int64), marks)


def value(function: ValueFunction, scores: Any) -> float:
    (found,) = function(scored(scores)).values.tolist()
    return float(found)


def asks(*targets: ScoredTarget, tier: Tier = "T1", **question: Any) -> ValueFunction:
    return value_function(tier, targets, Question(**question))


def labels(*names: str) -> tuple[ScoredTarget, ...]:
    return tuple(ScoredTarget(name, i, ((0, len(name)),)) for i, name in enumerate(names))


# ---- an answer alone -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected", "unit"),
    [
        ("auto", math.log(0.5 * 0.9 * 0.8 * 0.7) / 4, "nats per target token"),
        ("mean", math.log(0.5 * 0.9 * 0.8 * 0.7) / 4, "nats per target token"),
        ("sum", math.log(0.5 * 0.9 * 0.8 * 0.7), "nats"),
        ("logit", math.log(0.252 / 0.748), "nats (log-odds)"),
        ("probability", 0.252, "probability"),
    ],
)
def test_an_answer_alone(name: str, expected: float, unit: str) -> None:
    function = asks(PARIS, value=name)
    assert value(function, LOGS) == pytest.approx(expected, rel=1e-12)
    assert function.unit == unit
    assert "the answer" in function.how


@given(st.floats(-700.0, -1e-6))
def test_log_odds_at_any_probability(log_p: float) -> None:
    """Oracle: with p itself where it has digits enough, with 1 - p as a series where it has not."""
    odds = value(asks(labels("A")[0], value="logit"), [[log_p]])
    p = math.exp(log_p)
    rest = -math.log1p(-p) if p < 0.5 else -math.log(-math.expm1(log_p))
    assert odds == pytest.approx(log_p + rest, rel=1e-12)
    assert -700.0 <= odds <= 16.7


@pytest.mark.parametrize("log_p", [0.0, -1e-300, 1e-9])  # rounding may even make it positive
def test_log_odds_of_certainty_are_cut_off(log_p: float) -> None:
    assert value(asks(labels("A")[0], value="logit"), [[log_p]]) == pytest.approx(24 * math.log(2))


def test_log_odds_below_are_not_cut_off() -> None:
    assert value(asks(PARIS, value="logit"), [[-100.0, -50.0, -30.0, -20.0]]) == -200.0


def test_failed_evaluations_stay_so() -> None:
    for name in ("mean", "sum", "logit", "probability"):
        measured = asks(PARIS, value=name)(scored([[np.nan] * 4, [-1.0] * 4]))
        assert np.isnan(measured.values).tolist() == [True, False]
        assert (measured.variances, measured.censored) == (None, None)
    assert asks(PARIS)(scored(np.empty((0, 6)))).values.shape == (0,)


@pytest.mark.parametrize(
    ("span", "columns"),
    [
        ("Paris", [0]),
        ("of course", [2, 3]),
        ("s,", [0, 1]),
        ("Paris, of course", [0, 1, 2, 3]),
        ("o", [2]),  # the first of two
    ],
)
def test_a_part_of_the_answer(span: str, columns: list[int]) -> None:
    function = asks(PARIS, span=span, value="sum")
    assert value(function, LOGS) == pytest.approx(LOGS[0, columns].sum())
    assert repr(span) in function.how
    assert value(asks(PARIS, span=span), LOGS) == pytest.approx(LOGS[0, columns].mean())


@pytest.mark.parametrize("span", ["", " ", "Rome", "paris"])
def test_a_part_that_is_not_there(span: str) -> None:
    with pytest.raises(InputError, match="does not occur in the answer 'Paris, of course': give"):
        asks(PARIS, span=span)


def test_an_endpoint_that_scores_the_first_token_only() -> None:
    first = ScoredTarget("Paris, of course", 0, ((0, 5),))
    function = asks(first, tier="T2")
    assert function.how == "log-probability of the answer's first token"
    assert function.unit == "nats"
    with pytest.raises(InputError, match="says nothing of 'of' within"):
        asks(first, tier="T2", span="of")


# ---- compared with others ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected", "unit"),
    [
        ("auto", math.log(0.252 / 0.125), "nats (log-odds)"),
        ("sum", math.log(0.252 / 0.125), "nats (log-odds)"),
        ("margin", math.log(0.252 / 0.125), "nats (log-odds)"),
        ("mean", math.log(0.252) / 4 - math.log(0.125) / 2, "nats per token"),
        ("probability", 0.252 / (0.252 + 0.125), "probability"),
    ],
)
def test_a_contrast(name: str, expected: float, unit: str) -> None:
    function = asks(PARIS, ROME, contrast="Rome", value=name)
    assert value(function, LOGS) == pytest.approx(expected, rel=1e-12)
    assert function.unit == unit


def test_what_lowers_both_answers_alike_is_no_contrast() -> None:
    a, b = labels("A", "B")
    function = asks(a, b, contrast="B")
    assert value(function, [[-1.0, -3.0]]) == value(function, [[-6.0, -8.0]]) == 2.0


def test_choices() -> None:
    logs = np.log([[0.2, 0.1, 0.3]])
    three = labels("A", "B", "C")
    choices = {"choices": ("B", "A", "C")}
    for name in ("auto", "margin"):
        assert value(asks(*three, **choices, value=name), logs) == pytest.approx(math.log(0.5))
    share = asks(*three, **choices, value="probability")
    assert value(share, logs) == pytest.approx(1 / 3)
    assert value(share, logs - 800.0) == pytest.approx(1 / 3)  # nothing underflows


# ---- bounds --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mean", "sum", "logit", "probability"])
def test_a_censored_answer_is_at_most_so_likely(name: str) -> None:
    function = asks(labels("A")[0], tier="T2", value=name)
    scores = scored([[-2.0], [-3.0], [np.nan]], [[False], [True], [True]])
    measured = function(scores)
    assert measured.censored is not None
    assert measured.censored.tolist() == [0, -1, 0]
    exact = [value(function, [[log]]) for log in (-2.0, -3.0)]
    np.testing.assert_allclose(measured.values, [*exact, np.nan])


def test_censored_sides_of_a_contrast() -> None:
    a, b = labels("A", "B")
    every = list(itertools.product([False, True], repeat=2))
    measured = asks(a, b, tier="T2", contrast="B")(scored([[-1.0, -4.0]] * 4, every))
    # as it is; B is less likely still; A is; and where both are, nothing is known
    np.testing.assert_array_equal(measured.values, [3.0, 3.0, 3.0, np.nan])
    assert measured.censored is not None
    assert measured.censored.tolist() == [0, 1, -1, 0]


@given(
    st.lists(st.floats(-12.0, -0.1), min_size=3, max_size=3),
    st.lists(st.booleans(), min_size=3, max_size=3),
    st.lists(st.floats(0.0, 12.0), min_size=3, max_size=3),
    st.sampled_from(["margin", "probability"]),
)
def test_a_bound_holds_whatever_the_true_scores_are(
    bounds: list[float], censored: list[bool], less: list[float], name: str
) -> None:
    function = asks(*labels("A", "B", "C"), tier="T2", choices=("A", "B", "C"), value=name)
    measured = function(scored([bounds], [censored]))
    true = [b - d * c for b, c, d in zip(bounds, censored, less, strict=True)]
    exact = value(function, [true])
    side = 0 if measured.censored is None else int(measured.censored[0])
    (said,) = measured.values.tolist()
    if math.isnan(said):
        assert censored[0]  # the target's end is open, and so is the others'
        assert censored[1] or censored[2]
    elif side == 0:
        assert said == pytest.approx(exact, abs=6e-4)
    else:
        assert side * (exact - said) >= -1e-9


def test_bounds_that_leave_nothing_open_are_values() -> None:
    function = asks(*labels("A", "B"), tier="T2", choices=("A", "B"), value="probability")
    measured = function(scored([[-0.01, -9.0]], [[False, True]]))
    assert measured.censored is None
    assert measured.values[0] == pytest.approx(1.0, abs=1e-3)


def test_censored_columns_of_something_else_do_not_matter() -> None:
    measured = asks(PARIS, span="Paris")(scored(LOGS, [[False, True, True, True, True, True]]))
    assert measured.censored is None


# ---- regenerated answers -------------------------------------------------------------------------


def test_similarity_is_a_mean_with_the_variance_of_a_mean() -> None:
    function = asks(PARIS, tier="T3")
    repetitions = np.array([[0.0, 1.0, 0.5], [1.0, 1.0, 1.0], [0.2, np.nan, 0.6]])
    measured = function(scored([*repetitions, [0.7, np.nan, np.nan], [np.nan] * 3]))
    np.testing.assert_allclose(measured.values, [0.5, 1.0, 0.4, 0.7, np.nan])
    expected = [np.var(repetitions[0], ddof=1) / 3, 0.0, np.var([0.2, 0.6], ddof=1) / 2]
    assert measured.variances is not None
    np.testing.assert_allclose(measured.variances, [*expected, np.nan, np.nan])
    assert function.unit == "similarity (0 to 1)"


# ---- encoders ------------------------------------------------------------------------------------


def test_scores_that_are_no_log_probabilities() -> None:
    one, two = labels("A", "B")
    for scale in ("similarity", "number"):
        alone = value_function("T1", (one,), Question(), scale)
        assert value(alone, [[0.25, 0.5]]) == 0.25
        both = value_function("T1", (one, two), Question(contrast="B"), scale)
        assert value(both, [[0.25, 0.5]]) == -0.25
    label = value_function("T1", (one,), Question(), "log-probability")
    assert value(label, [[math.log(0.8)]]) == pytest.approx(math.log(4))
    with pytest.raises(InputError, match="value: sum does not fit a similarity: choose auto or"):
        value_function("T1", (one,), Question(value="sum"), "similarity")
    with pytest.raises(InputError, match="choices: this model compares with texts"):
        value_function("T1", labels("A", "B", "C"), Question(choices=("A", "B", "C")), "similarity")


def test_a_label_has_no_tokens() -> None:
    one, two = labels("A", "B")
    alone = value_function("T1", (one,), Question(value="mean"), "log-probability")
    assert (alone.unit, alone.how) == ("nats", "log-probability of the answer")
    assert value(alone, [[-2.0, -5.0]]) == -2.0
    asked = Question(contrast="B", value="mean")
    both = value_function("T1", (one, two), asked, "log-probability")
    assert (both.unit, "token" in both.how) == ("nats (log-odds)", False)
    assert value(both, [[-2.0, -5.0]]) == 3.0


@pytest.mark.parametrize("scale", ["log-probability", "number", "similarity"])
def test_no_part_of_what_is_no_text_of_tokens(scale: str) -> None:
    with pytest.raises(InputError, match=r"span: this model says nothing of a part .* leave"):
        value_function("T1", labels("Paris"), Question(span="Par"), scale)


# ---- questions that do not fit -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tier", "targets", "question", "message"),
    [
        ("T1", (PARIS,), {"value": "max"}, "value: 'max' is none: choose one of auto, mean, sum"),
        ("T1", (PARIS,), {"value": "margin"}, "margin does not fit an answer alone: give choices"),
        ("T1", (PARIS,), {"value": "similarity"}, "similarity does not fit a model that gives"),
        ("T1", (PARIS, ROME), {"contrast": "Rome", "value": "logit"}, "choose sum, mean or prob"),
        ("T1", (PARIS, ROME), {"contrast": "Rome", "span": "of"}, "span: .* leave out the contr"),
        ("T2", labels("A", "B"), {"choices": ("A", "B"), "value": "sum"}, "choose margin or prob"),
        ("T2", labels("A"), {"choices": ("A",)}, "choices: the target is the only one"),
        ("T3", (PARIS,), {"value": "mean"}, "mean does not fit answers that are regenerated"),
        ("T3", (PARIS,), {"span": "of"}, "span: this endpoint gives no log-probabilities"),
        ("T3", (PARIS,), {"contrast": "Rome"}, "contrast: this endpoint gives no log-probab"),
        (
            "T3",
            (PARIS,),
            {"choices": ("Paris", "Rome")},
            "choices: this endpoint gives no log-prob",
        ),
        (
            "T3",
            (PARIS,),
            {"choices": ("Paris", "Rome"), "value": "similarity"},
            "choices: for value similarity .* leave the choices out, or choose another value",
        ),
    ],
)
def test_what_cannot_be_asked_says_what_can(
    tier: Tier, targets: tuple[ScoredTarget, ...], question: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        asks(*targets, tier=tier, **question)


def test_every_value_can_be_asked_for_somewhere() -> None:
    for name in VALUES:
        tier: Tier = "T3" if name == "similarity" else "T1"
        contrast = {"contrast": "Rome"} if name == "margin" else {}
        targets = (PARIS, ROME) if contrast else (PARIS,)
        assert asks(*targets, tier=tier, value=name, **contrast).how


# ---- the game ------------------------------------------------------------------------------------


class Written:
    """A scorer whose scores are written down here: how many are kept, and how many dropped."""

    tier: Tier = "T1"
    scale = "token"
    n_segments = 4
    targets = (ScoredTarget("ab", 0, ((0, 1), (1, 2))),)
    notes = ()

    def addresses(self, masks: np.ndarray) -> list[bytes]:
        return [mask.tobytes() for mask in masks]

    def score(
        self, masks: np.ndarray, should_stop: ShouldStop
    ) -> Iterator[tuple[np.ndarray, Scores]]:
        for row in reversed(range(len(masks))):
            if should_stop():
                return
            kept = masks[row].sum()
            cut = kept == 0
            yield np.array([row]), scored([[-kept, kept - 4]], [[cut, False]])


MASKS = np.array([[1, 1, 1, 1], [0, 0, 0, 0], [1, 0, 0, 0]], dtype=np.bool_)


def test_a_game_yields_what_its_scorer_does() -> None:
    scorer = Written()
    portions = list(TargetGame(scorer, asks(*scorer.targets, value="mean")).evaluate(MASKS))
    assert [portion.rows.tolist() for portion in portions] == [[2], [1], [0]]
    assert [portion.values.tolist() for portion in portions] == [[-2.0], [-2.0], [-2.0]]
    assert [p.censored is not None and p.censored.tolist() for p in portions] == [
        False,
        [-1],
        False,
    ]
    assert all(portion.variances is None for portion in portions)


def test_a_game_that_is_stopped_yields_no_more() -> None:
    scorer = Written()
    said = iter([False, True])
    game = TargetGame(scorer, asks(*scorer.targets), lambda: next(said))
    assert [portion.rows.tolist() for portion in game.evaluate(MASKS)] == [[2]]


@pytest.mark.parametrize("wrong", [np.ones((2, 3), bool), np.ones(4, bool), np.ones((2, 4))])
def test_masks_of_another_shape_or_type(wrong: np.ndarray) -> None:
    game = TargetGame(Written(), asks(*Written.targets))
    with pytest.raises(ValueError, match=r"masks: expected bool \(m, 4\), got"):
        next(game.evaluate(wrong))
