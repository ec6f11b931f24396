"""Figures of an evaluation: each is a drawing, shown as a page (SVG in HTML) and as a PNG."""
