"""A script in the style of the authors' 2019 code: only its import was changed.

The 2019 line was `from asng_cat import AdaptiveSNG`. Samples are one-hot arrays, and random numbers
come from NumPy's global generator. The weights of the one-shot model are trained meanwhile: it is
the selective squared error of Section 3.1.
"""

from __future__ import annotations

import numpy as np

from asng_ext.compat import AdaptiveSNG


def main(iterations: int = 10_000) -> None:
    np.random.seed(0)
    d, k, eps_x = 30, 5, 0.05
    asng = AdaptiveSNG(k * np.ones(d, dtype=int), alpha=1.5, delta_init=1.0)
    x = np.random.randn(d, k)
    velocity = np.zeros_like(x)
    penalty = np.arange(k) / k
    for t in range(1, iterations + 1):
        rate = eps_x * (1 + np.cos(np.pi * t / iterations)) / 2
        gradient = np.zeros_like(x)
        z = np.random.randn(d, 1) / k
        for _ in range(asng.get_lam()):
            gradient += 2 * asng.sampling() * (x - z) / asng.get_lam()
        velocity = 0.9 * velocity - rate * gradient
        x += velocity

        z = np.random.randn(d, 1) / k
        c = np.array([asng.sampling() for _ in range(asng.get_lam())])
        asng.update(c, (c * ((x - z) ** 2 + penalty)).sum(axis=(1, 2)))
        if t % 2500 == 0:
            print(f"iteration {t}: mean of max θ {asng.theta.max(axis=1).mean():.3f}")
    right = (asng.theta.argmax(axis=1) == 0).mean()
    print(f"{right:.0%} of the variables have the category without penalty")


if __name__ == "__main__":
    main()
