"""E9: the collateral effects of unlearning, told by components, and what keeping off them saves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...core.backend import to_numpy
from ...core.factorization.perturbation import in_kind_of
from ...core.fisher import per_example_fishers
from ...core.model import engine_for
from ...core.report import Column, Table
from ...core.report.figures import bars
from ...core.types import FloatArray
from ..studies import Figure, Rows, Study, Summary, decide, grid, holm, paired_p, t_interval
from ..studies.study import Settings
from .subjects import fit, make_subject

METHODS = ("plain", "components", "unnormalised", "eigenvectors", "centroids", "random")
WORDS = {
    "plain": "nothing",
    "components": "components",
    "unnormalised": "components of Fishers as they are",
    "eigenvectors": "eigenvectors",
    "centroids": "centroids",
    "random": "random directions",
}
STEP = 0.005  # of ‖θ‖
MOST_STEPS = 400
LITTLE = 0.05  # nats
COMPONENTS = {"digits": 32, "known rules": 16}


def units(quick: bool) -> list[dict[str, Any]]:
    """A class of digits, or the examples of a rule, to forget; another one for each seed."""
    if quick:
        return grid([0], subject=["known rules"], n=[240])
    return grid(range(10, 15), subject=["digits", "known rules"], n=[700])


def unit(settings: Settings) -> Mapping[str, Any]:
    """Unlearn with and without projections; KL on retained examples at equal forgetting."""
    from scipy.stats import spearmanr

    seed, name = settings["seed"], settings["subject"]
    rng = np.random.default_rng([seed, 3])
    subject = make_subject(name, seed, settings["n"])
    forgotten = subject.classes == seed % 10 if name == "digits" else subject.labels[:, seed % 8]
    forget, kept = (rng.permutation(np.flatnonzero(m)) for m in (forgotten, ~forgotten))
    forget_fit, forget_test = np.array_split(forget, 2)
    kept_fit, kept_test = kept[:300], kept[300:600] if len(kept) >= 450 else kept[150:]
    kept_fit = kept_fit if len(kept) >= 450 else kept[:150]
    fishers: Any = per_example_fishers(subject.model, subject.inputs[kept_fit])
    r = COMPONENTS[name]
    found = fit(fishers, r, seed)
    spans = _spans(subject.model, subject.inputs[kept_fit], fishers, found, r, seed)
    work = _Unlearning(subject, forget_fit, forget_test, kept_test)
    row: dict[str, Any] = {
        "to_forget": subject.names[seed % 8] if name != "digits" else str(seed % 10),
        "relative_loss": found.relative_loss,
        "kept_accuracy_before": work.kept_accuracy(np.zeros(work.size)),
    }
    deltas = {method: work.run(spans[method]) for method in METHODS}
    for method, delta in deltas.items():
        row[method] = float(work.kept_kl(delta).mean())
        row[method + ", accuracy"] = work.kept_accuracy(delta)
        row[method + ", forgetting"] = work.forgetting(delta)
        row[method + ", length"] = float(np.linalg.norm(delta))
        if method != "plain":
            row[method + ", saved"] = 1.0 - row[method] / row["plain"]
    tests: Any = per_example_fishers(subject.model, subject.inputs[kept_test])
    W = to_numpy(found.transform(tests)).astype(np.float64) * tests.norms[:, None]
    along = np.square(to_numpy(found.components).astype(np.float64) @ deltas["plain"])
    told, measured = 0.5 * W @ along, work.kept_kl(deltas["plain"])
    row["told_spearman"] = float(spearmanr(told, measured).statistic)
    row["told_shuffled"] = float(spearmanr(told, rng.permutation(measured)).statistic)
    parts = 0.5 * W.mean(axis=0) * along
    row["share_of_three_components"] = float(np.sort(parts)[::-1][:3].sum() / parts.sum())
    return row


def _spans(
    model: Any, inputs: Any, fishers: Any, found: Any, r: int, seed: int
) -> dict[str, FloatArray]:
    """Orthonormal rows that the update keeps off, of at most r dimensions for every method."""
    from ...core.factorization.baselines import AnswerLabels, SphericalKMeans

    gradients: Any = per_example_fishers(model, inputs, labels=AnswerLabels())
    centres = np.eye(r)[SphericalKMeans(r).fit(gradients, seed=seed).scores.argmax(axis=1)].T
    p = fishers.n_columns
    return {
        "plain": np.zeros((0, p)),
        "components": _orthonormal(to_numpy(found.components)),
        "unnormalised": _orthonormal(to_numpy(fit(fishers, r, seed, normalize=False).components)),
        "eigenvectors": _leading(to_numpy(fishers.normalized().rows), r, seed),
        "centroids": _orthonormal(centres @ to_numpy(gradients.rows)),
        "random": _orthonormal(np.random.default_rng([seed, 4]).normal(size=(r, p))),
    }


def _orthonormal(rows: Any) -> FloatArray:
    _, s, vt = np.linalg.svd(np.asarray(rows, dtype=np.float64), full_matrices=False)
    return np.asarray(vt[s > 1e-8 * s[0]])


def _leading(rows: Any, r: int, seed: int) -> FloatArray:
    """The r leading right singular vectors."""
    from scipy.sparse.linalg import svds

    start = np.random.default_rng(seed).normal(size=min(rows.shape))
    return np.asarray(svds(rows.astype(np.float64), k=r, v0=start)[2])


class _Unlearning:
    """Gradient ascent on −log p(y|x) over the examples to forget, in steps of fixed length."""

    def __init__(self, subject: Any, forget_fit: Any, forget_test: Any, kept: Any) -> None:
        self.engine = engine_for(subject.model)
        self.theta = self.engine.theta()
        self.size = int(self.theta.shape[0])
        self.length = float(np.linalg.norm(to_numpy(self.theta).astype(np.float64)))
        self.fit, self.test, self.kept = (
            subject.inputs[i] for i in (forget_fit, forget_test, kept)
        )
        self.right = {"fit": subject.classes[forget_fit], "test": subject.classes[forget_test],
                      "kept": subject.classes[kept]}  # fmt: skip
        self.before = self._predict(self.kept, np.zeros(self.size))
        self.target = float(np.log(self.before.shape[1]))
        # A network that is undecided between two answers loses nothing by taking the other one.
        ordered = np.sort(self.before, axis=1)
        self.decided = ordered[:, -1] - ordered[:, -2] > 0.5

    def run(self, span: FloatArray) -> FloatArray:
        """The move δ at which the mean −log p of the held-out ones is that of chance, log C.

        Raises
        ------
        RuntimeError
            If it is not reached.
        """
        delta = np.zeros(self.size)
        for _ in range(MOST_STEPS):
            gradient = self._gradient(delta)
            gradient = gradient - span.T @ (span @ gradient)
            step = STEP * self.length * gradient / np.linalg.norm(gradient)
            if self.forgetting(delta + step) >= self.target:
                low, high = 0.0, 1.0
                for _ in range(20):
                    middle = 0.5 * (low + high)
                    if self.forgetting(delta + middle * step) >= self.target:
                        high = middle
                    else:
                        low = middle
                return np.asarray(delta + high * step)
            delta = delta + step
        raise RuntimeError(f"Nothing is forgotten after {MOST_STEPS} steps.")

    def forgetting(self, delta: FloatArray) -> float:
        """Mean −log p(y|x) of held-out examples to forget."""
        z = self._predict(self.test, delta)
        return float(-_log_softmax(z)[np.arange(len(z)), self.right["test"]].mean())

    def kept_kl(self, delta: FloatArray) -> FloatArray:
        """KL(new ‖ old) of retained examples that nothing was fitted to (n,)."""
        kl = to_numpy(self.engine.output.kl(self._predict(self.kept, delta), self.before))
        return np.asarray(np.maximum(kl, 0.0))

    def kept_accuracy(self, delta: FloatArray) -> float:
        """On those among them whose two largest logits were 0.5 apart or more at first."""
        z = self._predict(self.kept, delta)
        return float((z.argmax(axis=1) == self.right["kept"])[self.decided].mean())

    def _predict(self, inputs: Any, delta: FloatArray) -> FloatArray:
        with self.engine.patch(in_kind_of(self.theta, delta)):
            return to_numpy(self.engine.predict(inputs)).astype(np.float64)

    def _gradient(self, delta: FloatArray) -> FloatArray:
        p = np.exp(_log_softmax(self._predict(self.fit, delta)))
        p[np.arange(len(p)), self.right["fit"]] -= 1.0  # ∂(−log p_y)/∂z
        with self.engine.patch(in_kind_of(self.theta, delta)):
            found = self.engine.vjp(self.fit, in_kind_of(self.theta, p / len(p)))
        return to_numpy(found).astype(np.float64)


def _log_softmax(z: FloatArray) -> FloatArray:
    z = z - z.max(axis=1, keepdims=True)
    return np.asarray(z - np.log(np.exp(z).sum(axis=1, keepdims=True)))


def summarise(rows: Rows) -> Summary:
    """Retained KL of each method, paired by seed."""
    tables, findings, reasons = [], [], []
    for subject in rows.distinct("subject"):
        own = rows.where(subject=subject)
        logs = {m: np.log(own.values(m) / own.values("components")) for m in METHODS}
        others = [m for m in METHODS if m != "components"]
        p = holm([paired_p(logs[m]) for m in others]) if len(own) > 1 else np.ones(len(others))
        corrected = dict(zip(others, p, strict=True))
        tables.append(
            Table(
                title=f"{subject}, {COMPONENTS[subject]} dimensions: what stays, equal forgetting",
                columns=[
                    Column(name="update kept off", left=True), Column(name="KL on retained"),
                    Column(name="saved"), Column(name="accuracy on retained"),
                    Column(name="length of the update"),
                    Column(name="p against components (Holm)", format=".3f"),
                ],
                rows=[
                    [
                        WORDS[m],
                        t_interval(own.values(m)).text(".3f"),
                        None if m == "plain" else t_interval(own.values(m + ", saved")).text(".2f"),
                        t_interval(own.values(m + ", accuracy")).text(".3f"),
                        t_interval(own.values(m + ", length")).text(".2f"),
                        corrected.get(m),
                    ]
                    for m in METHODS
                ],
                note=f"Accuracy on retained examples before: "
                f"{own.values('kept_accuracy_before').mean():.3f}.",
            )
        )  # fmt: skip
        saved = t_interval(own.values("components, saved"))
        what = f"{subject}: share of retained KL saved by keeping off the components"
        findings.append(decide(what, saved, at_least=0.5))
        pooled = 1 - own.values("components").sum() / own.values("plain").sum()
        little = own.values("plain") < LITTLE
        saves = [f"{s:.2f}" for s in own.values("components, saved")[little]]
        told = t_interval(own.values("told_spearman"))
        reasons.append(
            f"{subject}: keeping off the components saves {saved.text('.2f')} of the KL on "
            f"retained examples (eigenvectors {own.values('eigenvectors, saved').mean():.2f}, "
            f"centroids {own.values('centroids, saved').mean():.2f}, random "
            f"{own.values('random, saved').mean():.2f}); the KL that components foretell for each "
            f"example has Spearman {told.text('.2f')} with the measured one (shuffled "
            f"{own.values('told_shuffled').mean():.2f}), and three components carry "
            f"{own.values('share_of_three_components').mean():.0%} of it. Of the KL of all seeds "
            f"together {pooled:.2f} is saved"
            + (
                f"; in {len(saves)} of {len(own)} seeds the plain update costs less than {LITTLE} "
                f"nats, so that there is little to save ({', '.join(saves)})."
                if saves
                else "."
            )
        )
    return Summary.of(
        findings,
        reason=" ".join(reasons),
        tables=tables,
        notes=[
            "Forgetting: gradient ascent on −log p(y|x) over half of the examples to forget, until "
            "the other half has the mean −log p of chance (log of the number of classes); the same "
            "for every method. Components, eigenvectors (of the mean normalised Fisher) and "
            "centroids (of clustered gradients) come from 300 retained examples; KL is measured on "
            "others, accuracy on those of them whose answer was clear (0.5 in the logit) at first.",
            "Where the plain update costs little, keeping off what others use makes it two to "
            "three times as long (see the lengths), and what lies outside the span and beyond "
            "second order then costs as much as was saved; components of unnormalised Fishers do "
            "no better.",
        ],
    )


def figures(rows: Rows) -> Sequence[Figure]:
    """Retained KL by method."""
    found = []
    for subject in rows.distinct("subject"):
        own = rows.where(subject=subject)
        values = np.array([own.values(m).mean() for m in METHODS])
        label = f"KL on retained examples, {subject}"
        picture = bars(values, METHODS, label=label, axis="mean KL, nats")
        found.append(Figure(picture=picture, caption=f"{subject}: mean over seeds."))
    return found


STUDY = Study(
    id="npeff-e9",
    title="Unlearning: collateral effects, told and lessened by components",
    claims=(5,),
    question="A network unlearns a class of digits, or the examples of one rule, by gradient "
    "ascent. Do components of the retained examples' Fishers tell where the damage falls, and is "
    "there less of it when the update is kept off their span?",
    history=(
        "The rule was given beforehand. Sizes were chosen on other seeds, and size and "
        "comparison methods revised after five units of the digits, two of them of seeds that "
        "are reported."
    ),
    rule="For each network, at equal forgetting on held-out examples, projecting the update off "
    "the components saves at least half of the mean KL on retained examples.",
    units=units,
    unit=unit,
    summarise=summarise,
    figures=figures,
    needs=("torch", "sklearn"),
    quick_seconds=20,
    full_minutes=6,
)
