"""Do Transformer modifications transfer? All of them in one harness (arXiv 2102.11972)."""

STUDIES = {
    "modifications-early": "early",
    "modifications-transfer": "transfer",
    "modifications-readings": "readings",
    "modifications-spectra": "spectra",
    "modifications-merging": "merging",
}
