"""How others do the same job: each as its own documentation or its own published benchmark has it."""
