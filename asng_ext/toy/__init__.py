"""The toy problems of the paper: simulation, study and figures."""
