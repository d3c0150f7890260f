#!/bin/sh
# All methods on the real photos: benchmarks/accuracy/compare.sh DATA OUT [options of keyseg compare]
# DATA holds cityscapes/ and ade/ADEChallengeData2016/, as for run.py. A day or so on one thread; goes on where it stopped.
# PYTHON names the interpreter. Writes OUT/cityscapes/compare.html (three models) and OUT/ade20k/compare.html (one).
set -eu
here=$(dirname "$0")
data=$1 out=$2
shift 2

compare() {
    layout=$1 root=$2
    shift 2
    mkdir -p "$out"
    "${PYTHON:-python}" -c 'import sys; from keyseg_mm.cli import main; sys.exit(main(sys.argv[1:]))' \
        compare "$@" --out "$out/$layout" --cfg-options train_dataloader.dataset.data_root="$root" \
        val_dataloader.dataset.data_root="$root" test_dataloader.dataset.data_root="$root"
}

status=0
compare cityscapes "$data/cityscapes" "$here/fast-scnn_cityscapes.py" "$here/segformer_cityscapes.py" \
    "$here/setr_cityscapes.py" "$@" || status=$?
compare ade20k "$data/ade/ADEChallengeData2016" "$here/fast-scnn_ade20k.py" "$@" || status=$?
exit $status
