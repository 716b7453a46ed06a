"""When a run has seen enough: held-out R2 and the leading interactions no longer change.

Knows fits and how they were judged, not how many evaluations are left nor what they cost.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import hypot

from spex_engine.fourier import SparseFourier, Support
from spex_engine.indices import Interaction, interactions

ENOUGH_TEST = 32  # held-out masks before their R2 is evidence
HIGH_R2 = 0.98
_R2_CHANGE = 0.01
_ORDER = 3
_LEADING = 10  # members compared, those above a tenth of the strongest
_SMALL = 0.1  # of the strongest value: a difference, or a value, that nobody would miss
_JOINT_ERRORS = 2.0


@dataclass(frozen=True, eq=False)
class Evidence:
    """A fit, and its R2 on ``n_test`` uniform masks held out from it whose values vary."""

    fourier: SparseFourier
    r2: float
    n_test: int

    @property
    def good(self) -> bool:
        """Whether it would be the final one, if the next says the same."""
        return self.n_test >= ENOUGH_TEST and self.r2 >= HIGH_R2


def settled(before: Evidence, after: Evidence) -> bool:
    """Whether two successive fits, the later of more samples, leave nothing to wait for.

    Both predict at least 32 held-out masks with R2 >= 0.98, their R2 differ by less than 0.01, and
    they agree on what leads: the single effects (Banzhaf) and joint ones (FBII up to order 3)
    above a tenth of the strongest, ten at most, of either fit. To agree is to differ by at most a
    tenth of the strongest or two joint standard errors; a member that one fit lacks has value 0
    there. (Comparing the two sets as such would turn on which side of the tenth a value falls.)
    """
    if not (before.good and after.good and abs(after.r2 - before.r2) < _R2_CHANGE):
        return False
    was, now = _effects(before.fourier), _effects(after.fourier)
    strongest = max(abs(i.value) for i in (*was.values(), *now.values()))
    for members in {*_leading(was), *_leading(now)}:
        old = was.get(members, Interaction(members, 0.0))
        new = now.get(members, Interaction(members, 0.0))
        joint = hypot(old.stderr or 0.0, new.stderr or 0.0)
        if abs(new.value - old.value) > max(_SMALL * strongest, _JOINT_ERRORS * joint):
            return False
    return True


def _effects(f: SparseFourier) -> dict[Support, Interaction]:
    joint = interactions(f, "FBII", _ORDER)
    single = interactions(f, "BV", 1)
    return {i.members: i for i in (*(i for i in joint if len(i.members) > 1), *single)}


def _leading(effects: dict[Support, Interaction]) -> list[Support]:
    ranked = sorted(effects.values(), key=lambda i: -abs(i.value))[:_LEADING]
    return [i.members for i in ranked if abs(i.value) > _SMALL * abs(ranked[0].value)]
