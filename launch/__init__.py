"""Puts ranks on machines. Never imports torch, deepspeed, transformers, ray or wandb."""
