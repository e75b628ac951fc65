"""The 2019 interface: random numbers, attributes, logs, and the bugs that are mended."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from asng_ext import compat

SIZES = np.array([5, 1, 3, 2, 4])


def expected_sample(theta: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
    """What the 2019 code draws: the category whose interval holds the uniform number."""
    upper = np.cumsum(theta, axis=1)
    return (upper - theta <= uniforms) & (uniforms < upper)


@pytest.fixture(autouse=True)
def _restore_global_generator() -> object:
    state = np.random.get_state()
    np.random.seed(0)  # what a test draws must not depend on the tests before it
    yield
    np.random.set_state(state)


def test_samples_come_from_the_global_generator_in_order() -> None:
    optimizers = [compat.AdaptiveSNG(SIZES), compat.CategoricalASNG(SIZES)]
    thetas = [optimizers[0].theta, optimizers[1].p_model.theta]
    for optimizer, theta in zip(optimizers, thetas, strict=True):
        np.random.seed(7)
        samples = [optimizer.sampling() for _ in range(200)]
        np.random.seed(7)
        for sample in samples:
            assert sample.dtype == np.bool_
            assert sample.shape == (5, 5)
            np.testing.assert_array_equal(sample, expected_sample(theta, np.random.rand(5, 1)))
    np.random.seed(8)
    many = compat.Categorical(SIZES).sampling_lam(50)
    np.random.seed(8)
    uniforms = np.random.rand(50, 5, 1)
    np.testing.assert_array_equal(many, [expected_sample(thetas[0], u) for u in uniforms])


def test_mixed_samples_come_in_the_old_order() -> None:
    optimizer = compat.MixedAdaptiveSNG(SIZES, [(0, 10), (-4, 4)])
    for lam in (2, 3, 4, 6):
        np.random.seed(lam)
        categories, numbers = optimizer.sampling(lam)
        np.random.seed(lam)
        uniforms = np.random.rand(lam, 5, 1)
        np.testing.assert_array_equal(
            categories, [expected_sample(optimizer.theta_cat, u) for u in uniforms]
        )
        draws = [np.random.randn(2) for _ in range(-(-lam // 2))]
        z = np.concatenate([[draw, -draw] for draw in draws])
        np.testing.assert_allclose(numbers, [5, 0] + np.array([5, 4]) * z[:lam])


def test_a_toy_script_of_2019_finds_the_optimum() -> None:
    np.random.seed(0)
    optimizer = compat.AdaptiveSNG(5 * np.ones(30, dtype=int), alpha=1.5, delta_init=1.0)
    for _ in range(4000):
        lam = optimizer.get_lam()
        c = np.array([optimizer.sampling() for _ in range(lam)], dtype=np.int32)
        optimizer.update(c, (c * np.arange(5)).sum(axis=(1, 2)))
    assert optimizer.mle()[:, 0].sum() == 30
    assert optimizer.theta.max(axis=1).mean() > 0.9


def test_attributes() -> None:
    a = compat.AdaptiveSNG(SIZES, alpha=2.0, delta_init=0.5, lam=4, Delta_max=10.0)
    assert (a.N, a.d, a.Cmax, a.valid_d, a.lam) == (10, 5, 5, 4, 4)
    assert a.get_lam() == 4
    assert a.get_delta() == a.delta == a.eps == 0.5
    assert (a.Delta, a.gamma, a.Delta_max, a.alpha) == (1.0, 0.0, 10.0, 2.0)
    np.testing.assert_array_equal(a.C, SIZES)
    np.testing.assert_allclose(a.theta[0], 0.2)
    np.testing.assert_allclose(a.theta[1], [1, 0, 0, 0, 0])
    assert a.s.shape == (10,)
    m = compat.MixedAdaptiveSNG(SIZES, [(0, 10), (-4, 4)])
    assert (m.n_cat, m.n_int, m.n_theta, m.d_cat, m.d_int, m.valid_d_cat) == (10, 4, 14, 5, 2, 4)
    np.testing.assert_array_equal(m.theta_int, [[5, 0], [50, 16]])
    assert m.int_std_min == 0.25
    c = compat.CategoricalASNG(SIZES, init_delta=0.3)
    assert (c.N, c.delta, c.get_delta(), c.p_model.valid_param_num) == (10, 0.3, 0.3, 10)
    one_hot = c.p_model.mle()
    assert one_hot.dtype == np.float64
    np.testing.assert_array_equal(one_hot.argmax(axis=1), 0)
    sample = np.stack([one_hot.astype(bool)] * 2)
    expected = np.log(1 / SIZES).sum()
    np.testing.assert_allclose(c.p_model.loglikelihood(sample), [expected] * 2)


def test_state_may_be_set_from_outside() -> None:
    a, b = compat.AdaptiveSNG(SIZES), compat.AdaptiveSNG(SIZES)
    c = np.array([a.sampling() for _ in range(2)])
    a.update(c, np.array([1.0, 2.0]))
    b.theta[0] = [0.6, 0.1, 0.1, 0.1, 0.1]
    b.Delta, b.gamma = 2.0, 0.5
    b.s = np.full(10, 0.1)
    b.update(c, np.array([1.0, 2.0]))
    assert b.delta == 0.5
    assert b.theta[0].max() > 0.45
    assert not np.allclose(a.theta[0], b.theta[0])


def test_init_theta_is_copied() -> None:
    theta = compat.AdaptiveSNG(SIZES).theta
    kept = theta.copy()
    for optimizer in (
        compat.AdaptiveSNG(SIZES, init_theta=theta),
        compat.CategoricalASNG(SIZES, init_theta=theta),
    ):
        samples = np.array([optimizer.sampling() for _ in range(2)])
        optimizer.update(samples, np.array([0.0, 1.0]))
    np.testing.assert_array_equal(theta, kept)
    with pytest.raises(ValueError, match="init_theta must have shape"):
        compat.AdaptiveSNG(SIZES, init_theta=np.ones((2, 2)))


def test_logs_go_round() -> None:
    a = compat.AdaptiveSNG(SIZES)
    a.update(np.array([a.sampling() for _ in range(2)]), np.array([0.5, 1.0]))
    header, row = a.log_header(theta_log=True), a.log(theta_log=True)
    assert header[:5] == ["delta", "eps", "snorm_alpha", "theta_converge", "theta0_0"]
    assert len(header) == len(row) == 4 + SIZES.sum()
    b = compat.AdaptiveSNG(SIZES)
    b.load_theta_from_log(row[4:])
    np.testing.assert_allclose(b.theta, a.theta, atol=1e-6)
    model = compat.Categorical(SIZES)
    model.load_theta_from_log(row[4:])
    assert model.log() == row[4:]
    assert model.log_header() == header[4:]
    with pytest.raises(ValueError, match="15 probabilities"):
        model.load_theta_from_log(row[5:])


def test_mixed_log_goes_round() -> None:
    a = compat.MixedAdaptiveSNG(SIZES, [(0, 10), (-4, 4)])
    a.update(a.sampling(2), np.array([1.0, 0.0]))
    b = compat.MixedAdaptiveSNG(SIZES, [(0, 10), (-4, 4)])
    row = a.log(theta_log=True)
    assert len(a.log_header(theta_log=True)) == len(row)
    b.load_theta_from_log(row[4:])
    np.testing.assert_array_equal(b.theta_cat, a.theta_cat)
    np.testing.assert_array_equal(b.theta_int, a.theta_int)


def test_utility() -> None:
    weights, order = compat.AdaptiveSNG.utility(np.array([3.0, 1.0, 2.0, 2.0, 5.0]))
    np.testing.assert_array_equal(order[[0, -1]], [1, 4])
    np.testing.assert_allclose(weights, [0.5, 0.25, 0.25, -0.5, -0.5])
    assert weights.sum() == pytest.approx(0)
    weights, _ = compat.AdaptiveSNG.utility(np.array([0.0, 0.0]))
    np.testing.assert_array_equal(weights, 0)
    weights, order = compat.AdaptiveSNG.utility(np.array([5.0, -np.inf]))
    np.testing.assert_array_equal(order, [1, 0])
    np.testing.assert_array_equal(weights, [1, -1])
    weights, _ = compat.MixedAdaptiveSNG.utility(np.array([1.0, 2.0, 4.0]), negative=False)
    np.testing.assert_array_equal(weights, [1, 0, 0])


@pytest.mark.parametrize(
    ("losses", "same_as"),
    [
        ([0.0, 0.0], None),
        ([-2.0, -2.0], None),
        ([math.nan, math.inf], None),
        ([math.nan, 5.0], [6.0, 5.0]),
        ([-math.inf, 5.0], [4.0, 5.0]),
    ],
)
def test_ties_and_nan(losses: list[float], same_as: list[float] | None) -> None:
    np.random.seed(1)
    a, b = compat.AdaptiveSNG(SIZES), compat.AdaptiveSNG(SIZES)
    samples = np.array([a.sampling() for _ in range(2)])
    a.update(samples, losses)
    if same_as is not None:
        b.update(samples, same_as)
        assert b.gamma > 0
    np.testing.assert_array_equal(a.theta, b.theta)
    assert a.gamma == b.gamma


def test_spaces_too_small_for_the_papers_margin() -> None:
    for sizes in ([2], [2, 2], [5], [1, 3]):
        optimizer = compat.AdaptiveSNG(np.array(sizes))
        for step in range(300):
            samples = np.array([optimizer.sampling() for _ in range(2)])
            optimizer.update(samples, samples.argmax(axis=2).sum(axis=1) + step % 2 * 0.1)
            assert np.isfinite(optimizer.theta).all()
            assert np.isfinite(optimizer.s).all()
        assert optimizer.mle()[:, 0].all()


def test_identical_samples_change_nothing() -> None:
    optimizer = compat.CategoricalASNG(SIZES)
    sample = optimizer.sampling()
    optimizer.update(np.array([sample, sample]), np.array([1.0, 2.0]))
    assert optimizer.gamma == 0.0
    assert not optimizer.s.any()


def test_delta_max_is_used() -> None:
    rng = np.random.default_rng(0)
    optimizer = compat.CategoricalASNG(SIZES, Delta_max=1.2)
    largest = 0.0
    for _ in range(300):
        optimizer.update(np.array([optimizer.sampling() for _ in range(2)]), rng.random(2))
        largest = max(largest, optimizer.Delta)
    assert largest == optimizer.Delta == 1.2


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="categories"):
        compat.AdaptiveSNG([3, 0])
    with pytest.raises(ValueError, match="integers"):
        compat.MixedAdaptiveSNG([3], [(3, 3)])
    optimizer = compat.AdaptiveSNG(SIZES)
    before = optimizer.theta.copy()
    with pytest.raises(ValueError, match="samples"):
        optimizer.update(np.ones((2, 3, 3), dtype=bool), np.array([1.0, 2.0]))
    np.testing.assert_array_equal(optimizer.theta, before)


def plain_step(theta: np.ndarray, samples: np.ndarray, losses: list[float]) -> tuple:
    """G and its Fisher norm for λ = 2."""
    weights = [1.0, -1.0] if losses[0] < losses[1] else [-1.0, 1.0]
    gradient = sum(w * (s - theta) for w, s in zip(weights, samples)) / 2
    squares = 0.0
    for row, g, size in zip(theta, gradient, SIZES):
        fisher = np.diag(1 / row[: size - 1]) + 1 / row[size - 1]
        squares += g[: size - 1] @ fisher @ g[: size - 1]
    return gradient, math.sqrt(squares)


def plain_projection(theta: np.ndarray) -> np.ndarray:
    low = np.where(SIZES > 1, 1 / ((SIZES > 1).sum() * np.maximum(SIZES - 1, 1)), 0.0)[:, None]
    mask = np.arange(theta.shape[1]) < SIZES[:, None]
    theta = np.where(mask, np.maximum(theta, low), 0.0)
    room = np.where(mask, theta - low, 0.0)
    excess = theta.sum(axis=1, keepdims=True) - 1
    theta = theta - excess * room / np.maximum(room.sum(axis=1, keepdims=True), 1e-300)
    return theta / theta.sum(axis=1, keepdims=True)


def test_sng_and_adam_follow_their_definitions() -> None:
    np.random.seed(4)
    rng = np.random.default_rng(4)
    sng, adam = compat.SNG(SIZES, delta_init=0.3), compat.Adam(SIZES, 0.02, 0.8, 0.95)
    theta_sng, theta_adam = sng.theta.copy(), adam.theta.copy()
    m, v, t = np.zeros_like(theta_adam), np.zeros_like(theta_adam), 0
    for _ in range(60):
        losses = rng.random(2).tolist()
        samples = np.array([sng.sampling() for _ in range(2)])
        gradient, norm = plain_step(theta_sng, samples, losses)
        sng.update(samples, losses)
        if norm > 0:
            assert sng.eps == pytest.approx(0.3 / (norm + 1e-8))
            theta_sng = plain_projection(theta_sng + 0.3 / (norm + 1e-8) * gradient)
        np.testing.assert_allclose(sng.theta, theta_sng, rtol=1e-9, atol=1e-12)
        samples = np.array([adam.sampling() for _ in range(2)])
        gradient, norm = plain_step(theta_adam, samples, losses)
        adam.update(samples, losses)
        if norm > 0:
            t += 1
            gradient = gradient / (norm + 1e-9)
            m = 0.8 * m + 0.2 * gradient
            v = 0.95 * v + 0.05 * gradient**2
            step = m / (1 - 0.8**t) / (np.sqrt(v / (1 - 0.95**t)) + 1e-8)
            theta_adam = plain_projection(theta_adam + 0.02 * step)
        assert adam.t == t
        np.testing.assert_allclose(adam.m, m, atol=1e-12)
        np.testing.assert_allclose(adam.theta, theta_adam, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("kind", [compat.SNG, compat.Adam])
def test_baselines_have_the_old_interface(kind: type[compat.SNG | compat.Adam]) -> None:
    optimizer = kind(SIZES, lam=4)
    assert optimizer.get_lam() == optimizer.lam == 4
    assert (optimizer.N, optimizer.d, optimizer.Cmax, optimizer.valid_d) == (10, 5, 5, 4)
    assert optimizer.get_delta() > 0
    samples = np.array([optimizer.sampling() for _ in range(4)])
    optimizer.update(samples, np.arange(4.0), range_restriction=False)
    assert optimizer.mle().shape == (5, 5)
    header, row = optimizer.log_header(), optimizer.log()
    assert len(header) == len(row)
    first = header.index("theta0_0")
    assert header[:first] == (
        ["delta", "eps", "theta_converge"] if kind is compat.SNG else ["alpha", "theta_converge"]
    )
    other = kind(SIZES)
    other.load_theta_from_log(row[first:])
    np.testing.assert_allclose(other.theta, optimizer.theta, atol=1e-6)
    before = optimizer.theta.copy()
    optimizer.update(samples, np.ones(4))  # ties: nothing to learn
    np.testing.assert_array_equal(optimizer.theta, before)
    initial = kind(SIZES, init_theta=before)
    initial.update(samples, np.arange(4.0))
    np.testing.assert_array_equal(optimizer.theta, before)
    with pytest.raises(ValueError, match="samples"):
        optimizer.update(samples[:, :3], np.arange(4.0))


KINDS = [compat.AdaptiveSNG, compat.CategoricalASNG, compat.SNG, compat.Adam]


def drawn(optimizer: object, count: int = 2) -> np.ndarray:
    return np.array([optimizer.sampling() for _ in range(count)])


def test_memory_that_must_not_change_is_copied(tmp_path: Path) -> None:
    path, zeros = tmp_path / "theta.npy", bytes(8 * 10)
    optimizer, twin = compat.AdaptiveSNG(SIZES), compat.AdaptiveSNG(SIZES)
    np.save(path, optimizer.theta)
    samples = drawn(optimizer)
    optimizer.theta = np.load(path, mmap_mode="r")
    optimizer.s = np.frombuffer(zeros)
    for _ in range(2):
        optimizer.update(samples, [1.0, 2.0])
        twin.update(samples, [1.0, 2.0])
    np.testing.assert_array_equal(optimizer.theta, twin.theta)
    np.testing.assert_array_equal(optimizer.s, twin.s)
    np.testing.assert_array_equal(np.load(path), compat.AdaptiveSNG(SIZES).theta)
    assert zeros == bytes(8 * 10)
    mixed = compat.MixedAdaptiveSNG(SIZES, [(0, 10)])
    mixed.theta_int.flags.writeable = False
    kept = mixed.theta_int
    mixed.update(mixed.sampling(2), [1.0, 2.0])
    np.testing.assert_array_equal(kept, [[5], [50]])
    assert mixed.theta_int[0, 0] != 5


def test_arrays_of_any_layout_are_taken_and_others_changed_in_place() -> None:
    optimizer = compat.Adam(SIZES)
    theta = optimizer.theta
    samples = drawn(optimizer)
    optimizer.update(samples, [1.0, 2.0])
    assert optimizer.theta is theta
    expected = compat.Adam(SIZES, init_theta=theta)
    unaligned = np.ndarray(theta.shape, np.float64, bytearray(theta.nbytes + 1), 1)
    unaligned[:] = theta
    for start in (unaligned, np.asfortranarray(theta), theta.astype(">f8"), theta.tolist()):
        other = compat.Adam(SIZES)
        other.theta, other.m, other.v, other.t = start, optimizer.m, optimizer.v, optimizer.t
        other.m, other.v = other.m.copy(), other.v.copy()
        for kind in (np.int64, np.float32, np.uint8):
            assert other.sampling().shape == (5, 5)
            other.update(np.asfortranarray(samples.astype(kind)), [2.0, 1.0])
        other.update(list(samples), [2.0, 1.0])
        expected.m, expected.v, expected.t = optimizer.m.copy(), optimizer.v.copy(), optimizer.t
        expected.theta = theta.copy()
        for _ in range(4):
            expected.update(samples, [2.0, 1.0])
        np.testing.assert_array_equal(other.theta, expected.theta)


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_that_end_in_nan_are_refused(kind: type) -> None:
    first = {compat.SNG: "delta_init"}.get(kind, "alpha")
    for value in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"{first} must be finite and above 0"):
            kind(SIZES, value)
    bad = compat.Categorical(SIZES).theta
    bad[0, 0] = math.nan
    with pytest.raises(ValueError, match="init_theta must hold finite numbers"):
        kind(SIZES, init_theta=bad)
    for value in (math.nan, math.inf, -0.5):
        optimizer = kind(SIZES)
        model = getattr(optimizer, "p_model", optimizer)
        samples = drawn(optimizer)
        model.theta[0, 0] = value
        before = model.theta.copy()
        with pytest.raises(ValueError, match="theta must hold finite numbers of at least 0"):
            optimizer.update(samples, [1.0, 2.0])
        np.testing.assert_array_equal(model.theta, before)


def test_other_settings_and_arrays_that_end_in_nan_are_refused() -> None:
    with pytest.raises(ValueError, match="delta_init"):
        compat.AdaptiveSNG(SIZES, delta_init=math.nan)
    with pytest.raises(ValueError, match="Delta_max"):
        compat.AdaptiveSNG(SIZES, Delta_max=math.nan)
    with pytest.raises(ValueError, match="beta2"):
        compat.Adam(SIZES, beta2=1.0)
    with pytest.raises(ValueError, match=r"categories .* \[1, 16777216\]"):
        compat.AdaptiveSNG([2, 2**40])
    with pytest.raises(ValueError, match="alpha"):
        compat.MixedAdaptiveSNG(SIZES, [(0, 10)], alpha=-1.0)
    for name, value, words in (
        ("s", np.full(10, math.nan), "s must hold finite"),
        ("s", np.zeros(9), r"s must have shape \(10\), got \(9,\)"),
        ("theta", np.zeros((3, 5)), r"theta must have shape \(5, 5\), got \(3, 5\)"),
        ("gamma", math.nan, "gamma"),
        ("Delta", 0.0, "Delta"),
    ):
        optimizer = compat.AdaptiveSNG(SIZES)
        samples = drawn(optimizer)
        before = optimizer.theta.copy()
        setattr(optimizer, name, value)
        with pytest.raises(ValueError, match=words):
            optimizer.update(samples, [1.0, 2.0])
        if name != "theta":
            np.testing.assert_array_equal(optimizer.theta, before)
    mixed = compat.MixedAdaptiveSNG(SIZES, [(0, 10)])
    drawn_pair = mixed.sampling(2)
    mixed.theta_int[1, 0] = math.nan
    with pytest.raises(ValueError, match="theta_int must hold finite"):
        mixed.update(drawn_pair, [1.0, 2.0])
    with pytest.raises(TypeError, match="samples must hold numbers, got dtype object"):
        compat.AdaptiveSNG(SIZES).update(samples.astype(object), [1.0, 2.0])


def test_losses_with_gradients() -> None:
    values = torch.tensor([2.0, 1.0], requires_grad=True)
    expected = compat.AdaptiveSNG(SIZES)
    samples = drawn(expected)
    expected.update(samples, [2.0, 1.0])
    for losses in (values, [values[0], values[1]], (values[0] * 1, 1.0)):
        optimizer = compat.AdaptiveSNG(SIZES)
        optimizer.update(samples, losses)
        np.testing.assert_array_equal(optimizer.theta, expected.theta)
