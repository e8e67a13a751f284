"""What a network costs to run: the zero-overhead proof, and runtimes and precisions with accuracy beside speed."""
