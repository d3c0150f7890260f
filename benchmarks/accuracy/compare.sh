#!/bin/sh
# All methods on the real photos: benchmarks/accuracy/compare.sh DATA OUT [options of keyseg compare]
# DATA holds cityscapes/ and ade/ADEChallengeData2016/, as for run.py. A day or so on one thread; goes on where it stopped.
# PYTHON names the interpreter. Writes OUT/MODEL_LAYOUT/compare.html for each.
set -eu
here=$(dirname "$0")
data=$1 out=$2
shift 2
status=0

compare() {
    name=$1 root=$2
    shift 2
    mkdir -p "$out"
    "${PYTHON:-python}" -c 'import sys; from keyseg_mm.cli import main; sys.exit(main(sys.argv[1:]))' \
        compare "$here/$name.py" "$@" --out "$out/$name" --cfg-options train_dataloader.dataset.data_root="$root" \
        val_dataloader.dataset.data_root="$root" test_dataloader.dataset.data_root="$root" || status=$?
}

for model in fast-scnn segformer setr; do
    compare "${model}_cityscapes" "$data/cityscapes" "$@"
done
compare fast-scnn_ade20k "$data/ade/ADEChallengeData2016" "$@"
exit $status
