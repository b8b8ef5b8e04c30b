"""Evaluation of lungsynth on held-out patients. It uses the product; the product never imports it."""
