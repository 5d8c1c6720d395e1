"""A training run in a process of its own, to be killed."""

import os
import sys

import torch

from fishertope.experiments.seq2seq import Seq2Seq, Seq2SeqConfig
from fishertope.experiments.text2text import ByteVocabulary
from fishertope.experiments.text2text.batches import Lengths
from fishertope.experiments.text2text.streams import TaskStream
from fishertope.experiments.text2text.training import TrainingPlan, train

torch.set_num_threads(1)
if "WORLD_SIZE" in os.environ:
    torch.distributed.init_process_group("gloo")
dropout = float(sys.argv[2]) if len(sys.argv) > 2 else 0.1
vocabulary, lengths = ByteVocabulary(sentinels=5), Lengths(inputs=16, targets=8)
config = Seq2SeqConfig(
    vocab_size=vocabulary.size, d_model=16, d_ff=32, d_kv=8, heads=2, layers=1, dropout=dropout
)
model = Seq2Seq(config, torch.Generator().manual_seed(0))
examples = [{"inputs": f"say {i}", "targets": str(i)} for i in range(20)]
train(
    model,
    TaskStream(examples, vocabulary, lengths, seed=2),
    TrainingPlan(steps=60, batch_size=4, lengths=lengths, log_every=1, save_every=1),
    folder=sys.argv[1],
)
if torch.distributed.is_initialized():
    torch.distributed.destroy_process_group()
