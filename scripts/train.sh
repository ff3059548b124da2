#!/usr/bin/env bash
# Trains with a YAML file: one process, several on this machine, or this machine's part of a larger job.
#
# Usage: bash scripts/train.sh [--active-env] CONFIG [KEY=VALUE ...] [--processes W] [--dry-run]
#                              [--nodes M --node-rank K --master HOST:PORT] [--logs DIR] [--patience S]
#
#   CONFIG         path of a YAML file, or a name in configs/
#   KEY=VALUE      any option of fairseq and of this plug-in, such as task.data=BIN optimization.max_update=1000; lists are
#                  optimization.lr=[0.1,0.2], and text with commas, equals signs or brackets is quoted for hydra, too:
#                  "model.encoder_moe_layers='1,2'"
#   --processes W  processes on this machine; default: one for each GPU, or 1
#   --nodes M --node-rank K --master HOST:PORT
#                  M machines start W processes each; rank 0 listens at HOST:PORT of machine 0
#   --logs DIR     one log for each rank; default: logs/ and the name of CONFIG
#   --patience S   seconds after which ranks give up waiting for lost ones; default: 1800
#   --dry-run      show the commands and run nothing
#   --active-env   use the environment that is active now instead of .venv in the checkout
#   --help         show this text
#
# Started by srun with several tasks or by torchrun --no-python, it runs the one rank that their variables name.
# Experts are shared by all processes. When a rank dies, all are stopped and the reason is shown; started again,
# training goes on from the last checkpoint.
#
# Example: bash scripts/train.sh moec_transformer task.data=quickstart-en-de/binary --processes 2
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/start.sh" "$@"
export PYTHONWARNINGS=ignore  # of libraries, about their own code
exec python -m moec_fairseq.launch --configs "$root/configs" ${arguments[@]+"${arguments[@]}"}
