"""Buffers are reused, but never while a tensor refers to them."""

import gc

import torch

from smtkit.labels.buffers import Buffers


def test_a_buffer_is_reused_only_when_nothing_refers_to_it():
    buffers = Buffers()
    first = buffers.take(64)
    second = buffers.take(64)
    assert first.data_ptr() != second.data_ptr()
    kept, address = first.view(torch.float16)[3:5].reshape(2, 1), first.data_ptr()
    del first
    gc.collect()
    assert buffers.take(64).data_ptr() != address
    del kept
    gc.collect()
    taken = [buffers.take(60).data_ptr() for _ in range(3)]
    assert address in taken


def test_a_buffer_that_is_too_small_is_not_reused():
    buffers = Buffers()
    del (small := [buffers.take(10)])[0]
    assert len(buffers.take(1000)) == 1000
    assert small == []
