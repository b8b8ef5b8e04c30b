"""A procedural chest phantom with known lungs and nodules, for tests and demonstrations."""
