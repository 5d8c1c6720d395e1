"""Tasks in text-to-text form: vocabularies and unsupervised objectives."""

from .objectives import Objective, denoise, random_spans_lengths, reconstruct
from .vocabulary import ByteVocabulary, SentencePieceVocabulary, Vocabulary
