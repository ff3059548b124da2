import os

import pytest

from moec_fairseq.util.stages import Stages


class Pipeline:
    """Two steps, which count how often they are done."""

    def __init__(self, folder):
        self.folder, self.done = folder, []
        self.input, self.result = folder / "input", folder / "result"
        self.input.touch()

    def run(self, first=1, second=2):
        stages = Stages(self.folder)
        before = len(self.done)
        stages.do("first", first, self.first, results=[self.result], inputs=[self.input])
        assert stages.do("second", second, self.second) == {"second": second}
        return self.done[before:]

    def first(self):
        self.result.touch()
        self.done.append("first")

    def second(self):
        self.done.append("second")
        return {"second": 2}


@pytest.fixture
def pipeline(tmp_path):
    found = Pipeline(tmp_path)
    assert found.run() == ["first", "second"] and found.run() == []
    return found


def test_other_settings(pipeline):
    assert pipeline.run(first=3) == ["first", "second"]


def test_a_result_that_is_gone(pipeline):
    pipeline.result.unlink()
    assert pipeline.run() == ["first", "second"]


@pytest.mark.parametrize("time", [1e9, 2e9])
def test_an_input_that_has_changed(pipeline, time):
    os.utime(pipeline.input, (time, time))
    assert pipeline.run() == ["first", "second"] and pipeline.run() == []


def test_results_of_later_steps_go_first(pipeline):
    def fails():
        assert not (pipeline.folder / "last").exists() and pipeline.result.exists()
        raise ValueError

    stages = Stages(pipeline.folder)
    stages.do("first", 1, pipeline.first)
    stages.do("second", 2, pipeline.second)
    (pipeline.folder / "last").mkdir()
    stages.do("third", 3, pipeline.second, results=[pipeline.folder / "last"])
    with pytest.raises(ValueError):
        Stages(pipeline.folder).do("first", 4, fails, results=[pipeline.result])


def test_a_result_that_is_no_longer_made_goes(pipeline):
    other = pipeline.folder / "other"
    other.touch()
    Stages(pipeline.folder).do("first", 8, pipeline.first, results=[other, pipeline.result])
    Stages(pipeline.folder).do("first", 9, lambda: pipeline.result.exists() and other.touch(), results=[other])
    assert other.exists() and not pipeline.result.exists()
    assert pipeline.run() == ["first", "second"] and not other.exists()


def test_broken_off_after_a_step_that_was_done_again(pipeline):
    Stages(pipeline.folder).do("first", 7, pipeline.first, inputs=[pipeline.input])
    assert pipeline.run(first=7) == ["second"]


def test_an_input_that_is_gone(pipeline):
    pipeline.input.unlink()
    assert pipeline.run() == []


def test_a_step_that_fails_is_not_done(tmp_path):
    def fails():
        raise ValueError

    with pytest.raises(ValueError):
        Stages(tmp_path).do("step", 1, fails)
    assert Stages(tmp_path).do("step", 1, lambda: 5) == 5
