"""Studies of Fisher merging, one module each; helpers are named for what they do."""

STUDIES = {
    "merging-product": "product",
    "merging-structures": "structures",
    "merging-examples": "examples",
    "merging-ensemble": "ensemble",
    "merging-frontier": "frontier",
    "merging-transfer": "transfer",
    "merging-cost": "cost",
    "merging-text-to-text": "text_to_text",
    "merging-sentences": "sentences",
    "merging-sentence-design": "sentence_design",
    "merging-strong": "strong_target",
    "merging-domain": "domain",
}
