#!/usr/bin/env bash
# Makes fairseq's binary data of a published corpus: downloads, cleans, segments, binarises.
#
# Usage: bash scripts/prepare_data.sh [--active-env] RECIPE [OPTIONS]
#
#   RECIPE               a name in data/ (wmt14_en_de, wmt16_en_de, wmt14_en_fr, iwslt14_de_en, multi30k_en_de,
#                        multi30k_en_fr), or the path of a YAML file of your own; data/README.md describes them
#   --raw-dir DIR        where the archives are, or are downloaded to; default: OUT/raw
#   --out DIR            all results; default: RECIPE-SOURCE-TARGET
#   --workers N          processes; default: 2
#   --source LANG --target LANG
#                        the direction, if not that of the recipe
#   --vocab-size N       most pieces, of both languages together; default: 32000
#   --model-type TYPE    bpe, unigram or char; default: bpe
#   --character-coverage SHARE
#                        of characters that get pieces; default: 1.0
#   --max-length N       drop pairs with more pieces on a side; default: 250
#   --max-ratio R        drop pairs with one side more than R times as long as the other; default: 1.5
#   --distinct           drop training pairs that have been there before
#   --active-env         use the environment that is active now instead of .venv in the checkout
#   --help               show this text
#
# Archives that --raw-dir has are not downloaded; broken downloads go on where they were. Finished steps are skipped
# when the command is given again.
#
# Example: bash scripts/prepare_data.sh wmt14_en_de --raw-dir /data/wmt --workers 16
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/start.sh" "$@"
export PYTHONWARNINGS=ignore  # of libraries, about their own code
exec python -m moec_fairseq.prepare --recipes "$root/data" ${arguments[@]+"${arguments[@]}"}
