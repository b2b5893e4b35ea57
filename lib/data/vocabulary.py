"""Objects, verbs and HOI classes as an annotation file states them, and the English of their class texts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

NO_INTERACTION = "no_interaction"
PERSON = "person"

# Verb -> gerund for every HICO-DET verb, with the particle that its name carries (spec ez-hoi.md, Appendix A).
# `no_interaction` takes the word "and" in place of a gerund.
GERUNDS = dict(
    adjust="adjusting", assemble="assembling", block="blocking", blow="blowing", board="boarding",
    break_="breaking", brush_with="brushing with", buy="buying", carry="carrying", catch="catching",
    chase="chasing", check="checking", clean="cleaning", control="controlling", cook="cooking",
    cut="cutting", cut_with="cutting with", direct="directing", drag="dragging", dribble="dribbling",
    drink_with="drinking with", drive="driving", dry="drying", eat="eating", eat_at="eating at",
    exit="exiting", feed="feeding", fill="filling", flip="flipping", flush="flushing", fly="flying",
    greet="greeting", grind="grinding", groom="grooming", herd="herding", hit="hitting", hold="holding",
    hop_on="hopping on", hose="hosing", hug="hugging", hunt="hunting", inspect="inspecting",
    install="installing", jump="jumping", kick="kicking", kiss="kissing", lasso="lassoing",
    launch="launching", lick="licking", lie_on="lying on", lift="lifting", light="lighting", load="loading",
    lose="losing", make="making", milk="milking", move="moving", no_interaction="and", open="opening",
    operate="operating", pack="packing", paint="painting", park="parking", pay="paying", peel="peeling",
    pet="petting", pick="picking", pick_up="picking up", point="pointing", pour="pouring", pull="pulling",
    push="pushing", race="racing", read="reading", release="releasing", repair="repairing", ride="riding",
    row="rowing", run="running", sail="sailing", scratch="scratching", serve="serving", set="setting",
    shear="shearing", sign="signing", sip="sipping", sit_at="sitting at", sit_on="sitting on",
    slide="sliding", smell="smelling", spin="spinning", squeeze="squeezing", stab="stabbing",
    stand_on="standing on", stand_under="standing under", stick="sticking", stir="stirring",
    stop_at="stopping at", straddle="straddling", swing="swinging", tag="tagging", talk_on="talking on",
    teach="teaching", text_on="texting on", throw="throwing", tie="tying", toast="toasting", train="training",
    turn="turning", type_on="typing on", walk="walking", wash="washing", watch="watching", wave="waving",
    wear="wearing", wield="wielding", zip="zipping",
)  # fmt: skip
GERUNDS["break"] = GERUNDS.pop("break_")

# The published prompts write "an" before these five objects only ("a umbrella" stays; spec Appendix A).
_AN_OBJECTS = {"airplane", "apple", "elephant", "orange", "oven"}


@dataclass(frozen=True)
class Vocabulary:
    """Class names and the (object, verb) pairs that form HOI classes, read from the annotation file.

    objects: names with underscores, index = object id; person is one of them.
    verbs: names with underscores, index = verb id.
    hoi_object, hoi_verb: [C] ids of each HOI class.
    """

    objects: tuple[str, ...]
    verbs: tuple[str, ...]
    hoi_object: np.ndarray
    hoi_verb: np.ndarray

    @property
    def num_hois(self) -> int:
        return len(self.hoi_verb)

    @cached_property
    def person(self) -> int:
        """Object id of `person`."""
        if PERSON not in self.objects:
            raise ValueError(f"the vocabulary has no object {PERSON!r}: found {list(self.objects)}")
        return self.objects.index(PERSON)

    @cached_property
    def hoi_of(self) -> np.ndarray:
        """[objects, verbs] HOI id of a combination, -1 where it is no class."""
        table = np.full((len(self.objects), len(self.verbs)), -1, np.int64)
        table[self.hoi_object, self.hoi_verb] = np.arange(self.num_hois)
        return table

    def valid_verbs(self, hois: np.ndarray | None = None) -> np.ndarray:
        """[objects, verbs] bool affordance mask built from `hois` (default: all classes)."""
        hois = np.arange(self.num_hois) if hois is None else np.asarray(hois, np.int64)
        mask = np.zeros((len(self.objects), len(self.verbs)), bool)
        mask[self.hoi_object[hois], self.hoi_verb[hois]] = True
        return mask

    def hoi_name(self, hoi: int) -> str:
        """`verb object`, e.g. `ride bicycle`."""
        return f"{self.verbs[self.hoi_verb[hoi]]} {self.objects[self.hoi_object[hoi]]}".replace("_", " ")

    def hoi_label(self, hoi: int) -> str:
        """`a photo of a person riding a bicycle` by the rule of the published prompts (spec Appendix A)."""
        verb = self.verbs[self.hoi_verb[hoi]]
        if verb not in GERUNDS:
            raise KeyError(f"verb {verb!r} has no gerund; add it to lib/data/vocabulary.py:GERUNDS")
        return f"a photo of a person {GERUNDS[verb]} {noun_phrase(self.objects[self.hoi_object[hoi]])}"

    def class_sentences(self) -> list[str]:
        """C prompt sentences as EZ-HOI feeds them to the text tower: `A photo of a person riding a bicycle.`"""
        return [f"A photo of {self.hoi_label(hoi)[11:]}." for hoi in range(self.num_hois)]

    def object_sentences(self) -> list[str]:
        """One `a photo of a bicycle` an object, and a last row `a photo of nothing`."""
        return [f"a photo of {noun_phrase(name)}" for name in self.objects] + ["a photo of nothing"]


def noun_phrase(name: str) -> str:
    """`sports_ball` -> `a sports ball`."""
    return f"{'an' if name in _AN_OBJECTS else 'a'} {name.replace('_', ' ')}"
