"""Files that travel inside a release whose network timm does not know; they import nothing of Leukoscope."""
