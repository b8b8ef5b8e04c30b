#!/usr/bin/env bash
# Trains what the tables compare, one after the other: train_tables.sh COHORT OUT [METHOD ...]
# Weights come to OUT/<method>.pt and .json. A method that has them is skipped; one that was stopped goes on where it was.
# Each takes about 12 minutes of one processor core with bfloat16 (AMP=False without it: about half as long again).
set -euo pipefail

if [ $# -lt 2 ]; then
    echo "Expected: train_tables.sh COHORT OUT [METHOD ...]; COHORT is a folder written by scripts/prepare.py." >&2
    exit 2
fi
cohort=$1 out=$2
shift 2
bundle=bundles/lung_seg_bundle
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} MLFLOW_DISABLE_TELEMETRY=true

train_method() {
    local name=$1 work=$out/training/$1 resume=()
    if [ -f "$out/$name.pt" ]; then
        echo "$name: has weights, skipped"
        return
    fi
    mkdir -p "$work"
    local last
    last=$(find "$work" -name 'resume_*.pt' | sort -V | tail -n 1)
    if [ -n "$last" ]; then resume=(--resume_from "$last"); fi
    echo "$name: ${last:+goes on from $last, }log in $work/train.log"
    python -m monai.bundle run --config_file "['$bundle/configs/train.json','$bundle/configs/train_$name.json']" \
        --bundle_root "$bundle" --dataset_dir "$cohort" --output_dir "$work" --amp "${AMP:-True}" "${resume[@]}" \
        >> "$work/train.log" 2>&1
    cp "$work/model.json" "$out/$name.json"
    cp "$work/model.pt" "$out/$name.pt.part"
    mv "$out/$name.pt.part" "$out/$name.pt"
}

# Table I
for method in "${@:-unet unet_plus_plus cnn_vgg faster_rcnn_3d}"; do
    for name in $method; do train_method "$name"; done
done
