import itertools
from pathlib import Path

import numpy as np
import pytest

from carrara_models.training.data.order import ListOrder, ShardOrder
from carrara_models.training.data.records import DataError

SHARDS = {Path(f"{shard}.tar"): [f"{shard}-{n}" for n in range(shard + 2)] for shard in range(5)}
TOTAL = sum(map(len, SHARDS.values()))


class CountedScan:
    def __init__(self):
        self.scanned = []

    def __call__(self, shard):
        self.scanned.append(shard)
        return SHARDS[shard]


def shard_order(scan=SHARDS.__getitem__, *, window=4, seed=0):
    return ShardOrder(list(SHARDS), scan, window=window, seed=seed)


ORDERS = {
    "list": lambda seed=0: ListOrder(range(TOTAL), seed=seed),
    "small windows": lambda seed=0: shard_order(window=3, seed=seed),
    "window of several shards": lambda seed=0: shard_order(window=9, seed=seed),
    "window of everything": lambda seed=0: shard_order(window=1000, seed=seed),
}


@pytest.mark.parametrize("make", ORDERS.values(), ids=ORDERS.keys())
def test_every_pass_holds_each_item_once_in_another_order(make):
    order = make()
    passes = [[order.at(n * TOTAL + place) for place in range(TOTAL)] for n in range(3)]
    assert len(set(passes[0])) == TOTAL
    assert all(sorted(items) == sorted(passes[0]) for items in passes)
    assert len({tuple(items) for items in passes}) == 3


@pytest.mark.parametrize("make", ORDERS.values(), ids=ORDERS.keys())
def test_an_item_depends_on_seed_and_position_alone(make):
    positions = [70, 3, 0, 19, 20, 41, 5, 70]
    forward = make()
    row = [forward.at(position) for position in range(100)]
    jumping = make()
    assert [jumping.at(position) for position in positions] == [row[p] for p in positions]
    assert [make(1).at(position) for position in range(100)] != row


@pytest.mark.parametrize("make", ORDERS.values(), ids=ORDERS.keys())
def test_spares_reach_every_item_and_leave_the_order_alone(make):
    order = make()
    row = [make().at(position) for position in range(30)]
    spares = list(itertools.islice(order.spares(2, np.random.default_rng(0)), 8 * TOTAL))
    assert set(spares) == set(row[:TOTAL])
    assert spares == list(itertools.islice(make().spares(2, np.random.default_rng(0)), 8 * TOTAL))
    assert [order.at(position) for position in range(30)] == row


def test_the_first_items_need_no_more_shards_than_hold_them():
    scan = CountedScan()
    order = shard_order(scan, window=2)
    order.at(0)
    assert len(scan.scanned) == 1


def test_in_a_row_each_shard_is_scanned_once_a_pass():
    scan = CountedScan()
    order = shard_order(scan)
    for position in range(TOTAL):
        order.at(position)
    assert sorted(scan.scanned) == sorted(SHARDS)


def test_a_late_position_costs_one_look_at_each_shard_and_then_its_window():
    scan = CountedScan()
    shard_order(scan, window=2).at(1_000_000 * TOTAL + 3)
    assert len(scan.scanned) <= len(SHARDS) + 2


def test_shards_without_items_end_with_an_error():
    order = ShardOrder(list(SHARDS), lambda shard: [], window=4, seed=0)
    with pytest.raises(DataError, match="no picture in any of 5 shards"):
        order.at(0)


def test_a_shard_without_items_among_others_is_passed_over():
    order = ShardOrder(
        list(SHARDS), lambda shard: SHARDS[shard] if shard.stem == "3" else [], window=4, seed=0
    )
    assert sorted(order.at(position) for position in range(5)) == SHARDS[Path("3.tar")]
