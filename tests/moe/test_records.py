import copy

import pytest
import torch

from moec_fairseq.moe.clusters import ExpertClusters
from moec_fairseq.moe.records import RecordBook

from .stubs import real_layer, record_of

RECORDS = [record_of([[0.5, 0.5]], [0], ExpertClusters(2, 1), layer=number) for number in range(3)]


def test_a_closed_book_keeps_nothing():
    book = RecordBook()
    book.add(RECORDS[0])
    assert not book.is_open
    with book.open() as records:
        assert book.is_open
        assert records == []


def test_an_open_book_keeps_records_in_order():
    book = RecordBook()
    with book.open() as records:
        book.add(RECORDS[1])
        book.add(RECORDS[0])
    assert [record.layer for record in records] == [1, 0]
    book.add(RECORDS[2])
    assert len(records) == 2 and not book.is_open


def test_a_dummy_batch_routes_nothing():
    layer = real_layer()
    hidden = torch.randn(3, 2, 4)
    layer.book.is_dummy = True
    with layer.book.open() as records:
        torch.testing.assert_close(layer(hidden), hidden)
    assert records[0].assigned_N.sum() == 0


def test_a_nested_collection_is_kept_apart():
    book = RecordBook()
    with book.open() as outer:
        book.add(RECORDS[0])
        with book.open() as inner:
            book.add(RECORDS[1])
        book.add(RECORDS[2])
    assert [record.layer for record in outer] == [0, 2]
    assert [record.layer for record in inner] == [1]
    assert not book.is_open


def test_an_exception_closes_the_book():
    book = RecordBook()
    with pytest.raises(RuntimeError), book.open():
        raise RuntimeError
    assert not book.is_open


def test_layers_share_their_book_within_a_copy():
    book = RecordBook()
    model = torch.nn.ModuleList(real_layer(layer=number, book=book) for number in range(2))
    copied = copy.deepcopy(model)
    assert copied[0].book is copied[1].book is not book
    with book.open() as records, copied[0].book.open() as records_of_copy:
        copied[1](torch.randn(2, 1, 4))
    assert records == []
    assert [record.layer for record in records_of_copy] == [1]


def test_a_layer_without_a_book_has_its_own():
    assert real_layer().book is not real_layer().book
