"""Training with a YAML file of ``configs/`` on one process or many."""

from moec_fairseq.launch.ranks import train as train
