#!/usr/bin/env bash
# How fast it is: ratios, medians and spread of 7 interleaved repeats, peak memory.
#
# Usage: bash scripts/bench.sh [--active-env] [layer|loss|train|generate|prepare|clean|all] [--json FILE] [--size small] [--device cpu|cuda]
#
#   layer          our layer against a dense block of the same active size and fairscale's MOELayer; its parts; bfloat16
#   train          training steps of whole models, and the optimizer's share of them
#   generate       beam search with whole models
#   prepare        from your own text to pieces, as in the quickstart
#   clean          from published text to pieces, as in prepare_data.sh; with
#     --text PREFIX  real text in PREFIX.en and PREFIX.de instead of made up
#     --moses DIR    the same with Moses' scripts in DIR and subword-nmt
#   --json FILE    write every repeat to FILE, and a picture of time and memory beside it
#   --size small   tiny sizes, which only show that it runs
#   --device       a GPU is used if there is one
#   --active-env   use the environment that is active now instead of .venv in the checkout
#   --help         show this text
#
# Example: bash scripts/bench.sh layer --json layer.json
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/start.sh" "$@"
# What fairscale warns about concerns its own code; torch's profiler reports each of its starts.
export PYTHONWARNINGS=ignore KINETO_LOG_LEVEL=99
exec python -m moec_fairseq.bench ${arguments[@]+"${arguments[@]}"}
