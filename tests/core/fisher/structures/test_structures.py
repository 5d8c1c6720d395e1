"""Every precision structure against the matrix that it stands for, built here from its parts."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from fishertope.core.errors import ArrayTypeError, InvalidInputError
from fishertope.core.fisher.structures import (
    EKFAC,
    DenseBlock,
    Diagonal,
    Gram,
    Implicit,
    Isotropic,
    Kronecker,
    LowRankDiagonal,
    Masked,
    Precision,
    Scaled,
    SiteLayout,
    Sum,
)
from fishertope.core.testing.tolerances import deviation, tolerance

SHAPE = (3, 4)
O, I = SHAPE  # noqa: E741
SAME = tolerance("identity").relative


def psd(n, rng, rank=None):
    x = rng.normal(size=(n if rank is None else rank, n))
    return x.T @ x / n


def orthogonal(n, rng):
    return np.linalg.qr(rng.normal(size=(n, n)))[0]


def cases(seed=0):
    """Precision and its matrix, for each structure."""
    rng = np.random.default_rng(seed)
    f = rng.uniform(0.1, 1, SHAPE)
    A, B, P = psd(I, rng), psd(O, rng), psd(O * I, rng)
    U, V, s = orthogonal(O, rng), orthogonal(I, rng), rng.uniform(0, 1, SHAPE)
    rows = rng.normal(size=(2, *SHAPE))
    mask = rng.random(SHAPE) < 0.6
    flat, m = rows.reshape(2, -1), np.diag(mask.ravel().astype(float))
    kron = np.kron(B, A)
    turned = np.kron(U, V) @ np.diag(s.ravel()) @ np.kron(U, V).T
    return {
        "isotropic": (Isotropic(0.7, SHAPE), 0.7 * np.eye(O * I)),
        "diagonal": (Diagonal(f), np.diag(f.ravel())),
        "gram": (Gram(A, O), np.kron(np.eye(O), A)),
        "kronecker": (Kronecker(B, A), kron),
        "ekfac": (EKFAC(U, V, s, "reduce"), turned),
        "block": (DenseBlock(P, SHAPE), P),
        "lowrank+diagonal": (LowRankDiagonal(f, rows), np.diag(f.ravel()) + flat.T @ flat),
        "masked": (Masked(Kronecker(B, A), mask), m @ kron @ m),
        "masked isotropic": (Masked(Isotropic(2.0, SHAPE), mask), 2 * m),
        "scaled": (Scaled(Gram(A, O), -0.5), -0.5 * np.kron(np.eye(O), A)),
        "sum": (
            Sum([Isotropic(0.1, SHAPE), Kronecker(B, A), Diagonal(f)]),
            0.1 * np.eye(O * I) + kron + np.diag(f.ravel()),
        ),
        "implicit": (Implicit(lambda d: (P @ d.ravel()).reshape(SHAPE), SHAPE), P),
    }


NAMES = tuple(cases())


def close(found, expected):
    assert deviation(found, expected) <= SAME


@pytest.mark.parametrize("name", NAMES)
def test_products_diagonals_and_traces_are_those_of_the_matrix(name):
    precision, P = cases()[name]
    assert isinstance(precision, Precision)
    assert precision.shape == SHAPE
    assert precision.kind in name or name == "masked isotropic"
    close(precision.to_dense(), P)
    close(P, P.T)
    rng = np.random.default_rng(5)
    for lead in ((), (1,), (2, 3), (0,)):
        d = rng.normal(size=(*lead, *SHAPE))
        flat = d.reshape(-1, O * I)
        close(precision.apply(d), (flat @ P).reshape(d.shape))
        close(precision.quad(d), np.einsum("ki,ij,kj->k", flat, P, flat).reshape(lead))
    close(precision.diagonal(), np.diag(P).reshape(SHAPE))
    assert np.isclose(precision.trace(), np.trace(P), rtol=SAME, atol=0)
    assert precision.is_psd(1e-12) == (np.linalg.eigvalsh(P).min() >= -1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_scaled_and_damped(name):
    precision, P = cases()[name]
    eye = np.eye(O * I)
    for factor in (0.0, 2.5, -1.5):
        close(precision.scaled(factor).to_dense(), factor * P)
        close(precision.scaled(factor).diagonal(), factor * np.diag(P).reshape(SHAPE))
    close(precision.damped(0.3).to_dense(), P + 0.3 * eye)
    close(precision.damped(0.3).diagonal(), np.diag(P + 0.3 * eye).reshape(SHAPE))
    close(precision.damped(0.3).damped(0.2).to_dense(), P + 0.5 * eye)
    if np.trace(P) > 0:
        close(precision.damped(0.3, "relative_trace").to_dense(), P + 0.3 * np.trace(P) / 12 * eye)
    assert precision.damped(0.0) is precision
    if name != "kronecker":
        close(precision.damped(0.3, "factored").to_dense(), P + 0.3 * eye)


def test_factored_damping_stays_a_product_and_bounds_the_absolute_one():
    precision, P = cases()["kronecker"]
    damped = precision.damped(0.09, "factored")
    assert isinstance(damped, Kronecker)
    B, A = precision.output_factor, precision.input_factor
    ratio = np.sqrt((np.trace(A) / I) / (np.trace(B) / O))
    close(damped.to_dense(), np.kron(B + 0.3 / ratio * np.eye(O), A + 0.3 * ratio * np.eye(I)))
    gap = damped.to_dense() - P - 0.09 * np.eye(O * I)
    assert np.linalg.eigvalsh(gap).min() >= -1e-12
    dead = Kronecker(np.zeros((O, O)), np.zeros((I, I))).damped(0.09, "factored")
    close(dead.to_dense(), 0.09 * np.eye(O * I))
    exact = precision.damped(0.09)
    assert isinstance(exact, EKFAC)


@pytest.mark.parametrize("name", NAMES)
def test_permuted_and_restricted_are_the_matrix_in_other_coordinates(name):
    precision, P = cases()[name]
    rng = np.random.default_rng(7)
    rows, columns = rng.permutation(O), rng.permutation(I)
    index = np.arange(O * I).reshape(SHAPE)
    at = index[rows][:, columns].ravel()
    permuted = precision.permuted({0: rows, 1: columns})
    close(permuted.to_dense(), P[np.ix_(at, at)])
    close(permuted.diagonal(), np.diag(P)[at].reshape(SHAPE))
    d = rng.normal(size=SHAPE)
    close(permuted.apply(d[rows][:, columns]), precision.apply(d)[rows][:, columns])
    close(precision.permuted({1: columns}).permuted({1: np.argsort(columns)}).to_dense(), P)
    for slices in ((slice(1, None), [3, 0]), (None, slice(0, 3, 2)), ([2],), ()):
        full = [np.arange(n) for n in SHAPE]
        parts = [full[k] if k >= len(slices) or slices[k] is None else full[k][slices[k]]
                 for k in range(2)]  # fmt: skip
        at = index[np.ix_(*parts)].ravel()
        small = precision.restricted(slices)
        assert small.shape == tuple(len(p) for p in parts)
        close(small.to_dense(), P[np.ix_(at, at)])
        close(small.damped(0.2).to_dense(), P[np.ix_(at, at)] + 0.2 * np.eye(len(at)))
        assert np.isclose(small.trace(), np.trace(P[np.ix_(at, at)]), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_dtypes_and_other_libraries(name):
    precision, P = cases()[name]
    if name != "implicit":
        single = precision.astype("float32")
        found = single.apply(np.ones(SHAPE, dtype=np.float32))
        assert found.dtype == np.float32
        assert deviation(found, (P @ np.ones(O * I)).reshape(SHAPE)) < 1e-5
        assert single.apply(np.ones(SHAPE)).dtype == np.float64
    with pytest.raises(InvalidInputError, match="float32"):
        precision.astype("bfloat16")


@pytest.mark.parametrize("name", [n for n in NAMES if n != "implicit"])
def test_torch_arrays_give_the_same(name):
    torch = pytest.importorskip("torch")
    from dataclasses import fields

    def moved(p):
        values = [getattr(p, f.name) for f in fields(p)]
        turned = [
            moved(v) if isinstance(v, Precision) else tuple(map(moved, v))
            if isinstance(v, tuple) and v and isinstance(v[0], Precision)
            else torch.from_numpy(np.array(v)) if isinstance(v, np.ndarray) else v
            for v in values
        ]  # fmt: skip
        return type(p)(*turned)

    precision, P = cases()[name]
    ours = moved(precision)
    d = torch.ones(SHAPE, dtype=torch.float64)
    close(ours.apply(d).numpy(), P.sum(1).reshape(SHAPE))
    for changed in (ours.damped(0.2), ours.permuted({0: [2, 0, 1]}), ours.restricted([[1]])):
        assert isinstance(
            changed.apply(torch.ones(changed.shape, dtype=torch.float64)), torch.Tensor
        )
    close(np.asarray(ours.damped(0.2).diagonal()), (np.diag(P) + 0.2).reshape(SHAPE))
    if name != "isotropic":
        with pytest.raises((ArrayTypeError, TypeError)):
            precision.apply(d)


@given(
    seed=st.integers(0, 10_000), o=st.integers(1, 4), i=st.integers(1, 4), rank=st.integers(1, 4)
)
@settings(deadline=None, derandomize=True, max_examples=60)
def test_kronecker_equals_its_other_forms(seed, o, i, rank):
    rng = np.random.default_rng(seed)
    B, A = psd(o, rng, rank), psd(i, rng, rank)
    d = rng.normal(size=(o, i))
    kron = Kronecker(B, A)
    expected = kron.apply(d)
    for other in (kron.in_eigenbasis(), DenseBlock(np.kron(B, A), (o, i))):
        assert np.abs(other.apply(d) - expected).max() <= 1e-9 * max(1.0, np.abs(expected).max())
    gram = Gram(A, o)
    np.testing.assert_allclose(gram.apply(d), Kronecker(np.eye(o), A).apply(d), atol=1e-12)
    # The diagonal of an EKFAC cannot be negative, and neither can a quadratic form.
    assert kron.in_eigenbasis().quad(d) >= -1e-12
    assert kron.is_psd()


def test_what_is_no_precision_is_refused():
    rng = np.random.default_rng(0)
    A, U = psd(3, rng), orthogonal(3, rng)
    skew = A + np.triu(np.ones((3, 3)), 1)
    bad = [
        (lambda: Gram(skew, 2), "not symmetric"),
        (lambda: Gram(np.diag([1.0, -1.0]), 2), ">= 0"),
        (lambda: Gram(np.full((2, 2), np.nan), 2), "finite"),
        (lambda: Gram(np.ones((2, 3)), 2), "square"),
        (lambda: Gram(np.eye(2, dtype=int), 2), "float32 or float64"),
        (lambda: Gram(A, -1), "extents"),
        (lambda: Kronecker(A, A, "both"), "expand, reduce"),
        (lambda: EKFAC(2 * U, U, np.ones((3, 3))), "orthonormal"),
        (lambda: EKFAC(U, U, -np.ones((3, 3))), ">= 0"),
        (lambda: EKFAC(U, U, np.ones((3, 2))), r"\(3, 3\)"),
        (lambda: EKFAC(U[:, :2], U, np.ones((2, 3))), "rows <= columns"),
        (lambda: DenseBlock(A, (2, 2)), r"\(4, 4\)"),
        (lambda: LowRankDiagonal(np.ones(3), np.ones((2, 4))), r"\(r, 3\)"),
        (lambda: LowRankDiagonal(-np.ones(3), np.ones((2, 3))), ">= 0"),
        (lambda: LowRankDiagonal(np.ones(()), np.ones(())), r"\(r"),
        (lambda: Sum([]), "at least one"),
        (lambda: Sum([Isotropic(1.0, (2,)), Isotropic(1.0, (3,))]), "one shape"),
        (lambda: Sum([A]), "structure"),
        (lambda: Masked(Isotropic(1.0, (2,)), np.ones(2)), "bool"),
        (lambda: Masked(Isotropic(1.0, (2,)), np.ones(3, dtype=bool)), r"\(2,\)"),
        (lambda: Scaled(Isotropic(1.0, (2,)), np.inf), "finite"),
        (lambda: Implicit(3, (2,)), "function"),
        (lambda: Isotropic(1.0, (-1,)), "extents"),
    ]
    for make, words in bad:
        with pytest.raises(InvalidInputError, match=words):
            make()


def test_what_an_operation_does_not_take_is_named():
    precision = Diagonal(np.ones((2, 3)))
    bad = [
        (lambda: precision.apply(np.ones((3, 2))), r"\(\.\.\., 2, 3\)"),
        (lambda: precision.apply([1.0]), "list"),
        (lambda: precision.damped(-1.0), ">= 0"),
        (lambda: precision.damped(np.nan), ">= 0"),
        (lambda: precision.damped(1.0, "spectral"), "relative_trace"),
        (lambda: precision.scaled(np.inf), "finite"),
        (lambda: precision.permuted({0: [0, 0]}), "no permutation"),
        (lambda: precision.permuted({2: [0]}), "axis 2"),
        (lambda: precision.restricted([[0, 0]]), "different positions"),
        (lambda: precision.restricted([[5]]), r"0\.\.1"),
        (lambda: precision.restricted([[]]), "different positions"),
        (lambda: precision.restricted([None, None, None]), "at most 2"),
        (lambda: precision.restricted(slice(0, 1)), "sequence"),
        (lambda: Isotropic(1.0, (5000,)).to_dense(), "limit=4096"),
        (lambda: precision.to_dense(limit=5), "6 parameters"),
    ]
    for call, words in bad:
        with pytest.raises(InvalidInputError, match=words):
            call()


@pytest.mark.parametrize(
    ("shape", "bias", "outputs"),
    [((3, 4), True, "first"), ((4, 3), True, "last"), ((3, 2, 2, 1), True, "first"),
     ((3, 4), False, "first"), ((5,), False, None), ((2, 3, 2), False, None)],
)  # fmt: skip
def test_layouts_join_split_and_permute(shape, bias, outputs):
    layout = SiteLayout(weight="w", weight_shape=shape, bias="b" if bias else None, outputs=outputs)
    rng = np.random.default_rng(3)
    for lead in ((), (2,)):
        parameters = {n: rng.normal(size=lead + s) for n, s in layout.shapes.items()}
        matrix = layout.join(parameters)
        assert matrix.shape == lead + layout.shape
        back = layout.split(matrix)
        assert set(back) == set(layout.parameters)
        for name, value in back.items():
            np.testing.assert_array_equal(value, parameters[name])
    parameters = {n: rng.normal(size=s) for n, s in layout.shapes.items()}
    perms = {k: rng.permutation(n) for k, n in enumerate(shape)}
    moved = dict(parameters)
    for axis, order in perms.items():
        moved["w"] = np.take(moved["w"], order, axis=axis)
    if bias:
        moved["b"] = moved["b"][perms[0 if outputs == "first" else len(shape) - 1]]
    expected = layout.join(parameters)
    for axis, order in layout.orders(perms).items():
        expected = np.take(expected, order, axis=axis)
    np.testing.assert_array_equal(layout.join(moved), expected)
    with pytest.raises(InvalidInputError, match="w"):
        layout.join({})
    with pytest.raises(InvalidInputError, match="no permutation"):
        layout.orders({7: [0]})
