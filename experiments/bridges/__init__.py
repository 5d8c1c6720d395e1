"""Text-to-text models taken to the other parts: Fishers, merging, NPEFF, and shallow networks."""

from .fishers import Question as Question, Texts as Texts, ask as ask
