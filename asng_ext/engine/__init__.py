"""The training loops and the experiment that runs them in a folder."""
