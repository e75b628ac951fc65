"""The optimizer in the loops of other packages: a module for each, which needs that package."""
