"""Corpus -> tokenizer -> token store -> pure order -> rows -> a rank's stream of micro-batches."""
