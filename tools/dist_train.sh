#!/usr/bin/env bash
# Train on several GPUs or processes of one machine, or of NNODES machines, through torchrun.
#   tools/dist_train.sh CONFIG PROCESSES [options of tools/train.py]
set -eu
files=("${1:?config}")
shift ${#files[@]}
processes=${1:?number of processes}
shift
exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" --node-rank="${NODE_RANK:-0}" --nproc-per-node="$processes" \
    --master-addr="${MASTER_ADDR:-127.0.0.1}" --master-port="${PORT:-29500}" \
    "$(dirname "$0")/train.py" "${files[@]}" --launcher pytorch "$@"
