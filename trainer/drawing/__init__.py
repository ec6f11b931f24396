"""What a figure is made of, and how it becomes SVG; standard library only."""
