#!/bin/bash
# Submits a job for each set of the English table to HF Jobs, waits for all of them, and scores what they have written.
# It stands in a folder of a clone of github.com/huggingface/open_asr_leaderboard, beside the folder normalizer.
#
#   SPACE=org/space RESULTS_BUCKET=org/bucket HF_TOKEN=hf_... bash submit_jobs.sh MODEL_ID COMMIT [BATCH_SIZE]
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
MODEL_ID=${1:?give the model: org/name}
REVISION=${2:?give the commit of the model, whose code is run}
BATCH_SIZE=${3:-1024} # the largest to try: run_eval.py goes down to what fits
: "${SPACE:?a Space with the Dockerfile of this folder}" "${RESULTS_BUCKET:?a bucket for the manifests}" "${HF_TOKEN:?}"
if [[ ! $REVISION =~ ^[0-9a-f]{40}$ ]]; then
    echo "$REVISION is not a commit of 40 digits: a branch may change while the jobs run" >&2
    exit 2
fi

FOLDER=${MODEL_ID//\//-}
SCRIPT=$(base64 -w0 "$HERE/run_eval.py")
NORMALIZER=$(tar --exclude=__pycache__ -czf - -C "$HERE/.." normalizer | base64 -w0)

JOBS=()
while read -r DATASET SPLIT DATASET_PATH; do
    echo "job: $MODEL_ID on $DATASET $SPLIT"
    hf jobs run --flavor "${FLAVOR:-h200}" --timeout 8h --secrets HF_TOKEN ${ORG_NAME:+--namespace "$ORG_NAME"} \
        --volume "hf://buckets/$RESULTS_BUCKET:/results" "hf.co/spaces/$SPACE" \
        bash -c "set -e
            echo $NORMALIZER | base64 -d | tar -xzf - -C /app
            echo $SCRIPT | base64 -d >/app/run_eval.py
            cd /app
            python run_eval.py --model_id $MODEL_ID --revision $REVISION --device 0 --batch_size $BATCH_SIZE \
                --dataset_path $DATASET_PATH --dataset $DATASET --split $SPLIT
            mkdir -p /results/$FOLDER
            cp results/*.jsonl /results/$FOLDER/" </dev/null &
    JOBS+=($!)
done <"$HERE/sets.txt"

FAILED=0
for JOB in "${JOBS[@]}"; do
    wait "$JOB" || FAILED=$((FAILED + 1))
done
if ((FAILED)); then
    echo "$FAILED of ${#JOBS[@]} jobs failed; see https://huggingface.co/settings/jobs" >&2
    exit 1
fi

mkdir -p "results/$FOLDER"
hf buckets sync "hf://buckets/$RESULTS_BUCKET/$FOLDER" "results/$FOLDER"
PYTHONPATH="$HERE/.." python - "results/$FOLDER" "$MODEL_ID" <<'PYTHON'
import sys

from normalizer.eval_utils import score_results

score_results(*sys.argv[1:])
PYTHON
