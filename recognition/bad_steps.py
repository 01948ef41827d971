"""Steps whose numbers were not finite: how many a run may have before it goes back, or ends.

A single one is skipped on every rank and forgotten. BAD_IN_A_ROW one after the other, or BAD_OF_MANY within MANY, are
no accident: the run goes back to its last checkpoint, once; when that does not help it ends (status 5).
Proven by tests/recognition/test_bad_steps.py and test_faults.py.
"""

BAD_IN_A_ROW = 3
BAD_OF_MANY, MANY = 10, 1000


class BadSteps:
    """The numbers of the bad steps among the last MANY, rising; `gone_back` says that the one return was used."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.gone_back = False

    def add(self, step: int) -> None:
        """Count a bad step; steps come in order."""
        self.steps = [*(s for s in self.steps if s > step - MANY), step]

    @property
    def too_many(self) -> bool:
        """Whether the last one that was added was one too many."""
        if not self.steps:
            return False
        last = self.steps[-1]
        in_a_row = self.steps[-BAD_IN_A_ROW:] == list(range(last - BAD_IN_A_ROW + 1, last + 1))
        return in_a_row or len(self.steps) >= BAD_OF_MANY

    def told(self) -> str:
        """For a message: how many, and the last of them."""
        shown = ", ".join(map(str, self.steps[-BAD_OF_MANY:]))
        return f"{len(self.steps)} steps of the last {MANY} had a loss or a gradient that is not finite: {shown}"

    def state(self) -> dict[str, object]:
        """As plain numbers, for a checkpoint."""
        return {"steps": self.steps, "gone_back": self.gone_back}

    def load(self, state: dict[str, object]) -> None:
        """Take over what a checkpoint holds; a return that was used since stays used."""
        self.steps = [int(step) for step in state["steps"]]  # type: ignore[attr-defined]
        self.gone_back = self.gone_back or bool(state["gone_back"])
