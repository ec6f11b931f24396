"""Outcomes, with real parts made small. Folders are told apart by what a test needs to run."""
