"""Token attributions: what hiding a token from the others costs, one by one."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from fishertope.core.errors import InvalidInputError  # noqa: E402
from fishertope.core.factorization import (  # noqa: E402
    LowRankNPEFF,
    factorize,
    token_attributions,
)
from fishertope.core.fisher import per_example_fishers  # noqa: E402
from fishertope.core.model import engine_for  # noqa: E402


def test_attributions_are_the_loss_of_response_without_the_token():
    config = transformers.BertConfig(
        vocab_size=17, hidden_size=12, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=20, num_labels=3, max_position_embeddings=9,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.BertForSequenceClassification(config).double().eval()
        ids = torch.randint(4, 17, (8, 6))
    batch = {"input_ids": ids, "attention_mask": torch.ones(8, 6, dtype=torch.int64)}
    batch["attention_mask"][0, 5] = 0
    found = factorize(
        per_example_fishers(model, batch), LowRankNPEFF(2, tol=1e-2), on_failure="return"
    )
    one = {k: v[:1] for k, v in batch.items()}
    shares = token_attributions(model, found, 1, one, batch_size=4)
    engine = engine_for(model)
    g = torch.as_tensor(found.components[1])
    U = engine.output.fisher_root(engine.predict(one))[0]

    def size(example):
        J = engine.rows(example, torch.eye(3, dtype=torch.float64)[None])[0]
        return float((U @ (J @ g)).square().sum())

    for t in range(5):
        hidden = {k: v.clone() for k, v in one.items()}
        hidden["attention_mask"][0, t] = 0
        assert shares[t] == pytest.approx(1 - size(hidden) / size(one), abs=1e-8)
    assert shares[5] == 0.0
    assert np.ptp(shares[:5]) > 1e-4
    for bad in (batch, {"input_ids": ids[:1]}):
        with pytest.raises(InvalidInputError, match="batch of one"):
            token_attributions(model, found, 1, bad)
