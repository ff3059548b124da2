# shellcheck shell=bash
# How the scripts talk to their user. Sourced by the other scripts, not run.

fail() { # fail SENTENCE: say it on stderr and stop
  printf '%s\n' "$*" >&2
  exit 1
}

duration() { # duration SECONDS: "42 s", "3 min 05 s"
  if (($1 < 60)); then printf '%d s' "$1"; else printf '%d min %02d s' $(($1 / 60)) $(($1 % 60)); fi
}

last_words() { # last_words LOG: the line that tells best why a command failed
  local line
  line=$(grep -aE '^(ERROR|error|[A-Za-z_.]+(Error|Exception|Interrupt))\b' "$1" | tail -n 1) || true
  [[ -n $line ]] || line=$(grep -av '^[[:space:]]*$' "$1" | tail -n 1) || true
  printf '%s' "${line:-no output}"
}

_tick() { # _tick WHAT: show that WHAT goes on, until killed
  local start=$SECONDS
  while sleep 1; do printf '\r  %s ... %s ' "$1" "$(duration $((SECONDS - start)))"; done
}

run_logged() { # run_logged LOG WHAT COMMAND...: COMMAND's output goes to LOG, WHAT and the time it took to the screen
  local log=$1 what=$2 start=$SECONDS status=0
  shift 2
  if [[ -t 1 ]]; then
    _tick "$what" 9>&- & # without the lock of `alone`, which it would keep if this script is killed
    ticker=$!
  else
    printf '  %s ...\n' "$what"
  fi
  "$@" >>"$log" 2>&1 </dev/null || status=$?
  stop_ticker
  ((status == 0)) || fail "$what failed: $(last_words "$log") (the full log is $log)"
  printf '  %s: %s\n' "$what" "$(duration $((SECONDS - start)))"
}

alone() { # alone LOCK COMMAND...: run COMMAND while no other script does so with the file LOCK
  exec 9>>"$1"
  if ! command -v flock >/dev/null; then # macOS
    python3 -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX)' || true
  elif ! flock --nonblock 9; then
    echo "Another command works in $(dirname "$1"); waiting for it ..."
    flock 9 || true # a file system without locks
  fi
  "${@:2}"
  exec 9>&-
}

ticker=""
stop_ticker() { # stop_ticker: take the running clock off the screen
  [[ -n $ticker ]] || return 0
  kill "$ticker" 2>/dev/null || true
  wait "$ticker" 2>/dev/null || true
  ticker=""
  printf '\r\033[K'
}
trap stop_ticker EXIT
interrupted=${interrupted:-Interrupted.}
trap 'stop_ticker; printf "\n%s\n" "$interrupted" >&2; exit 130' INT TERM
