"""One file a task: how a batch becomes a loss, and how answers are scored."""
