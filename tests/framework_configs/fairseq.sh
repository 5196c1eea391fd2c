fairseq-train data-bin/text --task language_modeling --arch transformer_lm --distributed-world-size 16 \
  --decoder-layers 12 --decoder-embed-dim 768 --decoder-ffn-embed-dim 3072 --decoder-attention-heads 12 \
  --optimizer adam --adam-betas '(0.9, 0.98)' --weight-decay 0.01 --clip-norm 0.0 --lr 0.0006 \
  --lr-scheduler polynomial_decay --warmup-updates 500 --tokens-per-sample 1024 --max-tokens 8192 --update-freq 2 \
  --max-update 50000 --fp16
