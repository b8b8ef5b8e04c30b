"""Data sets and transforms for training in PyTorch and MONAI."""
