#!/usr/bin/env bash
# The whole life of a cohort on the procedural phantom: prepare, train the three bundles, synthesise, log.
# Usage: tour.sh FOLDER (emptied first). Everything is tiny: it shows that the parts fit, not what they can do.
set -euo pipefail
tour=${1:?usage: tour.sh FOLDER}
rm -rf "$tour"
mkdir -p "$tour"
tour=$(cd "$tour" && pwd)  # the notebook runs in its own folder
export MLFLOW_TRACKING_URI="sqlite:///$tour/mlflow.db" MLFLOW_DISABLE_TELEMETRY=true

step() { printf '\n== %s\n' "$1"; }
one_process=(python)
two_processes=(env OMP_NUM_THREADS=1 torchrun --standalone --nnodes=1 --nproc_per_node=2)
launch=("${one_process[@]}")
train() {  # BUNDLE CONFIG_FILES RUN_FOLDER [OVERRIDES ...]
    local bundle="bundles/$1_bundle" configs=$2 run=$3
    shift 3
    "${launch[@]}" -m monai.bundle run --bundle_root "$bundle" --config_file "$configs" --dataset_dir "$tour/cohort" \
        --output_dir "$tour/$run" --tracking "$bundle/configs/tracking.json" --run_name "tour-$run" "$@"
}

step "a phantom cohort in three layouts: LUNA16, LIDC-IDRI (DICOM + XML), MSD (NIfTI)"
python scripts/make_phantom.py --out "$tour/source" --patients 12 --seed 0 --size 96 --slices 24 --spacing 10

step "prepare"
python scripts/prepare.py "$tour"/source/* --out "$tour/cohort"

step "train lung_seg_bundle, in two processes"
launch=("${two_processes[@]}")
train lung_seg "['bundles/lung_seg_bundle/configs/train.json','bundles/lung_seg_bundle/configs/multi_gpu_train.json']" \
    lung_seg --max_epochs 2 --epoch_length 6 --batch_size 2
launch=("${one_process[@]}")

step "train wcapsgan_bundle: nodules"
train wcapsgan bundles/wcapsgan_bundle/configs/train.json nodules --max_epochs 2 --epoch_length 50 --batch_size 4

step "train wcapsgan_bundle: lungs, at 64 pixels and then grown to 256"
lung_configs="['bundles/wcapsgan_bundle/configs/train.json','bundles/wcapsgan_bundle/configs/train_lung.json']"
train wcapsgan "$lung_configs" lungs_64 --max_epochs 2 --epoch_length 60 --batch_size 8 --size 64 --spacing_mm 5.6 \
    --network_def#channels 64 --network_def#max_width_multiplier 2 \
    --critic_def#scales "[{'downsampling': 1, 'extra_convolutions': 0}]"
train wcapsgan "$lung_configs" lungs --pretrained "$tour/lungs_64/model_lung.pt" --max_epochs 1 --val_interval 1 \
    --epoch_length 2 --batch_size 2

step "the bundles with the weights just trained (the committed ones stay as they are)"
python scripts/package_bundles.py --out "$tour/bundles" \
    --weights lung_seg="$tour/lung_seg" --weights wcapsgan="$tour/nodules" --weights wcapsgan="$tour/lungs"

# Of generated lungs and nodules alone: the few patients of the phantom are all needed as reals.
step "synthesise composites, not enhanced"
python scripts/synthesize.py --bundles "$tour/bundles" --out "$tour/composites" --lung-px 256 --count 12 --seed 1 --no-enhance

step "train cyclegan_bundle on them"
cyclegan_settings=(--composite_dir "$tour/composites" --epoch_length 6 --batch_size 2 --crop_px 64)
train cyclegan bundles/cyclegan_bundle/configs/train.json cyclegan "${cyclegan_settings[@]}" --max_epochs 1

step "go on with it, in two processes"
launch=("${two_processes[@]}")
train cyclegan "['bundles/cyclegan_bundle/configs/train.json','bundles/cyclegan_bundle/configs/multi_gpu_train.json']" \
    cyclegan "${cyclegan_settings[@]}" --max_epochs 2 --resume_from "$tour/cyclegan/resume_1.pt"
launch=("${one_process[@]}")
python scripts/package_bundles.py --out "$tour/bundles" --overwrite --weights lung_seg="$tour/lung_seg" \
    --weights wcapsgan="$tour/nodules" --weights wcapsgan="$tour/lungs" --weights cyclegan="$tour/cyclegan"

step "synthesise through all stages"
python scripts/synthesize.py --cohort "$tour/cohort" --bundles "$tour/bundles" --out "$tour/synthetic" --lung-px 256 \
    --count 12 --seed 2

step "the notebook of the whole way, docs/tutorial.ipynb"
if python -c "import ipykernel, nbclient" 2> /dev/null; then
    LUNGSYNTH_NOTEBOOK="$tour/notebook" jupyter-execute docs/tutorial.ipynb
else
    echo "Skipped: it needs nbclient and ipykernel (pip install 'lungsynth[test]')."
fi

step "check what came out"
LUNGSYNTH_TOUR="$tour" python -m pytest tests/test_tour.py tests/test_bundles_shared.py
