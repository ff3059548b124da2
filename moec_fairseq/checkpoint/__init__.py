"""Tools for checkpoints whose experts are spread over ranks: merge, reshard, average, describe."""
