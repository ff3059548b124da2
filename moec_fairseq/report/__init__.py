"""``moec report``: what the experts of a model do."""

from moec_fairseq.report.pipeline import report as report
