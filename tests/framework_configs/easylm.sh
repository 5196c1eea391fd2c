python -m EasyLM.models.llama.llama_train --total_steps=20000 --load_llama_config='1b' \
  --optimizer.type='adamw' --optimizer.adamw_optimizer.lr=3e-4 --optimizer.adamw_optimizer.end_lr=3e-5 \
  --optimizer.adamw_optimizer.lr_warmup_steps=2000 --train_dataset.json_dataset.seq_length=2048 \
  --train_dataset.json_dataset.batch_size=512 |& tee log
