import pytest

from carrara_models.training.data.bounds import Bound, parse_bound, within


def test_a_bound_is_read_with_or_without_spaces():
    assert parse_bound("similarity>=0.3") == Bound("similarity", minimum=0.3)
    assert parse_bound(" aesthetic score <= 1e1 ") == Bound("aesthetic score", maximum=10)


@pytest.mark.parametrize("text", ["", "similarity", "similarity>0.3", ">=1", "similarity>=high"])
def test_what_is_no_bound_is_refused(text):
    with pytest.raises(ValueError, match=r"no (bound|number)"):
        parse_bound(text)


def test_both_ends_are_within():
    bounds = [Bound("a", minimum=0.3), Bound("b", maximum=0.1)]
    assert within(bounds, {"a": 0.3, "b": 0.1})
    assert not within(bounds, {"a": 0.29, "b": 0.1})
    assert not within(bounds, {"a": 0.3, "b": 0.11})
    assert within([], {})


@pytest.mark.parametrize("value", [None, "", "high", float("nan"), [0.5], {}])
def test_what_is_no_number_keeps_no_bound(value):
    assert not within([Bound("a", minimum=0)], {"a": value})


def test_a_missing_column_keeps_no_bound_and_a_number_in_text_counts():
    assert not within([Bound("a", minimum=0)], {})
    assert within([Bound("a", minimum=0)], {"a": "0.5"})
