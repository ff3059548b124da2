"""Studies: a grid of trainings, each trained and evaluated by ``moec train`` and ``moec evaluate``, and its report."""

from moec_fairseq.study.trainings import study as study
