"""Studies of NPEFF, one module each; helpers are named for what they do."""

STUDIES = {
    "npeff-e1": "planted",
    "npeff-e2": "known_rules",
    "npeff-e3": "phonology",
    "npeff-e4": "flawed_heuristic",
    "npeff-e5": "selective_moves",
    "npeff-e6": "held_out",
    "npeff-e7": "multi_factor",
    "npeff-e8": "in_context",
    "npeff-e9": "unlearning",
    "npeff-e10": "ablations",
    "npeff-images": "clothing_images",
}
