"""When did it change? A cumulative sum over one number per frame."""

from __future__ import annotations


class Cusum:
    """One-sided cumulative sum (Page, "Continuous inspection schemes", Biometrika 1954).

    The sum of ``clip(value - slack)``, never below zero, passes `limit` once the values have been
    above `slack` for long or far enough. Each value counts at most `most`, so that a single
    outlier, however large, is no change.

    Args:
        slack: Values up to this speak against a change.
        limit: Sum at which the change is declared.
        most: Most that one value may add or take.
    """

    def __init__(self, slack: float, limit: float, most: float = 1.0) -> None:
        self.slack, self.limit, self.most = slack, limit, most
        self.sum = 0.0
        self.length = 0

    def update(self, value: float) -> bool:
        """Take one value; True once the sum has passed the limit.

        `length` then holds for how many values the sum has been above zero: the estimate of when
        the change began.
        """
        step = min(max(value - self.slack, -self.most), self.most)
        self.sum = max(0.0, self.sum + step)
        self.length = self.length + 1 if self.sum > 0 else 0
        return self.sum > self.limit

    def reset(self) -> None:
        """Forget everything seen."""
        self.sum, self.length = 0.0, 0
