"""One file a place to run on; each renders a plan to a Submission and hands it over."""
