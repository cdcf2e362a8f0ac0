"""What people look at: one view of the cluster's GPUs, built from API objects alone, and its picture.

`inspect`, the demo and the dashboard show the same view, so they can't disagree. Pure: objects in, values and SVG out.
"""
