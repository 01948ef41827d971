"""Draw pairs of faces at random: ten folds with people of their own, in each first genuine and then impostor pairs.

No picture is used twice as long as there are others: every person of a fold gives two unused pictures in turn, then
every person gives one to a pair of strangers in turn; only when nothing is unused are pictures combined anew, and never
the same two twice. All of it is a function of the seed and of how many pictures everybody has.
Proven by tests/tools/records/test_pairs.py.
"""

from collections.abc import Iterator, Sequence
from itertools import combinations, count

from recognition.data.plan import epoch_order
from recognition.errors import SettingsError

FOLDS = 10

Face = tuple[int, int]  # a person, and which of that person's pictures
Pair = tuple[Face, Face]


def draw_pairs(pictures: Sequence[int], pairs: int, seed: int) -> list[Pair]:
    """Pairs of faces of people who have that many pictures each; half of them of one person.

    Raises:
        SettingsError: `pairs` is no multiple of 20, fewer than two people for each fold, or there are not that many
            different pairs.
    """
    if pairs < 2 * FOLDS or pairs % (2 * FOLDS):
        raise SettingsError(f"--random {pairs}; expected a multiple of {2 * FOLDS}: {FOLDS} folds, half genuine")
    if len(pictures) < 2 * FOLDS:
        raise SettingsError(f"--random {pairs}: pictures of {len(pictures)} people; expected at least {2 * FOLDS}: "
                            f"{FOLDS} folds have people of their own, and an impostor pair takes two "
                            "(split --share: hold out more)")
    people = epoch_order(len(pictures), seed, 0).tolist()
    # Whoever has two pictures can be in a genuine pair: dealt out evenly, so that every fold has some.
    people.sort(key=lambda person: pictures[person] < 2)
    drawn: list[Pair] = []
    for fold in range(FOLDS):
        drawn += _Fold(people[fold::FOLDS], pictures, seed).draw(fold, pairs // FOLDS // 2)
    return drawn


class _Fold:
    """The people of one fold, and which of their pictures and pairs have been used."""

    def __init__(self, people: list[int], pictures: Sequence[int], seed: int) -> None:
        self.people = people
        self.order = {person: epoch_order(pictures[person], seed, 1 + person).tolist() for person in people}
        self.unused = {person: list(reversed(order)) for person, order in self.order.items()}
        self.used: set[frozenset[Face]] = set()

    def draw(self, fold: int, wanted: int) -> list[Pair]:
        drawn: list[Pair] = []
        for kind, fresh, again in (("genuine", self._genuine, self._genuine_again),
                                   ("impostor", self._impostor, self._impostor_again)):
            found: list[Pair] = []
            for source in (fresh(), again()):
                while len(found) < wanted and (pair := next(source, None)):
                    if frozenset(pair) not in self.used:
                        self.used.add(frozenset(pair))
                        found.append(pair)
            if len(found) < wanted:
                raise SettingsError(f"--random {2 * FOLDS * wanted}: fold {fold + 1} of {FOLDS} has {len(self.people)} "
                                    f"people with {len(found)} different {kind} pairs; expected {wanted}")
            drawn += found
        return drawn

    def _genuine(self) -> Iterator[Pair]:
        able = self.people
        while able := [person for person in able if len(self.unused[person]) >= 2]:
            for person in able:
                yield (person, self.unused[person].pop()), (person, self.unused[person].pop())

    def _genuine_again(self) -> Iterator[Pair]:
        waiting = [(person, combinations(self.order[person], 2)) for person in self.people]
        while waiting:
            left = []
            for person, combined in waiting:
                if chosen := next(combined, None):
                    yield (person, chosen[0]), (person, chosen[1])
                    left.append((person, combined))
            waiting = left

    def _impostor(self) -> Iterator[Pair]:
        able = self.people
        while len(able := [person for person in able if self.unused[person]]) >= 2:
            for first, second in zip(able[::2], able[1::2], strict=False):
                yield (first, self.unused[first].pop()), (second, self.unused[second].pop())
            able = able[1:] + able[:1]  # so that the same two do not meet again, and nobody is left over for good

    def _impostor_again(self) -> Iterator[Pair]:
        people = self.people
        for turn in count():
            found = False
            for shift in range(1, len(people) // 2 + 1):
                for at, first in enumerate(people):
                    second = people[(at + shift) % len(people)]
                    ours, theirs = self.order[first], self.order[second]
                    if turn < len(ours) * len(theirs):
                        found = True
                        yield (first, ours[(turn + shift) % len(ours)]), (
                            second, theirs[(turn // len(ours) + shift) % len(theirs)])
            if not found:
                return
