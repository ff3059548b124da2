#!/usr/bin/env bash
# Makes the environment, then runs: moec study. Its options are those of moec study, which --help lists, and
#   --active-env   first: use the environment that is active now instead of .venv in the checkout
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/start.sh" study "$@"
