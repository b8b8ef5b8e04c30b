"""What synthetic data are worth to those who have few patients."""
