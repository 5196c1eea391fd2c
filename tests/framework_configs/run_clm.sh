torchrun --nproc_per_node=4 run_clm.py --config_overrides "n_layer=8,n_embd=512,n_head=8" \
  --block_size 1024 --per_device_train_batch_size=16 --gradient_accumulation_steps 2 --learning_rate 6e-4 \
  --lr_scheduler_type cosine --warmup_ratio 0.01 --max_steps 50000 --adam_beta2 0.95 --output_dir out
