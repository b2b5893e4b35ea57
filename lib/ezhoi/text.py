"""The text side of EZ-HOI: which HOI sentences represent a verb, and their features (spec ez-hoi.md §2.7, §4.2).

With `text_prompts: off` (released behaviour) the features are plain CLIP text, computed once. With `prefix` they are
live: learned prompts in front of each sentence, conditioned on the class description.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib.clip.load import ClipModel
from lib.clip.text import encode_text, tokenize
from lib.clip.text_space import TextSpace, clip_text_space
from lib.data.vocabulary import Vocabulary
from lib.ezhoi.prompts import TextPrompts, encode_prompted_text


def select_rows(vocabulary: Vocabulary, descriptions: Tensor) -> np.ndarray:
    """Ascending HOI ids that stand for the verbs: all of a verb with one or two HOIs, else its least similar pair.

    descriptions: [C, D] L2-normalised description features. HICO-DET gives 195 rows (spec §2.7).
    """
    chosen: set[int] = set()
    for verb in range(len(vocabulary.verbs)):
        hois = np.flatnonzero(vocabulary.hoi_verb == verb)
        if len(hois) > 2:
            similarity = descriptions[hois] @ descriptions[hois].T
            a, b = np.unravel_index(int(similarity.argmin()), similarity.shape)
            hois = hois[[a, b]]
        chosen.update(hois.tolist())
    return np.array(sorted(chosen), np.int64)


class ClassText(nn.Module):
    """Features of the selected HOI sentences and their mean a verb.

    rows: [K] HOI ids. sentences: their K texts. descriptions: [K, D] L2-normalised description features.
    """

    def __init__(
        self,
        clip: ClipModel,
        vocabulary: Vocabulary,
        rows: np.ndarray,
        descriptions: Tensor,
        prompts: TextPrompts | None,
    ) -> None:
        super().__init__()
        self._clip = [clip]
        sentences = vocabulary.class_sentences()
        self.rows = rows
        self.sentences = [sentences[row] for row in rows]
        verbs = torch.from_numpy(vocabulary.hoi_verb[rows])
        labels = F.one_hot(verbs, len(vocabulary.verbs)).float()  # (K, C), label_HO of the public program
        self.register_buffer("average", labels / labels.sum(0).clamp(min=1), persistent=False)  # (K, C)
        self.register_buffer("plain", encode_text(clip, self.sentences), persistent=False)  # (K, D)
        self.register_buffer("descriptions", descriptions[rows].clone(), persistent=False)
        self.register_buffer("tokens", tokenize(clip, self.sentences), persistent=False)
        self.prompts = prompts

    def forward(self) -> Tensor:
        """[K, D] un-normalised text features of the rows."""
        if self.prompts is None:
            return self.plain
        return encode_prompted_text(self._clip[0], self.tokens, self.prompts(self.descriptions))

    def verb_text(self) -> Tensor:
        """[C, D] mean feature of each verb's rows: the classifier."""
        return self.average.T @ self.forward()

    def encode(self, sentences: list[str], batch_size: int = 256) -> Tensor:
        """Free text through the adapted tower, [N, D]: each sentence's own CLIP feature is its description."""
        plain = encode_text(self._clip[0], sentences)
        if self.prompts is None:
            return plain
        chunks = []
        with torch.no_grad():
            tokens = tokenize(self._clip[0], sentences, reserve=self.prompts.bases.shape[1])
            for start in range(0, len(sentences), batch_size):
                part = slice(start, start + batch_size)
                prompts = self.prompts(F.normalize(plain[part], dim=-1))
                chunks.append(encode_prompted_text(self._clip[0], tokens[part], prompts))
        return torch.cat(chunks)

    def space(self, checkpoint: str) -> TextSpace:
        """Identity of the classifier's text space; `checkpoint` is the fingerprint of the trained model."""
        return clip_text_space(self._clip[0], "none" if self.prompts is None else f"ezhoi:{checkpoint}")
