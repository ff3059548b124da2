#!/usr/bin/env bash
# Runs ruff, mypy and the tests.
#
# Usage: bash scripts/run_tests.sh [--active-env] [ARGUMENTS OF PYTEST]
#
#   --active-env   use the environment that is active now instead of .venv in the checkout
#   --help         show this text
#
# Example: bash scripts/run_tests.sh tests/moe -k router
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/start.sh" "$@"
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

check "ruff check" ruff check .
check "ruff format" ruff format --check .
check "mypy" mypy
check "pytest" python -m pytest -q --durations 10 ${arguments[@]+"${arguments[@]}"}

printf '\n'
printf '%s\n' "${summary[@]}"
exit $status
