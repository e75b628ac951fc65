"""Tools of the training loops: optimizers of weights, schedules, CUDA graphs, metrics."""
