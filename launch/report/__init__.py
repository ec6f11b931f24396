"""What a run was, on one page that needs nothing but itself; and runs beside each other."""
