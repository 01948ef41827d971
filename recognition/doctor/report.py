"""What the doctor found: sections of facts, each with a mark, as text for people and as JSON.

A fact is plain, slow or tight (mark !), or a problem (mark ✗), which has the exit status that the run would end with.
Proven by tests/recognition/test_doctor.py.
"""

import shutil
import textwrap
from dataclasses import asdict, dataclass, field
from typing import Any

MARKS = {"fact": " ", "warning": "!", "problem": "✗"}
_NAME_WIDTH = 16


@dataclass(frozen=True)
class Fact:
    """One line of a section. status: of a problem, else 0."""

    name: str
    text: str
    kind: str = "fact"
    status: int = 0


@dataclass
class Report:
    """Sections in the order in which they were begun. figures: plain numbers by section, for the JSON."""

    sections: dict[str, list[Fact]] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)
    _open: str = ""

    def section(self, title: str) -> None:
        """Begin a section; what follows belongs to it."""
        self._open = title
        self.sections.setdefault(title, [])

    def fact(self, name: str, text: str) -> None:
        """Note what is as it should be, or no more than worth knowing."""
        self.sections[self._open].append(Fact(name, text))

    def warning(self, name: str, text: str) -> None:
        """Note what will be slow, or may not suffice."""
        self.sections[self._open].append(Fact(name, text, "warning"))

    def problem(self, status: int, name: str, text: str) -> None:
        """Note what keeps the run from going through."""
        self.sections[self._open].append(Fact(name, text, "problem", status))

    def judge(self, good: bool, name: str, text: str) -> None:
        """Note a fact, or with `good` False a warning."""
        (self.fact if good else self.warning)(name, text)

    @property
    def problems(self) -> list[Fact]:
        """All problems, in order."""
        return [fact for facts in self.sections.values() for fact in facts if fact.kind == "problem"]

    @property
    def status(self) -> int:
        """Exit status: that of the first problem, 0 without any."""
        return self.problems[0].status if self.problems else 0

    def text(self, width: int | None = None) -> str:
        """The whole report for people, lines as wide as the terminal or `width`."""
        width = min(120, width or shutil.get_terminal_size((110, 40)).columns)
        lines = []
        for title, facts in self.sections.items():
            lines += ["", title]
            for fact in facts:
                lines += _lines(fact, width)
        return "\n".join([*lines[1:], "", self.verdict()])

    def verdict(self) -> str:
        """The last line."""
        warnings = sum(fact.kind == "warning" for facts in self.sections.values() for fact in facts)
        told = f"{plural(len(self.problems), 'problem')} (✗)" if self.problems else "no problem"
        return f"{told}, {plural(warnings, 'thing')} to know (!); exit status {self.status}"

    def json(self) -> dict[str, Any]:
        """The same for programs."""
        listed = {title: [asdict(fact) for fact in facts] for title, facts in self.sections.items()}
        return {"sections": listed, "figures": self.figures, "exit_status": self.status}


def _lines(fact: Fact, width: int) -> list[str]:
    first = f"  {MARKS[fact.kind]} {fact.name:<{_NAME_WIDTH}} "
    found: list[str] = []
    for line in fact.text.splitlines() or [""]:
        start = " " * len(first) if found else first
        found += textwrap.wrap(line, width, initial_indent=start, subsequent_indent=" " * len(first),
                               break_long_words=False, break_on_hyphens=False) or [start.rstrip()]
    return found


def plural(count: int, what: str) -> str:
    """1 rank, 2 ranks."""
    return f"{count:,} {what}{'s' * (count != 1)}"


def amount(count: float) -> str:
    """Bytes in words: 512 MB, 7.7 GB (decimal, as disks and docs count)."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            value = count / size
            return f"{value:.0f} {unit}" if value >= 100 else f"{value:.1f} {unit}"
    return f"{count / 1e3:.0f} kB"
