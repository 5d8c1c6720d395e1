"""The claims of the five papers, numbered, in our words: what the studies refer to."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Paper:
    """A paper and what it claims.

    Attributes
    ----------
    title, arxiv : str
    claims : tuple of str
        Claim 1 first.
    out_of_reach : tuple of str
        What of the paper no study here can test, and why; shown on the paper's page.
    """

    title: str
    arxiv: str
    claims: tuple[str, ...]
    out_of_reach: tuple[str, ...] = ()


PAPERS = {
    "npeff": Paper(
        "NPEFF: non-negative per-example Fisher factorization",
        "2310.04649",
        (
            "Per-example Fishers decompose into non-negative sums of rank-one (or diagonal) "
            "components by a scalable algorithm.",
            "Components correspond to processing strategies, for several language models and text "
            "tasks.",
            "Parameter perturbations built from a component selectively disrupt its role.",
            "Extensive ablations: rank, components, number of examples, projection dimension, "
            "normalisation, exact or sampled labels.",
            "Collateral effects of unlearning can be analysed and mitigated.",
            "In-context learning can be studied.",
            "Advantages over gradient clustering and over sparse autoencoders on activations.",
            "Applies to any end-to-end differentiable model, language and vision; recovers the "
            "strategies of a model with known rules; finds and corrects flawed heuristics.",
        ),
    ),
    "relu": Paper(
        "Shallow ReLU networks as a search over zonotope vertices",
        "2210.00176",
        (
            "Optimisation is a search over activation patterns with a convex program each; the "
            "patterns are the vertices of a (product of) zonotope(s).",
            "Sensitivity of the optimal loss to perturbations of the data, and general position.",
            "Over-parameterisation makes a random vertex likely to contain a good solution.",
            "A polynomial-time procedure picks a vertex that contains the global optimum with only "
            "double the minimum number of parameters that fit the data.",
            "A greedy local search over vertices outperforms gradient descent on "
            "under-parameterised problems.",
        ),
    ),
    "merging": Paper(
        "Merging models with Fisher-weighted averaging",
        "2111.09832",
        (
            "Merging approximates maximising the product of posteriors; the isotropic case is "
            "plain averaging.",
            "Diagonal Fisher precision improves on isotropic merging.",
            "Comparable to gradient-based transfer on intermediate-task training and domain "
            "adaptation.",
            "Combines models in new ways: merging on top of sequential training, many donors, "
            "checkpoints.",
            "Extremely low cost.",
            "Extensive ablation of the design: number of examples, normalisation, floor, "
            "coefficient search, labels.",
        ),
    ),
    "modifications": Paper(
        "Do Transformer modifications transfer across implementations and applications?",
        "2102.11972",
        (
            "Most modifications do not meaningfully improve performance in one shared setting.",
            "The beneficial ones are minor changes or come from the same code base.",
            "Improvements may depend on implementation details; recommendations for evaluating.",
        ),
        out_of_reach=(
            "Absolute scores, and SuperGLUE, XSum, WebQuestions and WMT: neither those texts nor "
            "the computers. Models have 0.30 M parameters where the paper's have 223 M.",
            "Final losses at the paper's length: 300 steps are an early phase, 600 its double, "
            "where the paper's end is eight times the early phase.",
            "Depth against width: two blocks a stack leave four, three and one to compare.",
            "Speed on the paper's accelerators: times are a processor's, whose operators differ.",
        ),
    ),
    "t5": Paper(
        "Exploring the limits of transfer learning with a unified text-to-text Transformer",
        "1910.10683",
        (
            "Every language problem as text-to-text, with one model, loss and decoding.",
            "Comparison of objectives, architectures, unlabeled data, transfer approaches, mixing "
            "and scale.",
            "Insights combined give the best results.",
            "Release of data, models and code.",
        ),
        out_of_reach=(
            "Absolute scores. The models have 0.30 M parameters and see about half a million "
            "tokens of text; the paper's have 220 M to 11 B and see 34 billion to a trillion. Only "
            "the direction of a difference is compared.",
            "GLUE, SuperGLUE, SQuAD, CNN/Daily Mail and WMT. None of their texts can be fetched "
            "from a package registry. Tasks of the same forms are made of WordNet, of film reviews "
            "rated by people and of messages of user interfaces; the formats and metrics of the "
            "original tasks are tested on hand-made records.",
            "C4 and its size. Repeats begin at thousands of tokens here, at hundreds of millions "
            "there, and the corpora are of one dictionary, one manual, film reviews and e-mails.",
            "Models of 3 and 11 billion parameters, and the best published scores that they "
            "reached: no such computer.",
            "Effects that show only when a model has learned much from unlabeled text: after some "
            "hundred steps it has learned the frequencies of pieces and short contexts. A study "
            "whose interval contains no difference says that it cannot be tested at this size.",
            "Beam search against greedy decoding, and the choice of checkpoints by validation: "
            "both exist, but no model of this size decodes well enough for a difference.",
        ),
    ),
}
