"""The classes of the authors' 2019 code, at the speed of this package.

A script that changes only its import gives the same run: the names, attributes and methods are
those of the 2019 release, and random numbers come from NumPy's global generator in the same
order (no other part of the package uses it). New code should use
:class:`asng_ext.ASNG`.

======================================  ==========================================================
2019                                    here
======================================  ==========================================================
``asng_cat.AdaptiveSNG`` (also toy's)   :class:`AdaptiveSNG`
``asng_int.AdaptiveSNG``                :class:`MixedAdaptiveSNG`
``categorical_asng.CategoricalASNG``    :class:`CategoricalASNG`
``categorical_dist.Categorical``        :class:`Categorical`
toy's ``SNG`` and ``Adam``              :class:`SNG`, :class:`Adam`
======================================  ==========================================================

What the 2019 code gets wrong and this module does not:

* θ_min = 1/(n_c (K - 1)) leaves no room in small spaces (one variable with more than one
  category, or two binary ones), and θ became NaN. There the margin of CatCMA is used.
* Losses that tie were only recognized if they were positive. Equal losses of 0 and below tie too.
* NaN losses were ranked at random. They count as the worst, and tie with +inf.
* Samples that do not differ led to a division of zero by zero. The update is skipped.
* Rounding could leave a sample without any category. The last category takes that place.
* δ could grow without bound for α ≤ 1, and s became NaN. δ never exceeds √n_θ.
* For some odd numbers of samples (1, 5, 9, ...) the last Gaussian sample was uninitialized memory.
  It is drawn like the others; only its mirror image is left out.
* ``init_theta`` was changed in place. It is copied.
* ``CategoricalASNG`` ignored ``Delta_max``. It is used.
* ``MixedAdaptiveSNG.load_theta_from_log`` wrote the Gaussians' parameters over the categorical
  ones. Each goes to its place.
* ``loglikelihood`` was NaN for variables with fewer categories than the most. Padding is left out.
* α and the other settings could be 0, negative or NaN, and θ or s could hold NaN, which spread. An
  error names them, and samples and losses that do not match or are no numbers.
* Losses had to be an array. Any sequence of numbers will do, and so will any sequence of integers
  for ``categories``.

Kept because results depend on it: for a Gaussian whose mean is 0 to within 5e-9 (the first
update of a symmetric range), the two components of √F G use each other's eigenvalue.
"""

from asng_ext.compat._adaptive import AdaptiveSNG, Categorical, CategoricalASNG
from asng_ext.compat._baselines import SNG, Adam
from asng_ext.compat._mixed import MixedAdaptiveSNG

__all__ = [
    "SNG",
    "Adam",
    "AdaptiveSNG",
    "Categorical",
    "CategoricalASNG",
    "MixedAdaptiveSNG",
]
