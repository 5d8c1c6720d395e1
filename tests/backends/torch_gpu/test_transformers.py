"""Tiny random transformers: padded batches, tied tables, relative positions, KL."""

import warnings

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from fishertope.backends.torch_gpu.hooks import module_engine  # noqa: E402
from fishertope.backends.torch_gpu.readout import EachToken, LabelWords  # noqa: E402
from fishertope.core.errors import ConversionWarning, InvalidInputError  # noqa: E402
from fishertope.core.fisher import ProbeLabels, SampledLabels, per_example_fishers  # noqa: E402
from fishertope.core.model import Categorical, TokenCategorical  # noqa: E402

from .test_module_engines import by_loop, close, random_roots  # noqa: E402

SMALL = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


def make(name):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if name in ("bert", "roberta"):
            kind = {"bert": "Bert", "roberta": "Roberta"}[name]
            config = getattr(transformers, f"{kind}Config")(
                **SMALL, intermediate_size=24, num_labels=3, max_position_embeddings=20
            )
            model = getattr(transformers, f"{kind}ForSequenceClassification")(config)
        elif name == "gpt2":
            config = transformers.GPT2Config(
                vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=20, num_labels=3,
                pad_token_id=0, bos_token_id=1, eos_token_id=1,
            )  # fmt: skip
            model = transformers.GPT2ForSequenceClassification(config)
        elif name == "llama":
            config = transformers.LlamaConfig(
                **SMALL, intermediate_size=24, num_labels=3, pad_token_id=0,
                max_position_embeddings=20, bos_token_id=1, eos_token_id=1,
            )  # fmt: skip
            model = transformers.LlamaForSequenceClassification(config)
        else:
            config = transformers.T5Config(
                vocab_size=40, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2,
                num_labels=3, decoder_start_token_id=0, eos_token_id=1, pad_token_id=0,
            )  # fmt: skip
            model = transformers.T5ForConditionalGeneration(config)
        # Larger than the usual start, so that attention is not nearly uniform.
        with torch.no_grad():
            for p in model.parameters():
                p += 0.1 * torch.randn_like(p)
    return model.double().eval()


def batch():
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(3, 40, (4, 7), generator=generator)
    mask = torch.ones(4, 7, dtype=torch.int64)
    for i, length in enumerate((7, 5, 3, 6)):
        ids[i, length:] = 0
        mask[i, length:] = 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("name", ["bert", "roberta", "gpt2", "llama"])
