"""The table of patches says what is true."""

from importlib import import_module

import pytest

from moec_fairseq.compat import ELSEWHERE, PATCHES
from tests.conftest import ROOT


def test_every_patch_is_applied_tested_and_explained():
    assert len({(id(patch.owner), patch.name) for patch in PATCHES}) == len(PATCHES)
    for patch in PATCHES:
        assert getattr(patch.owner, patch.name) == patch.replacement, patch
        assert (ROOT / "tests" / patch.test).is_file(), patch


@pytest.mark.parametrize("what, function, why", ELSEWHERE)
def test_what_is_changed_elsewhere_is_there(what, function, why):
    module, _, name = function.rpartition(".")
    assert callable(getattr(import_module(module), name))
