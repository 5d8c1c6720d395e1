"""A tiny random classifier as a checkpoint folder, made once."""

from pathlib import Path

import pytest

WORDS = [
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "film", "plot", "slow", "fine", "dull",
    "bright", "never", "always",
]  # fmt: skip


def write_bert(folder: Path, *, head: bool = True, n_labels: int = 3) -> Path:
    """A BERT of two layers with a tokenizer of whole words."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=24, num_labels=n_labels, max_position_embeddings=20,
        id2label={i: f"class{i}" for i in range(n_labels)},
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        kind = transformers.BertForSequenceClassification if head else transformers.BertModel
        model = kind(config)
        with torch.no_grad():
            for p in model.parameters():
                p += 0.1 * torch.randn_like(p)
    model.save_pretrained(folder)
    write_tokenizer(folder, "Bert")
    return folder


def write_gpt2(folder: Path) -> Path:
    """A causal language model of two layers."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=len(WORDS), n_embd=16, n_layer=2, n_head=2, n_positions=20, pad_token_id=0,
        bos_token_id=2, eos_token_id=3,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(1)
        transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    write_tokenizer(folder, "Bert")
    return folder


def write_tokenizer(folder: Path, kind: str) -> None:
    """Whole words, with the usual frame of two marks."""
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    own = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]")
    )
    own.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    if kind == "Bert":
        own.post_processor = tokenizers.processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
        )  # fmt: skip
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=own, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]",
        sep_token="[SEP]",
    ).save_pretrained(folder)  # fmt: skip


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bert(tmp_path_factory.mktemp("models") / "bert")


@pytest.fixture(scope="session")
def headless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bert(tmp_path_factory.mktemp("models") / "headless", head=False)


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gpt2(tmp_path_factory.mktemp("models") / "gpt2")


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    """Eleven sentences with labels."""
    path = tmp_path / "reviews.csv"
    rows = [(" ".join(WORDS[4 + (i + j) % 10] for j in range(2 + i % 5)), i % 3) for i in range(11)]
    path.write_text("review,stars\n" + "".join(f'"{t}",{y}\n' for t, y in rows))
    return path
