#!/usr/bin/env bash
# Runs ruff, mypy and the tests, with one process of pytest for each core, at most eight.
#
# Usage: bash scripts/run_tests.sh [--active-env] [ARGUMENTS OF PYTEST]
#
#   --active-env   use the environment that is active now instead of .venv in the checkout
#   --help         show this text
#
# Examples:
#   bash scripts/run_tests.sh tests/moe -k router
#   bash scripts/run_tests.sh --numprocesses 0     # all tests in one process
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$root/scripts/ui.sh"
environment=()
case ${1:-} in
  --help | -h) sed -n '2,/^set /{s/^# \{0,1\}//p;}' "${BASH_SOURCE[0]}"; exit ;;
  --active-env) environment=(--active-env); shift ;;
esac
arguments=("$@")
set --
source "$root/scripts/env.sh" ${environment[@]+"${environment[@]}"}
cd "$root"

summary=()
status=0
check() { # check NAME COMMAND...: run COMMAND, note how it ended
  local name=$1 start=$SECONDS outcome=passed
  shift
  printf '\n== %s\n' "$name"
  "$@" || { outcome=FAILED; status=1; }
  summary+=("$(printf '%-13s %s, %s' "$name" "$outcome" "$(duration $((SECONDS - start)))")")
}

export OMP_NUM_THREADS=1 # the processes share the cores
check "ruff check" ruff check .
check "ruff format" ruff format --check .
check "mypy" mypy
check "pytest" python -m pytest -q --durations 10 \
  --numprocesses auto --maxprocesses 8 --dist worksteal ${arguments[@]+"${arguments[@]}"}

printf '\n'
printf '%s\n' "${summary[@]}"
exit $status
