"""What judges: recipes as data, the networks they build, and the release directory that carries one."""
