"""The kernels: coarse functions that each backend may write with its own algorithm.

A kernel takes arrays of one library and returns arrays of the same library, dtype and device.
Shapes are written as names; one name has one size within a call, and ``n+1`` is the size of
``n`` plus one. ``int`` arrays are int64 and are not bound to the dtype of the floats.
"""

from dataclasses import dataclass
from enum import StrEnum


class Kernel(StrEnum):
    """Names of what a backend can provide, in the order of the four interfaces."""

    DENSE_FISHER_ROWS = "dense_fisher_rows"
    DENSE_FISHER_DIAGONAL = "dense_fisher_diagonal"
    DENSE_FISHER_DIAGONAL_MEAN = "dense_fisher_diagonal_mean"
    LOWRANK_PRODUCTS = "lowrank_products"
    LOWRANK_PULLBACK = "lowrank_pullback"
    LOWRANK_LINE = "lowrank_line"
    NNLS_GRAM = "nnls_gram"
    SPARSE_PRODUCTS = "sparse_products"
    SPARSE_PULLBACK = "sparse_pullback"
    MERGE_LINEAR = "merge_linear"
    MERGE_DIAGONAL = "merge_diagonal"
    ZONOTOPE_SUPPORT = "zonotope_support"
    SIGN_PATTERNS = "sign_patterns"
    SWEEP_CHAMBERS = "sweep_chambers"
    CHAMBERS_AT = "chambers_at"
    SPLIT_CHAMBERS = "split_chambers"
    VERTEX_PROGRAMS = "vertex_programs"
    NEIGHBOUR_PROGRAMS = "neighbour_programs"

    @property
    def spec(self) -> "KernelSpec":
        """Shapes, options and meaning of this kernel."""
        return SPECS[self]


@dataclass(frozen=True, slots=True)
class Argument:
    """One array argument: its name, its shape in words, and whether it holds integers.

    Integers are offsets into the rows, or, with ``below``, indices in [0, size of ``below``).
    """

    name: str
    shape: str
    integer: bool = False
    below: str = ""
    nonnegative: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelSpec:
    """The contract of a kernel.

    Attributes
    ----------
    interface : str
        "fisher", "factorization", "merging" or "zonotope".
    formula : str
        What is computed, in the symbols of the paper.
    arguments : tuple of Argument
        Positional arrays.
    options : tuple of str
        Keyword options (plain Python values).
    required : tuple of str
        Those of them that have no default.
    returns : tuple of str
        Shape of each returned array.
    nonempty : tuple of str
        Sizes that must not be 0.
    source : str
        Where the formula comes from.
    """

    interface: str
    formula: str
    arguments: tuple[Argument, ...]
    options: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    returns: tuple[str, ...] = ()
    nonempty: tuple[str, ...] = ()
    source: str = ""


_NPEFF = "Matena & Raffel 2023, arXiv:2310.04649"
_MERGE = "Matena & Raffel 2022, arXiv:2111.09832"
_RELU = "Matena & Raffel 2022, arXiv:2210.00176"
_DENSE = (Argument("theta", "p"), Argument("inputs", "n d0"))
_DENSE_OPTIONS = ("sizes", "activation", "output")

