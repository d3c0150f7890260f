#!/usr/bin/env bash
# Test on several GPUs or processes of one machine, or of NNODES machines, through torchrun.
#   tools/dist_test.sh CONFIG CHECKPOINT PROCESSES [options of tools/test.py]
set -eu
files=("${1:?config}" "${2:?checkpoint}")
shift ${#files[@]}
processes=${1:?number of processes}
shift
exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" --node-rank="${NODE_RANK:-0}" --nproc-per-node="$processes" \
    --master-addr="${MASTER_ADDR:-127.0.0.1}" --master-port="${PORT:-29500}" \
    "$(dirname "$0")/test.py" "${files[@]}" --launcher pytorch "$@"
