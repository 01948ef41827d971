"""How many steps may be skipped: three in a row, or ten in a thousand, are too many."""

from recognition.bad_steps import BadSteps


def _too_many_at(*steps: int) -> list[int]:
    bad, found = BadSteps(), []
    for step in steps:
        bad.add(step)
        if bad.too_many:
            found.append(step)
    return found


def test_three_in_a_row():
    assert _too_many_at(5, 6, 7) == [7]
    assert _too_many_at(1, 2, 4, 5, 7) == []


def test_ten_in_a_thousand():
    assert _too_many_at(*range(10, 1000, 100)) == [910]
    assert _too_many_at(*range(10, 5000, 112)) == []  # at most nine in any thousand
    assert _too_many_at(1, *range(10, 809, 100), 1001) == []  # the first is a thousand steps ago


def test_state_comes_back_and_a_return_stays_used():
    bad = BadSteps()
    bad.add(7)
    saved = bad.state()
    bad.add(8)
    bad.gone_back = True
    bad.load(saved)
    assert bad.steps == [7]
    assert bad.gone_back
    assert not bad.too_many
    fresh = BadSteps()
    fresh.load(bad.state())
    assert fresh.gone_back
