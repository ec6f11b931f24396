"""What W&B could not be told while a run went on: repaired, told in order, and looked after."""
