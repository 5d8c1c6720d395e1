"""Studies of T5's claims on real text, one module each; ``docs/text-to-text.md`` says what of."""

STUDIES = {
    "t5-families": "families",
    "t5-objectives": "objectives",
    "t5-structures": "structures",
    "t5-corruption": "corruption",
    "t5-unlabeled": "unlabeled",
    "t5-approaches": "approaches",
    "t5-mixing": "mixing",
    "t5-scaling": "scaling",
    "t5-combined": "combined",
    "t5-checkpoints": "checkpoints",
}
