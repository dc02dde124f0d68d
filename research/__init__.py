"""How the files in `results/` are made: programs that import Leukoscope, and that it never imports."""
