# shellcheck shell=bash
# How a script begins: source scripts/start.sh "$@"
#
# Shows the usage for --help, makes the environment (the active one after --active-env), and leaves the other
# arguments in the array `arguments`, the checkout in `root`.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$root/scripts/ui.sh"
environment=()
case ${1:-} in
  --help | -h) usage "${BASH_SOURCE[1]}"; exit ;;
  --active-env) environment=(--active-env); shift ;;
esac
arguments=("$@")
set --
source "$root/scripts/env.sh" ${environment[@]+"${environment[@]}"}
