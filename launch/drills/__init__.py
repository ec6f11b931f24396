"""The drill bench: real runs, broken on purpose through public doors, judged by one oracle."""
