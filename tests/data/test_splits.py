from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import pytest

from mmcompress.data import Example, Examples
from mmcompress.data._splits import check_disjoint, hold_out, subset
from mmcompress.data.scenes import Scenes
from mmcompress.errors import InputError

pytestmark = pytest.mark.unit


class Named:
    """Examples whose id and content are given by name."""

    columns = frozenset({"texts"})

    def __init__(self, ids: Sequence[str], contents: Sequence[str] | None = None) -> None:
        self.ids = list(ids)
        self.contents = list(contents or ids)
        self.notes = {"left out": 2}

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Example:
        return Example(self.ids[index], {"texts": (self.contents[index],)})

    def fingerprint(self, index: int) -> str:
        return self.contents[index]

    def classes(self) -> Sequence[str]:
        return ("a", "b")


def named(ids: Sequence[str], contents: Sequence[str] | None = None) -> Examples:
    return cast(Examples, Named(ids, contents))


def test_splits_that_share_nothing_pass() -> None:
    check_disjoint(named("abc"), named("de"), None)
    check_disjoint(None, None, named("aa"))
    check_disjoint(*(Scenes.model_validate({"split": s, "size": 50}).read() for s in ("train", "validation", "test")))


def test_shared_examples_are_counted_and_named() -> None:
    with pytest.raises(InputError) as caught:
        check_disjoint(named(["a", "b", "c", "d", "e"]), named(["x"]), named(["e", "d", "f", "c", "b"]))
    message = str(caught.value)
    assert "train and test share 4 of test's 5 examples (4 by id, 0 by content alone): 'e', 'd', 'c', ..." in message
    assert "validation" not in message


def test_the_same_content_under_another_id_is_found() -> None:
    with pytest.raises(
        InputError, match=r"validation and test share 1 of test's 2 .*\(0 by id, 1 by content alone\): 'q'"
    ):
        check_disjoint(named("ab"), named("cd", ["one", "two"]), named("pq", ["three", "two"]))


def test_the_same_scenes_under_two_splits_are_found() -> None:
    scenes = Scenes(split="test", size=10)
    with pytest.raises(InputError, match="share 10 of test's 10"):
        check_disjoint(scenes.read(), None, scenes.read())


def test_hold_out_is_stable_and_complete() -> None:
    ids = [f"example {i}" for i in range(2000)]
    rest, held = hold_out(named(ids), 0.1, seed=0)
    assert sorted([*rest.ids, *held.ids]) == sorted(ids)
    assert 150 < len(held) < 250
    check_disjoint(rest, held, None)
    assert rest[3].id == rest.ids[3]
    assert rest.fingerprint(3) == rest.ids[3]
    _, of_more = hold_out(named([*reversed(ids), "new 1", "new 2"]), 0.1, seed=0)
    assert set(held.ids) <= set(of_more.ids)
    _, other = hold_out(named(ids), 0.1, seed=1)
    assert set(other.ids) != set(held.ids)
    assert rest.notes == {"left out": 2}
    assert held.notes == {}
    assert held.classes() == ("a", "b")


@pytest.mark.parametrize("ratio", [0.0, 1.0, 0.0001])
def test_hold_out_leaves_something_on_both_sides(ratio: float) -> None:
    with pytest.raises(InputError, match="leaves"):
        hold_out(named("abc"), ratio, seed=0)


def test_subset_is_the_first_or_a_sample() -> None:
    whole = named([f"{i}" for i in range(100)])
    assert list(subset(whole, 3).ids) == ["0", "1", "2"]
    assert len(subset(whole, 500)) == 100
    one, again, other = (subset(whole, 20, seed=seed) for seed in (0, 0, 1))
    assert list(one.ids) == list(again.ids)
    assert list(one.ids) != list(other.ids)
    assert len(set(one.ids)) == 20
    assert list(one.ids) == sorted(one.ids, key=int)
    assert max(map(int, one.ids)) > 50
    assert one[0].id == one.ids[0]
    with pytest.raises(IndexError):
        subset(whole, 3)[3]
