#!/usr/bin/env bash
# Trains with a YAML of configs/, as one process, on all GPUs of this machine, or as a part of a job on several.
#
# Usage: bash scripts/train.sh CONFIG [OPTIONS] task.data=BIN [KEY=VALUE ...]
#
#   CONFIG                 path of a YAML, or its name in configs/, such as moec_transformer
#   KEY=VALUE              overrides a key of the YAML, in hydra's grammar; paths begin where you stand
#
# How many processes (ranks):
#   --processes W          W on this machine (default: as many as it has GPUs, or 1 without)
#   --nodes M              W on each of M machines: give the same command on all of them, but on each another
#   --node-rank K          0 to M-1, and on all the same
#   --master HOST:PORT     machine 0 and a free port of it
#   Started by torchrun or srun (once for each rank), the script is the rank that their variables tell:
#     torchrun --no-python --nproc-per-node 4 bash scripts/train.sh CONFIG task.data=BIN
#     srun --ntasks-per-node 4 bash scripts/train.sh CONFIG task.data=BIN
#
#   --cpu                  leave GPUs alone
#   --timeout SECONDS      how long ranks wait for each other before they give up (default: 600)
#   --log-dir DIR          DIR/rank-R.log gets the output of rank R (default: logs in checkpoint.save_dir)
#   --dry-run              show the command line and environment of each rank, and stop
#   --active-env           use the environment that is active now instead of .venv in the checkout
#   --help                 show this text
#
# Example: bash scripts/train.sh moec_transformer --processes 2 task.data=BIN optimization.max_update=1000
#
# The screen shows the output of rank 0. When a rank fails, the others are stopped and one line tells what happened
# (exit status 1); Ctrl-C stops all of them (130). The same command goes on with the last checkpoint.
# OMP_NUM_THREADS is the number of physical cores divided by that of the processes here, unless it is set.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$root/scripts/ui.sh"
environment=() arguments=()
for argument; do
  case $argument in
    --help | -h) usage "${BASH_SOURCE[0]}"; exit ;;
    --active-env) environment=(--active-env) ;;
    *) arguments+=("$argument") ;;
  esac
done
set --
threads=${OMP_NUM_THREADS:-}
# Ranks that torchrun or srun start at the same moment must not install side by side.
exec 9<"$root"
! command -v flock >/dev/null || flock 9 2>/dev/null || true
source "$root/scripts/env.sh" ${environment[@]+"${environment[@]}"}
exec 9<&-
cores=$OMP_NUM_THREADS
[[ -n $threads ]] || unset OMP_NUM_THREADS
export PYTHONWARNINGS=ignore
# Not as moec_fairseq.launch: that would import torch and fairseq first.
exec python -c 'import runpy, sys; sys.path[0] = sys.argv.pop(1); runpy.run_module("launch", run_name="__main__")' \
  "$root/moec_fairseq" ${arguments[@]+"${arguments[@]}"} --cores "$cores"