SPECS: dict[Kernel, KernelSpec] = {
    # ``theta`` holds W_1 (d1, d0) row-major, b_1 (d1), W_2, b_2, ...; ``sizes`` = (d0, ..., dL);
    # ``activation`` in {"relu", "tanh", "identity"}; ``output`` in {"categorical", "gaussian"}.
    Kernel.DENSE_FISHER_ROWS: KernelSpec(
        interface="fisher",
        formula="A_i with A_iᵀA_i = F(x_i) = E_{y~p}[∇log p(y|x_i) ∇log p(y|x_i)ᵀ]",
        arguments=_DENSE,
        options=(*_DENSE_OPTIONS, "reduced"),
        required=_DENSE_OPTIONS,
        returns=("n k p",),
        source=_NPEFF,
    ),
    Kernel.DENSE_FISHER_DIAGONAL: KernelSpec(
        interface="fisher",
        formula="f_i = Σ_c p_c (∇log p_c)^2 = diag F(x_i)",
        arguments=_DENSE,
        options=_DENSE_OPTIONS,
        required=_DENSE_OPTIONS,
        returns=("n p",),
        source=_NPEFF,
    ),
    Kernel.DENSE_FISHER_DIAGONAL_MEAN: KernelSpec(
        interface="fisher",
        formula="(1/n) Σ_i diag F(x_i), without any n×p array",
        arguments=_DENSE,
        options=_DENSE_OPTIONS,
        required=_DENSE_OPTIONS,
        returns=("p",),
        nonempty=("n",),
        source="Matena & Raffel 2022, arXiv:2111.09832",
    ),
    Kernel.LOWRANK_PRODUCTS: KernelSpec(
        interface="factorization",
        formula="B = A Gᵀ;  N_ik = Σ_{j in rows(i)} B_jk^2",
        arguments=(
            Argument("rows", "h m"),
            Argument("offsets", "n+1", integer=True),
            Argument("components", "r m"),
        ),
        returns=("h r", "n r"),
        source=_NPEFF,
    ),
    Kernel.LOWRANK_PULLBACK: KernelSpec(
        interface="factorization",
        formula="(W̃∘B)ᵀ A with W̃ the rows of W repeated for every row of A",
        arguments=(
            Argument("rows", "h m"),
            Argument("offsets", "n+1", integer=True),
            Argument("coefficients", "n r"),
            Argument("products", "h r"),
        ),
        returns=("r m",),
        source=_NPEFF,
    ),
    Kernel.LOWRANK_LINE: KernelSpec(
        interface="factorization",
        formula="E = A Dᵀ;  N1_ik = 2 Σ_j B_jk E_jk;  N2_ik = Σ_j E_jk^2",
        arguments=(
            Argument("rows", "h m"),
            Argument("offsets", "n+1", integer=True),
            Argument("products", "h r"),
            Argument("direction", "r m"),
        ),
        returns=("h r", "n r", "n r"),
        source="fishertope: exact quartic line search",
    ),
    Kernel.NNLS_GRAM: KernelSpec(
        interface="factorization",
        formula="min_{W>=0} <WᵀW, H> − 2<W, N> by `sweeps` (5) rounds of coordinate descent, "
        "W_k ← max(0, W_k + (N_k − WH_k)/H_kk); an example leaves the rounds after one in which "
        "none of its entries moved by more than `tol` (0) times the largest; W_k = 0 if H_kk <= 0",
        arguments=(
            Argument("gram", "r r"),
            Argument("targets", "n r"),
            Argument("start", "n r", nonnegative=True),
        ),
        options=("sweeps", "tol"),
        returns=("n r",),
        source="Cichocki & Phan 2009 (HALS); Gillis & Glineur 2012",
    ),
    Kernel.SPARSE_PRODUCTS: KernelSpec(
        interface="factorization",
        formula="X Y for sparse X (n, p) in compressed rows, columns ascending, and Y (p, r)",
        arguments=(
            Argument("entries", "h"),
            Argument("columns", "h", integer=True, below="p"),
            Argument("offsets", "n+1", integer=True),
            Argument("factor", "p r"),
        ),
        returns=("n r",),
        source=_NPEFF,
    ),
    Kernel.SPARSE_PULLBACK: KernelSpec(
        interface="factorization",
        formula="Xᵀ W for sparse X (n, p) in compressed rows, columns ascending, and W (n, r)",
        arguments=(
            Argument("entries", "h"),
            Argument("columns", "h", integer=True, below="n_columns"),
            Argument("offsets", "n+1", integer=True),
            Argument("factor", "n r"),
        ),
        options=("n_columns",),
        required=("n_columns",),
        returns=("p r",),
        source=_NPEFF,
    ),
    # Beside the merge k: how many of its entries are not finite (and, of the diagonal one, have no
    # precision, and how many precisions are negative: the guard refuses these, raw calls count).
    Kernel.MERGE_LINEAR: KernelSpec(
        interface="merging",
        formula="S_k x_r + Σ_i w_ki (x_i − x_r), r = argmax_i abs(w_ki): the weighted mean for "
        "S_k = Σ_i w_ki = 1; and how many entries are not finite",
        arguments=(
            Argument("sources", "n p"),
            Argument("weights", "k n"),
            Argument("totals", "k"),
        ),
        returns=("k p", "k"),
        nonempty=("n",),
        source=_MERGE,
    ),
    Kernel.MERGE_DIAGONAL: KernelSpec(
        interface="merging",
        formula="Σ_i q_i x_i / Σ_i q_i with q_i = w_ki max(f_i, floor_i) + ridge_ki at each entry, "
        "as x_r + Σ_i q_i (x_i − x_r) / Σ_i q_i, r = argmax q_i, inside the range of the x_i with "
        "q_i > 0; x_1 where all q_i = 0; and how many entries are not finite, have only q_i = 0, "
        "have f_i < 0",
        arguments=(
            Argument("sources", "n p"),
            Argument("precisions", "n p", nonnegative=True),
            Argument("weights", "k n", nonnegative=True),
            Argument("ridges", "k n", nonnegative=True),
            Argument("floors", "n", nonnegative=True),
        ),
        returns=("k p", "k", "k", "k"),
        nonempty=("n",),
        source=_MERGE,
    ),
    Kernel.ZONOTOPE_SUPPORT: KernelSpec(
        interface="zonotope",
        formula="h_Z(w) = max_{z in Z} w·z = Σ_i max(x_i·w, 0),  Z = Σ_i [0, x_i]",
        arguments=(Argument("generators", "n d"), Argument("directions", "k d")),
        returns=("k",),
        source=_RELU,
    ),
    Kernel.SIGN_PATTERNS: KernelSpec(
        interface="zonotope",
        formula="s_ki = sign(x_i·w_k) in {−1, 0, +1} as int8",
        arguments=(Argument("generators", "n d"), Argument("directions", "k d")),
        returns=("k n",),
        source=_RELU,
    ),
    Kernel.SWEEP_CHAMBERS: KernelSpec(
        interface="zonotope",
        formula="with r = d−1−level and c = +1 if level = 0 else −1: for each r-subset S of the "
        "first n−1 rows, `start` to `start`+`count` in lexicographic order, w = (0, …, 0, c, z) "
        "with Y_S w = 0; s_i = sign(Y_i·w) off S, s_S = sign(λ) with A_Sᵀλ = e_1, A_S the last r "
        "columns, s_n = +1, as int8; and the clearance of each cell: its smallest |Y_i·w|/‖w‖ or "
        "|λ_i|/‖λ‖ times the smallest distance of a row of A_S from the span of those before it, "
        "1 at most",
        arguments=(Argument("rotated", "n d"),),
        options=("level", "start", "count"),
        required=("level", "start", "count"),
        returns=("c n", "c"),
        nonempty=("n",),
        source="fishertope: Zaslavsky's count made constructive",
    ),
    Kernel.CHAMBERS_AT: KernelSpec(
        interface="zonotope",
        formula="as sweep_chambers, for k given subsets of the first n−1 rows, each ascending",
        arguments=(Argument("rotated", "n d"), Argument("subsets", "k r", integer=True, below="n")),
        options=("level",),
        required=("level",),
        returns=("k n", "k"),
        nonempty=("n",),
        source="fishertope: Zaslavsky's count made constructive",
    ),
    Kernel.SPLIT_CHAMBERS: KernelSpec(
        interface="zonotope",
        formula="for each of b cones {w : signs_i rows_i·w > 0} with a unit witness: does the side "
        "+ or − of `row` meet it? 1 with a unit witness −ρ + t w, ρ = −s x − Σ μ_i s_i x_i the "
        "shortest with μ >= 0; −1 if ρ = 0 for independent rows, beyond rounding; 0 where float64 "
        "does not decide; as int8",
        arguments=(
            Argument("rows", "k d"),
            Argument("row", "d"),
            Argument("signs", "b k"),
            Argument("witnesses", "b d"),
        ),
        returns=("b 2", "b 2 d"),
        nonempty=("k", "d"),
        source="Rada & Černý 2018, with one non-negative least squares a side",
    ),
    Kernel.VERTEX_PROGRAMS: KernelSpec(
        interface="zonotope",
        formula="for each of b programs min ½‖Σ_j v_j A_j X w_j − y‖² + ½ ε‖w‖² subject to "
        "S_j X w_j >= 0, with A_j the rows where `patterns` is +1 and ε = 1e-11 times the mean "
        "diagonal of the Hessian: weights w and multipliers μ of the constraints; the returned w "
        "has the bias of ε taken off where the cones allow it",
        arguments=(
            Argument("generators", "n d"),
            Argument("targets", "n"),
            Argument("unit_signs", "m"),
            Argument("patterns", "b m n"),
        ),
        returns=("b m d", "b m n"),
        nonempty=("n",),
        source=_RELU + "; Goldfarb & Idnani 1983",
    ),
    Kernel.NEIGHBOUR_PROGRAMS: KernelSpec(
        interface="zonotope",
        formula="the vertex programs of `patterns` with one sign turned, for each pair of `units` "
        "and `rows`; `multipliers` (> 0: the working set) of the program itself are a hint. "
        "Weights and ½‖Φw − y‖²; infinite, with weights 0, where the optimum is found not to be "
        "below `incumbent` (infinite)",
        arguments=(
            Argument("generators", "n d"),
            Argument("targets", "n"),
            Argument("unit_signs", "m"),
            Argument("patterns", "m n"),
            Argument("multipliers", "m n"),
            Argument("units", "k", integer=True, below="m"),
            Argument("rows", "k", integer=True, below="n"),
        ),
        options=("incumbent",),
        returns=("k m d", "k"),
        nonempty=("n",),
        source="fishertope: dual active sets restarted from a neighbour's",
    ),
}
