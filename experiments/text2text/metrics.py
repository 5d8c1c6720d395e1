"""Scores of predictions against targets, all times 100.

Every metric maps targets and predictions, two lists of one length, to named numbers. BLEU and
ROUGE are those of the packages ``sacrebleu`` and ``rouge-score`` (the ``text`` extra).
Source of the choices: Raffel et al., arXiv 1910.10683, section 2.3, and its released code.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np

from fishertope.core.errors import InvalidInputError, PackageMissingError

Scores: TypeAlias = dict[str, float]
Metric: TypeAlias = Callable[[Sequence[Any], Sequence[Any]], Scores]
INVALID = -1
"""Class of a prediction that is no label: always wrong."""


def _paired(targets: Sequence[Any], predictions: Sequence[Any]) -> None:
    if len(targets) != len(predictions) or not len(targets):
        raise InvalidInputError(
            f"{len(targets)} targets and {len(predictions)} predictions were given; give the same "
            "number of both, at least one"
        )


def accuracy(targets: Sequence[Any], predictions: Sequence[Any]) -> Scores:
    """Share of predictions equal to their targets."""
    _paired(targets, predictions)
    right = sum(t == p for t, p in zip(targets, predictions, strict=True))
    return {"accuracy": 100.0 * right / len(targets)}


def matthews(targets: Sequence[int], predictions: Sequence[int]) -> Scores:
    """Matthews correlation of two classes, 0 where it has no value.

    (TP·TN − FP·FN) / √((TP+FP)(TP+FN)(TN+FP)(TN+FN)); an invalid prediction counts as the class
    opposite to its target.
    """
    t, p = _binary(targets, predictions)
    cov = float(np.mean(t * p) - np.mean(t) * np.mean(p))
    spread = float(np.std(t) * np.std(p))
    return {"matthews": 100.0 * cov / spread if spread > 0 else 0.0}


def f1_with_invalid(targets: Sequence[int], predictions: Sequence[int]) -> Scores:
    """F1 of class 1 and accuracy; an invalid prediction counts as the opposite of its target."""
    t, p = _binary(targets, predictions)
    scores = accuracy(targets, predictions)
    return {"f1": 100.0 * _f1(t == 1, p == 1), **scores}


def mean_class_f1(classes: int) -> Metric:
    """F1 averaged over ``classes`` classes, and accuracy."""
    if classes < 2:
        raise InvalidInputError(f"classes={classes}; give at least 2")

    def metric(targets: Sequence[int], predictions: Sequence[int]) -> Scores:
        scores = accuracy(targets, predictions)
        t, p = np.asarray(targets), np.asarray(predictions)
        each = [_f1(t == c, p == c) for c in range(classes)]
        return {f"mean_{classes}class_f1": 100.0 * float(np.mean(each)), **scores}

    return metric


def _binary(
    targets: Sequence[int], predictions: Sequence[int]
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    _paired(targets, predictions)
    t, p = np.asarray(targets), np.asarray(predictions)
    if not np.isin(t, (0, 1)).all():
        raise InvalidInputError(
            f"targets of the classes {sorted(set(t.tolist()))} were given; 0 and 1 are accepted"
        )
    return t, np.where(np.isin(p, (0, 1)), p, 1 - t)


def _f1(target: Any, predicted: Any) -> float:
    """2 TP / (2 TP + FP + FN) of two masks, 0 where both are empty."""
    both = int(target.sum()) + int(predicted.sum())
    return 2.0 * int((target & predicted).sum()) / both if both else 0.0


def correlations(targets: Sequence[float], predictions: Sequence[float]) -> Scores:
    """Pearson and Spearman correlation; 0 where one side is constant."""
    _paired(targets, predictions)
    from scipy.stats import pearsonr, spearmanr

    t, p = (np.asarray(side, dtype=np.float64) for side in (targets, predictions))
    if len(t) < 2 or np.ptp(t) == 0 or np.ptp(p) == 0:
        return {"pearson": 0.0, "spearman": 0.0}
    return {
        "pearson": 100.0 * float(pearsonr(t, p).statistic),
        "spearman": 100.0 * float(spearmanr(t, p).statistic),
    }


def multirc(targets: Sequence[Any], predictions: Sequence[Any]) -> Scores:
    """F1 over all answers, and the share of questions whose answers are all right.

    Both sides hold pairs (question, class); the class of a prediction may be invalid.
    """
    _paired(targets, predictions)
    classes = [label for _, label in targets]
    guessed = [label for _, label in predictions]
    whole: dict[Any, bool] = {}
    for (question, label), guess in zip(targets, guessed, strict=True):
        whole[question] = whole.get(question, True) and label == guess
    return {
        "f1": f1_with_invalid(classes, guessed)["f1"],
        "exact_match": 100.0 * float(np.mean(list(whole.values()))),
    }


_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """Lower case, without ASCII punctuation, articles and extra spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def _token_f1(target: str, prediction: str) -> float:
    t, p = target.split(), prediction.split()
    if not t or not p:
        return float(t == p)
    common = sum((Counter(t) & Counter(p)).values())
    return 2.0 * common / (len(t) + len(p))


