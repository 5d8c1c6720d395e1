"""Text classifiers fine-tuned from one base, made once and kept in the user's cache.

``python -m fishertope.experiments.finetune run TASK`` does it from a terminal, ``list`` shows tasks
and bases.
"""

from .bases import BASES as BASES, Base as Base
from .fine_tuned import FineTuned as FineTuned, finetune as finetune
from .tasks import TASKS as TASKS, Task as Task, TaskData as TaskData, load_task as load_task
from .training import encode as encode, evaluate as evaluate, token_batches as token_batches
