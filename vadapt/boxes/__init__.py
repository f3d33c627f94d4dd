"""Boxes as pure functions of arrays: geometry, anchors, coders, assignment, suppression.

Boxes are (x1, y1, x2, y2) in pixels of the padded image, in float32; a box's width is x2 - x1.
Ground truths come padded to one number of rows, with a mask of those that are there.
"""
