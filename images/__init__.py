"""Builds container images without an engine: the Dockerfiles' own steps, run on a root file system of Debian's.

``python -m images`` is what `make images` runs. `images.archive` is of use alone: it writes an image of any files.
"""
