"""What happens inside the ranks, and the offline tools on what they made."""
