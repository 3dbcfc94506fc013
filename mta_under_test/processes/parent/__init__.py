"""parent: starts the others, serves them what they may not do, and ends them."""
