"""Plans in mergekit's YAML give mergekit's tensors: both tools on small random Llama models.

    python benchmarks/mergekit_compat.py --mergekit VENV/bin/python

VENV is an environment with mergekit==0.1.5. For dare_linear and dare_ties the masks that mergekit
drew are captured there and given to fishertope, since the random generators differ. Prints the
largest absolute difference in float32 for each plan; exit code 1 if one exceeds 1e-6.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import yaml

from fishertope.core.merging.plans import MergePlan, PlanSource, load_plan
from fishertope.core.merging.streaming import Checkpoint, MergeOptions, merge_checkpoints
from fishertope.core.storage.numbers import decode, stored_dtype

LIMIT = 1e-6

# Runs in mergekit's environment: merges, and keeps the masks of random drops under tensor names.
DRIVER = """
import sys, torch
from safetensors.torch import save_file
import mergekit.merge_methods.generalized_task_arithmetic as gta
import mergekit.merge_methods.task_adapter as adapter
import mergekit.sparsify as sparsify
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
import yaml

place, out, masks = sys.argv[1:4]
name, seen = [""], {}
plain, execute = sparsify.bernoulli, adapter.ExecuteMergeMethodTask.execute

def bernoulli(tensor, density, rescale_norm=None):
    kept = plain(tensor, density, None)
    mask = (kept != 0) | (tensor == 0)
    seen.setdefault(name[0], []).append(mask)
    return sparsify.rescaled_masked_tensor(tensor, mask.to(tensor.dtype), rescale_norm)

def named(self, *args, **kwargs):
    name[0] = self.output_weight.name
    return execute(self, *args, **kwargs)

sparsify.bernoulli = bernoulli
adapter.ExecuteMergeMethodTask.execute = named
config = MergeConfiguration.model_validate(yaml.safe_load(open(place)))
run_merge(config, out, options=MergeOptions(random_seed=7, quiet=True, copy_tokenizer=False))
for i in range(max(map(len, seen.values()), default=0)):
    save_file({n: m[i].contiguous() for n, m in seen.items()}, f"{masks}-{i}.safetensors")
"""


def models(folder, count=4):
    """Random Llama checkpoints near to the first, in float32."""
    import torch
    import transformers

    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=97, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    base = transformers.LlamaForCausalLM(config)
    paths = []
    for i in range(count):
        if i:
            for p in base.parameters():
                p.data += 0.02 * torch.randn(p.shape)
        paths.append(folder / f"model-{i}")
        base.save_pretrained(paths[-1])
    return [str(p) for p in paths]


def plans(paths):
    """Configurations in mergekit's form, by name."""
    base, *others = paths

    def entries(*settings):
        return [{"model": m, "parameters": s} for m, s in zip(others, settings, strict=False)]

    task = {"base_model": base, "dtype": "float32"}
    filters = [{"filter": "self_attn", "value": [0.0, 0.5, 0.3, 0.7, 1.0]},
               {"filter": "mlp", "value": [1.0, 0.5, 0.7, 0.3, 0.0]}, {"value": 0.5}]  # fmt: skip
    return {
        "linear": {"merge_method": "linear", "dtype": "float32",
                   "models": entries({"weight": 0.3}, {"weight": [0.2, 0.9]}, {"weight": 1.1})},
        "linear, not normalised": {
            "merge_method": "linear", "dtype": "float32", "parameters": {"normalize": False},
            "models": entries({"weight": 0.3}, {"weight": -0.2}, {"weight": 0.4})},
        "slerp, filters and gradients": {
            "merge_method": "slerp", **task, "parameters": {"t": filters},
            "slices": [{"sources": [{"model": m, "layer_range": [0, 3]} for m in paths[:2]]}]},
        "task_arithmetic": {"merge_method": "task_arithmetic", **task,
                            "models": [{"model": base}, *entries({"weight": 0.6}, {"weight": -0.2},
                                                                 {"weight": 0.5})]},
        "task_arithmetic, normalised": {
            "merge_method": "task_arithmetic", **task,
            "parameters": {"normalize": True, "lambda": 0.8},
            "models": entries({"weight": 0.6}, {"weight": 0.3})},
        "ties": {"merge_method": "ties", **task, "parameters": {"normalize": True},
                 "models": entries({"weight": 0.5, "density": 0.3},
                                   {"weight": 0.8, "density": [0.2, 0.9]}, {"weight": 0.4})},
        "ties, a sum": {"merge_method": "ties", **task,
                        "parameters": {"normalize": False, "density": 0.5, "int8_mask": True},
                        "models": entries({"weight": 0.5}, {"weight": 0.8}, {"weight": 0.4})},
        "dare_linear": {"merge_method": "dare_linear", **task,
                        "models": entries({"weight": 0.5, "density": 0.4},
                                          {"weight": 0.7, "density": 0.6})},
        "dare_ties": {"merge_method": "dare_ties", **task,
                      "models": entries({"weight": 0.5, "density": 0.4},
                                        {"weight": 0.7, "density": 0.6})},
        "breadcrumbs": {"merge_method": "breadcrumbs", **task,
                        "models": entries({"weight": 0.5, "density": 0.8, "gamma": 0.05},
                                          {"weight": 0.7, "density": 0.6})},
        "breadcrumbs_ties": {"merge_method": "breadcrumbs_ties", **task,
                             "models": entries({"weight": 0.5, "density": 0.8},
                                               {"weight": 0.7, "density": 0.6})},
        "model_stock": {"merge_method": "model_stock", **task, "models": entries({}, {}, {})},
    }  # fmt: skip


def read(path):
    with Checkpoint(path) as found:
        out = {}
        for name, tensor in found.tensors.items():
            stored = np.empty(tensor.size, dtype=stored_dtype(tensor.dtype))
            found.read(name, 0, stored)
            out[name] = decode(stored, tensor.dtype)
        return out


def compare(name, config, folder, python):
    """Largest difference between the tensors of the two tools."""
    folder.mkdir()
    place, theirs, masks = folder / "plan.yaml", folder / "mergekit", folder / "mask"
    place.write_text(yaml.safe_dump(config))
    subprocess.run([python, "-c", DRIVER, str(place), str(theirs), str(masks)], check=True,
                   capture_output=True, text=True)  # fmt: skip
    plan = load_plan(place)
    found = sorted(folder.glob("mask-*.safetensors"))
    if found:
        sources = [PlanSource(model=s.model, parameters=s.parameters, mask=str(m))
                   for s, m in zip(plan.sources, found, strict=True)]  # fmt: skip
        plan = MergePlan.of({**plan.to_dict(), "sources": sources})
    merge_checkpoints(plan, folder / "ours", options=MergeOptions(fsync=False))
    a, b = read(folder / "ours"), read(theirs)
    if set(a) != set(b):
        raise SystemExit(f"{name}: other tensors: {sorted(set(a) ^ set(b))[:4]}")
    return max(float(np.abs(a[n] - b[n]).max()) for n in a)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--mergekit", required=True, help="python of mergekit's environment")
    parser.add_argument("--json", type=Path, help="write the differences there")
    given = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as room:
        folder = Path(room)
        paths = models(folder)
        for i, (name, config) in enumerate(plans(paths).items()):
            found[name] = compare(name, config, folder / str(i), given.mergekit)
            print(f"{name:32} {found[name]:.2e}", flush=True)
    if given.json:
        given.json.write_text(json.dumps(found, indent=2) + "\n")
    worst = max(found.values())
    print(f"largest difference {worst:.2e} (accepted: {LIMIT:g})")
    return int(worst > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
