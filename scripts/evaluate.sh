#!/usr/bin/env bash
# From the checkpoints of a training to scores that others can compare: merges, averages, translates, scores.
#
# Usage: bash scripts/evaluate.sh [--active-env] --checkpoints DIR [OPTIONS]
#
#   --checkpoints DIR    the save_dir of a training, or one checkpoint; files of all ranks are merged
#   --average N          mean of the last N checkpoints of DIR; default: 10, or all if there are fewer
#   --by epoch|update    which of them, where DIR has checkpoint3.pt and checkpoint_3_80.pt
#   --best               checkpoint_best.pt instead
#
# What is translated; by default the test text of the data that the model was trained on:
#   --data DIR           where these data are now: of scripts/prepare_data.sh, or any binary data of fairseq; of several
#                        folders, DIR:DIR, test data are in the first, as for fairseq
#   --source-lang SRC --target-lang TGT
#                        the languages, where a model translates several pairs (fairseq's translation_multi_simple_epoch),
#                        or neither the model nor its data say which
#   --subset NAME        another part, such as valid
#   --test-set NAME      a test set of sacrebleu, such as wmt14/full
#   --input FILE         plain text, compared with
#   --references FILE... one or several translations of it; also for binary data of others, whose own references have
#                        <<unk>> for words that the data do not know
#   --tokenized          the text is tokenised: BLEU takes it as it is
#   --remove-bpe KIND    how binary data of others is cut into pieces, subword_nmt or sentencepiece; default: by the
#                        look of its dictionary
#
# How:
#   --beam N, --lenpen X, --max-tokens N
#                        size of the beam (5), exponent of the length (1), tokens of a batch (4096)
#   --cpu                leave a GPU alone
#
# Results:
#   --against FILE       translations of another system: confidence intervals, and p by paired bootstrap
#   --table FILE.csv     table of results that gets a row, also as FILE.md
#   --name NAME          of this system there; default: the last two folders of DIR
#   --samples N          translations to show; default: 3
#   --out DIR            all results; default: DIR/evaluation/last10 (or best, ...)
#   --active-env         use the environment that is active now instead of .venv in the checkout
#   --help               show this text
#
# Shows BLEU, chrF and TER of sacreBLEU, and BLEU of tokenised text, also with compounds split (as papers on German
# report it), each with its signature.
# Finished steps are skipped when the command is given again.
#
# Example: bash scripts/evaluate.sh --checkpoints checkpoints/wmt14_en_de_moec/seed1 --test-set wmt14/full --table results.csv
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/start.sh" "$@"
export PYTHONWARNINGS=ignore  # of libraries, about their own code
exec python -m moec_fairseq.evaluate ${arguments[@]+"${arguments[@]}"}
