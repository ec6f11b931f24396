"""Scores: each is a vector of sums that adds up over examples and ranks, and a pure value of it.

No logits and no texts are gathered for a score. Values are fractions of 1, but for BLEU and chrF,
which are on their library's scale of 100; NaN where there was nothing to score.
"""