def test_padded_batches_equal_the_loop_and_the_unpadded_examples(name):
    model, x = make(name), batch()
    engine = module_engine(model)
    assert engine.explanation.startswith("hooks")
    roots = random_roots(4, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows = engine.rows(x, roots)
    close(rows, by_loop(model, x, roots))
    close(engine.diagonal(x, roots), rows.square().sum(1))
    close(engine.diagonal_sum(x, roots)[0], rows.square().sum((0, 1)))
    length = int(x["attention_mask"][2].sum())
    alone = {k: v[2:3, :length] for k, v in x.items()}
    close(engine.rows(alone, roots[2:3]), rows[2:3])


def test_function_transforms_loop_over_a_masked_transformer_with_a_warning():
    model, x = make("bert"), batch()
    engine = module_engine(model, engine="functional")
    roots = random_roots(4, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConversionWarning)
        rows = engine.rows(x, roots)
    close(rows, by_loop(model, x, roots))
    x.pop("attention_mask")
    fresh = module_engine(model, engine="functional")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows = fresh.rows(x, roots)
    close(rows, by_loop(model, x, roots))


def first_logits(returned, inputs):
    return returned.logits[:, 0]


def test_tied_tables_and_relative_positions_of_an_encoder_decoder():
    model = make("t5")
    x = batch() | {"decoder_input_ids": torch.zeros(4, 2, dtype=torch.int64)}
    engine = module_engine(model, outputs_of=first_logits)
    roots = random_roots(4, 40)
    names = [s.name for s in engine.sites if "relative" not in s.name]
    without = engine.restricted(names)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows = without.rows(x, roots)
        squares = without.diagonal_sum(x, roots)[0]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        whole = engine.rows(x, roots)
    assert any("relative_attention_bias" in str(w.message) for w in told)
    by = {s.name: s for s in engine.sites}
    kept = torch.cat([torch.arange(by[n].start, by[n].stop) for n in names])
    close(rows, whole[:, :, kept])
    close(squares, rows.square().sum((0, 1)))
    assert any(s.name == "shared.weight" for s in engine.sites)
    assert not any(s.name == "lm_head.weight" for s in engine.sites)


def language_model():
    config = transformers.GPT2Config(
        vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=20,
        pad_token_id=0, bos_token_id=1, eos_token_id=1,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return transformers.GPT2LMHeadModel(config).double().eval()


def test_label_words_are_a_classifier_at_the_last_kept_position():
    model, x = language_model(), batch()
    words = [5, 9, 30]
    fishers = per_example_fishers(model, x, outputs_of=LabelWords(words))
    lengths = x["attention_mask"].sum(1)
    chosen = list(model.parameters())
    for i in range(4):
        one = {k: v[i : i + 1, : lengths[i]] for k, v in x.items()}
        logp = torch.log_softmax(model(**one).logits[0, -1, words], 0)
        F = 0
        for value in logp:
            g = torch.autograd.grad(value, chosen, retain_graph=True)
            g = torch.cat([a.reshape(-1) for a in g])
            F = F + value.exp().detach() * g[:500, None] * g[None, :500]
        rows = fishers.block(i)[:, :500]
        close(rows.T @ rows, F)
    with pytest.raises(InvalidInputError, match="two different"):
        LabelWords([3, 3])


def test_the_fisher_of_a_language_model_adds_positions_and_skips_padding():
    model, x = language_model(), batch()
    output = TokenCategorical(40)
    options = {"outputs_of": EachToken(following=True), "output": output, "params": "*ln_f*"}
    fishers = per_example_fishers(model, x, **options)
    length = int(x["attention_mask"][2].sum())
    one = {k: v[2:3, :length] for k, v in x.items()}
    F = 0
    chosen = [model.transformer.ln_f.weight, model.transformer.ln_f.bias]
    for logp in torch.log_softmax(model(**one).logits[0, :-1], -1):
        for value in logp:
            g = torch.cat(torch.autograd.grad(value, chosen, retain_graph=True))
            F = F + value.exp().detach() * g[:, None] * g[None, :]
    close(fishers.dense(2), F)
    for rule in (SampledLabels(2), ProbeLabels(2)):
        whole = per_example_fishers(model, x, labels=rule, **options)
        single = per_example_fishers(model, x, labels=rule, batch_size=1, **options)
        close(single.rows, whole.rows)


def test_token_outputs_are_products_of_their_positions():
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(3, 2 * 4, generator=generator, dtype=torch.float64)
    tokens, one = TokenCategorical(4), Categorical()
    y = torch.tensor([[1, 2], [0, -100], [-100, -100]])
    parts = z.reshape(6, 4)
    live = (y != -100).double()
    expected = (one.log_prob(parts, y.clamp(0).reshape(-1)).reshape(3, 2) * live).sum(1)
    close(tokens.log_prob(z, y), expected)
    leaf = z.clone().requires_grad_()
    (grad,) = torch.autograd.grad(tokens.log_prob(leaf, y).sum(), leaf)
    close(tokens.score(z, y), grad)
    for reduced in (True, False):
        U = tokens.fisher_root(z, reduced=reduced)
        F = one.fisher_root(parts, reduced=False)
        F = (F.transpose(1, 2) @ F).reshape(3, 2, 4, 4)
        whole = U.transpose(1, 2) @ U
        close(whole[:, :4, :4], F[:, 0])
        close(whole[:, 4:, 4:], F[:, 1])
        assert float(whole[:, :4, 4:].abs().max()) == 0
    with pytest.raises(InvalidInputError, match="multiple of 4"):
        tokens.kl(z[:, :7], z[:, :7])
    with pytest.raises(InvalidInputError, match="outside 0 to 3"):
        tokens.score(z, y + 4)
    with pytest.raises(InvalidInputError, match=r"\(3, 2\)"):
        tokens.score(z, y[:, :1])


def test_a_whole_vocabulary_is_refused_before_anything_is_differentiated():
    model, x = language_model(), batch()
    model.resize_token_embeddings(1500)
    options = {"outputs_of": EachToken(following=True), "output": TokenCategorical(1500)}
    with pytest.raises(InvalidInputError, match="ProbeLabels"):
        per_example_fishers(model, x, **options)
