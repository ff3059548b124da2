"""Trainings in this process."""

import logging

import pytest


@pytest.fixture(autouse=True)
def quiet():
    """Keep what fairseq says of each step out of pytest's memory."""
    logging.disable(logging.INFO)
    yield
    logging.disable(logging.NOTSET)
