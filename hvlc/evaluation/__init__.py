"""Tasks, metrics, and the loop that asks a model every question of a task."""
