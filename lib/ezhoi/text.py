"""The text side of EZ-HOI: which HOI sentences represent a class, and their features (spec ez-hoi.md §2.7, §4, §5.3).

    sentence of a row -> CLIP text tower (with live prompts in front) -> [descriptors] -> [adapter] -> T [K, D]
    class text = mean of the rows of a class [C, D]

With `text_prompts: off` and no adapter (the released behaviour) T is plain CLIP text: constant, computed once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from lib.clip.load import ClipModel
from lib.clip.text import encode_text, encode_tokens, tokenize
from lib.clip.text_space import TextSpace, clip_text_space
from lib.data.descriptions import Difference
from lib.ezhoi.adapters import BottleneckAdapter
from lib.ezhoi.loss import semantic_relation_loss
from lib.ezhoi.prompts import TextPrompts


def select_rows(hoi_verb: np.ndarray, descriptions: Tensor, partners: Mapping[int, int] | None = None) -> np.ndarray:
    """Ascending HOI ids that stand for the verbs: all of a verb with one or two HOIs, else its least similar pair.

    hoi_verb: [H] verb of each HOI. descriptions: [H, D] L2-normalised. HICO-DET gives 195 rows (spec §2.7). partners:
    unseen HOI id -> related seen one, whose row joins that of a selected unseen class (`--unseen_pt_inj`).
    """
    chosen: set[int] = set()
    for verb in np.unique(hoi_verb):
        hois = np.flatnonzero(hoi_verb == verb)
        if len(hois) > 2:
            similarity = descriptions[hois] @ descriptions[hois].T
            a, b = np.unravel_index(int(similarity.argmin()), similarity.shape)
            hois = hois[[a, b]]
        chosen.update(hois.tolist())
    chosen |= {seen for unseen, seen in (partners or {}).items() if unseen in chosen}
    return np.array(sorted(chosen), np.int64)


class UnseenGuides(nn.Module):
    """What unseen classes look at: their seen partner and texts on the difference, as constant buffers (§4.3)."""

    def __init__(self, clip: ClipModel, differences: Mapping[int, Difference], num_hois: int) -> None:
        super().__init__()
        self.register_buffer("partner", torch.full((num_hois,), -1), persistent=False)  # (H,) seen HOI, -1 for none
        self.register_buffer("slot", torch.full((num_hois,), -1), persistent=False)  # (H,) row of `texts`
        for slot, (unseen, difference) in enumerate(differences.items()):
            self.partner[unseen], self.slot[unseen] = difference.seen, slot
        counts = [len(difference.sentences) for difference in differences.values()]
        encoded = encode_text(clip, [s for difference in differences.values() for s in difference.sentences])
        texts = pad_sequence(list(encoded.split(counts)), batch_first=True)  # (U, L, D)
        self.register_buffer("texts", texts, persistent=False)
        self.register_buffer("padding", _slots_from(counts, texts), persistent=False)  # (U, L)


class ClassText(nn.Module):
    """Features of the selected HOI sentences and their mean a class.

    sentences: [H] of all HOI classes; objects: [H] their object ids; class_of_hoi: [H] what they count for. rows: [K]
    HOI ids that stand for the classes.
    descriptions: [H, D] L2-normalised description features, needed while the text is live. unseen: HOI ids withheld.
    guides, prompts, act_descriptor_attn (with descriptors: [H] lists of texts), txtmem_adapter: the live parts, None
    where switched off.
    """

    def __init__(
        self,
        clip: ClipModel,
        sentences: Sequence[str],
        objects: np.ndarray,
        rows: np.ndarray,
        class_of_hoi: np.ndarray,
        unseen: Iterable[int],
        descriptions: Tensor | None = None,
        *,
        prompts: TextPrompts | None = None,
        guides: UnseenGuides | None = None,
        act_descriptor_attn: BottleneckAdapter | None = None,
        descriptors: Sequence[Sequence[str]] | None = None,
        txtmem_adapter: BottleneckAdapter | None = None,
    ) -> None:
        super().__init__()
        self._clip = [clip]  # frozen, held outside the module tree: never trained or saved with this model
        self.sentences, self.rows = list(sentences), rows
        labels = F.one_hot(torch.from_numpy(class_of_hoi[rows]), int(class_of_hoi.max()) + 1).float()  # (K, C)
        constants = {
            "row_ids": torch.from_numpy(rows),
            "average": labels / labels.sum(0).clamp(min=1),  # (K, C), from label_HO of the public program
            "class_of_hoi": torch.from_numpy(class_of_hoi),  # (H,)
            "objects": torch.from_numpy(objects),  # (H,)
            "unseen": torch.isin(torch.arange(len(sentences)), torch.tensor(list(unseen), dtype=torch.long)),  # (H,)
            "plain": encode_text(clip, [sentences[row] for row in rows]).cpu(),  # (K, D)
            "descriptions": descriptions,
        }
        for name, value in constants.items():
            self.register_buffer(name, value, persistent=False)
        self.prompts, self.guides, self.txtmem_adapter = prompts, guides, txtmem_adapter
        self.act_descriptor_attn = act_descriptor_attn
        if prompts is not None:
            self.register_buffer("tokens", tokenize(clip, sentences), persistent=False)  # (H, context)
        if act_descriptor_attn is not None:
            texts, padding = _closest_descriptors(clip, descriptors, descriptions)
            self.register_buffer("descriptors", texts, persistent=False)  # (H, 3, D)
            self.register_buffer("descriptor_padding", padding, persistent=False)  # (H, 3)

    @property
    def live(self) -> bool:
        """Whether the class text depends on trained parameters; otherwise it is computed once."""
        return any(part is not None for part in (self.prompts, self.act_descriptor_attn, self.txtmem_adapter))

    def forward(self) -> Tensor:
        """T [K, D], un-normalised text features of the rows."""
        return self.hoi_text(self.row_ids) if self.live else self.plain

    def class_text(self, rows: Tensor | None = None) -> Tensor:
        """[C, D] mean feature of each class's rows: the classifier. rows: T [K, D] if it is at hand."""
        return self.average.T @ (self.forward() if rows is None else rows)

    def hoi_text(self, hois: Tensor) -> Tensor:
        """[N, D] features of the sentences of HOI classes [N], through every live part."""
        if self.prompts is not None:
            text = encode_tokens(self._clip[0], self.tokens[hois], self._prompts_of(hois))
        elif torch.equal(hois, self.row_ids):
            text = self.plain
        else:
            text = encode_text(self._clip[0], [self.sentences[i] for i in hois.tolist()]).to(self.plain.device)
        if self.act_descriptor_attn is not None:
            text = self._look_at(text, self.descriptors[hois], self.descriptor_padding[hois])
        return self._adapt(text)

    def encode(self, sentences: Sequence[str], batch_size: int = 256) -> Tensor:
        """[N, D] free text through the adapted tower, without gradient.

        A class sentence gets its class's feature; any other sentence describes itself: its own CLIP feature stands for
        the description and the action descriptors, and no unseen-class guide applies.
        """
        clip, device = self._clip[0], self.plain.device
        plain = encode_text(clip, sentences).to(device)
        if not self.live:
            return plain
        chunks = []
        with torch.no_grad():
            for start in range(0, len(sentences), batch_size):
                text = plain[start : start + batch_size]
                if self.prompts is not None:
                    reserve = self.prompts.bases.shape[1]
                    tokens = tokenize(clip, sentences[start : start + batch_size], reserve=reserve)
                    text = encode_tokens(clip, tokens, self.prompts(F.normalize(text, dim=-1)))
                if self.act_descriptor_attn is not None:
                    text = self._look_at(text, plain[start : start + batch_size, None], None)
                chunks.append(self._adapt(text))
            found = torch.cat(chunks)
            hoi_of = {sentence: hoi for hoi, sentence in enumerate(self.sentences)}
            mine = [i for i, sentence in enumerate(sentences) if sentence in hoi_of]
            if mine:
                found[mine] = self.hoi_text(torch.tensor([hoi_of[sentences[i]] for i in mine], device=device))
        return found

    def semantic_loss(self, text: Tensor, hois: Tensor) -> Tensor:
        """Semantic relation loss of the rows that a batch concerns (spec §5.3, the intended form; unweighted).

        text: T [K, D]. hois: HOI ids of the batch's annotations. Seen rows are those that stand for the scored classes
        of these HOIs, unseen rows the unseen HOIs on the objects that occur among them.
        """
        unseen = self.unseen[self.row_ids]  # (K,)
        seen_rows = ~unseen & torch.isin(self.class_of_hoi[self.row_ids], self.class_of_hoi[hois])
        unseen_rows = unseen & torch.isin(self.objects[self.row_ids], self.objects[hois])
        return semantic_relation_loss(text, self.descriptions[self.row_ids], seen_rows, unseen_rows)

    def space(self, checkpoint: str) -> TextSpace:
        """Identity of the classifier's text space; `checkpoint` is the fingerprint of the trained model."""
        return clip_text_space(self._clip[0], f"ezhoi:{checkpoint}" if self.live else "none")

    # ------------------------------------------------------------ parts

    def _prompts_of(self, hois: Tensor) -> Tensor:
        prompts = self.prompts(self.descriptions[hois])  # (T, N, p, W)
        guides = self.guides
        if guides is None:
            return prompts
        guided = (guides.partner[hois] >= 0).nonzero().squeeze(1)  # (U,)
        if not len(guided):
            return prompts
        seen = self.prompts(self.descriptions[guides.partner[hois[guided]]])
        slots = guides.slot[hois[guided]]
        learnt = self.prompts.learn_from_seen(prompts[:, guided], seen, guides.texts[slots], guides.padding[slots])
        return prompts.index_copy(1, guided, learnt)

    def _look_at(self, text: Tensor, memory: Tensor, padding: Tensor | None) -> Tensor:
        return self.act_descriptor_attn(text[:, None], memory, memory_padding=padding)[:, 0]

    def _adapt(self, text: Tensor) -> Tensor:
        return text if self.txtmem_adapter is None else self.txtmem_adapter(text[:, None])[:, 0]


def _closest_descriptors(
    clip: ClipModel, descriptors: Sequence[Sequence[str]], descriptions: Tensor, count: int = 3
) -> tuple[Tensor, Tensor]:
    """[H, count, D] features of each class's descriptors nearest to its description, and their padding (§4.4).

    A class without any descriptor looks at its own description.
    """
    lengths = [len(texts) for texts in descriptors]
    encoded = encode_text(clip, [text for texts in descriptors for text in texts]).cpu().split(lengths)
    chosen = []
    for texts, description in zip(encoded, descriptions, strict=True):
        best = (texts @ description).topk(min(count, len(texts))).indices
        chosen.append(texts[best] if len(best) else description[None])
    padded = pad_sequence(chosen, batch_first=True)
    return padded, _slots_from([len(texts) for texts in chosen], padded)


def _slots_from(counts: Sequence[int], padded: Tensor) -> Tensor:
    """[N, L] True in the slots of `padded` [N, L, D] behind the first `counts` of each row."""
    return torch.arange(padded.shape[1])[None] >= torch.tensor(counts)[:, None]
