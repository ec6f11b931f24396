"""What several tests share. Nothing here knows what the trainer should do."""
