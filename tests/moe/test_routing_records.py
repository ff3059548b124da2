import copy

import pytest
import torch

from moec_fairseq.moe.clusters import ExpertClusters
from moec_fairseq.moe.routing_records import RoutingCollector

from .stubs import real_layer, record_of

RECORDS = [record_of([[0.5, 0.5]], [0], ExpertClusters(2, 1), layer=number) for number in range(3)]


def test_a_closed_book_keeps_nothing():
    collector = RoutingCollector()
    collector.add(RECORDS[0])
    assert not collector.is_collecting
    with collector.collect() as records:
        assert collector.is_collecting
        assert records == []


def test_an_open_book_keeps_records_in_order():
    collector = RoutingCollector()
    with collector.collect() as records:
        collector.add(RECORDS[1])
        collector.add(RECORDS[0])
    assert [record.layer_index for record in records] == [1, 0]
    collector.add(RECORDS[2])
    assert len(records) == 2 and not collector.is_collecting


def test_a_dummy_batch_routes_nothing():
    layer = real_layer()
    hidden = torch.randn(3, 2, 4)
    layer.collector.is_dummy = True
    with layer.collector.collect() as records:
        torch.testing.assert_close(layer(hidden), hidden)
    assert records[0].tokens_per_expert_N.sum() == 0


def test_a_nested_collection_is_kept_apart():
    collector = RoutingCollector()
    with collector.collect() as outer:
        collector.add(RECORDS[0])
        with collector.collect() as inner:
            collector.add(RECORDS[1])
        collector.add(RECORDS[2])
    assert [record.layer_index for record in outer] == [0, 2]
    assert [record.layer_index for record in inner] == [1]
    assert not collector.is_collecting


def test_an_exception_closes_the_book():
    collector = RoutingCollector()
    with pytest.raises(RuntimeError), collector.collect():
        raise RuntimeError
    assert not collector.is_collecting


def test_layers_share_their_book_within_a_copy():
    collector = RoutingCollector()
    model = torch.nn.ModuleList(real_layer(layer_index=number, collector=collector) for number in range(2))
    copied = copy.deepcopy(model)
    assert copied[0].collector is copied[1].collector is not collector
    with collector.collect() as records, copied[0].collector.collect() as records_of_copy:
        copied[1](torch.randn(2, 1, 4))
    assert records == []
    assert [record.layer_index for record in records_of_copy] == [1]


def test_a_layer_without_a_book_has_its_own():
    assert real_layer().collector is not real_layer().collector
