"""How far to trust it: metrics on cells and on subjects, and the baselines they must beat."""
