"""Nodules in three dimensions, put into whole scans: places, resampling, blending, files."""
