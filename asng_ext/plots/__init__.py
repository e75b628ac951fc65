"""Pictures of networks, of runs and of distributions; needs matplotlib (`pip install matplotlib`).

Every function writes one PNG, SVG or PDF, by the end of the path, and touches neither pyplot nor
the caller's settings of matplotlib.
"""

from asng_ext.plots.autoencoder import draw_autoencoder
from asng_ext.plots.cells import draw_cells
from asng_ext.plots.confusion import draw_confusion
from asng_ext.plots.curves import plot_retrain, plot_search
from asng_ext.plots.elapsed import plot_elapsed
from asng_ext.plots.mistakes import draw_mistakes
from asng_ext.plots.restored import draw_restored
from asng_ext.plots.theta import plot_theta
from asng_ext.plots.tradeoff import plot_sweep

__all__ = [
    "draw_autoencoder",
    "draw_cells",
    "draw_confusion",
    "draw_mistakes",
    "draw_restored",
    "plot_elapsed",
    "plot_retrain",
    "plot_search",
    "plot_sweep",
    "plot_theta",
]
