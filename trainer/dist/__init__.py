"""The world of ranks: place, groups, agreement. The only torch.distributed door outside engine/."""
