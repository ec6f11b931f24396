"""Parameter groups, optimizers, and schedules as step -> learning rate. No scheduler objects."""
