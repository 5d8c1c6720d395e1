"""Studies of shallow ReLU networks as zonotopes, one module each."""

STUDIES = {
    "relu-vertices": "vertices",
    "relu-jump": "jump",
    "relu-random": "random_vertices",
    "relu-selection": "selection",
    "relu-threshold": "threshold",
    "relu-greedy": "greedy",
    "relu-feed-forward": "feed_forward",
}
