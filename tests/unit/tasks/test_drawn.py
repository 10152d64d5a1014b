"""Splits and draws that must never change: published results refer to them."""

from collections import Counter

from interlace.tasks.drawn import Draw, digest, split_of

GOLDEN_SPLITS = ["train", "train", "train", "train", "train", "train", "train", "test"]
GOLDEN_DRAWS = [287, 927, 929, 511]
GOLDEN_ORDER = "afgbced"


def test_golden() -> None:
    assert digest("countdown", 7).startswith("ea30f6314e7a")
    assert [split_of(f"problem {i}") for i in range(8)] == GOLDEN_SPLITS
    stream = Draw("golden", 1)
    assert [stream.below(1000) for _ in range(4)] == GOLDEN_DRAWS
    assert Draw("golden", 2).shuffled("abcdefg") == list(GOLDEN_ORDER)


def test_parts_do_not_run_together() -> None:
    assert digest("ab", "c") != digest("a", "bc")


def test_a_fifth_is_held_out() -> None:
    counts = Counter(split_of(f"problem {i}") for i in range(5000))
    assert 900 < counts["test"] < 1100


def test_lone_surrogates_have_a_hash() -> None:
    assert split_of("\ud800") in ("train", "test")


def test_draws_are_uniform_and_in_range() -> None:
    stream = Draw("uniform")
    counts = Counter(stream.between(3, 7) for _ in range(5000))
    assert set(counts) == {3, 4, 5, 6, 7}
    assert all(900 < count < 1100 for count in counts.values())


def test_shuffles_reach_every_order() -> None:
    orders = {tuple(Draw("orders", i).shuffled("abc")) for i in range(100)}
    assert len(orders) == 6
