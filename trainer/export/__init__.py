"""From a checkpoint to a Hugging Face folder, proved equal to the trained model."""
