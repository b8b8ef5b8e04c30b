"""What is to move to `run_folder` and to `cohort.reader`."""
