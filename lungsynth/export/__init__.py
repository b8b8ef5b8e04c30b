"""Catalogues rendered to files: formats, label files, checksums."""
