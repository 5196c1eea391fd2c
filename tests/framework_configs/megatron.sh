#!/bin/bash
#SBATCH --nodes=4
# --lr 1 in a comment is no option
GPUS=8
SEQ=4096
BATCH=256
MODEL_ARGS=(
    --num-layers 16   # as small as can be
    --hidden-size 1024
    --num-attention-heads 16
    --group-query-attention
    --num-query-groups 4
    --ffn-hidden-size 2816
    --swiglu
    --seq-length $SEQ
    --max-position-embeddings $((SEQ * 2))
)
TRAIN_ARGS="
    --micro-batch-size 2 --global-batch-size ${BATCH} --train-samples 2560000 \
    --lr 3.0e-4 --min-lr=3e-5 --lr-decay-style WSD --lr-wsd-decay-style linear --lr-wsd-decay-samples 512000 \
    --lr-warmup-samples $((BATCH * 500)) --adam-beta2 0.95 --weight-decay 0.1
"
torchrun --nproc_per_node $GPUS --nnodes 4 pretrain_gpt.py ${MODEL_ARGS[@]} $TRAIN_ARGS --bf16 --data-path $1 2>&1 | tee log
