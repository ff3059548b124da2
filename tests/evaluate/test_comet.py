"""COMET through a module of the interface of unbabel-comet, which scores by the length of what it is given."""

import sys
from types import SimpleNamespace

import pytest

from moec_fairseq.evaluate.comet import Comet


@pytest.fixture
def package(monkeypatch):
    """Put a stand-in in the place of the package; return what it was asked for."""
    asked = []

    def download_model(name):
        if name != "Unbabel/wmt22-comet-da":
            raise KeyError(f"Model '{name}' not supported by COMET.")
        return f"cache/{name}/checkpoints/model.ckpt"

    def load_from_checkpoint(path):
        def predict(samples, batch_size=16, gpus=1, accelerator="auto"):
            asked.append((path, gpus, accelerator))
            scores = [1 / len(sample["src"] + sample["mt"] + sample["ref"]) for sample in samples]
            return SimpleNamespace(scores=scores, system_score=sum(scores) / len(scores))

        return SimpleNamespace(predict=predict)

    comet = SimpleNamespace(
        download_model=download_model, load_from_checkpoint=load_from_checkpoint, __version__="2.2.7"
    )
    monkeypatch.setitem(sys.modules, "comet", comet)
    return asked


def test_it_reads_source_translation_and_reference(package):
    found = Comet("Unbabel/wmt22-comet-da").score(["a", "ab"], ["bb", "b"], [["c", "c"]], cpu=True)
    assert found.value == 25.0 and package == [("cache/Unbabel/wmt22-comet-da/checkpoints/model.ckpt", 0, "cpu")]
    assert found.signature == "nrefs:1|model:Unbabel/wmt22-comet-da|version:2.2.7"


def test_several_references_count_alike(package):
    found = Comet("Unbabel/wmt22-comet-da").score(["a"], ["b"], [["cc"], ["cccccc"]], cpu=True)
    assert found.value == pytest.approx(100 * (1 / 4 + 1 / 8) / 2, abs=0.005) and found.signature.startswith("nrefs:2|")


def test_a_file_is_not_fetched(package, tmp_path):
    file = tmp_path / "model.ckpt"
    file.touch()
    Comet(str(file)).score(["a"], ["b"], [["c"]], cpu=True)
    assert package[0][0] == str(file)


def test_a_model_that_cannot_be_fetched(package):
    with pytest.raises(ValueError, match="^COMET cannot get the model x/y; check the name and the network, or give"):
        Comet("x/y")


@pytest.mark.parametrize("there", [None, SimpleNamespace(__version__="1")])  # no package, and another of this name
def test_without_the_package(monkeypatch, there):
    monkeypatch.setitem(sys.modules, "comet", there)
    with pytest.raises(ValueError, match=r"COMET needs the package unbabel-comet .*: pip install unbabel-comet$"):
        Comet("Unbabel/wmt22-comet-da")
