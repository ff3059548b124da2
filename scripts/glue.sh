#!/usr/bin/env bash
# Makes the environment, then runs: moec glue. Its options are those of moec glue, which --help lists, and
#   --active-env   first: use the environment that is active now instead of .venv in the checkout
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/start.sh" glue "$@"
