# shellcheck shell=bash
# Makes the Python environment and puts it on the PATH: source scripts/env.sh [--active-env]
#
# Without an option: .venv in the checkout, made with the newest fitting Python of this machine, with the
# versions of constraints.txt. With --active-env: the environment that is active now; what it has and
# setup.py allows is kept, what is missing is installed. The second time nothing is done.
#
# Environment variables:
#   MOEC_TORCH_INDEX   address of a package index to take torch from: one that has the build without CUDA, or for an older GPU
#                      or driver, https://download.pytorch.org/whl/cu126 and the like
#   OMP_NUM_THREADS    threads for training; the number of physical cores unless set

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$root/scripts/ui.sh"

FITS='(3, 10) <= sys.version_info < (3, 14)' # as in setup.py, which says why

find_python() { # find_python: the name of a fitting Python that can make environments
  local candidate
  for candidate in python3.11 python3.12 python3.10 python3.13 python3 python; do
    if "$candidate" -c "import ensurepip, sys, venv; sys.exit(not $FITS)" 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  return 1
}

has_venv() { # has_venv: .venv is there, whole, and of this checkout
  [[ -f $root/.venv/bin/activate ]] && "$root/.venv/bin/pip" --version >/dev/null 2>&1 &&
    [[ $(source "$root/.venv/bin/activate" && echo "$VIRTUAL_ENV") -ef $root/.venv ]] # a copy is of the checkout it was copied from
}

make_venv() { # make_venv: .venv, anew where it is missing, broken or of a checkout that has moved
  local python
  has_venv && return
  [[ ! -e $root/.venv || -e $root/.venv.log || -e $root/.venv/moec-fairseq.log ]] ||
    fail "$root/.venv lacks pip or is of another folder, and these scripts did not make it; please remove it, or give --active-env."
  python=$(find_python) || fail "No Python from 3.10 to 3.13 with the modules venv and ensurepip was found; please install" \
    "Python 3.11 (Debian and Ubuntu: apt-get install python3.11 python3.11-venv python3.11-dev)."
  : >"$root/.venv.log"
  run_logged "$root/.venv.log" "making .venv with $("$python" --version)" "$python" -m venv --clear "$root/.venv"
}

check_compiler() { # check_compiler: fairseq comes as source only
  command -v "${CXX:-c++}" >/dev/null || fail "fairseq is built from source and needs a C++ compiler; please install one" \
    "(Debian and Ubuntu: apt-get install g++)."
  python -c 'import os, sysconfig as s; raise SystemExit(not os.path.exists(s.get_path("include") + "/Python.h"))' ||
    fail "fairseq is built from source and needs the headers of Python, which $(command -v python) lacks" \
      "(Debian and Ubuntu: apt-get install python3-dev)."
}

install_packages() { # install_packages [--constraint FILE]: everything setup.py names, into the active environment
  local log=$1 pip=(python -m pip install --disable-pip-version-check --progress-bar off "${@:2}")
  local tools=(setuptools wheel cython numpy) torch=(torch)
  : >"$log"
  # omegaconf, which fairseq 0.12.2 needs, has metadata that newer pips refuse.
  python -c 'import sys; sys.exit(sys.version_info >= (3, 11))' && tools+=("pip<24.1" "numpy<1.24")
  if [[ -n ${MOEC_TORCH_INDEX:-} ]]; then
    torch+=(--index-url "$MOEC_TORCH_INDEX")
  elif ! python -c 'import torch' 2>/dev/null && ! command -v nvidia-smi >/dev/null; then
    echo "  No GPU here: MOEC_TORCH_INDEX=ADDRESS takes torch from an index that has the (much smaller) build without CUDA."
  fi
  run_logged "$log" "installing the build tools" "${pip[@]}" "${tools[@]}"
  run_logged "$log" "installing torch" "${pip[@]}" "${torch[@]}"
  python -c 'import fairseq' >/dev/null 2>&1 || check_compiler
  # fairseq 0.12.2 lacks the sources of an extension that it only builds where it sees torch: it is built in isolation.
  [[ " ${tools[*]} " != *" pip<24.1 "* ]] || run_logged "$log" "installing fairseq (built here, takes minutes)" \
    "${pip[@]}" "fairseq==0.12.2" "numpy<1.24"
  # fairseq-fixed is built in this environment: in isolation pip would fetch a second torch, with CUDA, just for that.
  # Where CUDA_HOME is set, it would build extensions for CUDA whose sources it lacks, and which nothing here needs.
  run_logged "$log" "installing fairseq (built here, takes minutes) and the rest" \
    env -u CUDA_HOME "${pip[@]}" --no-build-isolation -e "${root}[dev]"
}

prefix() { # prefix: where the active environment is
  python -c 'import sys; print(sys.prefix)'
}

wanted() { # wanted: what the active environment is to hold, in a line
  echo "$root $(python --version) $(cat "$root/setup.py" "$root/constraints.txt" | cksum)"
}

is_installed() { # is_installed: the last installation in the active environment came to its end, and was what is wanted
  [[ $(cat "$(prefix)/moec-fairseq.installed" 2>/dev/null) == "$(wanted)" ]]
}

install_missing() { # install_missing [--active-env]: all that is missing
  local options=()
  if [[ ${1:-} != --active-env ]]; then
    make_venv
    source "$root/.venv/bin/activate"
    python -c 'import sys; sys.exit(sys.version_info < (3, 11))' && options=(--constraint "$root/constraints.txt")
  fi
  is_installed && return # by the command that this one has waited for
  echo "Environment: $(prefix)"
  install_packages "$(prefix)/moec-fairseq.log" ${options[@]+"${options[@]}"}
  wanted >"$(prefix)/moec-fairseq.installed"
}

prepare() { # prepare [--active-env]
  local lock=$root/.venv.lock
  if [[ ${1:-} == --active-env ]]; then
    command -v python >/dev/null || fail "--active-env was given, but there is no python on the PATH; please activate an environment."
    python -c "import sys; sys.exit(not $FITS)" ||
      fail "--active-env was given, but $(command -v python) is $(python --version 2>&1); Python 3.10 to 3.13 is needed."
    lock=$(prefix)/moec-fairseq.lock
  elif has_venv; then
    source "$root/.venv/bin/activate"
  else
    alone "$lock" install_missing
    return
  fi
  is_installed || alone "$lock" install_missing "$@"
}

physical_cores() { # physical_cores: how many this process may use; hyperthreads only get in each other's way
  local cores available
  available=$(python "$root/moec_fairseq/util/machine.py")
  cores=$(lscpu --parse=core,socket 2>/dev/null | grep -v '^#' | sort -u | wc -l)
  ((cores > 0 && cores < available)) && echo "$cores" || echo "$available"
}

prepare "$@"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(physical_cores)}
# Training on a CPU otherwise spends most of its time giving large temporaries back to the system and taking them again;
# one arena, because those of other threads are too small for the temporaries of an expert.
export MALLOC_MMAP_THRESHOLD_=$((8 << 30)) MALLOC_TRIM_THRESHOLD_=$((8 << 30)) MALLOC_ARENA_MAX=1 THP_MEM_ALLOC_ENABLE=1
# oneDNN compiles products of bfloat16 for each shape. The 1024 it keeps are fewer than the batches of an epoch need, so
# all would be compiled again in every epoch.
export ONEDNN_PRIMITIVE_CACHE_CAPACITY=${ONEDNN_PRIMITIVE_CACHE_CAPACITY:-8192}
