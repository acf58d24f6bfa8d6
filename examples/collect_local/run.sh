#!/usr/bin/env bash
# A whole collection with a model on this machine as the teacher: no key, no network after the weights, no GPU.
# Some minutes on two cores. Stop it with Ctrl-C and start it again: it goes on where it was.
# A teacher this small writes a short script of its own well enough; role-play wants a larger one (see docs/collect.md).
set -euo pipefail
folder=${1:-runs/local}
model=${2:-qwen2.5-coder-1.5b}
qiaoban models pull "$model"
qiaoban collect plan "$folder" --count 6 --modes script --template seed2023 --length 120-240 \
  --risks everyday --turns 3-4 --ages 9-14 --seed 1
qiaoban collect run "$folder" --embedded --model "$model" || test $? -eq 1 # 1: some cards failed, see failed.jsonl
qiaoban collect status "$folder"
