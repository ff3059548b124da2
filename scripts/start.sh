# shellcheck shell=bash
# How a script begins and ends: source scripts/start.sh COMMAND "$@"
#
# Makes the environment (with --active-env: uses the active one), then runs moec COMMAND. --help needs no environment.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$root/scripts/ui.sh"
command=$1
shift
environment=()
[[ ${1:-} != --active-env ]] || { environment=(--active-env); shift; }
arguments=("$@")
for argument; do
  case $argument in
    --help | -h) exec "$(command -v python3 || command -v python)" "$root/moec_fairseq/__main__.py" "$command" --help ;;
  esac
done
set --
source "$root/scripts/env.sh" ${environment[@]+"${environment[@]}"}
export PYTHONWARNINGS=ignore # of libraries, about their own code
exec python -m moec_fairseq "$command" ${arguments[@]+"${arguments[@]}"}
