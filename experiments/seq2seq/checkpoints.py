"""Hugging Face T5 checkpoint folders, both ways; safetensors only."""

import json
from pathlib import Path

import torch
from torch import Tensor

from fishertope.core.errors import CorruptFileError, InvalidInputError

from .config import Activation, Seq2SeqConfig
from .model import Seq2Seq

_ACTIVATIONS: dict[str, Activation] = {"relu": "relu", "gelu_new": "gelu", "silu": "swish"}
_EXPRESSED = (
    "vocab_size", "d_model", "d_ff", "d_kv", "heads", "layers", "decoder_layers", "activation",
    "gated", "embedding", "scale_logits", "dropout", "norm_eps", "buckets", "max_distance",
    "pad_id", "eos_id", "start_id",
)  # fmt: skip
_ATTENTION = {"query": "q", "key": "k", "value": "v", "output": "o"}


def _names(config: Seq2SeqConfig) -> dict[str, str]:
    """Our parameter name to theirs."""
    names = {"embedding": "shared.weight"}
    if config.embedding == "tied_inputs":
        names["head"] = "lm_head.weight"
    feed = {"wi": "wi_1", "gate": "wi_0", "wo": "wo"} if config.gated else {"wi": "wi", "wo": "wo"}
    for stack, depth in (("encoder", config.layers), ("decoder", config.decoder_depth)):
        table = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        names[f"{stack}.position.weight"] = table
        names[f"{stack}.final_norm.weight"] = f"{stack}.final_layer_norm.weight"
        last = 1 if stack == "encoder" else 2
        for i in range(depth):
            ours, theirs = f"{stack}.blocks.{i}", f"{stack}.block.{i}.layer"
            kinds = [("self", 0, "SelfAttention")]
            if stack == "decoder":
                kinds.append(("cross", 1, "EncDecAttention"))
            for kind, place, module in kinds:
                names[f"{ours}.{kind}_norm.weight"] = f"{theirs}.{place}.layer_norm.weight"
                for mine, other in _ATTENTION.items():
                    key = f"{ours}.{kind}_attention.{mine}.weight"
                    names[key] = f"{theirs}.{place}.{module}.{other}.weight"
            names[f"{ours}.feed_norm.weight"] = f"{theirs}.{last}.layer_norm.weight"
            for mine, other in feed.items():
                key = f"{ours}.feed_forward.{mine}.weight"
                names[key] = f"{theirs}.{last}.DenseReluDense.{other}.weight"
    return names


def config_from_hf(fields: dict[str, object]) -> Seq2SeqConfig:
    """Our configuration for the content of a T5 ``config.json``."""

    def number(name: str, default: int | None = None) -> int:
        value = fields.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise InvalidInputError(f"config.json has {name}={value!r}; a whole number is needed")
        return value

    if fields.get("model_type") != "t5":
        raise InvalidInputError(
            f"config.json has model_type={fields.get('model_type')!r}; only 't5' can be loaded"
        )
    kind = str(fields.get("feed_forward_proj", "relu"))
    gated = kind.startswith("gated-")
    name = kind.removeprefix("gated-")
    name = "gelu_new" if gated and name == "gelu" else name
    if name not in _ACTIVATIONS:
        raise InvalidInputError(
            f"config.json has feed_forward_proj={kind!r}; accepted are relu, gelu_new, silu and "
            "their gated- forms"
        )
    tied = bool(fields.get("tie_word_embeddings", True))
    layers = number("num_layers")
    depth = fields.get("num_decoder_layers")
    return Seq2SeqConfig(
        vocab_size=number("vocab_size"), d_model=number("d_model"), d_ff=number("d_ff"),
        d_kv=number("d_kv"), heads=number("num_heads"), layers=layers,
        decoder_layers=layers if depth is None else number("num_decoder_layers"),
        activation=_ACTIVATIONS[name], gated=gated,
        embedding="tied_all" if tied else "tied_inputs",
        dropout=float(str(fields.get("dropout_rate", 0.1))),
        norm_eps=float(str(fields.get("layer_norm_epsilon", 1e-6))),
        buckets=number("relative_attention_num_buckets", 32),
        max_distance=number("relative_attention_max_distance", 128),
        pad_id=number("pad_token_id", 0), eos_id=number("eos_token_id", 1),
        start_id=number("decoder_start_token_id", 0),
    )  # fmt: skip


