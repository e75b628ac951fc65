"""Run folders: settings, checkpoints, metrics and progress."""
