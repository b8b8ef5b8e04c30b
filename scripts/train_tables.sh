#!/usr/bin/env bash
# Trains what the tables compare, one after the other: train_tables.sh COHORT OUT [METHOD ...]
# Weights come to OUT/<method>.pt and .json, in half precision where they would be 3 MB or more. A method that has them is skipped; one that was stopped goes on where it was.
# METHODs are those of Table I (unet, unet_plus_plus, cnn_vgg, faster_rcnn_3d, and dense_unet_equal, the Dense U-Net
# itself at the others' budget), nodules_NAME and lungs_NAME of Table II with
# NAME one of gan, dcgan, wgan, biggan, capsulenets, w_capsulegan_equal (W-CapsuleGAN itself at the others' budget), and
# slices_NAME of Table III with NAME one of gan, dcgan, wgan, biggan, w_capsulegan, which make whole diseased slices in one
# piece. Or the groups table_1, nodules, lungs, slices (the paper's four). Without any, the four groups.
# Methods of Table I take about 12 minutes each of one processor core with bfloat16 (AMP=False without it: about half as
# long again). TABLE_1_OPTIONS are further options of these trainings, such as "--use_spheres True" for LUNA16. The others take
# NODULE_MINUTES, LUNG_MINUTES or SLICE_MINUTES of one core, validations included, whatever the method. What slices are
# trained on is composed first, into OUT/slices (scripts/make_slices.py, some minutes).
set -euo pipefail

if [ $# -lt 2 ]; then
    echo "Expected: train_tables.sh COHORT OUT [METHOD ...]; COHORT is a folder written by scripts/prepare.py." >&2
    exit 2
fi
cohort=$1 out=$2
shift 2
NODULE_MINUTES=${NODULE_MINUTES:-60} LUNG_MINUTES=${LUNG_MINUTES:-60} SLICE_MINUTES=${SLICE_MINUTES:-60}
read -r -a table_1_options <<< "${TABLE_1_OPTIONS:-}"
table_1=(unet unet_plus_plus cnn_vgg faster_rcnn_3d dense_unet_equal)
table_2=(gan dcgan wgan biggan capsulenets w_capsulegan_equal)
table_3=(gan dcgan wgan biggan)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} MLFLOW_DISABLE_TELEMETRY=true

train_method() {  # METHOD BUNDLE CONFIG_FILES [OVERRIDES ...]
    local name=$1 bundle=bundles/$2 configs=$3 work=$out/training/$1 resume=()
    shift 3
    if [ -f "$out/$name.pt" ]; then
        echo "$name: has weights, skipped"
        return
    fi
    mkdir -p "$work"
    local last
    last=$(find "$work" -name 'resume_*.pt' | sort -V | tail -n 1)
    if [ -n "$last" ]; then resume=(--resume_from "$last"); fi
    echo "$name: ${last:+goes on from $last, }log in $work/train.log"
    python -m monai.bundle run --config_file "$configs" --bundle_root "$bundle" --dataset_dir "$cohort" \
        --output_dir "$work" "$@" "${resume[@]}" >> "$work/train.log" 2>&1
    python scripts/store_weights.py "$work/model.pt" "$out/$name.pt"
}

segmentation() {
    local configs=bundles/lung_seg_bundle/configs
    train_method "$1" lung_seg_bundle "['$configs/train.json','$configs/train_$1.json']" --amp "${AMP:-True}" "${table_1_options[@]}"
}

# The minutes alone end a training: no patience, no last epoch.
generation() {  # METHOD MINUTES CONFIG_FILES ...
    local method=$1 name=${1#*_} minutes=$2 files configs=bundles/wcapsgan_bundle/configs
    shift 2
    files=$(printf ",'$configs/%s'" "$@")
    case $name in w_capsulegan) ;; *) files+=",'$configs/train_$name.json'" ;; esac
    train_method "$method" wcapsgan_bundle "[${files:1}]" --weights_name model.pt --amp "${AMP:-None}" \
        --max_minutes "$minutes" --max_epochs 1000000 --patience 1000000
}

slices() {  # METHOD; trained on a folder of its own
    local work=$out/slices
    if [ ! -f "$out/$1.pt" ]; then python scripts/make_slices.py --cohort "$cohort" --out "$work"; fi
    local cohort=$work
    generation "$1" "$SLICE_MINUTES" train.json train_lung.json train_slice.json
}

if [ $# -eq 0 ]; then set -- table_1 nodules lungs slices; fi
methods=()
for method in "$@"; do
    case $method in
        table_1) methods+=("${table_1[@]}") ;;
        nodules | lungs) methods+=("${table_2[@]/#/${method}_}") ;;
        slices) methods+=("${table_3[@]/#/slices_}") ;;
        *) methods+=("$method") ;;
    esac
done
for method in "${methods[@]}"; do
    case $method in
        nodules_*) generation "$method" "$NODULE_MINUTES" train.json ;;
        lungs_*) generation "$method" "$LUNG_MINUTES" train.json train_lung.json ;;
        slices_*) slices "$method" ;;
        *) segmentation "$method" ;;
    esac
done
