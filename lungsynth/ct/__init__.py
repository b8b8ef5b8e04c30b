"""Readers and writers of CT files; import from the modules."""