def config_to_hf(config: Seq2SeqConfig) -> dict[str, object]:
    """Content of a T5 ``config.json`` for a configuration that this format can express."""
    kinds = {ours: theirs for theirs, ours in _ACTIVATIONS.items()}
    kept = {name: getattr(config, name) for name in _EXPRESSED}
    expressible = (
        config.arch == "encdec" and config.activation in kinds
        and config.embedding in ("tied_all", "tied_inputs")
        and config.logits_scaled == (config.embedding == "tied_all")
        and config == Seq2SeqConfig(**kept)
    )  # fmt: skip
    if not expressible:
        raise InvalidInputError(
            f"{config} cannot be written as a T5 folder; that format holds encdec models with "
            "rms norms, rel_shared positions, relu, gelu or swish, no biases, and tied_all or "
            "tied_inputs embeddings with their usual logit scale"
        )
    kind = kinds[config.activation]
    if config.gated:
        kind = "gated-gelu" if config.activation == "gelu" else f"gated-{kind}"
    return {
        "architectures": ["T5ForConditionalGeneration"], "model_type": "t5",
        "is_encoder_decoder": True, "vocab_size": config.vocab_size, "d_model": config.d_model,
        "d_ff": config.d_ff, "d_kv": config.d_kv, "num_heads": config.heads,
        "num_layers": config.layers, "num_decoder_layers": config.decoder_depth,
        "feed_forward_proj": kind, "tie_word_embeddings": config.embedding == "tied_all",
        "dropout_rate": config.dropout, "layer_norm_epsilon": config.norm_eps,
        "relative_attention_num_buckets": config.buckets,
        "relative_attention_max_distance": config.max_distance,
        "pad_token_id": config.pad_id, "eos_token_id": config.eos_id,
        "decoder_start_token_id": config.start_id,
    }  # fmt: skip


def _tensors(folder: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    index = folder / "model.safetensors.index.json"
    files = ["model.safetensors"]
    if index.exists():
        files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    out: dict[str, Tensor] = {}
    for name in files:
        if Path(name).name != name:
            raise CorruptFileError(f"{index} names {name!r}; only files of its own folder are read")
        if not (folder / name).exists():
            raise InvalidInputError(
                f"{folder} has no {name}; only safetensors weights are read, convert others first"
            )
        try:
            out.update(load_file(folder / name))
        except SafetensorError as error:
            raise CorruptFileError(f"{folder / name} is not a readable safetensors file") from error
    return out


def load_hf_state(model: Seq2Seq, tensors: dict[str, Tensor]) -> None:
    """Copy weights under their Hugging Face names into ``model``.

    Raises
    ------
    InvalidInputError
        A weight is missing, left over, or of another shape.
    """
    names = _names(model.config)
    own = dict(model.named_parameters())
    ignored = {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight"}
    if model.config.embedding == "tied_all":
        ignored.add("lm_head.weight")
    missing = sorted(set(names.values()) - set(tensors))
    # Old checkpoints hold an unused position table of the cross-attention.
    extra = sorted(
        n for n in set(tensors) - set(names.values()) - ignored
        if not n.endswith("EncDecAttention.relative_attention_bias.weight")
    )  # fmt: skip
    if missing or extra:
        raise InvalidInputError(
            f"the weights do not fit the configuration: missing {missing[:5]}, "
            f"unknown {extra[:5]}; check config.json"
        )
    with torch.no_grad():
        for ours, theirs in names.items():
            if own[ours].shape != tensors[theirs].shape:
                raise InvalidInputError(
                    f"{theirs} has shape {tuple(tensors[theirs].shape)}, the configuration "
                    f"needs {tuple(own[ours].shape)}"
                )
            own[ours].copy_(tensors[theirs])


def from_pretrained(folder: str | Path) -> Seq2Seq:
    """Model of a Hugging Face T5 folder (``config.json`` and safetensors weights)."""
    path = Path(folder)
    try:
        fields = json.loads((path / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise InvalidInputError(f"{path} has no readable config.json; give a T5 folder") from error
    model = Seq2Seq(config_from_hf(fields))
    load_hf_state(model, _tensors(path))
    return model.eval()


def save_pretrained(model: Seq2Seq, folder: str | Path) -> None:
    """Write a folder that ``transformers`` loads; the configuration must be expressible there."""
    from safetensors.torch import save_file

    fields = config_to_hf(model.config)
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    own = dict(model.named_parameters())
    names = _names(model.config)
    weights = {names[ours]: own[ours].detach().cpu().contiguous() for ours in names}
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    (path / "config.json").write_text(json.dumps(fields, indent=2) + "\n")