def squad(targets: Sequence[Sequence[str]], predictions: Sequence[str]) -> Scores:
    """Exact match and F1 of words, each the best over the references of an example.

    Both sides are normalised with :func:`normalize_answer` first. ``targets`` holds the
    references of each example.
    """
    _paired(targets, predictions)
    exact, f1 = [], []
    for references, guess in zip(targets, predictions, strict=True):
        if isinstance(references, str) or not references:
            raise InvalidInputError(f"references {references!r}; give a list of at least one text")
        wanted, got = [normalize_answer(r) for r in references], normalize_answer(guess)
        exact.append(max(w == got for w in wanted))
        f1.append(max(_token_f1(w, got) for w in wanted))
    return {"exact_match": 100.0 * float(np.mean(exact)), "f1": 100.0 * float(np.mean(f1))}


def exact_text(targets: Sequence[str], predictions: Sequence[str]) -> Scores:
    """Share of predictions equal to their target after :func:`normalize_answer`."""
    _paired(targets, predictions)
    same = [
        normalize_answer(t) == normalize_answer(p)
        for t, p in zip(targets, predictions, strict=True)
    ]
    return {"exact_match": 100.0 * float(np.mean(same))}


def bleu(targets: Sequence[Any], predictions: Sequence[str]) -> Scores:
    """Corpus BLEU of sacreBLEU: exponential smoothing, international tokenisation.

    A target is a text, or a list of references of the same number for every example.

    Raises
    ------
    PackageMissingError
        Without the package ``sacrebleu``.
    """
    _paired(targets, predictions)
    try:
        import sacrebleu
    except ImportError as exc:
        raise _missing("sacrebleu", "BLEU") from exc
    lists = [[t] if isinstance(t, str) else list(t) for t in targets]
    if len({len(references) for references in lists}) != 1:
        raise InvalidInputError("the examples have different numbers of references; give one each")
    score = sacrebleu.corpus_bleu(
        list(predictions), [list(column) for column in zip(*lists, strict=True)],
        smooth_method="exp", tokenize="intl", lowercase=False,
    )  # fmt: skip
    return {"bleu": float(score.score)}


def rouge(targets: Sequence[str], predictions: Sequence[str]) -> Scores:
    """Mean F of ROUGE-1, ROUGE-2 and ROUGE-Lsum, with stemming off.

    Sentences are told apart by a line break after each `` . ``, as the released code does.

    Raises
    ------
    PackageMissingError
        Without the package ``rouge-score``.
    """
    _paired(targets, predictions)
    try:
        from rouge_score.rouge_scorer import RougeScorer  # type: ignore[import-untyped]
    except ImportError as exc:
        raise _missing("rouge-score", "ROUGE") from exc
    kinds = ("rouge1", "rouge2", "rougeLsum")
    scorer = RougeScorer(list(kinds))
    rows = [
        scorer.score(_by_sentence(t), _by_sentence(p))
        for t, p in zip(targets, predictions, strict=True)
    ]
    return {kind: 100.0 * float(np.mean([row[kind].fmeasure for row in rows])) for kind in kinds}


def _by_sentence(text: str) -> str:
    return text.replace(" . ", " .\n")


def _missing(package: str, what: str) -> PackageMissingError:
    return PackageMissingError(
        f"{what} needs the package {package}, which is not installed; "
        'pip install "fishertope[text]" brings it.'
    )
