"""Lungs judged by anatomy at 0.7 mm, as a radiologist looks at them, and by patches of lung at full resolution."""
