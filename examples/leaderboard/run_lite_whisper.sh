#!/bin/bash
# Runs run_eval.py over the sets of the English table, one after the other, on this machine.
#
#   PYTHONPATH=open_asr_leaderboard bash run_lite_whisper.sh MODEL_ID COMMIT [options of run_eval.py]
#
# SETS names another list of sets, a line "configuration split dataset" for each.
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
SETS=${SETS:-$HERE/sets.txt}
MODEL_ID=${1:?give the model: org/name or a folder}
REVISION=${2:?give the commit of the model, whose code is run}

while read -r DATASET SPLIT DATASET_PATH; do
    echo "$MODEL_ID on $DATASET $SPLIT"
    python "$HERE/run_eval.py" --model_id "$MODEL_ID" --revision "$REVISION" \
        --dataset_path "$DATASET_PATH" --dataset "$DATASET" --split "$SPLIT" "${@:3}" </dev/null
done <"$SETS"

python - "$MODEL_ID" <<'PYTHON'
import sys

from normalizer.eval_utils import score_results

score_results("results", sys.argv[1])
PYTHON
